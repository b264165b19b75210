// Matrix operands in the order in which the products of block_products.h read them.
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
struct Matrix {
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
  // Brings `count` elements that are about to be written, or read, into the first cache.
  void ask(int64_t row, int64_t column, int64_t count) const {
    int64_t size = half ? sizeof(bf16) : sizeof(float);
    const char* begin = (const char*)data + (row * stride + column) * size;
    for (int64_t at = 0; at < count * size; at += 64) __builtin_prefetch(begin + at, 1);
  }
  const bf16* halves() const { return (const bf16*)data; }
  const float* floats() const { return (const float*)data; }
  Matrix from(int64_t row) const {
    return {half ? (void*)((bf16*)data + row * stride) : (void*)((float*)data + row * stride), stride, half};
  }
};

// W columns from c on of two neighbouring groups of 16 of one row.
INLINE void put_both(float* to, int c, V first, V second) {
  store(to + c, first);
  store(to + STRIP + c, second);
}
#if defined(__AVX512BF16__)
INLINE void put_both(bf16* to, int, V first, V second) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
}
#endif

// Rows that are read or written soon, brought into the second cache a few at a time, so that no line waits for a free place.
struct Ahead {
  Matrix rows;
  const int32_t* which;
  int64_t count, columns;
  bool write = false;

  void fetch(int64_t part, int64_t parts) const {
    int64_t size = rows.half ? sizeof(bf16) : sizeof(float);
    for (int64_t i = count * part / parts; i < count * (part + 1) / parts; i++) {
      const char* row = (const char*)rows.data + (which ? which[i] : i) * rows.stride * size;
      for (int64_t at = 0; at < columns * size; at += 64)
        if (write) __builtin_prefetch(row + at, 1, 2);
        else __builtin_prefetch(row + at, 0, 2);
    }
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

template <class T, class S>
static void pack_rows_of(const S* data, int64_t stride, const int32_t* which, int64_t count, int64_t padded,
                         int64_t columns, T* strips, int64_t height) {
  const S* row[BLOCK];
  for (int64_t i = 0; i < count; i++) row[i] = data + (which ? which[i] : i) * stride;
  for (int64_t n = 0; n < columns; n += STRIP)
    for (int c = 0; c < STRIP; c += W) {
      T* strip = strips + n * height;
      int64_t i = 0;
      for (; i + 2 <= count; i += 2) put_two(strip, i, c, load(row[i] + n + c), load(row[i + 1] + n + c));
      for (; i < padded; i += 2) put_two(strip, i, c, i < count ? load(row[i] + n + c) : V{}, V{});
    }
}

// `count` <= 32 rows of `columns` elements, taken from `rows` in the order `which` (null: as they are), into strips
// that are `height` rows high; the rows from `count` to `padded` (even) become zero.
template <class T>
static void pack_rows(const Matrix& rows, const int32_t* which, int64_t count, int64_t padded, int64_t columns, T* strips,
                      int64_t height) {
  if (rows.half) pack_rows_of(rows.halves(), rows.stride, which, count, padded, columns, strips, height);
  else pack_rows_of(rows.floats(), rows.stride, which, count, padded, columns, strips, height);
}

// 16 rows of K elements as one strip of their transpose.
template <class T>
static void pack_columns(const Matrix& rows, int64_t K, T* strip) {
  constexpr int ELEMENTS = STRIP * WORD<T>;
  alignas(64) float words[STRIP * STRIP];
  for (int64_t k = 0; k < K; k += ELEMENTS) {
    for (int i = 0; i < STRIP; i++)
      for (int c = 0; c < ELEMENTS; c += W) store((T*)words + i * ELEMENTS + c, rows.get(i, k + c));
    transpose<STRIP, STRIP>(words, STRIP, (float*)(strip + k * STRIP), STRIP);
  }
}
