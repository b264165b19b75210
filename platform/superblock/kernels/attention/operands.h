// What a task of the backward pass multiplies: columns of queries and of their outputs' gradients, and blocks of keys
// and values, as words.
#pragma once
#include "problem.h"

constexpr int KEYS = 64;                      // keys of a block
constexpr int BLOCKS = 64 / COLUMN_BLOCK;     // blocks of columns whose gradients of keys are summed in one go
constexpr int GROUP = BLOCKS * COLUMN_BLOCK;  // their columns
constexpr int64_t SPAN_WORDS = 1 << 16;  // columns times K that are packed at a time: they stay in the second cache

template <class E>
struct Inputs {
  Rows<const E> q, k, v, gate;
  const E *o, *dy;    // contiguous [B, T, H, K]; o is before the gate
  const float* sums;  // [2, B, G, N], see Outputs
  Turn query_turn, key_turn;
};

template <class E>
struct Gradients {
  Rows<E> q, k, v, gate;               // gate.data null: no gate
  float *query_weights, *key_weights;  // [K], null without norms
};

// The operands of a task.
template <class Mode>
struct Operands {
  typedef typename Mode::Word Word;
  int64_t span;                            // columns that are packed at a time
  Word *query_columns, *gradient_columns;  // [span / COLUMN_BLOCK, words, COLUMN_BLOCK]
  Word *queries, *gradients;               // contracted over columns [span / PER_WORD, K]
  float *largest, *logarithm, *along;      // [span]; along is D
  int32_t *low, *high;                     // [span]
  Word *keys, *values, *keys_down;         // rows [KEYS, K / PER_WORD], contracted over keys [KEYS / PER_WORD, K]
  Word *probs, *scores, *scores_down;      // [KEYS, GROUP / PER_WORD] twice, [KEYS / PER_WORD, COLUMN_BLOCK]
  float* rows;                             // [2, COLUMN_BLOCK, K]
  Word* natural;                           // [COLUMN_BLOCK, words]

  Operands(const Problem& p, Arena* arena) {
    int64_t K = p.K, words = padded_words<Mode>(K), u = Mode::PER_WORD;
    span = std::min<int64_t>(round_up(p.N(), GROUP), std::max<int64_t>(GROUP, SPAN_WORDS / K / GROUP * GROUP));
    query_columns = arena->take<Word>(span * words), gradient_columns = arena->take<Word>(span * words);
    queries = arena->take<Word>(span / u * K), gradients = arena->take<Word>(span / u * K);
    largest = arena->take<float>(span), logarithm = arena->take<float>(span), along = arena->take<float>(span);
    low = arena->take<int32_t>(span), high = arena->take<int32_t>(span);
    keys = arena->take<Word>(KEYS * K / u), values = arena->take<Word>(KEYS * K / u),
    keys_down = arena->take<Word>(KEYS / u * K);
    probs = arena->take<Word>(KEYS * GROUP / u), scores = arena->take<Word>(KEYS * GROUP / u);
    scores_down = arena->take<Word>(KEYS * COLUMN_BLOCK);
    rows = arena->take<float>(2 * COLUMN_BLOCK * K), natural = arena->take<Word>(COLUMN_BLOCK * words);
  }
};

// Packs one block of columns and its gradients; writes the gradient of the gate.
template <class Mode, class E>
static void pack_columns(const Problem& p, const Inputs<E>& in, const Gradients<E>& to, Operands<Mode>& x, int64_t b,
                         int64_t g, int64_t column, int64_t index, bool write_gate) {
  int K = (int)p.K, words = padded_words<Mode>(K);
  float *q = x.rows, *dO = x.rows + COLUMN_BLOCK * K;
  visible(p, in.query_turn, b, column, x.low + index, x.high + index);
  for (int i = 0; i < COLUMN_BLOCK; i++) {
    float *row = q + i * K, *gradient = dO + i * K;
    x.largest[index + i] = x.logarithm[index + i] = x.along[index + i] = 0;
    if (column + i >= p.N()) {
      memset(row, 0, K * sizeof(float)), memset(gradient, 0, K * sizeof(float));
      continue;
    }
    int64_t t = (column + i) / p.R(), h = g * p.R() + (column + i) % p.R(), at = ((b * p.T + t) * p.H + h) * K;
    in.q.announce(b, t + AHEAD, h, K);
    if (in.gate.data) in.gate.announce(b, t + AHEAD, h, K), to.gate.announce(b, t + AHEAD, h, K);
    fetch<E>(p, in.q, in.query_turn, b, t, h, row);
    const E* gates = in.gate.data ? in.gate.at(b, t, h) : nullptr;
    E* dgates = gates && write_gate ? to.gate.at(b, t, h) : nullptr;
    V total{};
    for (int d = 0; d < K; d += W) {
      V dy = load(in.dy + at + d), o = load(in.o + at + d);
      if (gates) {
        V s = sigmoid<E>(load(gates + d));
        if (dgates) store(dgates + d, dy * o * s * (1.0f - s));
        dy *= s;
      }
      total += dy * o;
      store(gradient + d, dy);
    }
    x.along[index + i] = sum(total);
    const float* sums = in.sums + (b * p.G + g) * p.N() + column + i;
    x.largest[index + i] = sums[0], x.logarithm[index + i] = sums[p.B * p.G * p.N()];
  }
  as_columns<Mode>(q, K, x.natural, x.query_columns + index * words);
  as_columns<Mode>(dO, K, x.natural, x.gradient_columns + index * words);
  for (int i = 0; i < COLUMN_BLOCK; i += Mode::PER_WORD) {
    Mode::rows_down(x.queries + (index + i) / Mode::PER_WORD * K, q + i * K, K, K);
    Mode::rows_down(x.gradients + (index + i) / Mode::PER_WORD * K, dO + i * K, K, K);
  }
}

// Packs KEYS keys and values from k0 on; those past the end are zero.
template <class Mode, class E>
static void pack_block(const Problem& p, const Inputs<E>& in, Operands<Mode>& x, int64_t b, int64_t g, int64_t k0) {
  constexpr int U = Mode::PER_WORD;
  int K = (int)p.K;
  const Turn none{};
  float rows[2 * 256], value[256];
  for (int i = 0; i < KEYS; i += U) {
    memset(rows, 0, sizeof(rows));
    for (int j = 0; j < U; j++) {
      memset(value, 0, sizeof(value));
      in.k.announce(b, k0 + i + j + AHEAD, g, K), in.v.announce(b, k0 + i + j + AHEAD, g, K);
      if (k0 + i + j < p.end()) {
        fetch<E>(p, in.k, in.key_turn, b, k0 + i + j, g, rows + j * 256);
        fetch<E>(p, in.v, none, b, k0 + i + j, g, value);
      }
      Mode::row_along(x.keys + (i + j) * K / U, rows + j * 256, K);
      Mode::row_along(x.values + (i + j) * K / U, value, K);
    }
    Mode::rows_down(x.keys_down + i / U * K, rows, 256, K);
  }
}
