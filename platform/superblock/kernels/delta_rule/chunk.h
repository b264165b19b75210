// What forward and backward of the chunked delta rule share: products of any multiple of 16, and one chunk made ready.
//
// Legend: K key width, VD value width (V is the vector type), C tokens of a chunk; rows lie `K + PAD` (or VD, C) floats apart,
// for rows that are a power of two apart would fall into the same few sets of the first cache.
#pragma once
#include "arena.h"
#include "block_products.h"
#include "prefetch.h"

constexpr int PAD = 16;
constexpr float EPS = 1e-6f;

// C [M, N] = A [M, K] B [K, N], plus scale * D if ADD (D may be C); `gemm` for sizes known at run time, all multiples of 16.
// Between its blocks it asks for what comes next.
template <bool TRANSPOSED, bool ADD, Part PART>
static __attribute__((noinline)) void multiply(int M, int N, int K, const float* A, int lda, const float* B, int ldb,
                                               const float* D, int ldd, float scale, float* C, int ldc, Prefetch& prefetch) {
  for (int n = 0; n < N;) {
    bool pair = n + COLUMNS * W <= N;
    for (int m = 0; m < M; m += ROWS) {
      int last = m + ROWS - 1;
      if (PART == OUT_LOWER && n > last) continue;
      int k_begin = PART == A_UPPER ? m : 0, k_end = PART == A_LOWER ? std::min(K, m + ROWS) : K;
      const float *a = TRANSPOSED ? A + m : A + (size_t)m * lda, *d = ADD ? D + (size_t)m * ldd + n : nullptr;
      float* c = C + (size_t)m * ldc + n;
      prefetch.ask();
      if (pair && !(PART == OUT_LOWER && n + W > last))
        block<ROWS, COLUMNS, TRANSPOSED, ADD>(k_begin, k_end, a, lda, B + n, ldb, d, ldd, scale, c, ldc);
      else
        for (int j = 0; j < COLUMNS * W && n + j < N && !(PART == OUT_LOWER && n + j > last); j += W)
          block<ROWS, 1, TRANSPOSED, ADD>(k_begin, k_end, a, lda, B + n + j, ldb, d + j, ldd, scale, c + j, ldc);
    }
    n += COLUMNS * W;
  }
}

static void transpose_any(int rows, int columns, const float* S, int lds, float* D, int ldd) {
  for (int i = 0; i < rows; i += 16)
    for (int j = 0; j < columns; j += 16)
      transpose<16, 16>(S + (size_t)i * lds + j, lds, D + (size_t)j * ldd + i, ldd);
}

// Solves (I + L) X = Y for rows of VD values, L strictly lower; `finish(row, column, x)` gets every solved vector and returns
// what later rows subtract, which is also what is stored in place of Y. UPWARDS solves with L transposed, last row first.
template <int NV, bool UPWARDS, class Finish>
INLINE void solve_columns(int C, const float* L, int ldl, float* Y, int ldy, int column, Finish finish) {
  constexpr int R = ROWS / 2;
  for (int begin = UPWARDS ? C - R : 0; UPWARDS ? begin >= 0 : begin < C; begin += UPWARDS ? -R : R) {
    V acc[R][NV];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = load(Y + (size_t)(begin + i) * ldy + column + j * W);
    for (int p = UPWARDS ? begin + R : 0; p < (UPWARDS ? C : begin); p++) {
      V y[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) y[j] = load(Y + (size_t)p * ldy + column + j * W);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        V factor = splat(UPWARDS ? L[(size_t)p * ldl + begin + i] : L[(size_t)(begin + i) * ldl + p]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[i][j] -= factor * y[j];
      }
    }
#pragma GCC unroll 8
    for (int step = 0; step < R; step++) {
      const int i = UPWARDS ? R - 1 - step : step;
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) {
        acc[i][j] = finish(begin + i, column + j * W, acc[i][j]);
        store(Y + (size_t)(begin + i) * ldy + column + j * W, acc[i][j]);
      }
#pragma GCC unroll 8
      for (int l = UPWARDS ? 0 : i + 1; l < (UPWARDS ? i : R); l++) {
        V factor = splat(UPWARDS ? L[(size_t)(begin + i) * ldl + begin + l] : L[(size_t)(begin + l) * ldl + begin + i]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[l][j] -= factor * acc[i][j];
      }
    }
  }
}
template <bool UPWARDS, class Finish>
INLINE void solve(int C, int VD, const float* L, int ldl, float* Y, int ldy, Finish finish) {
  int column = 0;
  if (ROWS == 8)  // registers enough
    for (; column + 4 * W <= VD; column += 4 * W) solve_columns<4, UPWARDS>(C, L, ldl, Y, ldy, column, finish);
  for (; column + 2 * W <= VD; column += 2 * W) solve_columns<2, UPWARDS>(C, L, ldl, Y, ldy, column, finish);
  for (; column < VD; column += W) solve_columns<1, UPWARDS>(C, L, ldl, Y, ldy, column, finish);
}

