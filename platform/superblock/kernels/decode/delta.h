// One head of Gated DeltaNet for one token: convolution, gates, delta rule, norm and output gate.
#pragma once
#include "products.h"
#include "tables.h"

// Convolution with its state, then SiLU, for `count` channels from `first`. `keep` writes the state that follows.
template <int TAPS>
static void convolve_taps(const Sizes& s, const Layer& layer, const State& state, const float* x, int64_t b, int64_t first,
                          int64_t count, bool keep, float* y) {
  const int64_t taps = TAPS ? TAPS : s.taps;
  const int64_t channels = 2 * s.key_heads * s.key_width + s.value_heads * s.value_width;
  const float* weight = layer.conv + first * taps;
  const float* before = state.conv_before + b * state.conv_stride + first;
  const float* now = x + first;
  for (int64_t c = 0; c < count; c++) y[c] = now[c] * weight[c * taps + taps - 1];
  for (int64_t j = 0; j < taps - 1; j++)
    for (int64_t c = 0; c < count; c++) y[c] += before[j * channels + c] * weight[c * taps + j];
  for (int64_t c = 0; c < count; c += W) store(y + c, vsilu(load(y + c)));
  if (!keep || taps == 1) return;
  float* after = state.conv_after + b * (taps - 1) * channels + first;
  for (int64_t j = 0; j < taps - 2; j++) memcpy(after + j * channels, before + (j + 1) * channels, count * 4);
  memcpy(after + (taps - 2) * channels, now, count * 4);
}

static void convolve(const Sizes& s, const Layer& layer, const State& state, const float* x, int64_t b, int64_t first,
                     int64_t count, bool keep, float* y) {
  if (s.taps == 4) return convolve_taps<4>(s, layer, state, x, b, first, count, keep, y);
  convolve_taps<0>(s, layer, state, x, b, first, count, keep, y);
}

INLINE void normalize(float* x, int64_t width, float length) {
  float scale = length / std::sqrt(dot(x, x, width) + 1e-6f);
  for (int64_t i = 0; i < width; i += W) store(x + i, load(x + i) * scale);
}

// NV vectors of columns: u = beta (v - k^T a S), after = a S + k u^T, o = q^T after.
template <int NV>
static void rule(const float* q, const float* k, const float* v, float qk, float a, float beta, int64_t keys, int64_t stride,
                 const float* before, float* after, float* o) {
  V read[NV] = {}, seen[NV] = {}, write[NV];
  for (int64_t i = 0; i < keys; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      V row = load(before + i * stride + j * W);
      read[j] += row * k[i];
      seen[j] += row * q[i];
    }
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) {
    write[j] = (load(v + j * W) - read[j] * a) * beta;
    store(o + j * W, seen[j] * a + write[j] * qk);
  }
  for (int64_t i = 0; i < keys; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++)
      store(after + i * stride + j * W, load(before + i * stride + j * W) * a + write[j] * k[i]);
}

// `normed` [D] and `projected` [q | k | v | z] of sequence b; `y` [V] of head h; `local` has 2K + 2V floats.
static void delta_head(const Sizes& s, const Layer& layer, const State& state, const float* normed, const float* projected,
                       int64_t b, int64_t h, float* local, float* y) {
  const int64_t K = s.key_width, U = s.value_width, H = s.value_heads, repeats = H / s.key_heads, g = h / repeats;
  float *q = local, *k = q + K, *v = k + K, *o = v + U;
  bool first = h % repeats == 0;  // value heads that share a key head would all write the same state
  convolve(s, layer, state, projected, b, g * K, K, first, q);
  convolve(s, layer, state, projected, b, (s.key_heads + g) * K, K, first, k);
  convolve(s, layer, state, projected, b, 2 * s.key_heads * K + h * U, U, true, v);
  normalize(q, K, 1.0f / std::sqrt((float)K));
  normalize(k, K, 1.0f);

  float beta = (float)s.write_scale / (1.0f + std::exp(-dot(normed, layer.gates + h * s.width, s.width)));
  float step = dot(normed, layer.gates + (H + h) * s.width, s.width) + layer.bias[h];
  float softplus = step > 20.0f ? step : std::log1p(std::exp(step));
  float a = std::exp(-std::exp(layer.decay[h]) * softplus), qk = dot(q, k, K);

  const float* before = state.matrix_before + (b * H + h) * K * U;
  float* after = state.matrix_after + (b * H + h) * K * U;
  int64_t j = 0;
  for (; j + 4 * W <= U; j += 4 * W) rule<4>(q, k, v + j, qk, a, beta, K, U, before + j, after + j, o + j);
  for (; j < U; j += W) rule<1>(q, k, v + j, qk, a, beta, K, U, before + j, after + j, o + j);

  rms_norm(o, layer.head_norm, U, s.epsilon, o);
  const float* z = projected + 2 * s.key_heads * K + H * U + h * U;
  for (int64_t i = 0; i < U; i += W) store(y + i, load(o + i) * vsilu(load(z + i)));
}
