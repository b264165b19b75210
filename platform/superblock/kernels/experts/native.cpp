// A mixture of SwiGLU experts on a processor: what Python calls. See plan.h for the legend.
#include "layer.h"

static Problem problem(void* x, int64_t x_half, int64_t x_stride, void* gate_up, void* down, int64_t half,
                       const int64_t* index, const float* weight, void* shared_gate_up, void* shared_down,
                       const float* shared_weight, int64_t N, int64_t D, int64_t F, int64_t shared_F, int64_t E,
                       int64_t k) {
  Weights shared{{shared_gate_up, D, half != 0}, {shared_down, shared_F, half != 0}, shared_F};
  Matrix all_gate_up{gate_up, D, half != 0}, all_down{down, F, half != 0};
  return {{x, x_stride, x_half != 0}, index, weight, shared_weight, all_gate_up, all_down, shared, N, D, F, E, k};
}

// `stream`, of the dtype of y, is added to the result unless it is null. `in_half`: multiply in bf16, and `hidden`,
// `shared_hidden` and `parts` are bf16; the level must have its products.
ENTRY void experts_forward(void* x, int64_t x_half, int64_t x_stride, void* gate_up, void* down, int64_t half,
                           const int64_t* index, const float* weight, void* shared_gate_up, void* shared_down,
                           const float* shared_weight, int64_t N, int64_t D, int64_t F, int64_t shared_F, int64_t E,
                           int64_t k, int64_t in_half, void* y, int64_t y_half, void* stream, int64_t stream_stride,
                           void* hidden, void* shared_hidden, void* parts, float* power, int64_t threads) {
  Problem p = problem(x, x_half, x_stride, gate_up, down, half, index, weight, shared_gate_up, shared_down,
                      shared_weight, N, D, F, shared_F, E, k);
  Matrix out{y, D, y_half != 0}, added{stream, stream_stride, y_half != 0};
  with_operand(in_half, [&](auto operand) {
    using T = decltype(operand);
    forward(p, out, added, (T*)hidden, (T*)shared_hidden, (T*)parts, power, threads);
  });
}

ENTRY void experts_backward(void* x, int64_t x_half, int64_t x_stride, void* gate_up, void* down, int64_t half,
                            const int64_t* index, const float* weight, void* shared_gate_up, void* shared_down,
                            const float* shared_weight, int64_t N, int64_t D, int64_t F, int64_t shared_F, int64_t E,
                            int64_t k, int64_t in_half, void* dy, int64_t dy_half, int64_t dy_stride, void* hidden,
                            void* shared_hidden, void* parts, void* dx, int64_t dx_half, float* dgate_up, float* ddown,
                            float* dshared_gate_up, float* dshared_down, float* dweight, float* dshared_weight,
                            int64_t threads) {
  Problem p = problem(x, x_half, x_stride, gate_up, down, half, index, weight, shared_gate_up, shared_down,
                      shared_weight, N, D, F, shared_F, E, k);
  Gradients g{{dx, D, dx_half != 0}, dgate_up, ddown, dshared_gate_up, dshared_down, dweight, dshared_weight};
  Matrix dout{dy, dy_stride, dy_half != 0};
  with_operand(in_half, [&](auto operand) {
    using T = decltype(operand);
    backward(p, dout, (const T*)hidden, (const T*)shared_hidden, (T*)parts, g, threads);
  });
}

// Both router functions begin with these.
#define ROUTER                                                                                                         \
  void *h, int64_t half, int64_t stride, const float *router, const float *bias, int64_t N, int64_t D, int64_t E,      \
      int64_t C, int64_t k, int64_t softmax, double scale, double aux_loss, double z_loss

static Router problem_of(ROUTER) {
  Matrix tokens{h, stride, half != 0};
  return {tokens, router, bias, N, D, E, C, k, softmax != 0, (float)scale, (float)aux_loss, (float)z_loss, {}};
}

