// A whole Gated DeltaNet layer: norm, projection, convolution, gates, rule, gated norm, projection and the sum with the
// residual stream. Gradients are written where the next kernel reads them: those of queries, keys and values into one row
// per token, that row's and the output gate's into the gradient of the projection.
//
// Legend: B sequences, T tokens, N = B T, D model width, G key heads, H value heads, K and VD their widths, C = 2 G K + H VD
// convolved channels, M = C + H VD columns of the projection, E the rows' type.
#pragma once
#include "convolution.h"
#include "gates.h"
#include "mixer.h"
#include "rule.h"

// What Python passes, by these names. Every tensor is contiguous.
struct DeltaArguments {
  void* x;                                   // [N, D], the stream
  const float* norm;                         // [D]
  void *qkvz, *out;                          // [M, D], [D, H VD]
  const float *conv, *ba, *A_log, *dt_bias;  // [C, taps], [2 H, D], [H], [H]
  const float* gated_norm;                   // [VD]
  const int32_t* documents;                  // [B, T] or null
  int64_t x_half, weights_half, half;        // whether the stream, the two projections and rows are bf16
  int64_t B, T, D, G, H, K, VD, taps, chunk;
  double strength, epsilon;
  // what the backward pass needs
  void* h;                     // [N, D]
  float* wide;                 // [N, D], null if rows are floats: then it is h
  float* scales;               // [N]
  void *rows, *mixed;          // [N, M], [N, C]
  float *g, *beta, *ba_kept;   // as gates.h leaves them
  float *states, *residuals;   // null if nothing is kept for a backward pass
  float *o, *gated_scales;     // [N, H VD], [N, H]
  void* y;                     // [N, H VD]
};

struct DeltaLayer : DeltaArguments {
  Ends ends;

  explicit DeltaLayer(const DeltaArguments& arguments) : DeltaArguments(arguments) {
    Matrix enter{qkvz, D, weights_half != 0}, leave{out, values(), weights_half != 0};
    ends = {{x, D, x_half != 0}, norm, (float)epsilon, enter, leave, N(), D, M(), values()};
  }

  int64_t N() const { return B * T; }
  int64_t keys() const { return G * K; }
  int64_t values() const { return H * VD; }
  int64_t C() const { return 2 * keys() + values(); }
  int64_t M() const { return C() + values(); }
  const float* gate_input() const { return wide ? wide : (const float*)h; }
  Matrix as_rows(void* data, int64_t width) const { return {data, width, half != 0}; }
  Matrix as_stream(void* data) const { return {data, D, x_half != 0}; }
  convolution::Batch convolved() const { return {rows, nullptr, conv, documents, T * M(), M(), B, T, C(), taps}; }
  // Queries, keys and values as the rule reads them; without values for its backward pass.
  template <class E>
  Batch rule(bool with_values) const {
    const E* q = (const E*)mixed;
    int64_t row = T * C(), step = C();
    const E* v = with_values ? q + 2 * keys() : nullptr;
    const int64_t C = chunk ? chunk : 16;
    return {{q, q + keys(), v, g, beta, documents, row, step, K, row, step, K, row, step, VD, B, T, G, H, K, VD, C, half}};
  }
};

template <class E, class T>
static void layer_forward(const DeltaLayer& l, const Matrix& stream, int64_t threads) {
  const int64_t N = l.N(), C = l.C(), M = l.M();
  enter<T>(l.ends, l.as_rows(l.h, l.D), l.wide, l.scales, l.as_rows(l.rows, M), threads);
  convolution::forward<E>(l.convolved(), (E*)l.mixed, nullptr, threads);
  gates::forward(l.gate_input(), l.T * l.D, l.D, l.ba, l.A_log, l.dt_bias, l.strength, l.g, l.beta, l.ba_kept, N, l.T, l.D,
                 l.H, threads);
  std::vector<float> last(l.chunk ? 0 : l.B * l.H * l.K * l.VD);
  forward_rule<E>(l.rule<E>(true), nullptr, l.o, l.states, l.residuals, l.chunk ? nullptr : last.data(), !l.chunk, threads);
  norm::forward<float, E, E>({N, l.H, l.VD, false}, {l.o, l.values(), l.VD}, l.gated_norm, {(const E*)l.rows + C, M, l.VD},
                             l.ends.epsilon, (E*)l.y, nullptr, l.gated_scales, threads);
  leave<T>(l.ends, l.as_rows(l.y, l.values()), stream, threads);
}

