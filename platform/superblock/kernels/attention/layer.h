// A whole attention layer: norm, projection, norms and rotation of queries and keys, attention, gate, projection and the
// sum with the residual stream.
//
// Legend: as in problem.h, and N = B T tokens, D model width, M columns of the projection: the heads [q: H | k: G | v: G |
// gate: H, or none], E the rows' type.
#pragma once
#include "backward.h"
#include "forward.h"
#include "mixer.h"

struct AttentionLayer {
  Ends ends;
  Problem problem;
  Turn query_turn, key_turn;
  bool gated;
  // what the backward pass needs, all contiguous
  void* h;        // [N, D]
  float* scales;  // [N]
  void *rows, *y; // [N, M], [N, H K]
  void* o;        // [N, H K] before the gate, null without one: then it is y
  float* sums;    // [2, B, G, T H / G]

  Matrix as_rows(void* data, int64_t width) const { return {data, width, problem.half != 0}; }
  // Queries, keys, values and gate (null without one) within rows of the projection.
  template <class E>
  void heads(void* all, E* (&parts)[4]) const {
    int64_t begin[] = {0, problem.H, problem.H + problem.G, problem.H + 2 * problem.G};
    for (int i = 0; i < 4; i++) parts[i] = i < 3 || gated ? (E*)all + begin[i] * problem.K : nullptr;
  }
};

// The problem of such a layer: everything lies in rows of M elements.
static Problem problem_of_rows(bool half, int64_t B, int64_t T, int64_t H, int64_t G, int64_t K, int64_t M, int64_t window,
                               bool packed, int64_t rotated, int64_t position_row, int64_t position_step) {
  Problem p{half, B, T, T, H, G, K, window, 0, packed, rotated, {position_row, position_step}};
  for (int64_t* stride : {p.q, p.k, p.v, p.gate, p.dq, p.dk, p.dv, p.dgate}) stride[0] = T * M, stride[1] = M, stride[2] = K;
  return p;
}

template <class E, class T>
static void layer_forward(const AttentionLayer& l, const Matrix& stream, int64_t threads) {
  const Problem& p = l.problem;
  enter<T>(l.ends, l.as_rows(l.h, l.ends.D), nullptr, l.scales, l.as_rows(l.rows, l.ends.M), threads);
  E* in[4];
  l.heads(l.rows, in);
  forward<E>(p, in[0], in[1], in[2], in[3], l.query_turn, l.key_turn, {(E*)l.y, (E*)l.o, l.sums}, threads);
  leave<T>(l.ends, l.as_rows(l.y, p.H * p.K), stream, threads);
}

// Of the inputs: dx [N, D] in the dtype of the stream, all others fp32.
struct AttentionGradients {
  Matrix dx;
  float *norm, *enter, *query_norm, *key_norm, *leave;
};

struct AttentionTemporaries {
  void *rows, *y;  // gradients of those of the same names
  float* h;
  AttentionTemporaries(const AttentionLayer& l, Arena& arena) {
    const int64_t N = l.ends.N, size = l.problem.half ? sizeof(bf16) : sizeof(float);
    rows = arena.take<char>(N * l.ends.M * size), y = arena.take<char>(N * l.ends.Y * size), h = arena.take(N * l.ends.D);
  }
};

template <class E, class T>
static void layer_backward(const AttentionLayer& l, const Matrix& dstream, const AttentionGradients& to, int64_t threads) {
  const Problem& p = l.problem;
  Temporary<AttentionTemporaries, AttentionLayer> temporary(l);
  const AttentionTemporaries& d = temporary.parts;
  leave_backward<T>(l.ends, dstream, l.as_rows(l.y, p.H * p.K), l.as_rows(d.y, p.H * p.K), to.leave, threads);
  E *in[4], *out[4];
  l.heads(l.rows, in), l.heads(d.rows, out);
  Inputs<E> inputs{{in[0], p.q}, {in[1], p.k}, {in[2], p.v},  {in[3], p.gate}, (const E*)(l.o ? l.o : l.y),
                   (const E*)d.y, l.sums,      l.query_turn, l.key_turn};
  Gradients<E> gradients{{out[0], p.dq}, {out[1], p.dk}, {out[2], p.dv}, {out[3], p.dgate}, to.query_norm, to.key_norm};
  backward<E>(p, inputs, gradients, threads);
  enter_backward<T>(l.ends, dstream, l.as_rows(d.rows, l.ends.M), d.h, false, l.as_rows(l.h, l.ends.D), l.scales, to.dx,
                    to.norm, to.enter, threads);
}
