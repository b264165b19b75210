// Attention of one token over cached keys and values, in pieces of CHUNK tokens that threads share and that are then merged.
// Pieces have fixed borders, so the result does not depend on the number of threads.
#pragma once
#include "products.h"
#include "tables.h"

constexpr int64_t CHUNK = 512, BLOCK = 32;  // a block's values stay in the first cache while every query head uses them

struct Span {  // the pieces that the token sees
  int64_t first_key, end, first_chunk, chunks;
  Span(const Sizes& s, const State& state) {
    end = state.length + 1;
    first_key = s.window && s.window < end ? end - s.window : 0;
    first_chunk = first_key / CHUNK;
    chunks = (end - 1) / CHUNK - first_chunk + 1;
  }
};

// Norm and rotation of one head; `turn` holds R/2 cosines, then R/2 sines.
static void position(const float* x, const float* weight, const Sizes& s, const float* turn, float* y) {
  rms_norm(x, weight, s.head_width, s.epsilon, y);
  const int64_t half = s.rotated / 2;
  for (int64_t i = 0; i < half; i++) {
    float first = y[i], second = y[i + half];
    y[i] = first * turn[i] - second * turn[half + i];
    y[i + half] = second * turn[i] + first * turn[half + i];
  }
}

// scores[i] = scale * q . key_i
static void score(const float* q, const float* keys, int64_t stride, int64_t count, int64_t width, float scale,
                  float* scores) {
  for (int64_t i = 0; i < count; i += 4) {
    const float* row[4];
    for (int r = 0; r < 4; r++) row[r] = keys + std::min(i + r, count - 1) * stride;
    V total[4] = {};
    for (int64_t k = 0; k < width; k += W) {
      V value = load(q + k);
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) total[r] += load(row[r] + k) * value;
    }
    sums(total[0], total[1], total[2], total[3], scores + i);
  }
  for (int64_t i = 0; i < count; i++) scores[i] *= scale;
}

// sum_i p_i value_i, NV vectors wide, added to `o`
template <int NV>
INLINE void gather(const float* p, const float* values, int64_t stride, int64_t count, float* o) {
  V total[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) total[j] = load(o + j * W);
  for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) total[j] += load(values + i * stride + j * W) * p[i];
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) store(o + j * W, total[j]);
}

// Floats of one piece's result: for each query head of the group its maximum, its sum (padded), and the sum of values.
INLINE int64_t piece_floats(const Sizes& s) { return s.query_heads / s.kv_heads * (s.head_width + GROUP); }

// Piece c of kv head g of sequence b. `local` has (R + 1) K + R CHUNK floats for R query heads per kv head.
static void attend_piece(const Sizes& s, const Layer& layer, const State& state, const Span& span, const float* projected,
                         const float* turn, int64_t b, int64_t g, int64_t c, float* local, float* piece) {
  const int64_t K = s.head_width, R = s.query_heads / s.kv_heads, stride = s.kv_heads * K;
  float *keys = state.keys + b * state.stride + g * K, *values = state.values + b * state.stride + g * K;
  float *q = local, *scores = q + R * K;
  for (int64_t r = 0; r < R; r++) position(projected + (g * R + r) * K, layer.query_norm, s, turn, q + r * K);
  int64_t chunk = span.first_chunk + c;
  int64_t begin = std::max(chunk * CHUNK, span.first_key), end = std::min((chunk + 1) * CHUNK, span.end);
  if (end == span.end) {  // the piece with the token itself
    position(projected + (s.query_heads + g) * K, layer.key_norm, s, turn, keys + state.length * stride);
    memcpy(values + state.length * stride, projected + (s.query_heads + s.kv_heads + g) * K, K * 4);
  }
  const int64_t count = end - begin;
  const float scale = 1.0f / std::sqrt((float)K);
  for (int64_t i = 0; i < count; i += BLOCK)
    for (int64_t r = 0; r < R; r++)
      score(q + r * K, keys + (begin + i) * stride, stride, std::min(BLOCK, count - i), K, scale, scores + r * CHUNK + i);
  for (int64_t r = 0; r < R; r++) {
    float *p = scores + r * CHUNK, *out = piece + r * (K + GROUP);
    for (int64_t i = count; i % W; i++) p[i] = -1e30f;
    V most = splat(-1e30f), total{};
    for (int64_t i = 0; i < count; i += W) most = vmax(load(p + i), most);
    float maximum = max_of(most);
    for (int64_t i = 0; i < count; i += W) {
      V score = load(p + i), weight = vexp(score - maximum) + (score - score);  // what is not a number stays none
      total += weight;
      store(p + i, weight);
    }
    out[0] = maximum, out[1] = sum(total);
    for (int64_t k = 0; k < K; k += W) store(out + GROUP + k, V{});
  }
  for (int64_t i = 0; i < count; i += BLOCK)
    for (int64_t r = 0; r < R; r++) {
      const float *p = scores + r * CHUNK + i, *rows = values + (begin + i) * stride;
      float* o = piece + r * (K + GROUP) + GROUP;
      int64_t k = 0, block = std::min(BLOCK, count - i);
      for (; k + 4 * W <= K; k += 4 * W) gather<4>(p, rows + k, stride, block, o + k);
      for (; k < K; k += W) gather<1>(p, rows + k, stride, block, o + k);
    }
}

// The output [Q, K] of one sequence from the pieces of its kv heads, times the gate.
static void merge_pieces(const Sizes& s, const Span& span, const float* pieces, const float* projected, float* y) {
  const int64_t K = s.head_width, R = s.query_heads / s.kv_heads;
  const float* gate = projected + (s.query_heads + 2 * s.kv_heads) * K;
  for (int64_t h = 0; h < s.query_heads; h++) {
    const float* own = pieces + h / R * span.chunks * piece_floats(s) + h % R * (K + GROUP);
    float most = own[0], total = 0;
    for (int64_t c = 1; c < span.chunks; c++) most = std::max(most, own[c * piece_floats(s)]);
    float* o = y + h * K;
    memset(o, 0, K * 4);
    for (int64_t c = 0; c < span.chunks; c++) {
      const float* piece = own + c * piece_floats(s);
      float weight = std::exp(piece[0] - most);
      total += weight * piece[1];
      for (int64_t k = 0; k < K; k += W) store(o + k, load(o + k) + load(piece + GROUP + k) * weight);
    }
    for (int64_t k = 0; k < K; k += W) {
      V value = load(o + k) / total;
      store(o + k, s.gated ? value * vsigmoid(load(gate + h * K + k)) : value);
    }
  }
}
