// RMSNorm, with or without an output gate, forward and backward in one pass each; fp32 inside.
//   y = x * scale * w              scale = 1 / sqrt(mean(x^2) + eps), one number per row
//   y = x * scale * w * silu(z)    with a gate
// Legend: M groups of G rows of D elements. A tensor that comes with two strides has row (m, g) at
// m * outer + g * inner; the others are contiguous. weight is [D], or [G, D] if per_row.
#pragma once
#include <type_traits>
#include "simd.h"

namespace norm {

struct Shape {
  int64_t M, G, D;
  bool per_row;
};

template <class T>
struct Rows {
  T* data;
  int64_t outer, inner;
  T* at(int64_t m, int64_t g) const { return data + m * outer + g * inner; }
};

struct None {};  // in place of the gate's element type

// Rows are handled in blocks, whose number depends on the shape alone: the weight's gradient is summed per block, then
// block by block, so that it has the same bits whatever the number of threads.
constexpr int64_t MOST_BLOCKS = 64;
struct Blocks {
  int64_t rows, each, count;
  explicit Blocks(const Shape& s)
      : rows(s.M * s.G), each(std::max<int64_t>(32, (rows + MOST_BLOCKS - 1) / MOST_BLOCKS)), count((rows + each - 1) / each) {}
  template <class F>
  void rows_of(int64_t block, int64_t G, F f) const {  // f(row, m, g) for each; one division per block
    int64_t row = block * each, end = std::min(rows, row + each), m = row / G, g = row % G;
    for (; row < end; row++) {
      f(row, m, g);
      if (++g == G) g = 0, m++;
    }
  }
};

template <class X, class Y, class Z>
static void forward(Shape s, Rows<const X> x, const float* weight, Rows<const Z> gate, float eps, Y* y, float* wide,
                    float* scales, int64_t threads) {
  constexpr bool GATED = !std::is_same<Z, None>::value;
  const Blocks blocks(s);
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks.count; block++)
      blocks.rows_of(block, s.G, [=](int64_t row, int64_t m, int64_t g) {
        const int64_t D = s.D;
        const X* x_row = x.at(m, g);
        const Z* z_row = GATED ? gate.at(m, g) : nullptr;
        const float* w = weight + (s.per_row ? g * D : 0);
        V squares{};
        for_columns(D, [&](int64_t d, auto n) {
          V value = read(x_row + d, n);
          squares += value * value;
        });
        const float scale = 1.0f / std::sqrt(sum(squares) / (float)D + eps);
        scales[row] = scale;
        for_columns(D, [&](int64_t d, auto n) {
          V value = read(x_row + d, n) * scale * read(w + d, n);
          if constexpr (GATED) {
            V z = read(z_row + d, n);
            value *= z * sigmoid<Y>(z);
          }
          write(y + row * D + d, value, n);
          if (wide) write(wide + row * D + d, value, n);
        });
      });
  }
}

// dx is contiguous, and `stream` is added to it; dy, dwide: the gradients of y and of its copy in fp32; any of the three
// may be missing.
// partial: [blocks, weight's size], overwritten.
template <class X, class Y, class Z>
static void backward(Shape s, Rows<const X> x, const float* weight, Rows<const Z> gate, const float* scales,
                     Rows<const Y> dy, Rows<const float> dwide, Rows<const X> stream, X* dx, Rows<Z> dgate,
                     float* dweight, float* partial, int64_t threads) {
  constexpr bool GATED = !std::is_same<Z, None>::value;
  const int64_t size = s.per_row ? s.G * s.D : s.D;
  const Blocks blocks(s);
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
    float* own = scratch<float>(s.D + W);  // the row's gradient times the weight
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks.count; block++) {
      float* sums = partial + block * size;
      memset(sums, 0, size * sizeof(float));
      blocks.rows_of(block, s.G, [=](int64_t row, int64_t m, int64_t g) {
        const int64_t D = s.D;
        const X* x_row = x.at(m, g);
        const Z* z_row = GATED ? gate.at(m, g) : nullptr;
        const Y* dy_row = dy.data ? dy.at(m, g) : nullptr;
        const X* stream_row = stream.data ? stream.at(m, g) : nullptr;
        const float* dwide_row = dwide.data ? dwide.at(m, g) : nullptr;
        Z* dgate_row = GATED ? dgate.at(m, g) : nullptr;
        const float* w = weight + (s.per_row ? g * D : 0);
        float* dw = sums + (s.per_row ? g * D : 0);
        const float scale = scales[row];
        V along{};
        for_columns(D, [&](int64_t d, auto n) {
          V d_out = dy_row ? read(dy_row + d, n) : V{};
          if (dwide_row) d_out += read(dwide_row + d, n);
          V normed = read(x_row + d, n) * scale, w_d = read(w + d, n);
          if constexpr (GATED) {
            V z = read(z_row + d, n), sigma = vsigmoid(z);
            write(dgate_row + d, d_out * normed * w_d * sigma * (1.0f + z * (1.0f - sigma)), n);
            d_out *= z * sigma;
          }
          write(dw + d, read(dw + d, n) + d_out * normed, n);
          d_out *= w_d;
          store(own + d, d_out);
          along += d_out * normed;
        });
        const float mean = sum(along) / (float)D;
        for_columns(D, [&](int64_t d, auto n) {
          V normed = read(x_row + d, n) * scale;
          V value = (load(own + d) - normed * mean) * scale;
          if (stream_row) value += read(stream_row + d, n);
          write(dx + row * D + d, value, n);
        });
      });
    }
#pragma omp single
    for_columns(size, [&](int64_t d, auto n) {
      V total{};
      for (int64_t block = 0; block < blocks.count; block++) total += read(partial + block * size + d, n);
      write(dweight + d, total, n);
    });
  }
}

// Calls f with a null pointer of the element type that a flag stands for.
template <class F>
static void with_type(int64_t half, F f) {
  if (half) f((const bf16*)nullptr);
  else f((const float*)nullptr);
}
template <class P>
using Element = typename std::remove_const<typename std::remove_pointer<P>::type>::type;
}  // namespace norm
