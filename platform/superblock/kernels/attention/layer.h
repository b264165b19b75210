// A whole attention layer: norm, projection, norms and rotation of queries and keys, attention, gate, projection and the
// sum with the residual stream.
//
// Legend: as in problem.h, and N = B T tokens, D model width, M columns of the projection: the heads [q: H | k: G | v: G |
// gate: H, or none], E the rows' type.
#pragma once
#include "backward.h"
#include "forward.h"
#include "mixer.h"

// What Python passes, by these names. Every tensor but the positions is contiguous.
struct AttentionArguments {
  void* x;                              // [N, D], the stream
  const float* norm;                    // [D]
  void *qkvg, *out;                     // [M, D], [D, H K]
  const float *query_norm, *key_norm;   // [K]
  const float *cosine, *sine;           // as `Turn` takes them
  const int64_t* positions;             // [B, T], `position_row` and `position_step` apart
  int64_t position_row, position_step;
  int64_t x_half, weights_half, half;   // whether the stream, the two projections and rows are bf16
  int64_t B, T, D, H, G, K, M, window, packed, rotated;
  double epsilon;
  // what the backward pass needs
  void* h;         // [N, D]
  float* scales;   // [N]
  void *rows, *y;  // [N, M], [N, H K]
  void* o;         // [N, H K] before the gate, null without one: then it is y
  float* sums;     // [2, B, G, T H / G]
};

// Everything lies in rows of M elements.
static Problem problem_of_rows(const AttentionArguments& a) {
  Problem p{a.half,   a.B, a.T, a.T,      a.H,       a.G, a.K,
            a.window, 0,   a.packed != 0, a.rotated, {a.position_row, a.position_step}};
  for (int64_t* stride : {p.q, p.k, p.v, p.gate, p.dq, p.dk, p.dv, p.dgate})
    stride[0] = a.T * a.M, stride[1] = a.M, stride[2] = a.K;
  return p;
}

struct AttentionLayer : AttentionArguments {
  Ends ends;
  Problem problem;
  Turn query_turn, key_turn;
  bool gated;

  explicit AttentionLayer(const AttentionArguments& arguments)
      : AttentionArguments(arguments), problem(problem_of_rows(arguments)), gated(M > (H + 2 * G) * K) {
    Matrix enter{qkvg, D, weights_half != 0}, leave{out, H * K, weights_half != 0};
    ends = {{x, D, x_half != 0}, norm, (float)epsilon, enter, leave, B * T, D, M, H * K};
    query_turn = {query_norm, cosine, sine, positions, (float)epsilon};
    key_turn = {key_norm, cosine, sine, positions, (float)epsilon};
  }

  Matrix as_stream(void* data) const { return {data, D, x_half != 0}; }
  Matrix as_rows(void* data, int64_t width) const { return {data, width, problem.half != 0}; }
  // Queries, keys, values and gate (null without one) within rows of the projection.
  template <class E>
  void heads(void* all, E* (&parts)[4]) const {
    int64_t begin[] = {0, problem.H, problem.H + problem.G, problem.H + 2 * problem.G};
    for (int i = 0; i < 4; i++) parts[i] = i < 3 || gated ? (E*)all + begin[i] * problem.K : nullptr;
  }
};

template <class E, class T>
static void layer_forward(const AttentionLayer& l, const Matrix& stream, int64_t threads) {
  const Problem& p = l.problem;
  enter<T>(l.ends, l.as_rows(l.h, l.ends.D), nullptr, l.scales, l.as_rows(l.rows, l.ends.M), threads);
  E* in[4];
  l.heads(l.rows, in);
  forward<E>(p, in[0], in[1], in[2], in[3], l.query_turn, l.key_turn, {(E*)l.y, (E*)l.o, l.sums}, threads);
  leave<T>(l.ends, l.as_rows(l.y, p.H * p.K), stream, threads);
}

// `dstream` [N, D], and where gradients go: `dx` like it in the dtype of the stream, all others in fp32.
struct AttentionGradients {
  void *dstream, *dx;
  float *norm, *qkvg, *query_norm, *key_norm, *out;
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
static void layer_backward(const AttentionLayer& l, const AttentionGradients& to, int64_t threads) {
  const Matrix dstream = l.as_stream(to.dstream);
  const Problem& p = l.problem;
  Temporary<AttentionTemporaries, AttentionLayer> temporary(l);
  const AttentionTemporaries& d = temporary.parts;
  leave_backward<T>(l.ends, dstream, l.as_rows(l.y, p.H * p.K), l.as_rows(d.y, p.H * p.K), to.out, threads);
  E *in[4], *out[4];
  l.heads(l.rows, in), l.heads(d.rows, out);
  Inputs<E> inputs{{in[0], p.q}, {in[1], p.k}, {in[2], p.v},  {in[3], p.gate}, (const E*)(l.o ? l.o : l.y),
                   (const E*)d.y, l.sums,      l.query_turn, l.key_turn};
  Gradients<E> gradients{{out[0], p.dq}, {out[1], p.dk}, {out[2], p.dv}, {out[3], p.dgate}, to.query_norm, to.key_norm};
  backward<E>(p, inputs, gradients, threads);
  enter_backward<T>(l.ends, dstream, l.as_rows(d.rows, l.ends.M), d.h, false, l.as_rows(l.h, l.ends.D), l.scales,
                    l.as_stream(to.dx), to.norm, to.qkvg, threads);
}
