// The cross-entropy of a projection with both its products' gradients, a block of tokens at a time: logits become losses and
// gradients, and those the gradient of their tokens, before the next block; the weight's gradient is summed over chunks.
//
// Legend: N tokens, D model width, V logits, both multiples of 32; T is what products take, and logits are rounded to it.
#pragma once
#include "projection.h"
#include "rows.h"

struct Unembedding {
  Matrix h, weight;  // [N, D], [V, D]
  const int64_t* labels;
  float z_loss;
  int64_t N, D, V;
};

// loss [N]; dh [N, D] and dweight [V, D], fp32, may be missing. At most `chunk` rows of logits exist, but 32 at least.
template <class T>
static void linear_losses(const Unembedding& u, int64_t chunk, float* loss, const Matrix& dh, float* dweight,
                          int64_t threads) {
  const int64_t D = u.D, columns = u.V;
  chunk = std::max<int64_t>(1, std::min(chunk / BLOCK, (u.N + BLOCK - 1) / BLOCK)) * BLOCK;
  const bool gradient = dh.data || dweight;
  struct Sizes {
    int64_t logits, forwards, backwards;
  };
  struct Rooms {
    T *logits, *forwards, *backwards;
    Rooms(const Sizes& sizes, Arena& arena) {
      logits = arena.take<T>(sizes.logits);
      forwards = arena.take<T>(sizes.forwards), backwards = arena.take<T>(sizes.backwards);
    }
  };
  Temporary<Rooms, Sizes> temporary({chunk * columns, columns * D, dh.data ? columns * D : 0});
  const Rooms& room = temporary.parts;
  const Right to_logits{u.weight, true}, to_tokens{u.weight, false};
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t v = 0; v < columns; v += BLOCK) to_logits.pack(v, D, room.forwards + v * D);
  if (dh.data)
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t d = 0; d < D; d += BLOCK) to_tokens.pack(d, columns, room.backwards + d * columns);
  for (int64_t first = 0; first < u.N; first += chunk) {
    const int64_t count = std::min(chunk, u.N - first);
#pragma omp parallel num_threads(threads)
    {
      FlushSubnormals flush;
      tiles::Session session;
      Arena arena{scratch<char>(Arena::bytes<T>(BLOCK * D) + Arena::bytes<float>(BLOCK * BLOCK) + Arena::bytes<float>(columns))};
      T* left = arena.take<T>(BLOCK * D);
      float *tile = arena.take(BLOCK * BLOCK), *powers = arena.take(columns);
#pragma omp for schedule(static)
      for (int64_t n = first; n < first + count; n += BLOCK) {
        const int64_t rows = std::min<int64_t>(BLOCK, first + count - n);
        T* logits = room.logits + (n - first) * columns;
        gather(u.h.from(n), nullptr, rows, D, left);
        for (int64_t v = 0; v < columns; v += BLOCK) {
          const T* strip = room.forwards + v * D;
          product(left, D, pad(rows), strip, strip + STRIP * D, D, tile);
          for (int64_t i = 0; i < pad(rows); i++)
            for (int c = 0; c < BLOCK; c += W) store(logits + i * columns + v + c, load(tile + i * BLOCK + c));
        }
        for (int64_t i = 0; i < rows; i++)
          loss[n + i] = row_loss(logits + i * columns, u.labels[n + i], u.z_loss, gradient ? powers : nullptr, columns);
        for (int64_t d = 0; dh.data && d < D; d += BLOCK) {
          for (int64_t i = 0; i < rows; i++) dh.ask(n + i, d, BLOCK);
          const T* strip = room.backwards + d * columns;
          product(logits, columns, pad(rows), strip, strip + STRIP * columns, columns, tile);
          for (int64_t i = 0; i < rows; i++)
            for (int c = 0; c < BLOCK; c += W) dh.put(n + i, d + c, load(tile + i * BLOCK + c));
        }
      }
    }
    if (dweight)
      weight_gradient<T>({room.logits, columns, sizeof(T) == 2}, u.h.from(first), count, columns, D, dweight, threads, first > 0);
  }
  if (!u.N && dweight) memset(dweight, 0, columns * D * sizeof(float));
}
