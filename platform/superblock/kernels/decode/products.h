// Products of a matrix with a few vectors. The matrix is read once, row after row: its bytes are what a step costs.
#pragma once
#include "simd.h"

constexpr int GROUP = 16;  // rows are handed out in groups of this many, a cache line of results; all sizes are multiples of it

// The sums of four vectors.
INLINE void sums(V a, V b, V c, V d, float* out) {
#if defined(__AVX512F__)
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
  __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
  __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b));
  __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps((__m256)c, (__m256)d), _mm256_unpackhi_ps((__m256)c, (__m256)d));
  __m256 all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
  out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
#endif
}

INLINE float dot(const float* a, const float* b, int64_t width) {
  V total{};
  for (int64_t i = 0; i < width; i += W) total += load(a + i) * load(b + i);
  return sum(total);
}

// Four rows of the matrix times one vector, one row after the other: memory is read twice as fast as in four streams at once.
INLINE void four_rows(const float* matrix, int64_t width, const float* x, float* out) {
  V row_total[4];
  for (int r = 0; r < 4; r++) {
    const float* row = matrix + r * width;
    V total[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= width; i += 4 * W)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) total[j] += load(row + i + j * W) * load(x + i + j * W);
    for (; i < width; i += W) total[0] += load(row + i) * load(x + i);
    row_total[r] = (total[0] + total[1]) + (total[2] + total[3]);
  }
  sums(row_total[0], row_total[1], row_total[2], row_total[3], out);
}

// Four rows times B vectors: out [B, 4]. Four streams need to be told what comes: the four rows after these.
template <int B, bool PREFETCH>
static void four_rows(const float* matrix, int64_t width, const float* const* x, float* out) {
  V total[B][4] = {};
  for (int64_t i = 0; i < width; i += W) {
    V row[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
      if (PREFETCH) __builtin_prefetch(matrix + 4 * (width + i) + r * W);
      row[r] = load(matrix + r * width + i);
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
      V value = load(x[b] + i);
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) total[b][r] += row[r] * value;
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < B; b++) sums(total[b][0], total[b][1], total[b][2], total[b][3], out + 4 * b);
}

// Calls put(b, n, y) with the products y[0..3] of rows n.. n + 3 with x[b], for all rows of the groups [begin, end).
template <class Put>
static void product(const float* matrix, int64_t begin, int64_t end, int64_t width, const float* const* x, int64_t batch,
                    Put put) {
  for (int64_t n = begin * GROUP; n < end * GROUP; n += 4) {
    const float* rows = matrix + n * width;
    float y[16];
    for (int64_t b = 0; b < batch; b += 4) {
      int64_t count = std::min<int64_t>(4, batch - b);
      if (count == 1) four_rows(rows, width, x[b], y);
      if (count == 2) four_rows<2, true>(rows, width, x + b, y);
      if (count == 3) four_rows<3, true>(rows, width, x + b, y);
      if (count == 4 && b == 0) four_rows<4, true>(rows, width, x, y);
      if (count == 4 && b > 0) four_rows<4, false>(rows, width, x + b, y);
      for (int64_t i = 0; i < count; i++) put(b + i, n, y + 4 * i);
    }
  }
}

INLINE void copy4(const float* from, float* to) { memcpy(to, from, 16); }
INLINE void add4(const float* from, float scale, float* to) {
  for (int i = 0; i < 4; i++) to[i] += scale * from[i];
}

// y = weight * x / sqrt(mean(x^2) + epsilon)
INLINE void rms_norm(const float* x, const float* weight, int64_t width, double epsilon, float* y) {
  float scale = 1.0f / std::sqrt(dot(x, x, width) / (float)width + (float)epsilon);
  for (int64_t i = 0; i < width; i += W) store(y + i, load(x + i) * scale * load(weight + i));
}
