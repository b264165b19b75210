// A whole MoE layer: norm, router, experts and the sum with the residual stream. The normed tokens reach the router in
// fp32 without a way through memory, forwards and backwards.
//
// Legend: as in plan.h and router.h; T is what the products take.
#pragma once
#include "backward.h"
#include "forward.h"
#include "router.h"

struct MoELayer {
  Router router;    // of which weight is set by RouterColumns
  Problem problem;
  const float *router_weight, *shared_gate;  // [E, D]; [D] or null
  // what the backward pass needs, and `problem` and `router` refer to
  int64_t* index;               // [N, k]
  float *weight, *gate;         // [N, k]; [N] or null
  float *scores, *lse;          // [N, E]; [N] or null
  void *hidden, *shared_hidden; // as experts_forward keeps them, null if nothing is kept for a backward pass
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

// Of the inputs: dx [N, D] in the dtype of the stream, all others fp32. `experts` has those of the experts' own weights,
// null where nobody asks.
struct MoEGradients {
  Matrix dx;
  float *norm, *router, *shared_gate;
  Gradients experts;
};

// `dy` is null where only the auxiliary loss, of which `dloss` is the gradient, was differentiated.
template <class T>
static void layer_backward(const MoELayer& l, const Matrix& dy, float dloss, const float* counts, const MoEGradients& to,
                           int64_t threads) {
  const Problem& p = l.problem;
  const Router& router = l.router;
  std::vector<float> dweight(dy.data ? p.N * p.k : 0), dgate(dy.data && l.gate ? p.N : 0);
  Matrix dh{nullptr, p.D, router.h.half};
  Temporary<OnTheWayBack<T>, MoELayer> temporary(l);
  if (dy.data) {
    Gradients experts = to.experts;
    dh.data = temporary.parts.dh;
    experts.dx = dh, experts.weight = dweight.data(), experts.shared_weight = dgate.empty() ? nullptr : dgate.data();
    backward(p, dy, (const T*)l.hidden, (const T*)l.shared_hidden, temporary.parts.parts, experts, threads);
  }
  const RouterColumns columns(l);
  std::vector<float> dcolumns(router.C * p.D);
  route_backward(columns.of(l),
                 {l.index, l.weight, l.scores, l.gate, l.lse, counts, dy.data ? dweight.data() : nullptr,
                  dgate.empty() ? nullptr : dgate.data(), dloss, nullptr, dcolumns.data(), dh, dy, to.dx, to.norm},
                 threads);
  std::copy(dcolumns.begin(), dcolumns.begin() + router.E * p.D, to.router);
  if (to.shared_gate) std::copy(dcolumns.end() - p.D, dcolumns.end(), to.shared_gate);
}
