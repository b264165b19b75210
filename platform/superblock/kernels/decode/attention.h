// Attention of one token over cached keys and values, in pieces of CHUNK tokens that threads share and that are then merged.
// Pieces have fixed borders, so the result does not depend on the number of threads. Legend: see tables.h; R = Q / G; T is
// what keys and values are kept in, float or bf16. In long contexts their bytes are what a token costs.
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
template <class T>
INLINE void fetch(const T* rows, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(rows + i);
}

// scores[h, i] = q_h . key_i for up to four keys and H query heads that share a kv head, whose first key is at `keys`.
template <int H, class T>
static void score(const float* q, const T* keys, int64_t width, int64_t stride, int64_t count, float* scores) {
  const T* row[4];
  for (int j = 0; j < 4; j++) row[j] = keys + std::min<int64_t>(j, count - 1) * stride;
  V total[H][4] = {};
  for (int64_t k = 0; k < width; k += W) {
    V key[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) key[j] = load(row[j] + k);
#pragma GCC unroll 2
    for (int h = 0; h < H; h++) {
      V value = load(q + h * width + k);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) total[h][j] += key[j] * value;
    }
  }
#pragma GCC unroll 2
  for (int h = 0; h < H; h++) sums(total[h][0], total[h][1], total[h][2], total[h][3], scores + h * CHUNK);
}

// o_h += sum_i p_hi value_i, NV vectors wide, for H heads; the outputs are `next` floats apart.
template <int H, int NV, class T>
INLINE void gather(const float* p, const T* values, int64_t stride, int64_t count, float* o, int64_t next) {
  V total[H][NV];
#pragma GCC unroll 2
  for (int h = 0; h < H; h++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) total[h][j] = load(o + h * next + j * W);
  for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      V value = load(values + i * stride + j * W);
#pragma GCC unroll 2
      for (int h = 0; h < H; h++) total[h][j] += value * p[h * CHUNK + i];
    }
#pragma GCC unroll 2
  for (int h = 0; h < H; h++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(o + h * next + j * W, total[h][j]);
}
template <int H, class T>
static void gather_heads(const float* p, const T* values, int64_t width, int64_t stride, int64_t count, float* o) {
  int64_t k = 0;
  for (; k + 4 * W <= width; k += 4 * W) gather<H, 4>(p, values + k, stride, count, o + k, width + GROUP);
  for (; k < width; k += W) gather<H, 1>(p, values + k, stride, count, o + k, width + GROUP);
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
      V weight = vexp(load(p + i) - maximum);
      total += weight;
      store(p + i, weight);
    }
    out[0] = maximum, out[1] = sum(total);
    memset(out + GROUP, 0, s.head_width * 4);
  }
}

INLINE void keep(const float* from, int64_t count, float* to) { memcpy(to, from, count * 4); }
INLINE void keep(const float* from, int64_t count, bf16* to) {
  for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i));
}

// Piece c of sequence b, all heads. `local` has Q (K + CHUNK) floats.
template <class T>
static void attend_piece(const Sizes& s, const Layer& layer, const State& state, const Span& span, const float* projected,
                         const float* turn, int64_t b, int64_t c, float* local, float* piece) {
  const int64_t Q = s.query_heads, G = s.kv_heads, K = s.head_width, R = Q / G, stride = G * K;
  const int64_t pair = R % 2 ? 1 : 2;  // query heads that read a row together
  const float scale = 1.0f / std::sqrt((float)K);
  T *keys = (T*)state.keys + b * state.stride, *values = (T*)state.values + b * state.stride;
  float *q = local, *scores = q + Q * K;
  for (int64_t h = 0; h < Q; h++) {
    position(projected + h * K, layer.query_norm, s, turn, q + h * K);
    for (int64_t k = 0; k < K; k += W) store(q + h * K + k, load(q + h * K + k) * scale);
  }
  int64_t chunk = span.first_chunk + c;
  int64_t begin = std::max(chunk * CHUNK, span.first_key), end = std::min((chunk + 1) * CHUNK, span.end);
  if (end == span.end) {  // the piece with the token itself
    for (int64_t g = 0; g < G; g++) {
      position(projected + (Q + g) * K, layer.key_norm, s, turn, scores);  // which are not needed yet
      keep(scores, K, keys + state.length * stride + g * K);
    }
    keep(projected + (Q + G) * K, stride, values + state.length * stride);
  }
  const int64_t count = end - begin;
  keys += begin * stride, values += begin * stride;
  for (int64_t i = 0; i < count; i += 4) {
    fetch(keys + (i + 8) * stride, 4 * stride);
    const int64_t block = std::min<int64_t>(4, count - i);
    for (int64_t h = 0; h < Q; h += pair) {
      const T* rows = keys + i * stride + h / R * K;
      if (pair == 2)
        score<2>(q + h * K, rows, K, stride, block, scores + h * CHUNK + i);
      else
        score<1>(q + h * K, rows, K, stride, block, scores + h * CHUNK + i);
    }
  }
  softmax(s, count, scores, piece);
  for (int64_t i = 0; i < count; i += BLOCK) {
    fetch(values + (i + BLOCK) * stride, BLOCK * stride);
    const int64_t block = std::min(BLOCK, count - i);
    for (int64_t h = 0; h < Q; h += pair) {
      const float* p = scores + h * CHUNK + i;
      const T* rows = values + i * stride + h / R * K;
      float* o = piece + h * (K + GROUP) + GROUP;
      if (pair == 2)
        gather_heads<2>(p, rows, K, stride, block, o);
      else
        gather_heads<1>(p, rows, K, stride, block, o);
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
