// A whole MoE layer: norm, router, experts and the sum with the residual stream. The normed tokens reach the router in
// fp32 without a way through memory, forwards and backwards.
//
// Legend: as in plan.h and router.h; T is what the products take.
#pragma once
#include "backward.h"
#include "forward.h"
#include "router.h"

// What Python passes, by these names. Every tensor is contiguous.
struct MoEArguments {
  void* x;                                         // [N, D], the stream
  const float *norm, *router_weight;               // [D], [E, D]
  const float *shared_gate, *bias;                 // [D] or null; [E], null in a backward pass, which chooses nothing
  void *gate_up, *down;                            // [E, 2 F, D], [E, D, F]
  void *shared_gate_up, *shared_down;              // the same without E and with shared_F, or null
  int64_t N, D, F, shared_F, E, k;
  int64_t x_half, weights_half, half, in_half;     // bf16: the stream, experts' weights, what products give, what they take
  int64_t softmax;
  double epsilon, scale, aux_loss, z_loss;
  // what the backward pass needs, and `problem` and `router` refer to
  void* h;                        // [N, D], the normed tokens
  float* scales;                  // [N]
  int64_t* index;                 // [N, k]
  float *weight, *gate;           // [N, k]; [N] or null
  float *scores, *lse;            // [N, E]; [N] or null
  void *hidden, *shared_hidden;   // as experts_forward keeps them, null if nothing is kept for a backward pass
};

struct MoELayer : MoEArguments {
  Router router;  // of which weight is set by RouterColumns
  Problem problem;

  explicit MoELayer(const MoEArguments& arguments) : MoEArguments(arguments) {
    Norm entry{as_stream(x), norm, (float)epsilon, scales};
    router = {{h, D, half != 0}, nullptr, bias, N, D, E, shared_gate ? E + 1 : E, k, softmax != 0, (float)scale,
              (float)aux_loss, (float)z_loss, entry};
    const bool halves = weights_half != 0;
    Weights shared{{shared_gate_up, D, halves}, {shared_down, shared_F, halves}, shared_F};
    problem = {router.h, index, weight, gate, {gate_up, D, halves}, {down, F, halves}, shared, N, D, F, E, k};
  }

  Matrix as_stream(void* data) const { return {data, D, x_half != 0}; }
};

// The router's weights with the shared expert's gate below them, as the router takes them.
struct RouterColumns {
  std::vector<float> weight;
  explicit RouterColumns(const MoELayer& l) : weight(l.router.C * l.router.D) {
    std::copy(l.router_weight, l.router_weight + l.router.E * l.router.D, weight.begin());
    if (l.shared_gate) std::copy(l.shared_gate, l.shared_gate + l.router.D, weight.end() - l.router.D);
  }
  Router of(const MoELayer& l) const {
    Router r = l.router;
    r.weight = weight.data();
    return r;
  }
};

// What the experts write on the way, and backwards the gradient of the normed tokens.
template <class T>
struct OnTheWay {
  T* parts;  // [N k, D]
  OnTheWay(const MoELayer& l, Arena& arena) { parts = arena.take<T>(l.problem.N * l.problem.k * l.problem.D); }
};
template <class T>
struct OnTheWayBack : OnTheWay<T> {
  float* dh;  // [N, D], of which a gradient in bf16 uses half
  OnTheWayBack(const MoELayer& l, Arena& arena) : OnTheWay<T>(l, arena) { dh = arena.take(l.problem.N * l.problem.D); }
};

// y [N, D], stats [4]: the router's three, and the shared part's share of the result beside the routed part's.
template <class T>
static void layer_forward(const MoELayer& l, const Matrix& y, float* loss, float* counts, float* stats, int64_t threads) {
  const Problem& p = l.problem;
  const RouterColumns columns(l);
  route(columns.of(l), {l.index, l.weight, l.gate, l.scores, l.lse, loss, counts, stats}, threads);
  Temporary<OnTheWay<T>, MoELayer> temporary(l);
  std::vector<float> power(2 * l.router.blocks());
  forward(p, y, l.router.norm.x, (T*)l.hidden, (T*)l.shared_hidden, temporary.parts.parts, power.data(), threads);
  double routed = 0, shared = 0;
  for (int64_t b = 0; b < l.router.blocks(); b++) routed += power[2 * b], shared += power[2 * b + 1];
  stats[3] = (float)(std::sqrt(shared) / (std::sqrt(routed) + 1e-20));
}

// What comes, and where gradients go: `dx` in the dtype of the stream, all others in fp32. Null: nothing comes (`dy` [N, D]
// where only the auxiliary loss was differentiated, of which `dloss` is the gradient), or nobody asks (for the experts').
struct MoEGradients {
  void* dy;
  const float *dloss, *counts;
  void* dx;
  float *norm, *router, *shared_gate, *gate_up, *down, *shared_gate_up, *shared_down;
};

template <class T>
static void layer_backward(const MoELayer& l, const MoEGradients& to, int64_t threads) {
  const Matrix dy = l.as_stream(to.dy);
  const Problem& p = l.problem;
  const Router& router = l.router;
  std::vector<float> dweight(dy.data ? p.N * p.k : 0), dgate(dy.data && l.gate ? p.N : 0);
  Matrix dh{nullptr, p.D, router.h.half};
  Temporary<OnTheWayBack<T>, MoELayer> temporary(l);
  if (dy.data) {
    dh.data = temporary.parts.dh;
    Gradients experts{dh, to.gate_up, to.down, to.shared_gate_up, to.shared_down, dweight.data(),
                      dgate.empty() ? nullptr : dgate.data()};
    backward(p, dy, (const T*)l.hidden, (const T*)l.shared_hidden, temporary.parts.parts, experts, threads);
  }
  const RouterColumns columns(l);
  std::vector<float> dcolumns(router.C * p.D);
  route_backward(columns.of(l),
                 {l.index, l.weight, l.scores, l.gate, l.lse, to.counts, dy.data ? dweight.data() : nullptr,
                  dgate.empty() ? nullptr : dgate.data(), to.dloss ? *to.dloss : 0, nullptr, dcolumns.data(), dh, dy,
                  l.as_stream(to.dx), to.norm},
                 threads);
  std::copy(dcolumns.begin(), dcolumns.begin() + router.E * p.D, to.router);
  if (to.shared_gate) std::copy(dcolumns.end() - p.D, dcolumns.end(), to.shared_gate);
}
