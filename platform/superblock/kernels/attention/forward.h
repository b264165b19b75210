// Attention's forward pass: blocks of keys against blocks of columns with a running maximum, scores transposed
// (keys down, columns along the lanes), so that maximum and sum need no reduction across lanes.
#pragma once
#include "few.h"

constexpr int FORWARD_KEYS = 64;

// Keys and values of one (sequence, kv head) as operands: rows of words [S, K / PER_WORD], and words of values that are
// contracted over keys [S / PER_WORD, K]. Keys begin at Problem::first().
template <class Mode>
struct Packed {
  typename Mode::Word *keys, *values;
  static int64_t words(const Problem& p) { return round_up(p.end() - p.first(), 16) * p.K / Mode::PER_WORD; }
};

// Packs 16 keys from `t` on; those past the end are zero.
template <class Mode, class E>
static void pack_keys(const Problem& p, Rows<const E> k, Rows<const E> v, const Turn& turn, int64_t b, int64_t g,
                      int64_t t, Packed<Mode> out) {
  int K = (int)p.K;
  int64_t index = t - p.first();
  float row[256], rows[2 * 256];
  const Turn none{};
  for (int i = 0; i < 16; i++) {
    memset(row, 0, sizeof(row));
    k.announce(b, t + i + AHEAD, g, K), v.announce(b, t + i, g, K);
    if (t + i < p.end()) fetch<E>(p, k, turn, b, t + i, g, row);
    Mode::row_along(out.keys + (index + i) * K / Mode::PER_WORD, row, K);
  }
  for (int i = 0; i < 16; i += Mode::PER_WORD) {
    memset(rows, 0, sizeof(rows));
    for (int j = 0; j < Mode::PER_WORD; j++)
      if (t + i + j < p.end()) fetch<E>(p, v, none, b, t + i + j, g, rows + j * 256);
    Mode::rows_down(out.values + (index + i) / Mode::PER_WORD * K, rows, 256, K);
  }
}

// One block of columns while it walks over the keys.
template <class Mode>
struct Columns {
  typedef typename Mode::Word Word;
  float *rows, *out, *scores;  // [COLUMN_BLOCK, K], [K, COLUMN_BLOCK], [FORWARD_KEYS, COLUMN_BLOCK]
  Word *natural, *queries,
      *probs;  // [COLUMN_BLOCK, words], [words, COLUMN_BLOCK], [FORWARD_KEYS / PER_WORD, COLUMN_BLOCK]
  int32_t low[COLUMN_BLOCK], high[COLUMN_BLOCK];
  V largest[COLUMNS], total[COLUMNS];

  static int64_t bytes(int64_t K) {
    int64_t words = padded_words<Mode>(K);
    return 2 * Arena::bytes<float>(K * COLUMN_BLOCK) + 2 * Arena::bytes<float>(FORWARD_KEYS * COLUMN_BLOCK) +
           2 * Arena::bytes<Word>(words * COLUMN_BLOCK);
  }
  Columns(Arena arena, int64_t K) {
    int64_t words = padded_words<Mode>(K);
    rows = arena.take<float>(K * COLUMN_BLOCK), out = arena.take<float>(K * COLUMN_BLOCK);
    scores = arena.take<float>(FORWARD_KEYS * COLUMN_BLOCK), probs = arena.take<Word>(FORWARD_KEYS * COLUMN_BLOCK);
    natural = arena.take<Word>(words * COLUMN_BLOCK), queries = arena.take<Word>(words * COLUMN_BLOCK);
  }

  // Scores of the keys from k0 on that a column does not see become -inf.
  void hide(int64_t k0, V (&s)[ROWS][COLUMNS]) const {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++) {
        int32_t key = (int32_t)(k0 + i);
        VI first, last;
        memcpy(&first, low + j * W, sizeof(VI)), memcpy(&last, high + j * W, sizeof(VI));
        s[i][j] = select((first <= key) & (last >= key), s[i][j], splat(-INFINITY));
      }
  }
};

