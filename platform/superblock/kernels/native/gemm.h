// Small fp32 matrix products in registers: C = A B or C = D * scale + A B, for operands that lie in the cache.
#pragma once
#include "simd.h"

#if defined(__AVX512F__)
constexpr int ROWS = 8, COLUMNS = 2;  // rows by vectors of a block: 16 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int ROWS = 4, COLUMNS = 2;  // 8 of 16
#else
constexpr int ROWS = 4, COLUMNS = 2;
#endif

enum Part { FULL, A_LOWER, A_UPPER, OUT_LOWER };  // A_LOWER: A is zero above its diagonal; OUT_LOWER: nothing above it is needed

// One block. A's element (m, k) is at A[k * lda + m] if TRANSPOSED, else at A[m * lda + k].
template <int M, int NV, bool TRANSPOSED, bool ADD>
INLINE void block(int k_begin, int k_end, const float* A, int lda, const float* B, int ldb, const float* D, int ldd,
                  float scale, float* C, int ldc) {
  V acc[M][NV];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = ADD ? load(D + i * ldd + j * W) * scale : V{};
  for (int k = k_begin; k < k_end; k++) {
    V b[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) b[j] = load(B + k * ldb + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      V a = splat(TRANSPOSED ? A[k * lda + i] : A[i * lda + k]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] += a * b[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(C + i * ldc + j * W, acc[i][j]);
}

// C [M, N] = A [M, K] B [K, N], plus scale * D [M, N] if ADD (D may be C). M is a multiple of ROWS, N of COLUMNS * W.
template <int M, int N, int K, bool TRANSPOSED, bool ADD, Part PART>
static __attribute__((noinline)) void gemm(const float* A, int lda, const float* B, int ldb, const float* D, int ldd,
                                           float scale, float* C, int ldc) {
  static_assert(M % ROWS == 0 && N % (COLUMNS * W) == 0, "whole blocks only");
  for (int n = 0; n < N; n += COLUMNS * W)
    for (int m = 0; m < M; m += ROWS) {
      if (PART == OUT_LOWER && n > m + ROWS - 1) continue;
      int k_begin = PART == A_UPPER ? m : 0, k_end = PART == A_LOWER ? std::min(K, m + ROWS) : K;
      const float* a = TRANSPOSED ? A + m : A + (size_t)m * lda;
      block<ROWS, COLUMNS, TRANSPOSED, ADD>(k_begin, k_end, a, lda, B + n, ldb, D + (size_t)m * ldd + n, ldd, scale,
                                            C + (size_t)m * ldc + n, ldc);
    }
}

// D [C, R] = S [R, C] transposed, in squares that stay in registers or the first cache.
template <int R, int C>
static void transpose(const float* S, int lds, float* D, int ldd) {
#if defined(__AVX512F__)
  if constexpr (R % 16 == 0 && C % 16 == 0) {
    for (int i = 0; i < R; i += 16)
      for (int j = 0; j < C; j += 16) {
        __m512 r[16], t[16];
        const float* s = S + (size_t)i * lds + j;
        float* d = D + (size_t)j * ldd + i;
#pragma GCC unroll 16
        for (int k = 0; k < 16; k++) r[k] = _mm512_loadu_ps(s + (size_t)k * lds);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
          t[2 * k] = _mm512_unpacklo_ps(r[2 * k], r[2 * k + 1]);
          t[2 * k + 1] = _mm512_unpackhi_ps(r[2 * k], r[2 * k + 1]);
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          __m512d a = _mm512_castps_pd(t[4 * k]), b = _mm512_castps_pd(t[4 * k + 2]);
          __m512d c = _mm512_castps_pd(t[4 * k + 1]), e = _mm512_castps_pd(t[4 * k + 3]);
          r[4 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
          r[4 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
          r[4 * k + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, e));
          r[4 * k + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, e));
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          t[k] = _mm512_shuffle_f32x4(r[k], r[4 + k], 0x88);
          t[4 + k] = _mm512_shuffle_f32x4(r[k], r[4 + k], 0xdd);
          t[8 + k] = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0x88);
          t[12 + k] = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0xdd);
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          _mm512_storeu_ps(d + (size_t)k * ldd, _mm512_shuffle_f32x4(t[k], t[8 + k], 0x88));
          _mm512_storeu_ps(d + (size_t)(8 + k) * ldd, _mm512_shuffle_f32x4(t[k], t[8 + k], 0xdd));
          _mm512_storeu_ps(d + (size_t)(4 + k) * ldd, _mm512_shuffle_f32x4(t[4 + k], t[12 + k], 0x88));
          _mm512_storeu_ps(d + (size_t)(12 + k) * ldd, _mm512_shuffle_f32x4(t[4 + k], t[12 + k], 0xdd));
        }
      }
    return;
  }
#endif
  for (int i = 0; i < R; i += 8)
    for (int j = 0; j < C; j++)
      for (int k = i; k < std::min(R, i + 8); k++) D[(size_t)j * ldd + k] = S[(size_t)k * lds + j];
}
