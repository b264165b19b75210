// Attention's backward pass. Scores and their gradients are computed again, block by block, transposed as in the
// forward pass, with D the rows' sums of dO * O:
//   P = 2^(scale (S - max) - log)   dP = V dO^T   dS = P (dP - D)   dV += P dO   dK += dS Q   dQ^T += K^T dS
// A task is a (sequence, kv head) and every `splits`-th block of keys. Gradients of keys and values belong to one task;
// those of queries are one partial sum per split, added in order afterwards. So there is no atomic, and the bits depend
// only on `splits`.
#pragma once
#include "operands.h"

// Sums that outlive a task, of all tasks.
struct Partial {
  float* dq;             // [splits, B * G, tiles, K, COLUMN_BLOCK]
  float *dk, *dv;        // [B * G, keys, K]
  float* query_weights;  // [B * G * tiles, K]
  float* key_weights;    // [B * G * splits, K]
  int64_t splits, tiles, keys;
  float* dq_of(const Problem& p, int64_t split, int64_t head, int64_t tile) const {
    return dq + ((split * p.B * p.G + head) * tiles + tile) * p.K * COLUMN_BLOCK;
  }
};

// P and dS of `count` keys from k0 on for the block of columns at `index`; `slot` is the block's place in its group.
template <class Mode>
static __attribute__((noinline)) void score_gradients(const Problem& p, Operands<Mode>& x, int64_t k0, int count,
                                                      int64_t index, int slot, float scale) {
  constexpr int U = Mode::PER_WORD, STRIDE = GROUP / U;
  int words = (int)p.K / U, padded = padded_words<Mode>(p.K);
  Sight seen = sight(x.low + index, x.high + index, COLUMN_BLOCK);
  for (int m = 0; m < count; m += ROWS) {
    V s[ROWS][COLUMNS] = {}, d[ROWS][COLUMNS] = {};
    accumulate<Mode, false>(s, x.keys + m * words, words, x.query_columns + index * padded, COLUMN_BLOCK, 0, words);
    bool whole = k0 + m >= seen.all_from && k0 + m + ROWS - 1 <= seen.all_to;
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; j++) {
      V largest = load(x.largest + index + j * W), logarithm = load(x.logarithm + index + j * W);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) s[i][j] = power_of_two((s[i][j] - largest) * scale - logarithm);
    }
    if (!whole)
      for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) {
          int32_t key = (int32_t)(k0 + m + i);
          VI low, high;
          memcpy(&low, x.low + index + j * W, sizeof(VI)), memcpy(&high, x.high + index + j * W, sizeof(VI));
          s[i][j] = select((low <= key) & (high >= key), s[i][j], V{});
        }
    Mode::along(x.probs + m * STRIDE + slot * (COLUMN_BLOCK / U), STRIDE, s);
    accumulate<Mode, false>(d, x.values + m * words, words, x.gradient_columns + index * padded, COLUMN_BLOCK, 0,
                            words);
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; j++) {
      V along = load(x.along + index + j * W);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) d[i][j] = s[i][j] * (d[i][j] - along);
    }
    Mode::along(x.scores + m * STRIDE + slot * (COLUMN_BLOCK / U), STRIDE, d);
    Mode::down(x.scores_down + m / U * COLUMN_BLOCK, COLUMN_BLOCK, d);
  }
}

// C [KEYS, K] += A [KEYS, GROUP] B [GROUP, K]; row m's first columns, before `begin[m / ROWS]`, are zero.
template <class Mode>
static __attribute__((noinline)) void add_rows(float* C, int K, const typename Mode::Word* A,
                                               const typename Mode::Word* B, const int* begin) {
  constexpr int U = Mode::PER_WORD;
  for (int m = 0; m < KEYS; m += ROWS) {
    int from = begin[m / ROWS], n = 0;
    if (from == GROUP) continue;
    for (; n + COLUMN_BLOCK <= K; n += COLUMN_BLOCK)
      update<Mode, false, ROWS, COLUMNS>(C + m * K + n, K, nullptr, A + m * (GROUP / U), GROUP / U, B + n, K, from / U,
                                         GROUP / U);
    for (; n < K; n += W)
      update<Mode, false, ROWS, 1>(C + m * K + n, K, nullptr, A + m * (GROUP / U), GROUP / U, B + n, K, from / U,
                                   GROUP / U);
  }
}