// Adds to s, which is zero, the products of queries with ROWS keys from k0 on, -inf where a column does not see the key.
template <class Mode>
INLINE void scores_of(const Problem& p, const Columns<Mode>& c, const Sight& seen, Packed<Mode> packed, int64_t k0,
                      V (&s)[ROWS][COLUMNS]) {
  int words = (int)p.K / Mode::PER_WORD;
  accumulate<Mode, false>(s, packed.keys + (k0 - p.first()) * words, words, c.queries, COLUMN_BLOCK, 0, words);
  if (!(k0 >= seen.all_from && k0 + ROWS - 1 <= seen.all_to)) c.hide(k0, s);
}

// Products of queries and the keys k0 .. k0 + count to `scores`, not yet scaled; raises the largest per column.
template <class Mode>
static __attribute__((noinline)) void score(const Problem& p, Columns<Mode>& c, const Sight& seen, Packed<Mode> packed,
                                            int64_t k0, int count) {
  for (int m = 0; m < count; m += ROWS) {
    V s[ROWS][COLUMNS] = {};
    scores_of(p, c, seen, packed, k0 + m, s);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++) {
        c.largest[j] = vmax(s[i][j], c.largest[j]);
        store(c.scores + (m + i) * COLUMN_BLOCK + j * W, s[i][j]);
      }
  }
}

constexpr float FAR_ABOVE = 10;  // powers of two that a score may be above the largest one known

// c.out += V^T P for a block of keys, whose weights are P in c.probs, after what is there was multiplied by `decay`.
template <class Mode>
static void take_in(const Problem& p, Columns<Mode>& c, Packed<Mode> packed, int64_t k0, int count, const V* decay) {
  const auto* values = packed.values + (k0 - p.first()) / Mode::PER_WORD * p.K;
  for (int d = 0; d < p.K; d += ROWS)
    update<Mode, true, ROWS, COLUMNS>(c.out + d * COLUMN_BLOCK, COLUMN_BLOCK, decay, values + d, p.K, c.probs,
                                      COLUMN_BLOCK, 0, count / Mode::PER_WORD);
}

// A block of keys whose scores are not far above the largest that was known before: weights are relative to that one, so
// that scores become weights in registers, and nothing of the past is multiplied. False, and nothing was done, where a
// score is too far above.
template <class Mode>
static __attribute__((noinline)) bool walk_on(const Problem& p, Columns<Mode>& c, const Sight& seen, Packed<Mode> packed,
                                              int64_t k0, int count, float scale) {
  V largest[COLUMNS], most[COLUMNS], total[COLUMNS];
  for (int j = 0; j < COLUMNS; j++) largest[j] = c.largest[j], most[j] = splat(-INFINITY), total[j] = c.total[j];
  for (int m = 0; m < count; m += ROWS) {
    V s[ROWS][COLUMNS] = {};
    scores_of(p, c, seen, packed, k0 + m, s);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++) {
        V above = (s[i][j] - largest[j]) * scale;
        most[j] = vmax(above, most[j]);
        s[i][j] = power_of_two(above);
        total[j] += s[i][j];
      }
    Mode::template down<ROWS>(c.probs + m / Mode::PER_WORD * COLUMN_BLOCK, COLUMN_BLOCK, s);
  }
  for (int j = 1; j < COLUMNS; j++) most[0] = vmax(most[j], most[0]);
  if (max_of(most[0]) > FAR_ABOVE) return false;
  for (int j = 0; j < COLUMNS; j++) c.total[j] = total[j];
  take_in(p, c, packed, k0, count, nullptr);
  return true;
}

// The same for any block: c.out = c.out * decay + V^T P, and the running maximum and sum.
template <class Mode>
static __attribute__((noinline)) void walk(const Problem& p, Columns<Mode>& c, const Sight& seen, Packed<Mode> packed,
                                           int64_t k0, int count, float scale) {
  V decay[COLUMNS];
  for (int j = 0; j < COLUMNS; j++) decay[j] = c.largest[j];
  score(p, c, seen, packed, k0, count);
  for (int j = 0; j < COLUMNS; j++) {
    decay[j] = power_of_two((decay[j] - c.largest[j]) * scale);
    c.total[j] *= decay[j];
  }
  for (int m = 0; m < count; m += 4) {
    V x[4][COLUMNS];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++) {
        x[i][j] = power_of_two((load(c.scores + (m + i) * COLUMN_BLOCK + j * W) - c.largest[j]) * scale);
        c.total[j] += x[i][j];
      }
    Mode::template down<4>(c.probs + m / Mode::PER_WORD * COLUMN_BLOCK, COLUMN_BLOCK, x);
  }
  take_in(p, c, packed, k0, count, decay);
}

