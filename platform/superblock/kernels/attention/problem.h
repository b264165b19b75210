// What attention is asked to do, where its rows lie, and how rows become operands.
//
// Legend: B sequences, T queries per sequence, S keys per sequence, H query heads, G kv heads, R = H / G query heads
// per kv head, K width of a head, N = T * R columns: the queries of all heads that share a kv head, column t * R + r.
// Columns are ordered by time, so the first and last key that a column sees never decrease.
#pragma once
#include "arena.h"
#include "words.h"

// Laid out as the list of integers that Python passes. Strides are in elements: of the sequence, the token, the head.
struct Problem {
  int64_t half;  // rows are bf16, else float
  int64_t B, T, S, H, G, K;
  int64_t window, query_start;  // window 0: all earlier keys
  int64_t packed;        // keys before the query's document are out of sight; it began `positions` tokens earlier
  int64_t rotated;       // first dimensions of a head that positions rotate, even
  int64_t positions[2];  // strides of the positions: of the sequence and the token
  int64_t q[3], k[3], v[3], gate[3];
  int64_t dq[3], dk[3], dv[3], dgate[3];

  int64_t R() const { return H / G; }
  int64_t N() const { return T * (H / G); }
  int64_t end() const { return query_start + T; }  // keys from here on are not seen
  int64_t first() const { return window ? std::max<int64_t>(0, query_start - window + 1) / 16 * 16 : 0; }
};

template <class E>
struct Rows {
  E* data;
  const int64_t* stride;
  E* at(int64_t b, int64_t t, int64_t h) const { return data + b * stride[0] + t * stride[1] + h * stride[2]; }
  // Asks for the row of a later token: rows lie apart, so the processor's own prefetch does not see them coming.
  void announce(int64_t b, int64_t t, int64_t h, int64_t K) const {
    const char* row = (const char*)at(b, t, h);
    for (int64_t i = 0; i < K * (int64_t)sizeof(E); i += 64) __builtin_prefetch(row + i);
  }
};
constexpr int AHEAD = 8;  // tokens

// The norm and rotation of a head's row, for rows that come straight from the projection; weight null: there is none.
struct Turn {
  const float* weight;
  const float *cosine, *sine;  // tables [position, rotated / 2]
  const int64_t* positions;
  float epsilon;
};

static float inverse_rms(const float* row, int K, float epsilon) {
  V total{};
  for (int i = 0; i < K; i += W) total += load(row + i) * load(row + i);
  return 1.0f / sqrtf(sum(total) / K + epsilon);
}

static int64_t position_of(const Problem& p, const Turn& turn, int64_t b, int64_t t) {
  return turn.positions[b * p.positions[0] + t * p.positions[1]];
}

// Turns the pairs (i, i + half) of a row by their angles, or back.
static void rotate(float* row, int half, const float* cosine, const float* sine, float direction) {
  int i = 0;
  for (; i + 8 <= half; i += 8) {
    typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
    Eight x = *(Eight*)(row + i), y = *(Eight*)(row + half + i), c = *(const Eight*)(cosine + i);
    Eight s = *(const Eight*)(sine + i) * direction;
    *(Eight*)(row + i) = x * c - y * s, *(Eight*)(row + half + i) = y * c + x * s;
  }
  for (; i < half; i++) {
    float x = row[i], y = row[half + i], c = cosine[i], s = sine[i] * direction;
    row[i] = x * c - y * s, row[half + i] = y * c + x * s;
  }
}

// The row of a head as floats, normed and rotated if there is a weight.
template <class E>
static void fetch(const Problem& p, Rows<const E> rows, const Turn& turn, int64_t b, int64_t t, int64_t h, float* out) {
  const E* row = rows.at(b, t, h);
  int K = (int)p.K, half = (int)p.rotated / 2;
  for (int i = 0; i < K; i += W) store(out + i, load(row + i));
  if (!turn.weight) return;
  float scale = inverse_rms(out, K, turn.epsilon);
  for (int i = 0; i < K; i += W) store(out + i, load(out + i) * scale * load(turn.weight + i));
  if (!half) return;
  int64_t angle = position_of(p, turn, b, t) * half;
  rotate(out, half, turn.cosine + angle, turn.sine + angle, 1.0f);
}

