// y = silu(gate) * up of rows [gate | up], forward and backward; fp32 inside.
// Legend: N rows of M groups of G, F hidden width. Row (m, g) of gate_up and of dy is at m * outer + g * inner.
#include "simd.h"

template <class T>
struct Rows {
  T* data;
  int64_t outer, inner, G;
  T* at(int64_t n) const { return data + n / G * outer + n % G * inner; }
};

template <class T>
static void forward(Rows<const T> gate_up, T* y, int64_t N, int64_t F, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < N; row++) {
      const T *gate = gate_up.at(row), *up = gate + F;
      T* out = y + row * F;
      for_columns(F, [&](int64_t f, auto n) {
        V x = read(gate + f, n);
        write(out + f, x * sigmoid<T>(x) * read(up + f, n), n);
      });
    }
  }
}

template <class T>
static void backward(Rows<const T> gate_up, Rows<const T> dy, T* dgate_up, int64_t N, int64_t F, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < N; row++) {
      const T *gate = gate_up.at(row), *up = gate + F, *d = dy.at(row);
      T *dgate = dgate_up + row * 2 * F, *dup = dgate + F;
      for_columns(F, [&](int64_t f, auto n) {
        V x = read(gate + f, n), sigma = sigmoid<T>(x), slope = read(d + f, n);
        write(dup + f, slope * x * sigma, n);
        write(dgate + f, slope * read(up + f, n) * sigma * (1.0f + x * (1.0f - sigma)), n);
      });
    }
  }
}

ENTRY void swiglu_forward(const void* gate_up, int64_t half, int64_t outer, int64_t inner, void* y, int64_t M,
                          int64_t G, int64_t F, int64_t threads) {
  if (half) forward<bf16>({(const bf16*)gate_up, outer, inner, G}, (bf16*)y, M * G, F, threads);
  else forward<float>({(const float*)gate_up, outer, inner, G}, (float*)y, M * G, F, threads);
}

ENTRY void swiglu_backward(const void* gate_up, int64_t half, int64_t outer, int64_t inner, const void* dy,
                           int64_t dy_outer, int64_t dy_inner, void* dgate_up, int64_t M, int64_t G, int64_t F,
                           int64_t threads) {
  if (half)
    backward<bf16>({(const bf16*)gate_up, outer, inner, G}, {(const bf16*)dy, dy_outer, dy_inner, G}, (bf16*)dgate_up,
                   M * G, F, threads);
  else
    backward<float>({(const float*)gate_up, outer, inner, G}, {(const float*)dy, dy_outer, dy_inner, G},
                    (float*)dgate_up, M * G, F, threads);
}