// All keys for the columns from `column` on of kv head g of sequence b.
template <class Mode, class E>
static void attend(const Problem& p, Rows<const E> q, Rows<const E> gate, const Turn& turn, Packed<Mode> packed,
                   int64_t b, int64_t g, int64_t column, Arena arena, Outputs<E> to) {
  int K = (int)p.K, count = (int)std::min<int64_t>(COLUMN_BLOCK, p.N() - column);
  Columns<Mode> c(arena, K);
  float scale = 1.44269504f / sqrtf((float)K);
  for (int i = 0; i < COLUMN_BLOCK; i++) {
    memset(c.rows + i * K, 0, K * sizeof(float));
    if (i >= count) continue;
    int64_t t = (column + i) / p.R(), h = g * p.R() + (column + i) % p.R();
    q.announce(b, t + AHEAD, h, K);
    if (to.o) gate.announce(b, t, h, K);
    fetch<E>(p, q, turn, b, t, h, c.rows + i * K);
  }
  as_columns<Mode>(c.rows, K, c.natural, c.queries);
  visible(p, turn, b, column, c.low, c.high);
  Sight seen = sight(c.low, c.high, COLUMN_BLOCK);
  memset(c.out, 0, K * COLUMN_BLOCK * sizeof(float));
  for (int j = 0; j < COLUMNS; j++) c.largest[j] = splat(-1e38f), c.total[j] = V{};
  const int64_t begin = seen.from / 8 * 8;
  for (int64_t k0 = begin; k0 <= seen.to; k0 += FORWARD_KEYS) {
    int keys = std::min(FORWARD_KEYS, round_up(seen.to + 1 - k0, 8));
    if (k0 == begin || !walk_on(p, c, seen, packed, k0, keys, scale)) walk(p, c, seen, packed, k0, keys, scale);
  }

  float largest[COLUMN_BLOCK], total[COLUMN_BLOCK];
  for (int j = 0; j < COLUMNS; j++) {
    store(largest + j * W, c.largest[j]), store(total + j * W, c.total[j]);
    V inverse = 1.0f / c.total[j];
    for (int d = 0; d < K; d++) {
      float* x = c.out + d * COLUMN_BLOCK + j * W;
      store(x, load(x) * inverse);
    }
  }
  for (int d = 0; d < K; d += 16) transpose<16, COLUMN_BLOCK>(c.out + d * COLUMN_BLOCK, COLUMN_BLOCK, c.rows + d, K);
  for (int i = 0; i < count; i++) finish_column(p, to, gate, b, g, column + i, c.rows + i * K, largest[i], total[i]);
}

template <class E>
static void forward(const Problem& p, const E* q, const E* k, const E* v, const E* gate, Turn query_turn, Turn key_turn,
                    Outputs<E> to, int64_t threads) {
  typedef typename ModeOf<E>::Type Mode;
  typedef typename Mode::Word Word;
  if (p.N() <= FEW)
    return forward_few<E>(p, {q, p.q}, {k, p.k}, {v, p.v}, {gate, p.gate}, query_turn, key_turn, to, threads);
  int64_t heads = p.B * p.G, groups = (p.end() - p.first() + 15) / 16,
          tiles = (p.N() + COLUMN_BLOCK - 1) / COLUMN_BLOCK;
  int64_t size = Packed<Mode>::words(p);
  Word* operands = scratch<Word>(2 * heads * size);
  auto packed = [&](int64_t head) {
    return Packed<Mode>{operands + 2 * head * size, operands + (2 * head + 1) * size};
  };
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < heads * groups; i++) {
      int64_t head = i / groups;
      pack_keys<Mode, E>(p, {k, p.k}, {v, p.v}, key_turn, head / p.G, head % p.G, p.first() + i % groups * 16,
                         packed(head));
    }
    Arena arena{scratch<char>(Columns<Mode>::bytes(p.K))};
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = heads * tiles - 1; i >= 0; i--) {  // the longest first
      int64_t head = i % heads;
      attend<Mode, E>(p, {q, p.q}, {gate, p.gate}, query_turn, packed(head), head / p.G, head % p.G,
                      i / heads * COLUMN_BLOCK, arena, to);
    }
  }
}
