// A projection Y = X W^T of many tokens, and its gradients, for layers that are one operation: what stands before and
// behind the product (rounding, sums, other dtypes) happens while a block of results is in the first cache.
//
// Legend: N tokens, W [M, K] the projection's weight, of which every width is a multiple of 32.
#pragma once
#include "arena.h"
#include "block_products.h"

// Memory of the calling thread for what all threads read; each thread's own scratch is another.
template <class T>
static T* common_scratch(int64_t count) {
  struct Common {  // `scratch` has memory of its own for every type
    T element;
  };
  return (T*)scratch<Common>(count);
}

constexpr int64_t RESIDENT = 1 << 19;  // bytes of the right operand that are used at a time: they stay in the second cache

// Where a product's right operand [K, columns] comes from: rows of W (K inputs each), or W itself (K outputs, as for dX).
struct Right {
  Matrix weight;
  bool transposed;  // column j is row j of W; else column j of W

  template <class T>
  void pack(int64_t j, int64_t K, T* strips) const {  // columns j to j + 31
    if (transposed) {
      pack_columns(weight.from(j), K, strips);
      pack_columns(weight.from(j + STRIP), K, strips + STRIP * K);
    } else {
      Matrix columns{(char*)weight.data + j * (weight.half ? 2 : 4), weight.stride, weight.half};
      for (int64_t k = 0; k < K; k += BLOCK) pack_rows(columns.from(k), nullptr, BLOCK, BLOCK, BLOCK, strips + k * STRIP, K);
    }
  }
};

// Y [N, columns] = X [N, K] times the right operand. prepare(n, j) is told which 32 results of a row come soon, emit(n, j, y)
// gets W elements of row n from column j on.
template <class T, class Prepare, class Emit>
static void project(const Matrix& x, int64_t N, int64_t K, const Right& right, int64_t columns, int64_t threads,
                    const Prepare& prepare, const Emit& emit) {
  int64_t panel = std::max<int64_t>(BLOCK, std::min<int64_t>(columns, RESIDENT / (K * sizeof(T)) / BLOCK * BLOCK));
  T* strips = common_scratch<T>(panel * K);
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
    tiles::Session session;
    Arena arena{scratch<char>(Arena::bytes<T>(BLOCK * K) + Arena::bytes<float>(BLOCK * BLOCK))};
    T* left = arena.take<T>(BLOCK * K);
    float* tile = arena.take<float>(BLOCK * BLOCK);
    for (int64_t first = 0; first < columns; first += panel) {
      int64_t last = std::min(columns, first + panel);
#pragma omp for schedule(static)
      for (int64_t j = first; j < last; j += BLOCK) right.pack(j, K, strips + (j - first) * K);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < N; n += BLOCK) {
        int64_t rows = std::min<int64_t>(BLOCK, N - n), next = std::min(N, n + BLOCK);
        Ahead ahead{x.from(next), nullptr, std::min<int64_t>(BLOCK, N - next), K};
        gather(x.from(n), nullptr, rows, K, left);
        for (int64_t j = first; j < last; j += BLOCK) {
          ahead.fetch((j - first) / BLOCK, (last - first) / BLOCK);
          for (int64_t i = 0; i < rows; i++) prepare(n + i, j);
          const T* strip = strips + (j - first) * K;
          product(left, K, pad(rows), strip, strip + STRIP * K, K, tile);
          for (int64_t i = 0; i < rows; i++)
            for (int c = 0; c < BLOCK; c += W) emit(n + i, j + c, load(tile + i * BLOCK + c));
        }
      }
    }
  }
}

constexpr int64_t SUMMED = 2048;  // tokens whose operands are packed at a time

// dW [M, K] = dY [N, M]^T X [N, K], fp32, or added to what is there.
template <class T>
static void weight_gradient(const Matrix& dy, const Matrix& x, int64_t N, int64_t M, int64_t K, float* dw,
                            int64_t threads, bool add = false) {
  int64_t height = std::min(SUMMED, (N + BLOCK - 1) / BLOCK * BLOCK);
  T* right = common_scratch<T>(height * K);
  auto pack = [&](const Matrix& from, int64_t rows, int64_t columns, T* strips) {
    for (int64_t i = 0; i < rows; i += BLOCK) {
      int64_t count = std::min<int64_t>(BLOCK, rows - i);
      pack_rows(from.from(i), nullptr, count, BLOCK, columns, strips + i * STRIP, height);
    }
  };
  if (!N && !add) memset(dw, 0, M * K * sizeof(float));
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
    tiles::Session session;
    T* left = scratch<T>(BLOCK * height);
    for (int64_t n = 0; n < N; n += height) {
      int64_t rows = std::min(height, N - n), padded = (rows + BLOCK - 1) / BLOCK * BLOCK;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows; i += BLOCK)
        pack_rows(x.from(n + i), nullptr, std::min<int64_t>(BLOCK, rows - i), BLOCK, K, right + i * STRIP, height);
#pragma omp for schedule(static)
      for (int64_t m = 0; m < M; m += BLOCK) {
        Matrix columns{(char*)dy.data + m * (dy.half ? 2 : 4), dy.stride, dy.half};
        pack(columns.from(n), rows, BLOCK, left);
        turn(left, 2, height, padded);
        for (int64_t k = 0; k < K; k += BLOCK)
          gradient(left, left + STRIP * height, right + k * height, right + (k + STRIP) * height, padded, add || n > 0,
                   dw + m * K + k, dw + (m + STRIP) * K + k, K);
      }
    }
  }
}
