// What lies between the matrix products of a cross-entropy, one pass over each row of logits while it is in the cache.
// Legend: C rows, V logits of a row, contiguous. A label is -100 (the row is not scored) or one of 0 .. V - 1.
#pragma once
#include <type_traits>

#include "simd.h"

static constexpr int64_t IGNORE = -100;

struct Softmax {
  float top, total;  // the largest logit, and the sum of e^(logit - top)
  float lse() const { return top + std::log(total); }
};

// e^x for x <= 0, 0 below -87: `vexp` without what it does for other numbers.
INLINE V power_of(V x) {
#if defined(__AVX512F__)
  x = vmax(x, splat(-150.0f));
  V n = (V)_mm512_roundscale_ps((__m512)(x * 1.44269504088896341f), 0);
  V r = x - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return (V)_mm512_scalef_ps((__m512)p, (__m512)n);  // subnormal results are flushed
#else
  return vexp(x);
#endif
}

// A row that holds NaN or +inf, or nothing above -inf, has no softmax: everything that is computed from it is NaN.
// The powers e^(logit - top) go to `powers` unless that is null.
template <class T>
static Softmax softmax(const T* row, float* powers, int64_t columns) {
  V top = splat(-INFINITY);
  VI nan{};
  for_columns(columns, [&](int64_t v, auto n) {
    V x = read(row + v, n);
    if constexpr (std::is_same<decltype(n), int64_t>::value) x = select(lanes() < (float)n, x, splat(-INFINITY));
    top = vmax(x, top);
    nan |= x != x;
  });
  Softmax s{max_of(top), 0};
  bool broken = !std::isfinite(s.top);
  for (int i = 0; i < W; i++) broken |= nan[i] != 0;
  if (broken) return {NAN, NAN};
  V total{};
  for_columns(columns, [&](int64_t v, auto n) {
    V power = power_of(read(row + v, n) - s.top);
    if constexpr (std::is_same<decltype(n), int64_t>::value) power = select(lanes() < (float)n, power, V{});
    total += power;
    if (powers) write(powers + v, power, n);
  });
  s.total = sum(total);
  return s;
}

// The loss of a row, -log p(label) + z_loss * lse^2, 0 where it is not scored; with `powers`, room for a row, the logits
// are replaced by the gradient of their loss.
template <class T>
static float row_loss(T* row, int64_t label, float z_loss, float* powers, int64_t columns) {
  if (label == IGNORE) {
    if (powers) memset(row, 0, columns * sizeof(T));
    return 0;
  }
  const Softmax s = softmax(row, powers, columns);
  const float lse = s.lse(), loss = lse - to_float(row[label]) + z_loss * lse * lse;
  if (!powers) return loss;
  const float slope = 1 + 2 * z_loss * lse, factor = slope / s.total;
  for_columns(columns, [&](int64_t v, auto n) { write(row + v, read(powers + v, n) * factor, n); });
  put(row + label, powers[label] * factor - 1);
  return loss;
}

// The same of many rows.
template <class T>
static void losses(T* logits, const int64_t* labels, float z_loss, bool gradient, float* loss, int64_t C,
                   int64_t columns, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
    float* powers = gradient ? scratch<float>(columns) : nullptr;
#pragma omp for schedule(static)
    for (int64_t c = 0; c < C; c++) loss[c] = row_loss(logits + c * columns, labels[c], z_loss, powers, columns);
  }
}

// nll = -log p(label) of each row, 0 where it is not scored; rank = how many logits are above the label's, -1 there.
template <class T>
static void scores(const T* logits, const int64_t* labels, float* nll, int64_t* rank, int64_t C, int64_t columns,
                   int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t c = 0; c < C; c++) {
    const T* row = logits + c * columns;
    nll[c] = 0;
    rank[c] = -1;
    if (labels[c] == IGNORE) continue;
    const float mine = to_float(row[labels[c]]);
    nll[c] = softmax(row, nullptr, columns).lse() - mine;
    VI above{};
    for_columns(columns, [&](int64_t v, auto n) {
      VI higher = read(row + v, n) > mine;
      if constexpr (std::is_same<decltype(n), int64_t>::value) higher &= lanes() < (float)n;
      above -= higher;  // true is -1
    });
    rank[c] = 0;
    for (int i = 0; i < W; i++) rank[c] += above[i];
  }
}