// `dstream` [N, D], and where gradients go: `dx` like it in the dtype of the stream, all others in fp32.
struct DeltaGradients {
  void *dstream, *dx;
  float *norm, *qkvz, *conv, *ba, *A_log, *dt_bias, *gated_norm, *out;
};

struct DeltaTemporaries {
  void *rows, *mixed, *y;  // gradients of those of the same names
  float *o, *g, *beta, *h;
  void *q, *k;  // of every value head, where several share a key head
  float *gated_norm, *gates, *conv;  // parts of the weights' gradients

  DeltaTemporaries(const DeltaLayer& l, Arena& arena) {
    const int64_t N = l.N(), heads = l.G == l.H ? 0 : N * l.H * l.K;
    auto rows_of = [&](int64_t width) { return l.half ? (void*)arena.take<bf16>(N * width) : (void*)arena.take(N * width); };
    rows = rows_of(l.M()), mixed = rows_of(l.C()), y = rows_of(l.values());
    o = arena.take(N * l.values()), g = arena.take(N * l.H), beta = arena.take(N * l.H), h = arena.take(N * l.D);
    q = arena.take(heads), k = arena.take(heads);
    gated_norm = arena.take(norm::MOST_BLOCKS * l.VD), gates = arena.take(gates::MOST_BLOCKS * 2 * l.H * (l.D + 1));
    conv = arena.take(l.B * l.taps * l.C());
  }
};

// The gradient of a key head is the sum over the value heads that share it.
template <class E>
static void share_heads(const DeltaLayer& l, const float* of_heads, E* to, int64_t threads) {
  const int64_t R = l.H / l.G, C = l.C();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t n = 0; n < l.N(); n++)
    for (int64_t g = 0; g < l.G; g++)
      for (int64_t k = 0; k < l.K; k += W) {
        V total{};
        for (int64_t r = 0; r < R; r++) total += load(of_heads + ((n * l.H + g * R + r) * l.K) + k);
        store(to + n * C + g * l.K + k, total);
      }
}

template <class E, class T>
static void layer_backward(const DeltaLayer& l, const DeltaGradients& to, int64_t threads) {
  const Matrix dstream = l.as_stream(to.dstream);
  const int64_t N = l.N(), C = l.C(), M = l.M(), keys = l.keys(), values = l.values();
  Temporary<DeltaTemporaries, DeltaLayer> temporary(l);
  const DeltaTemporaries& d = temporary.parts;
  const E* z = (const E*)l.rows + C;
  leave_backward<T>(l.ends, dstream, l.as_rows(l.y, values), l.as_rows(d.y, values), to.out, threads);
  norm::backward<float, E, E>({N, l.H, l.VD, false}, {l.o, values, l.VD}, l.gated_norm, {z, M, l.VD}, l.gated_scales,
                              {(const E*)d.y, values, l.VD}, {}, {}, d.o, {(E*)d.rows + C, M, l.VD}, to.gated_norm,
                              d.gated_norm, threads);
  E *dq = (E*)d.mixed, *dk = dq + keys, *dv = dk + keys;
  if (l.G == l.H) {
    Targets targets{dq, dk, dv, d.g, d.beta, nullptr, l.T * C, C, l.K, l.T * C, C, l.VD};
    backward_rule<E, E>(l.rule<E>(false), d.o, nullptr, l.states, l.residuals, true, targets, threads);
  } else {
    Targets targets{d.q, d.k, dv, d.g, d.beta, nullptr, l.T * l.H * l.K, l.H * l.K, l.K, l.T * C, C, l.VD};
    backward_rule<E, float>(l.rule<E>(false), d.o, nullptr, l.states, l.residuals, true, targets, threads);
    share_heads(l, (const float*)d.q, dq, threads);
    share_heads(l, (const float*)d.k, dk, threads);
  }
  gates::backward(l.gate_input(), l.T * l.D, l.D, l.ba, l.A_log, l.dt_bias, l.strength, l.ba_kept, d.g, d.beta, d.h, to.ba,
                  to.A_log, to.dt_bias, d.gates, N, l.T, l.D, l.H, threads);
  convolution::backward<E>(l.convolved(), (const E*)d.mixed, (E*)d.rows, l.T * M, M, nullptr, d.conv, to.conv, threads);
  enter_backward<T>(l.ends, dstream, l.as_rows(d.rows, M), d.h, true, l.as_rows(l.h, l.D), l.scales,
                    l.as_stream(to.dx), to.norm, to.qkvz, threads);
}
