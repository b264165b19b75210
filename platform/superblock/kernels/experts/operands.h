// Matrix operands in the order in which the products of products.h read them.
//
// A word is what one multiplication takes: a float, or a pair of bf16 that are neighbours along the summed dimension K.
// Left operands lie as rows of K elements. Right operands lie in strips of 16 columns: strip n holds columns 16 n to
// 16 n + 15, word after word along K, so that one load gives the same word of 16 columns; 16 words are a tile of AMX.
#pragma once
#include "gemm.h"

constexpr int STRIP = 16;  // columns
constexpr int BLOCK = 32;  // rows that are multiplied at once

template <class T>
constexpr int WORD = 4 / sizeof(T);  // elements

// Rows of anything that Python hands over, in fp32 or bf16; rows need not touch.
struct Rows {
  void* data;
  int64_t stride;
  bool half;

  V get(int64_t row, int64_t column) const {
    int64_t at = row * stride + column;
    return half ? load((const bf16*)data + at) : load((const float*)data + at);
  }
  void put(int64_t row, int64_t column, V x) const {
    int64_t at = row * stride + column;
    if (half) store((bf16*)data + at, x);
    else store((float*)data + at, x);
  }
  Rows from(int64_t row) const {
    return {half ? (void*)((bf16*)data + row * stride) : (void*)((float*)data + row * stride), stride, half};
  }
};

// Two rows (neighbours along K, the first one even) of W columns from column c on, into a strip.
INLINE void put_two(float* strip, int64_t row, int c, V first, V second) {
  store(strip + row * STRIP + c, first);
  store(strip + (row + 1) * STRIP + c, second);
}
#if defined(__AVX512BF16__)
INLINE void put_two(bf16* strip, int64_t row, int, V first, V second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  _mm512_storeu_si512(strip + row * STRIP, _mm512_permutexvar_epi16(order, both));
}
#endif

// `count` rows of `columns` elements, taken from `rows` in the order `which` (null: as they are), into strips of which
// each is `height` rows high; the rows from `count` to `padded` (even) become zero.
template <class T>
static void pack_rows(const Rows& rows, const int32_t* which, int64_t count, int64_t padded, int64_t columns, T* strips,
                      int64_t height) {
  for (int64_t n = 0; n < columns; n += STRIP)
    for (int c = 0; c < STRIP; c += W)
      for (int64_t i = 0; i < padded; i += 2) {
        V first = i < count ? rows.get(which ? which[i] : i, n + c) : V{};
        V second = i + 1 < count ? rows.get(which ? which[i + 1] : i + 1, n + c) : V{};
        put_two(strips + n * height, i, c, first, second);
      }
}

// 16 rows of K elements as one strip of their transpose.
template <class T>
static void pack_columns(const Rows& rows, int64_t K, T* strip) {
  constexpr int ELEMENTS = STRIP * WORD<T>;
  alignas(64) float words[STRIP * STRIP];
  for (int64_t k = 0; k < K; k += ELEMENTS) {
    for (int i = 0; i < STRIP; i++)
      for (int c = 0; c < ELEMENTS; c += W) store((T*)words + i * ELEMENTS + c, rows.get(i, k + c));
    transpose<STRIP, STRIP>(words, STRIP, (float*)(strip + k * STRIP), STRIP);
  }
}