// One group of columns, at `index` of the span, against the block of keys from k0 on.
template <class Mode>
static void visit(const Problem& p, Operands<Mode>& x, int64_t k0, int64_t index, float* dq, float* dk, float* dv,
                  float scale) {
  int K = (int)p.K, begin[KEYS / ROWS];
  std::fill(begin, begin + KEYS / ROWS, GROUP);
  for (int slot = BLOCKS - 1; slot >= 0; slot--) {
    int64_t at = index + slot * COLUMN_BLOCK, last = x.high[at + COLUMN_BLOCK - 1];
    int count = round_up(std::max<int64_t>(0, std::min<int64_t>(KEYS, last + 1 - k0)), ROWS);
    score_gradients(p, x, k0, count, at, slot, scale);
    for (int m = 0; m < count; m += ROWS) begin[m / ROWS] = slot * COLUMN_BLOCK;
    for (int d = 0; d < K && count; d += ROWS)
      update<Mode, true, ROWS, COLUMNS>(dq + slot * K * COLUMN_BLOCK + d * COLUMN_BLOCK, COLUMN_BLOCK, nullptr,
                                        x.keys_down + d, K, x.scores_down, COLUMN_BLOCK, 0, count / Mode::PER_WORD);
  }
  int64_t at = index / Mode::PER_WORD * K;
  add_rows<Mode>(dv, K, x.probs, x.gradients + at, begin);
  add_rows<Mode>(dk, K, x.scores, x.queries + at, begin);
}

// Columns of kv head g of sequence b against every `splits`-th block of keys.
template <class Mode, class E>
static void accumulate_gradients(const Problem& p, const Inputs<E>& in, const Gradients<E>& to, const Partial& sums,
                                 int64_t b, int64_t g, int64_t split, Arena arena) {
  Operands<Mode> x(p, &arena);
  int64_t K = p.K, head = b * p.G + g;
  float scale = 1.0f / sqrtf((float)K), *dk = sums.dk + head * sums.keys * K, *dv = sums.dv + head * sums.keys * K;
  for (int64_t j = split * KEYS; j < sums.keys; j += sums.splits * KEYS)
    memset(dk + j * K, 0, KEYS * K * sizeof(float)), memset(dv + j * K, 0, KEYS * K * sizeof(float));
  for (int64_t column = 0; column < p.N(); column += x.span) {
    int64_t count = std::min<int64_t>(x.span, round_up(p.N() - column, GROUP));
    for (int64_t i = 0; i < count; i += COLUMN_BLOCK)
      pack_columns<Mode, E>(p, in, to, x, b, g, column + i, i, split == 0);
    float* dq = sums.dq_of(p, split, head, column / COLUMN_BLOCK);
    memset(dq, 0, count * K * sizeof(float));
    for (int64_t j = split * KEYS; j < sums.keys; j += sums.splits * KEYS) {
      int64_t k0 = p.first() + j;
      if (x.high[count - 1] < k0 || x.low[0] >= k0 + KEYS) continue;
      pack_block<Mode, E>(p, in, x, b, g, k0);
      for (int64_t i = 0; i < count; i += GROUP)
        if (x.high[i + GROUP - 1] >= k0 && x.low[i] < k0 + KEYS)
          visit<Mode>(p, x, k0, i, dq + i * K, dk + j * K, dv + j * K, scale * 1.44269504f);
    }
  }
  float* dweight = sums.key_weights + (head * sums.splits + split) * K;
  memset(dweight, 0, K * sizeof(float));
  for (int64_t j = split * KEYS; j < sums.keys; j += sums.splits * KEYS)
    for (int64_t t = p.first() + j; t < std::min(p.end(), p.first() + j + KEYS); t++) {
      float *dkey = dk + (t - p.first()) * K, *dvalue = dv + (t - p.first()) * K;
      in.k.announce(b, t + AHEAD, g, K), to.k.announce(b, t + AHEAD, g, K), to.v.announce(b, t + AHEAD, g, K);
      for (int64_t d = 0; d < K; d += W) store(dkey + d, load(dkey + d) * scale);
      give_back<E>(p, in.k, to.k, in.key_turn, b, t, g, dkey, dweight);
      give_back<E>(p, in.v, to.v, Turn{}, b, t, g, dvalue, nullptr);
    }
}

