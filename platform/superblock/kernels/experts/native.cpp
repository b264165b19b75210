// A mixture of SwiGLU experts on a processor: what Python calls. See plan.h for the legend.
#include "layer.h"

// What Python passes, by these names, here and below. x, dy and h may have rows that lie apart; all else is contiguous.
struct ExpertsArguments {
  void* x;                             // [N, D]
  int64_t x_stride, x_half;
  void *gate_up, *down;                // [E, 2 F, D], [E, D, F]
  void *shared_gate_up, *shared_down;  // the same without E and with shared_F, or null
  int64_t weights_half;
  const int64_t* index;                // [N, k]
  const float *weight, *shared_weight; // [N, k]; [N] or null
  int64_t N, D, F, shared_F, E, k;
  int64_t in_half;                     // multiply in bf16, which the level must have, and keep `hidden` and `parts` in it
  void *hidden, *shared_hidden;        // as `forward` says
  void* parts;
};

static Problem problem_of(const ExpertsArguments& a) {
  const bool halves = a.weights_half != 0;
  Weights shared{{a.shared_gate_up, a.D, halves}, {a.shared_down, a.shared_F, halves}, a.shared_F};
  return {{a.x, a.x_stride, a.x_half != 0}, a.index, a.weight, a.shared_weight, {a.gate_up, a.D, halves},
          {a.down, a.F, halves}, shared, a.N, a.D, a.F, a.E, a.k};
}

ENTRY void experts_forward(const ExpertsArguments* a, void* y, int64_t y_half, float* power, int64_t threads) {
  const Problem p = problem_of(*a);
  with_operand(a->in_half, [&](auto operand) {
    using T = decltype(operand);
    forward(p, {y, p.D, y_half != 0}, Matrix{}, (T*)a->hidden, (T*)a->shared_hidden, (T*)a->parts, power, threads);
  });
}

// What comes, and where gradients go: all but dx in fp32; null where nobody asks.
struct ExpertsGradients {
  void* dy;  // [N, D]
  int64_t dy_stride, dy_half;
  void* dx;
  int64_t dx_half;
  float *gate_up, *down, *shared_gate_up, *shared_down, *weight, *shared_weight;
};

ENTRY void experts_backward(const ExpertsArguments* a, const ExpertsGradients* to, int64_t threads) {
  const Problem p = problem_of(*a);
  Gradients g{{to->dx, p.D, to->dx_half != 0}, to->gate_up, to->down, to->shared_gate_up, to->shared_down, to->weight,
              to->shared_weight};
  with_operand(a->in_half, [&](auto operand) {
    using T = decltype(operand);
    backward(p, {to->dy, to->dy_stride, to->dy_half != 0}, (const T*)a->hidden, (const T*)a->shared_hidden, (T*)a->parts, g,
             threads);
  });
}

struct RouterArguments {
  void* h;  // [N, D]
  int64_t h_stride, h_half;
  const float *weight, *bias;  // [C, D], [E]
  int64_t N, D, E, C, k, softmax;
  double scale, aux_loss, z_loss;
};

static Router router_of(const RouterArguments& a) {
  return {{a.h, a.h_stride, a.h_half != 0}, a.weight, a.bias, a.N, a.D, a.E, a.C, a.k, a.softmax != 0, (float)a.scale,
          (float)a.aux_loss, (float)a.z_loss, {}};
}

ENTRY void router_forward(const RouterArguments* a, int64_t* index, float* weight, float* shared, float* loss,
                          float* counts, float* stats, float* scores, float* lse, int64_t threads) {
  route(router_of(*a), {index, weight, shared, scores, lse, loss, counts, stats}, threads);
}

// What forward gave, its gradients (null is zero), and where those of h and the weights go.
struct RouterBackward {
  const int64_t* index;
  const float *weight, *shared, *counts, *scores, *lse;
  const float *dweight, *dshared, *dloss;
  float *dh, *drouter;
};

ENTRY void router_backward(const RouterArguments* a, const RouterBackward* b, int64_t threads) {
  float pull = b->dloss ? *b->dloss : 0;
  route_backward(router_of(*a),
                 {b->index, b->weight, b->scores, b->shared, b->lse, b->counts, b->dweight, b->dshared, pull, b->dh,
                  b->drouter, {}, {}, {}, nullptr},
                 threads);
}

// y [N, D] in the dtype of the stream, loss [1], counts [E], stats [4].
ENTRY void moe_layer_forward(const MoEArguments* arguments, void* y, float* loss, float* counts, float* stats,
                             int64_t threads) {
  const MoELayer l(*arguments);
  with_operand(l.in_half, [&](auto operand) {
    layer_forward<decltype(operand)>(l, l.as_stream(y), loss, counts, stats, threads);
  });
}

ENTRY void moe_layer_backward(const MoEArguments* arguments, const MoEGradients* gradients, int64_t threads) {
  const MoELayer l(*arguments);
  with_operand(l.in_half, [&](auto operand) { layer_backward<decltype(operand)>(l, *gradients, threads); });
}