// One head of one sequence: its first elements, and how far apart tokens are.
template <class X>
struct Head {
  const X *q, *k, *v;
  const float *g, *beta;
  const int32_t* documents;  // null: the row is one document
  int64_t q_step, k_step, v_step, gate_step, tokens;
  int K, VD, C;
};

// `C` rows `step` apart to `length`, zeros behind the first `count`, and the factors that did it. Roots and quotients of all
// rows are taken at once: one by one they would keep the products waiting.
template <class X>
static void unit_rows(const X* x, int64_t step, int count, int C, int K, float length, float* out, int ld, float* factor) {
  for (int i = 0; i < C; i++) {
    V squares{};
    for (int j = 0; i < count && j < K; j += W) {
      V value = load(x + i * step + j);
      squares += value * value;
    }
    factor[i] = sum(squares);
  }
  for (int i = 0; i < C; i++) factor[i] = i < count ? length / std::sqrt(factor[i] + EPS) : 0.0f;
  for (int i = 0; i < count; i++) {
    V scale = splat(factor[i]);
    for (int j = 0; j < K; j += W) store(out + i * ld + j, load(x + i * step + j) * scale);
  }
  for (int i = count; i < C; i++) memset(out + i * ld, 0, sizeof(float) * K);
}

// S [rows, columns] of any row lengths to D.
INLINE void copy_rows(int rows, int columns, const float* S, int lds, float* D, int ldd) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j += W) store(D + (size_t)i * ldd + j, load(S + (size_t)i * lds + j));
}

// To memory past the caches, which have no use for it before the backward pass; `p` is aligned to a vector.
INLINE void store_past(float* p, V x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)x);
#else
  store(p, x);
#endif
}

// Whether products of keys with keys and queries are taken of the raw rows: of pairs of bf16 they are exact but for their
// sum, more than those of unit rows, at half of the price. The factors come afterwards.
#if defined(__AVX512BF16__)
template <class X>
constexpr bool RAW_PRODUCTS = sizeof(X) == 2;
#else
template <class X>
constexpr bool RAW_PRODUCTS = false;
#endif

// `C` rows `step` apart, side by side; zeros behind the first `count`.
INLINE void copy_pairs(const bf16* x, int64_t step, int count, int C, int K, bf16* out, int ld) {
  for (int i = 0; i < C; i++)
    for (int j = 0; j < K; j += W)
      *(VHLoose*)(out + i * ld + j) = i < count ? *(const VHLoose*)(x + i * step + j) : VHLoose{};
}

// The lower triangle of A B^T [C, C], B being strips of C rows, each `height` elements of 16 rows.
template <class T>
static void lower_products(int C, int K, const T* A, int lda, const T* strips, int height, float* out, int ldo,
                           Prefetch& prefetch) {
  constexpr int STEP = WORD<T>, ROW = STRIP * STEP;
  for (int n = 0; n < C; n += 2 * STRIP)
    for (int m = n; m < C; m += ROWS) {
      const T *a = A + m * lda, *left = strips + n * height, *both[2] = {left, left + STRIP * height};
      float* c = out + m * ldo + n;
      prefetch.ask();
      if (m < n + STRIP) multiply<T, 1>(a, lda, STEP, {left}, ROW, K / STEP, false, c, ldo);
      else multiply<T, 2>(a, lda, STEP, both, ROW, K / STEP, false, c, ldo);
    }
}

struct Chunk {
  int K, C, ldk, ldc, ldr, height;
  bf16 *rows, *strips;                // [2C, K] keys and queries as they are, and the keys' strips, for RAW_PRODUCTS
  float *KQ;                          // [2C, K] keys of length 1, then queries of length K^-0.5
  float *KQ_t;                        // [K, C] keys transposed
  float *D;                           // [C, C] decay from token j to i, zero above the diagonal and between documents
  float *KK, *P;                      // [C, C] each, one after the other: K K^T * D below the diagonal, Q K^T * D
  float *factor, *beta, *e, *r;       // [2C], [C], [C], [C]
  float *high, *low, *document;       // [C]
  float a;

  Chunk(int K, int C, Arena& arena) : K(K), C(C), ldk(K + PAD), ldc(C + PAD), ldr(K + 2 * PAD), height((K + 31) / 32 * 32) {
    rows = arena.take<bf16>(2 * C * ldr), strips = arena.take<bf16>(C * height);
    KQ = arena.take(2 * C * ldk), KQ_t = arena.take(K * ldc), D = arena.take(C * ldc);
    KK = arena.take(2 * C * ldc), P = KK + C * ldc;
    factor = arena.take(2 * C), beta = arena.take(C), e = arena.take(C), r = arena.take(C);
    high = arena.take(C), low = arena.take(C), document = arena.take(C);
  }

