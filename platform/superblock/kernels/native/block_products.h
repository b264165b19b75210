// The two products that layers are made of, in blocks of 32 x 32: rows times weights, and gradients of weights.
// fp32 at every level; bf16 by AVX-512's dot products of pairs, or by the tiles of AMX.
#pragma once
#include "strips.h"
#include "tiles.h"

constexpr int PANEL = 128;  // words of K: two strips of them are 16 KiB and stay in the first cache
constexpr int PADDING = TILES ? BLOCK : ROWS;  // rows are multiplied in multiples of this

INLINE int64_t pad(int64_t rows) { return (rows + PADDING - 1) / PADDING * PADDING; }

template <class T, class S>
static void gather_from(const S* data, int64_t stride, const int32_t* which, int64_t rows, int64_t D, T* to) {
  for (int64_t i = 0; i < rows; i++) {
    const S* row = data + (which ? which[i] : i) * stride;
    for (int64_t d = 0; d < D; d += W) store(to + i * D + d, load(row + d));
  }
}

// Rows of a matrix as the left operand; those from `rows` to the padded count are zero.
template <class T>
static void gather(const Matrix& from, const int32_t* which, int64_t rows, int64_t D, T* to) {
  if (from.half) gather_from(from.halves(), from.stride, which, rows, D, to);
  else gather_from(from.floats(), from.stride, which, rows, D, to);
  memset(to + rows * D, 0, (pad(rows) - rows) * D * sizeof(T));
}

INLINE V multiply_add(V sum, const float* left, V right) { return sum + splat(*left) * right; }
#if defined(__AVX512BF16__)
INLINE V multiply_add(V sum, const bf16* left, V right) {
  __m512i word = _mm512_set1_epi32(*(const int32_t __attribute__((may_alias))*)left);
  return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)right, (__m512bh)word);
}
#endif

// C [ROWS, NV * W] (+)= A B. Word w of A's row i lies at A[i * row + w * step], that of B's vector j at
// right[j] + w * stride.
template <class T, int NV>
INLINE void multiply(const T* A, int64_t row, int64_t step, const T* const (&right)[NV], int64_t stride, int64_t words,
                     bool add, float* C, int64_t ldc) {
  V sums[ROWS][NV];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sums[i][j] = add ? load(C + i * ldc + j * W) : V{};
  for (int64_t w = 0; w < words; w++) {
    V b[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) b[j] = load((const float*)(right[j] + w * stride));
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) sums[i][j] = multiply_add(sums[i][j], A + i * row + w * step, b[j]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(C + i * ldc + j * W, sums[i][j]);
}

// The same for 32 columns: two strips, of which `left` is the first.
template <class T>
INLINE void multiply_strips(const T* A, int64_t row, int64_t step, const T* left, const T* right, int64_t words,
                            bool add, float* C, int64_t ldc) {
  for (int c = 0; c < 2 * STRIP; c += COLUMNS * W) {
    const T* strips[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) {
      int column = c + j * W;
      strips[j] = (column < STRIP ? left : right) + column % STRIP * WORD<T>;
    }
    multiply(A, row, step, strips, STRIP * WORD<T>, words, add, C + c, ldc);
  }
}

// C [rows, 32] = A [rows, K] B [K, 32] for rows <= 32 in a multiple of PADDING; C's rows are 32 long.
template <class T>
static void product(const T* A, int64_t lda, int64_t rows, const T* left, const T* right, int64_t K, float* C) {
#if defined(EMULATE_TILES) || defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2)
    if (tiles::allowed()) {
      tiles::clear();
      for (int64_t k = 0; k < K; k += 32)
        tiles::step(A + k, A + 16 * lda + k, lda, left + k * STRIP, right + k * STRIP);
      tiles::write(C, C + 16 * BLOCK, BLOCK);
      return;
    }
#endif
  constexpr int ELEMENTS = PANEL * WORD<T>;
  for (int64_t k = 0; k < K; k += ELEMENTS)
    for (int64_t i = 0; i < rows; i += ROWS)
      multiply_strips(A + i * lda + k, lda, WORD<T>, left + k * STRIP, right + k * STRIP,
                      std::min<int64_t>(K - k, ELEMENTS) / WORD<T>, k > 0, C + i * BLOCK, BLOCK);
}

// Makes strips ready to be the left operand of `gradient`: AMX wants rows, the transpose of each tile of a strip.
template <class T>
static void turn(T* strips, int64_t count, int64_t height, int64_t rows) {
#if defined(EMULATE_TILES) || defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2)
    if (tiles::allowed())
      for (int64_t n = 0; n < count; n++)
        for (int64_t k = 0; k < rows; k += 32) {
          alignas(64) float words[STRIP * STRIP];
          float* tile = (float*)(strips + n * height * STRIP + k * STRIP);
          transpose<STRIP, STRIP>(tile, STRIP, words, STRIP);
          memcpy(tile, words, sizeof words);
        }
#endif
}

// C [32, 32] (+)= A^T B, summed over `rows` rows; A's two strips give the 16 rows at `top` and the 16 at `bottom`.
template <class T>
static void gradient(const T* A0, const T* A1, const T* left, const T* right, int64_t rows, bool add, float* top,
                     float* bottom, int64_t ldc) {
#if defined(EMULATE_TILES) || defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2)
    if (tiles::allowed()) {
      if (add) tiles::read(top, bottom, ldc);
      else tiles::clear();
      for (int64_t k = 0; k < rows; k += 32)
        tiles::step(A0 + k * STRIP, A1 + k * STRIP, 32, left + k * STRIP, right + k * STRIP);
      tiles::write(top, bottom, ldc);
      return;
    }
#endif
  for (int i = 0; i < BLOCK; i += ROWS)
    multiply_strips((i < STRIP ? A0 : A1) + i % STRIP * WORD<T>, WORD<T>, STRIP * WORD<T>, left, right, rows / WORD<T>,
                    add, (i < STRIP ? top : bottom) + i % STRIP * ldc, ldc);
}

// f with what the level multiplies for rows of this kind: pairs of bf16 where it can, floats elsewhere.
template <class F>
static void with_operand(bool half, F f) {
#if defined(__AVX512BF16__)
  if (half) return f((bf16)0);
#endif
  f(0.0f);
}
