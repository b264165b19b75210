// The cross-entropy of a projection with both its products' gradients, a block of tokens at a time: logits become losses and
// gradients, and those the gradient of their tokens, before the next block; the weight's gradient is summed over chunks.
//
// Legend: N tokens, D model width, V logits, both multiples of 32; T is what products take, and logits are rounded to it.
#pragma once
#include "projection.h"
#include "rows.h"

struct Linear {
  Matrix h, weight;  // [N, D], [V, D]
  const int64_t* labels;
  float z_loss;
  int64_t N, D, V;
};

// loss [N]; dh [N, D] and dweight [V, D], fp32, may be missing. At most `chunk` rows of logits, a multiple of 32, exist.
template <class T>
static void linear_losses(const Linear& l, int64_t chunk, float* loss, const Matrix& dh, float* dweight,
                          int64_t threads) {
  const int64_t D = l.D, V_ = l.V;
  const bool gradient = dh.data || dweight;
  struct Room {
    T *logits, *forwards, *backwards;
    Room(const std::pair<int64_t, int64_t>& sizes, Arena& arena) {
      logits = arena.take<T>(sizes.first), forwards = arena.take<T>(sizes.second), backwards = arena.take<T>(sizes.second);
    }
  };
  Temporary<Room, std::pair<int64_t, int64_t>> temporary({chunk * V_, V_ * D});
  const Room& room = temporary.parts;
  const Right to_logits{l.weight, true}, to_tokens{l.weight, false};
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t v = 0; v < V_; v += BLOCK) to_logits.pack(v, D, room.forwards + v * D);
  if (dh.data)
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t d = 0; d < D; d += BLOCK) to_tokens.pack(d, V_, room.backwards + d * V_);
  for (int64_t first = 0; first < l.N; first += chunk) {
    const int64_t count = std::min(chunk, l.N - first);
#pragma omp parallel num_threads(threads)
    {
      FlushSubnormals flush;
      tiles::Session session;
      Arena arena{scratch<char>(Arena::bytes<T>(BLOCK * D) + Arena::bytes<float>(BLOCK * BLOCK) + Arena::bytes<float>(V_))};
      T* left = arena.take<T>(BLOCK * D);
      float *tile = arena.take(BLOCK * BLOCK), *powers = arena.take(V_);
#pragma omp for schedule(static)
      for (int64_t n = first; n < first + count; n += BLOCK) {
        const int64_t rows = std::min<int64_t>(BLOCK, first + count - n);
        T* logits = room.logits + (n - first) * V_;
        gather(l.h.from(n), nullptr, rows, D, left);
        for (int64_t v = 0; v < V_; v += BLOCK) {
          const T* strip = room.forwards + v * D;
          product(left, D, pad(rows), strip, strip + STRIP * D, D, tile);
          for (int64_t i = 0; i < pad(rows); i++)
            for (int c = 0; c < BLOCK; c += W) store(logits + i * V_ + v + c, load(tile + i * BLOCK + c));
        }
        for (int64_t i = 0; i < rows; i++)
          loss[n + i] = row_loss(logits + i * V_, l.labels[n + i], l.z_loss, gradient ? powers : nullptr, V_);
        for (int64_t d = 0; dh.data && d < D; d += BLOCK) {
          for (int64_t i = 0; i < rows; i++) dh.ask(n + i, d, BLOCK);
          const T* strip = room.backwards + d * V_;
          product(logits, V_, pad(rows), strip, strip + STRIP * V_, V_, tile);
          for (int64_t i = 0; i < rows; i++)
            for (int c = 0; c < BLOCK; c += W) dh.put(n + i, d + c, load(tile + i * BLOCK + c));
        }
      }
    }
    if (dweight)
      weight_gradient<T>({room.logits, V_, sizeof(T) == 2}, l.h.from(first), count, V_, D, dweight, threads, first > 0);
  }
  if (!l.N && dweight) memset(dweight, 0, V_ * D * sizeof(float));
}