  // For `length` tokens from `first` on; rows behind them are zero and change nothing.
  template <class X>
  void prepare(const Head<X>& head, int64_t first, int length, Prefetch& prefetch) {
    const X *k = head.k + first * head.k_step, *q = head.q + first * head.q_step;
    const float unit = 1.0f / std::sqrt((float)K);
    decays(head, first, length);
    if constexpr (RAW_PRODUCTS<X>) {
      bf16* queries = rows + C * ldr;
      copy_pairs(k, head.k_step, length, C, K, rows, ldr);
      copy_pairs(q, head.q_step, length, C, K, queries, ldr);
      unit_rows(rows, ldr, length, C, K, 1.0f, KQ, ldk, factor);
      unit_rows(queries, ldr, length, C, K, unit, KQ + C * ldk, ldk, factor + C);
      for (int i = 0; i < C; i += STRIP) {
        const float* words = (const float*)(rows + i * ldr);  // pairs
        float* strip = (float*)(strips + i * height);
        for (int w = 0; w < K / 2; w += STRIP) transpose<STRIP, STRIP>(words + w, ldr / 2, strip + w * STRIP, STRIP);
      }
      lower_products(C, K, rows, ldr, strips, height, KK, ldc, prefetch);
      lower_products(C, K, queries, ldr, strips, height, P, ldc, prefetch);
    } else {
      unit_rows(k, head.k_step, length, C, K, 1.0f, KQ, ldk, factor);
      unit_rows(q, head.q_step, length, C, K, unit, KQ + C * ldk, ldk, factor + C);
      transpose_any(C, K, KQ, ldk, KQ_t, ldc);
      multiply<false, false, OUT_LOWER>(C, C, K, KQ, ldk, KQ_t, ldc, nullptr, 0, 0, KK, ldc, prefetch);
      multiply<false, false, OUT_LOWER>(C, C, K, KQ + C * ldk, ldk, KQ_t, ldc, nullptr, 0, 0, P, ldc, prefetch);
    }
    mask(C, ldc, high, low, document, RAW_PRODUCTS<X> ? factor : nullptr, KK, P, D);
  }

  // Arguments instead of members, here and below: a store of a vector may change any member, for all the compiler knows.
  // `factor` [2C] null: the products are of unit rows. Where it is 0, for a row whose square is too large for a float, so is
  // the product.
  static void mask(int C, int ldc, const float* high, const float* low, const float* document, const float* factor, float* KK,
                   float* P, float* D) {
    for (int i = 0; i < C; i++) {
      V row = splat((float)i), high_i = splat(high[i]), low_i = splat(low[i]), document_i = splat(document[i]);
      for (int j = 0; j <= i; j += W) {  // nobody reads the vectors above the diagonal
        float *kk = KK + i * ldc + j, *p = P + i * ldc + j, *d = D + i * ldc + j;
        V column = lanes() + (float)j;
        VI before = (column < row) & (load(document + j) == document_i), until = before | (column == row);
        V decay = select(until, vexp((high_i - load(high + j)) + (low_i - load(low + j))), V{});
        store(d, decay);
        V of_key = decay, of_query = decay;
        if (factor) {
          V shared = load(factor + j) * decay;
          of_key = shared * factor[i], of_query = shared * factor[C + i];
        }
        store(kk, select(before & (of_key != 0.0f), load(kk) * of_key, V{}));
        store(p, select(until & (of_query != 0.0f), load(p) * of_query, V{}));
      }
    }
  }

  // The running sum of the log decays is kept as high + low: differences of large sums keep their digits.
  template <class X>
  void decays(const Head<X>& head, int64_t first, int count) {
    const int C = this->C;
    const int64_t step = head.gate_step;
    const float *g = head.g + first * step, *strength = head.beta + first * step;
    const int32_t* ids = head.documents ? head.documents + first : nullptr;
    float *high = this->high, *low = this->low, *document = this->document, *beta = this->beta, *e = this->e, *r = this->r;
    double total = 0;
    float changes = 0;
    for (int i = 0; i < C; i++) {
      if (i < count) {
        total += std::max(g[i * step], -1e4f);  // e^-1e4 is 0, and larger numbers would take the digits of what follows
        if (ids && first + i > 0 && ids[i] != ids[i - 1]) changes += 1;
      }
      beta[i] = i < count ? strength[i * step] : 0.0f;
      high[i] = (float)total, low[i] = (float)(total - high[i]), document[i] = changes;
    }
    const float last_high = high[C - 1], last_low = low[C - 1];
    for (int i = 0; i < C; i += W) {
      V sum_high = load(high + i), sum_low = load(low + i), ids_i = load(document + i);
      store(e + i, select(ids_i == 0.0f, vexp(sum_high) * (1.0f + sum_low), V{}));
      store(r + i, select(ids_i == changes, vexp((last_high - sum_high) + (last_low - sum_low)), V{}));
    }
    a = e[C - 1];
  }
};
