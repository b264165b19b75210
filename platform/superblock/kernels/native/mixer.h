// What stands around a mixer in a layer that is one operation: norm and projection before it, projection and sum behind.
//
// Legend: N tokens, D model width, M columns of the first projection, Y columns of the mixer's output. A stream is fp32 or
// bf16, and so are rows, which are what products take; T is what the level multiplies.
#pragma once
#include <vector>
#include "norm.h"
#include "projection.h"

// What Python passes of a layer's ends; every matrix is contiguous.
struct Ends {
  Matrix x;                  // [N, D], the stream
  const float* norm_weight;  // [D]
  float epsilon;
  Matrix enter, leave;  // weights [M, D] and [D, Y]
  int64_t N, D, M, Y;
};

static void norm_forward(const Ends& e, const Matrix& h, float* wide, float* scales, int64_t threads) {
  norm::Shape shape{e.N, 1, e.D, false};
  norm::with_type(e.x.half, [&](auto x_type) {
    norm::with_type(h.half, [&](auto h_type) {
      using X = norm::Element<decltype(x_type)>;
      using H = norm::Element<decltype(h_type)>;
      norm::forward<X, H, norm::None>(shape, {(const X*)e.x.data, e.D, 0}, e.norm_weight, {}, e.epsilon, (H*)h.data, wide,
                                      scales, threads);
    });
  });
}

// h [N, D] the normed tokens as rows, the same as floats in `wide` unless it is null, scales [N], rows [N, M].
template <class T>
static void enter(const Ends& e, const Matrix& h, float* wide, float* scales, const Matrix& rows, int64_t threads) {
  norm_forward(e, h, wide, scales, threads);
  project<T>(
      h, e.N, e.D, {e.enter, true}, e.M, threads, [&](int64_t n, int64_t j) { rows.ask(n, j, BLOCK); },
      [&](int64_t n, int64_t j, V value) { rows.put(n, j, value); });
}

// stream [N, D] = x + y times the second projection, rounded once.
template <class T>
static void leave(const Ends& e, const Matrix& y, const Matrix& stream, int64_t threads) {
  project<T>(
      y, e.N, e.Y, {e.leave, true}, e.D, threads,
      [&](int64_t n, int64_t j) { e.x.ask(n, j, BLOCK), stream.ask(n, j, BLOCK); },
      [&](int64_t n, int64_t j, V value) { stream.put(n, j, e.x.get(n, j) + value); });
}

// dy [N, Y] and dweight [D, Y], fp32, of the second projection.
template <class T>
static void leave_backward(const Ends& e, const Matrix& dstream, const Matrix& y, const Matrix& dy, float* dweight,
                           int64_t threads) {
  project<T>(
      dstream, e.N, e.D, {e.leave, false}, e.Y, threads, [&](int64_t n, int64_t j) { dy.ask(n, j, BLOCK); },
      [&](int64_t n, int64_t j, V value) { dy.put(n, j, value); });
  weight_gradient<T>(dstream, y, e.N, e.D, e.Y, dweight, threads);
}

// dx [N, D], `dstream` included, dnorm [D] and dweight [M, D], fp32, of the first projection. `dh` [N, D] holds the gradient
// of the normed tokens by whoever else read them if `more`, and is overwritten.
template <class T>
static void enter_backward(const Ends& e, const Matrix& dstream, const Matrix& drows, float* dh, bool more,
                           const Matrix& h, const float* scales, const Matrix& dx, float* dnorm, float* dweight,
                           int64_t threads) {
  Matrix sum{dh, e.D, false};
  project<T>(
      drows, e.N, e.M, {e.enter, false}, e.D, threads, [&](int64_t n, int64_t j) { sum.ask(n, j, BLOCK); },
      [&](int64_t n, int64_t j, V value) { store(dh + n * e.D + j, more ? value + load(dh + n * e.D + j) : value); });
  weight_gradient<T>(drows, h, e.N, e.M, e.D, dweight, threads);
  norm::Shape shape{e.N, 1, e.D, false};
  std::vector<float> partial(norm::MOST_BLOCKS * e.D);
  norm::with_type(e.x.half, [&](auto type) {
    using X = norm::Element<decltype(type)>;
    norm::backward<X, float, norm::None>(shape, {(const X*)e.x.data, e.D, 0}, e.norm_weight, {}, scales, {dh, e.D, 0}, {},
                                         {(const X*)dstream.data, e.D, 0}, (X*)dx.data, {}, dnorm, partial.data(),
                                         threads);
  });
}
