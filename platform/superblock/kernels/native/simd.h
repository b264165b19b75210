// Vectors of floats as wide as the level allows: 16 lanes with AVX-512, 8 with AVX2, 4 without either.
// GCC's and Clang's vector extensions, so that one source serves every level; intrinsics only where those fall short.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ENTRY extern "C" __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float V __attribute__((vector_size(W * 4)));
typedef float VLoose __attribute__((vector_size(W * 4), aligned(4), may_alias));  // at any address
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef uint32_t VU __attribute__((vector_size(W * 4)));
typedef uint16_t VH __attribute__((vector_size(W * 2)));
typedef uint16_t VHLoose __attribute__((vector_size(W * 2), aligned(2), may_alias));
typedef uint16_t bf16;

INLINE V load(const float* p) { return *(const VLoose*)p; }
INLINE void store(float* p, V x) { *(VLoose*)p = x; }
INLINE V splat(float x) { return x - V{}; }
INLINE V lanes() {  // 0, 1, 2, ...
  V x;
  for (int i = 0; i < W; i++) x[i] = (float)i;
  return x;
}

INLINE V load(const bf16* p) {
#if defined(__AVX512F__)  // the compiler makes two halves of it
  VU wide = (VU)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
  VU wide = __builtin_convertvector(*(const VHLoose*)p, VU) << 16;
#endif
  return (V)wide;
}
// Round to nearest even; NaN stays NaN.
INLINE void store(bf16* p, V x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  VU bits = (VU)x;
  VU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  VU nan = (bits >> 16) | 0x40;
  VI is_nan = x != x;
  VU chosen = (nan & (VU)is_nan) | (rounded & ~(VU)is_nan);
  *(VHLoose*)p = __builtin_convertvector(chosen, VH);
#endif
}
INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}
INLINE void put(float* p, float x) { *p = x; }
INLINE void put(bf16* p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  *p = x != x ? (bf16)((bits >> 16) | 0x40) : (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A row of any length: f(column, Whole{}) for each whole vector, then f(column, count) for what is left, if anything.
// read and write take the second argument: with a count, lanes past it are zero, or are not written.
struct Whole {};
template <class F>
INLINE void for_columns(int64_t columns, F f) {
  int64_t column = 0;
  for (; column + W <= columns; column += W) f(column, Whole{});
  if (column < columns) f(column, columns - column);
}
template <class T>
INLINE V read(const T* p, Whole) { return load(p); }
template <class T>
INLINE V read(const T* p, int64_t count) {
  T padded[W] = {};
  memcpy(padded, p, count * sizeof(T));
  return load(padded);
}
template <class T>
INLINE void write(T* p, V x, Whole) { store(p, x); }
template <class T>
INLINE void write(T* p, V x, int64_t count) {
  T padded[W];
  store(padded, x);
  memcpy(p, padded, count * sizeof(T));
}

INLINE V select(VI mask, V yes, V no) { return mask ? yes : no; }
INLINE V vmax(V a, V b) {
#if defined(__AVX512F__)
  return (V)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return select(a > b, a, b);
#endif
}
INLINE V vmin(V a, V b) { return -vmax(-a, -b); }
INLINE float sum(V x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < W; i++) total += x[i];
  return total;
#endif
}
INLINE float max_of(V x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float best = x[0];
  for (int i = 1; i < W; i++) best = std::max(best, x[i]);
  return best;
#endif
}

// e^x within 1 ulp or so; 0 below -87.3, at most e^88. NaN stays NaN: vmax and vmin give the second of two numbers if they
// cannot be compared.
INLINE V vexp(V x) {
#if defined(__AVX512F__)
  V y = vmin(splat(88.0f), x);
  V n = (V)_mm512_roundscale_ps((__m512)(y * 1.44269504088896341f), 0);
#else
  V y = vmin(splat(88.0f), vmax(splat(-87.33f), x));
  V n = y * 1.44269504088896341f;
#if defined(__AVX2__)
  n = (V)_mm256_round_ps((__m256)n, 0);
#else
  V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves no bits behind the point
  n = (n + magic) - magic;
#endif
#endif
  V r = y - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  __mmask16 large = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.33f), _CMP_NLT_UQ);
  return (V)_mm512_maskz_scalef_ps(large, (__m512)p, (__m512)n);
#else
  VI exponent = (__builtin_convertvector(n, VI) + 127) << 23;
  V result = p * (V)exponent;
  return select(x < -87.33f, V{}, result);
#endif
}
INLINE V vsigmoid(V x) { return 1.0f / (1.0f + vexp(-x)); }
INLINE V vsilu(V x) { return x * vsigmoid(x); }

// For 16-bit results a sigmoid within 1e-4, which costs half of the exact one. Far out, scalef gives 0 or infinity.
template <class T>
INLINE V sigmoid(V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    V y = x * -1.44269504f;
    V whole = (V)_mm512_roundscale_ps((__m512)y, 0);
    V f = y - whole;
    V power = f * 0.00958285f + 0.05590643f;  // 2^f within 3e-6
    power = power * f + 0.24024099f;
    power = power * f + 0.69312419f;
    power = power * f + 1.0f;
    return (V)_mm512_rcp14_ps((__m512)((V)_mm512_scalef_ps((__m512)power, (__m512)whole) + 1.0f));
  }
#endif
  return vsigmoid(x);
}

// Subnormal numbers count as zero while this lives: decays underflow, and arithmetic on subnormals is 100 times slower.
// One per thread, at the top of a parallel region.
struct FlushSubnormals {
#if defined(__x86_64__)
  unsigned before;
  FlushSubnormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before); }
#else
  FlushSubnormals() {}
  ~FlushSubnormals() {}
#endif
};

// Memory that `free` takes. Nobody could catch an exception: where there is none left, the process ends with a line that
// says so.
static void* allocate(size_t alignment, size_t bytes) {
  void* memory = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory || !bytes) return memory;
  fprintf(stderr, "superblock: no %zu MiB of memory left for a C++ kernel\n", bytes >> 20);
  abort();
}

// Memory of the calling thread, aligned to a cache line; the next call may hand out the same.
template <class T>
static T* scratch(size_t count) {
  static thread_local struct Block {
    void* memory = nullptr;
    size_t bytes = 0;
    ~Block() { free(memory); }
  } block;
  size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
  if (block.bytes < bytes) {
    free(block.memory);
    block.memory = allocate(4096, bytes);
    block.bytes = bytes;
  }
  return (T*)block.memory;
}