// From the gradient of what `fetch` gave, in `gradient`, to that of the row, stored in `out`; adds to the weight's.
template <class E>
static void give_back(const Problem& p, Rows<const E> rows, Rows<E> out, const Turn& turn, int64_t b, int64_t t,
                      int64_t h, float* gradient, float* dweight) {
  int K = (int)p.K, half = (int)p.rotated / 2;
  E* to = out.at(b, t, h);
  if (turn.weight) {
    if (half) {
      int64_t angle = position_of(p, turn, b, t) * half;
      rotate(gradient, half, turn.cosine + angle, turn.sine + angle, -1.0f);
    }
    float normed[256];
    const E* row = rows.at(b, t, h);
    for (int i = 0; i < K; i += W) store(normed + i, load(row + i));
    float scale = inverse_rms(normed, K, turn.epsilon);
    V along{};
    for (int i = 0; i < K; i += W) {
      V x = load(normed + i) * scale, d = load(gradient + i), g = d * load(turn.weight + i);
      store(dweight + i, load(dweight + i) + d * x);
      store(normed + i, x);
      store(gradient + i, g);
      along += g * x;
    }
    float mean = sum(along) / K;
    for (int i = 0; i < K; i += W) store(gradient + i, (load(gradient + i) - load(normed + i) * mean) * scale);
  }
  for (int i = 0; i < K; i += W) store(to + i, load(gradient + i));
}

// The first and the last key that each of COLUMN_BLOCK columns from `column` on sees; both never decrease. Columns past
// the end see none.
static void visible(const Problem& p, const Turn& turn, int64_t b, int64_t column, int32_t* low, int32_t* high) {
  for (int c = 0; c < COLUMN_BLOCK; c++) {
    int64_t t = (column + c) / p.R(), at = p.query_start + t, from = 0;
    if (t >= p.T) {
      low[c] = INT32_MAX, high[c] = (int32_t)p.end() - 1;
      continue;
    }
    if (p.packed) from = std::max<int64_t>(0, t - position_of(p, turn, b, t));
    if (p.window) from = std::max(from, at - p.window + 1);
    low[c] = (int32_t)from, high[c] = (int32_t)at;
  }
}

// What a range of columns sees: from the smallest first key to the largest last one, and what all of them see.
struct Sight {
  int64_t from, to, all_from, all_to;
};
static Sight sight(const int32_t* low, const int32_t* high, int count) {
  Sight s{INT32_MAX, -1, -1, INT32_MAX};
  for (int c = 0; c < count; c++) {
    s.from = std::min<int64_t>(s.from, low[c]), s.to = std::max<int64_t>(s.to, high[c]);
    s.all_from = std::max<int64_t>(s.all_from, low[c]), s.all_to = std::min<int64_t>(s.all_to, high[c]);
  }
  return s;
}

static int round_up(int64_t x, int64_t step) { return (int)((x + step - 1) / step * step); }

// Words per row of K contracted dimensions, in whole squares of 16.
template <class Mode>
static int padded_words(int64_t K) {
  return round_up(K / Mode::PER_WORD, 16);
}

// Rows of floats [COLUMN_BLOCK, K] as columns of words [padded_words, COLUMN_BLOCK]; `natural` has room for the rows'
// words.
template <class Mode>
static void as_columns(const float* rows, int K, typename Mode::Word* natural, typename Mode::Word* columns) {
  int words = padded_words<Mode>(K);
  for (int c = 0; c < COLUMN_BLOCK; c++) {
    memset(natural + c * words, 0, words * 4);
    Mode::row_along(natural + c * words, rows + c * K, K);
  }
  for (int w = 0; w < words; w += 16)
    transpose<COLUMN_BLOCK, 16>((const float*)natural + w, words, (float*)columns + w * COLUMN_BLOCK, COLUMN_BLOCK);
}
