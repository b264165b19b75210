// Products of small blocks whose operands are words of 32 bits: one float, or two bf16 that are neighbours along the
// contracted dimension. Both have the same layouts, so one kernel serves both:
//   C[m, n] += sum over w of A[m, w] * B[w, n]        A's words are broadcast one by one, B's rows are loaded as
//   vectors.
#pragma once
#include "gemm.h"

constexpr int COLUMN_BLOCK = COLUMNS * W;  // columns of a block of ROWS x COLUMN_BLOCK accumulators

struct Floats {
  typedef float Word;
  static constexpr int PER_WORD = 1;
  INLINE V multiply_add(V sum, const Word* a, V b) { return sum + splat(*a) * b; }
  // Words of M rows of floats, contracted along the row ("along") or down the rows ("down").
  template <int M>
  INLINE void along(Word* out, int64_t stride, const V (&x)[M][COLUMNS]) {
    for (int i = 0; i < M; i++)
      for (int j = 0; j < COLUMNS; j++) store(out + i * stride + j * W, x[i][j]);
  }
  template <int M>
  INLINE void down(Word* out, int64_t stride, const V (&x)[M][COLUMNS]) {
    along(out, stride, x);
  }
  static void row_along(Word* out, const float* row, int width) { memcpy(out, row, width * sizeof(float)); }
  static void rows_down(Word* out, const float* rows, int64_t, int width) { row_along(out, rows, width); }
};

#if defined(__AVX512BF16__)
struct Pairs {
  typedef uint32_t Word;
  static constexpr int PER_WORD = 2;
  INLINE V multiply_add(V sum, const Word* a, V b) {
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)*a), (__m512bh)b);
  }
  INLINE __m512i interleaved(V even, V odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
  }
  template <int M>
  INLINE void along(Word* out, int64_t stride, const V (&x)[M][COLUMNS]) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
      _mm512_storeu_si512(out + i * stride, (__m512i)_mm512_cvtne2ps_pbh((__m512)x[i][1], (__m512)x[i][0]));
  }
  template <int M>
  INLINE void down(Word* out, int64_t stride, const V (&x)[M][COLUMNS]) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i += 2)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++)
        _mm512_storeu_si512(out + (i / 2) * stride + j * W, interleaved(x[i][j], x[i + 1][j]));
  }
  static void row_along(Word* out, const float* row, int width) {
    for (int i = 0; i < width; i += W) store((bf16*)out + i, load(row + i));
  }
  static void rows_down(Word* out, const float* rows, int64_t stride, int width) {
    for (int i = 0; i < width; i += W)
      _mm512_storeu_si512(out + i, interleaved(load(rows + i), load(rows + stride + i)));
  }
};
#endif

// The arithmetic for inputs of type E: pairs of bf16 where the processor multiplies them, floats otherwise.
template <class E>
struct ModeOf {
  typedef Floats Type;
};
#if defined(__AVX512BF16__)
template <>
struct ModeOf<bf16> {
  typedef Pairs Type;
};
#endif

// acc[m, n] += sum over words begin <= w < end. A's word (m, w) is at A[w * lda + m] if TRANSPOSED, else at A[m * lda +
// w].
template <class Mode, bool TRANSPOSED, int M, int NV>
INLINE void accumulate(V (&acc)[M][NV], const typename Mode::Word* A, int64_t lda, const typename Mode::Word* B,
                       int64_t ldb, int begin, int end) {
  for (int w = begin; w < end; w++) {
    V b[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) b[j] = *(const VLoose*)(B + w * ldb + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++)
        acc[i][j] = Mode::multiply_add(acc[i][j], A + (TRANSPOSED ? w * lda + i : i * lda + w), b[j]);
  }
}

// C [M, NV * W] = C * factor + A B, with a factor per column. The product is summed by itself first: shorter sums round
// less.
template <class Mode, bool TRANSPOSED, int M, int NV>
INLINE void update(float* C, int64_t ldc, const V* factor, const typename Mode::Word* A, int64_t lda,
                   const typename Mode::Word* B, int64_t ldb, int begin, int end) {
  V acc[M][NV] = {};
  accumulate<Mode, TRANSPOSED>(acc, A, lda, B, ldb, begin, end);
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* c = C + i * ldc + j * W;
      store(c, factor ? load(c) * factor[j] + acc[i][j] : load(c) + acc[i][j]);
    }
}

// 2^x for x of at most about 127; 0 below -126.5; NaN stays NaN. Relative error 1.3e-7.
INLINE V power_of_two(V x) {
  x = vmax(splat(-127.0f), x);  // of the two it is the second that a comparison with NaN leaves
#if defined(__AVX512F__)
  V n = (V)_mm512_roundscale_ps((__m512)x, 0);
#elif defined(__AVX2__)
  V n = (V)_mm256_round_ps((__m256)x, 0);
#else
  V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves no bits behind the point
  V n = (x + magic) - magic;
#endif
  V r = x - n;
  V p = r * 0.00132765f + 0.00967554f;
  p = p * r + 0.05550713f;
  p = p * r + 0.2402212f;
  p = p * r + 0.69314697f;
  p = p * r + 1.00000007f;
#if defined(__AVX512F__)
  return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * (V)((__builtin_convertvector(n, VI) + 127) << 23);
#endif
}