ENTRY void router_forward(ROUTER, int64_t* index, float* weight, float* shared, float* loss, float* counts,
                          float* stats, float* scores, float* lse, int64_t threads) {
  Router r = problem_of(h, half, stride, router, bias, N, D, E, C, k, softmax, scale, aux_loss, z_loss);
  route(r, {index, weight, shared, scores, lse, loss, counts, stats}, threads);
}

ENTRY void router_backward(ROUTER, const int64_t* index, const float* weight, const float* shared, const float* counts,
                           const float* scores, const float* lse, const float* dweight, const float* dshared,
                           const float* dloss, float* dh, float* drouter, int64_t threads) {
  Router r = problem_of(h, half, stride, router, bias, N, D, E, C, k, softmax, scale, aux_loss, z_loss);
  float pull = dloss ? *dloss : 0;
  route_backward(r, {index, weight, scores, shared, lse, counts, dweight, dshared, pull, dh, drouter, {}, {}, {}, nullptr},
                 threads);
}

// Both functions of the layer begin with these; see layer.h. `half`: of the products' results, and `in_half` of what they
// multiply; weights are all bf16 if `weights_half`. bias null: nothing is chosen, as in a backward pass.
#define LAYER                                                                                                          \
  void *x, int64_t x_half, const float *norm, const float *router, const float *shared_gate, const float *bias,        \
      void *gate_up, void *down, void *shared_gate_up, void *shared_down, int64_t weights_half, int64_t N, int64_t D,  \
      int64_t F, int64_t shared_F, int64_t E, int64_t k, int64_t half, int64_t in_half, int64_t softmax,               \
      double epsilon, double scale, double aux_loss, double z_loss, void *h, float *scales, int64_t *index,            \
      float *weight, float *gate, float *scores, float *lse, void *hidden, void *shared_hidden
#define PASSED                                                                                                         \
  x, x_half, norm, router, shared_gate, bias, gate_up, down, shared_gate_up, shared_down, weights_half, N, D, F,       \
      shared_F, E, k, half, in_half, softmax, epsilon, scale, aux_loss, z_loss, h, scales, index, weight, gate,        \
      scores, lse, hidden, shared_hidden

static MoELayer layer_of(LAYER) {
  Norm entry{{x, D, x_half != 0}, norm, (float)epsilon, scales};
  Router r{{h, D, half != 0}, nullptr, bias, N, D, E, shared_gate ? E + 1 : E, k, softmax != 0, (float)scale,
           (float)aux_loss, (float)z_loss, entry};
  Problem p = problem(h, half, D, gate_up, down, weights_half, index, weight, shared_gate_up, shared_down, gate, N, D, F,
                      shared_F, E, k);
  return {r, p, router, shared_gate, index, weight, gate, scores, lse, hidden, shared_hidden};
}

ENTRY void moe_layer_forward(LAYER, void* y, float* loss, float* counts, float* stats, int64_t threads) {
  MoELayer l = layer_of(PASSED);
  with_operand(in_half, [&](auto operand) {
    layer_forward<decltype(operand)>(l, {y, D, x_half != 0}, loss, counts, stats, threads);
  });
}

// dy, or null, and dx are in the dtype of x; all other gradients are fp32. Those of the experts' weights may be null.
ENTRY void moe_layer_backward(LAYER, void* dy, const float* dloss, const float* counts, void* dx, float* dnorm,
                              float* drouter, float* dshared_gate, float* dgate_up, float* ddown,
                              float* dshared_gate_up, float* dshared_down, int64_t threads) {
  MoELayer l = layer_of(PASSED);
  MoEGradients to{{dx, D, x_half != 0}, dnorm, drouter, dshared_gate,
                  {{}, dgate_up, ddown, dshared_gate_up, dshared_down, nullptr, nullptr}};
  with_operand(in_half, [&](auto operand) {
    layer_backward<decltype(operand)>(l, {dy, D, x_half != 0}, dloss ? *dloss : 0, counts, to, threads);
  });
}