// Adds the splits' gradients of one block of queries and brings them back to the projection's rows.
template <class E>
static void finish_queries(const Problem& p, const Inputs<E>& in, const Gradients<E>& to, const Partial& sums,
                           int64_t b, int64_t g, int64_t tile, float* rows) {
  int64_t K = p.K, head = b * p.G + g;
  float scale = 1.0f / sqrtf((float)K), *dq = sums.dq_of(p, 0, head, tile);
  for (int64_t split = 1; split < sums.splits; split++) {
    const float* other = sums.dq_of(p, split, head, tile);
    for (int64_t i = 0; i < K * COLUMN_BLOCK; i += W) store(dq + i, load(dq + i) + load(other + i));
  }
  for (int64_t d = 0; d < K; d += 16)
    transpose<16, COLUMN_BLOCK>(dq + d * COLUMN_BLOCK, COLUMN_BLOCK, rows + d, (int)K);
  float* dweight = sums.query_weights + (head * sums.tiles + tile) * K;
  memset(dweight, 0, K * sizeof(float));
  for (int64_t i = 0; i < COLUMN_BLOCK && tile * COLUMN_BLOCK + i < p.N(); i++) {
    int64_t column = tile * COLUMN_BLOCK + i;
    int64_t t = column / p.R(), h = g * p.R() + column % p.R();
    in.q.announce(b, t + AHEAD, h, K), to.q.announce(b, t + AHEAD, h, K);
    for (int64_t d = 0; d < K; d += W) store(rows + i * K + d, load(rows + i * K + d) * scale);
    give_back<E>(p, in.q, to.q, in.query_turn, b, t, h, rows + i * K, dweight);
  }
}

static void add_up(const float* parts, int64_t count, int64_t K, float* out) {
  memset(out, 0, K * sizeof(float));
  for (int64_t i = 0; i < count; i++)
    for (int64_t d = 0; d < K; d += W) store(out + d, load(out + d) + load(parts + i * K + d));
}

constexpr int64_t MOST_OF_SPLITS = 1 << 26;  // floats, 256 MiB: every split has query gradients of its own

// Splits of a kv head's keys: one where there are kv heads enough for all threads, or where more would fill the memory.
static int64_t splits_for(const Problem& p, int64_t blocks, int64_t threads, int64_t floats_each) {
  int64_t heads = p.B * p.G;
  if (heads % threads == 0 || heads >= 4 * threads) return 1;
  int64_t affordable = std::max<int64_t>(1, MOST_OF_SPLITS / std::max<int64_t>(1, floats_each));
  return std::min({blocks, (4 * threads + heads - 1) / heads, affordable});
}

template <class E>
static void backward(const Problem& p, const Inputs<E>& in, const Gradients<E>& to, int64_t threads) {
  typedef typename ModeOf<E>::Type Mode;
  int64_t heads = p.B * p.G, K = p.K;
  Partial sums{};
  sums.keys = round_up(p.end() - p.first(), KEYS), sums.tiles = round_up(p.N(), GROUP) / COLUMN_BLOCK;
  int64_t of_split = heads * sums.tiles * K * COLUMN_BLOCK, of_keys = heads * sums.keys * K;
  sums.splits = splits_for(p, sums.keys / KEYS, threads, of_split);
  int64_t of_queries = sums.splits * of_split;
  float* memory = scratch<float>(of_queries + 2 * of_keys + heads * (sums.tiles + sums.splits) * K);
  sums.dq = memory, sums.dk = sums.dq + of_queries, sums.dv = sums.dk + of_keys;
  sums.query_weights = sums.dv + of_keys, sums.key_weights = sums.query_weights + heads * sums.tiles * K;
  Arena count{};
  Operands<Mode> measured(p, &count);
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
    char* own = scratch<char>((size_t)count.next);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < heads * sums.splits; i++) {
      int64_t head = i / sums.splits;
      accumulate_gradients<Mode, E>(p, in, to, sums, head / p.G, head % p.G, i % sums.splits, Arena{own});
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < heads * sums.tiles; i++) {
      int64_t head = i / sums.tiles;
      finish_queries<E>(p, in, to, sums, head / p.G, head % p.G, i % sums.tiles, (float*)own);
    }
  }
  if (to.query_weights) add_up(sums.query_weights, heads * sums.tiles, K, to.query_weights);
  if (to.key_weights) add_up(sums.key_weights, heads * sums.splits, K, to.key_weights);
}
