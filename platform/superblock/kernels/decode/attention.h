// Attention of one token over cached keys and values, in pieces of CHUNK tokens that threads share and that are then merged.
// Pieces have fixed borders, so the result does not depend on the number of threads. Legend: see tables.h; R = Q / G.
#pragma once
#include "products.h"
#include "tables.h"

constexpr int64_t CHUNK = 256;
constexpr int64_t BLOCK = 8;  // values stay in the first cache while every query head uses them, and the next are fetched

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

// Heads share rows, and read them in pieces: the processor sees no pattern in that, and needs to be told.
INLINE void fetch(const float* rows, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(rows + i);
}

// scores[h, i] = scale * q_h . key_i for up to four keys.
static void score(const Sizes& s, const float* q, const float* keys, int64_t count, float scale, float* scores) {
  const int64_t K = s.head_width, R = s.query_heads / s.kv_heads, stride = s.kv_heads * K;
  const float* row[4];
  for (int j = 0; j < 4; j++) row[j] = keys + std::min<int64_t>(j, count - 1) * stride;
  for (int64_t h = 0; h < s.query_heads; h++) {
    V total[4] = {};
    for (int64_t k = 0; k < K; k += W) {
      V value = load(q + h * K + k) * scale;
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) total[j] += load(row[j] + h / R * K + k) * value;
    }
    sums(total[0], total[1], total[2], total[3], scores + h * CHUNK);
  }
}

// o += sum_i p_i value_i, NV vectors wide.
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

// Floats of one piece's result: for each query head its maximum, its sum (padded to a group), and the sum of values.
INLINE int64_t piece_floats(const Sizes& s) { return s.query_heads * (s.head_width + GROUP); }

// Scores [Q, CHUNK] to weights; maximum and sum of each head go to the head of its result.
static void softmax(const Sizes& s, int64_t count, float* scores, float* piece) {
  for (int64_t h = 0; h < s.query_heads; h++) {
    float *p = scores + h * CHUNK, *out = piece + h * (s.head_width + GROUP);
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
    memset(out + GROUP, 0, s.head_width * 4);
  }
}

// Piece c of sequence b, all heads. `local` has Q (K + CHUNK) floats.
static void attend_piece(const Sizes& s, const Layer& layer, const State& state, const Span& span, const float* projected,
                         const float* turn, int64_t b, int64_t c, float* local, float* piece) {
  const int64_t Q = s.query_heads, G = s.kv_heads, K = s.head_width, R = Q / G, stride = G * K;
  float *keys = state.keys + b * state.stride, *values = state.values + b * state.stride;
  float *q = local, *scores = q + Q * K;
  for (int64_t h = 0; h < Q; h++) position(projected + h * K, layer.query_norm, s, turn, q + h * K);
  int64_t chunk = span.first_chunk + c;
  int64_t begin = std::max(chunk * CHUNK, span.first_key), end = std::min((chunk + 1) * CHUNK, span.end);
  if (end == span.end) {  // the piece with the token itself
    for (int64_t g = 0; g < G; g++)
      position(projected + (Q + g) * K, layer.key_norm, s, turn, keys + state.length * stride + g * K);
    memcpy(values + state.length * stride, projected + (Q + G) * K, stride * 4);
  }
  const int64_t count = end - begin;
  const float scale = 1.0f / std::sqrt((float)K);
  keys += begin * stride, values += begin * stride;
  for (int64_t i = 0; i < count; i += 4) {
    fetch(keys + (i + 8) * stride, 4 * stride);
    score(s, q, keys + i * stride, std::min<int64_t>(4, count - i), scale, scores + i);
  }
  softmax(s, count, scores, piece);
  for (int64_t i = 0; i < count; i += BLOCK) {
    fetch(values + (i + BLOCK) * stride, BLOCK * stride);
    for (int64_t h = 0; h < Q; h++) {
      const float *p = scores + h * CHUNK + i, *rows = values + i * stride + h / R * K;
      float* o = piece + h * (K + GROUP) + GROUP;
      int64_t k = 0, block = std::min(BLOCK, count - i);
      for (; k + 4 * W <= K; k += 4 * W) gather<4>(p, rows + k, stride, block, o + k);
      for (; k < K; k += W) gather<1>(p, rows + k, stride, block, o + k);
    }
  }
}

// The output [Q, K] of one sequence from its pieces, times the gate.
static void merge_pieces(const Sizes& s, const Span& span, const float* pieces, const float* projected, float* y) {
  const int64_t K = s.head_width;
  const float* gate = projected + (s.query_heads + 2 * s.kv_heads) * K;
  for (int64_t h = 0; h < s.query_heads; h++) {
    const float* own = pieces + h * (K + GROUP);
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
