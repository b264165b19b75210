// The forward pass for so few columns (decoding) that keys and values are read once, where they lie: what counts is
// memory.
#pragma once
#include "problem.h"

constexpr int FEW = 8;         // columns at most
constexpr int FEW_KEYS = 64;   // keys whose weights are known at a time
constexpr int64_t PART = 512;  // keys of a task; the result does not depend on the number of threads

template <class E>
struct Outputs {
  E *y, *o;     // [B, T, H, K]; o, before the gate, is null without one
  float* sums;  // [2, B, G, N]: largest product of query and key, and log 2 of the sum of the weights relative to it
};

// Writes one column's output, gated, and what the backward pass needs of its scores.
template <class E>
static void finish_column(const Problem& p, Outputs<E> to, Rows<const E> gate, int64_t b, int64_t g, int64_t column,
                          const float* row, float largest, float total) {
  int64_t t = column / p.R(), h = g * p.R() + column % p.R(), at = ((b * p.T + t) * p.H + h) * p.K;
  float* sums = to.sums + (b * p.G + g) * p.N() + column;
  sums[0] = largest, sums[p.B * p.G * p.N()] = log2f(total);
  const E* gates = to.o ? gate.at(b, t, h) : nullptr;
  for (int64_t d = 0; d < p.K; d += W) {
    V o = load(row + d);
    if (to.o) store(to.o + at + d, o), o *= sigmoid<E>(load(gates + d));
    store(to.y + at + d, o);
  }
}

// The columns of one (sequence, kv head) over a part of the keys: output before division, largest score, sum of
// weights.
struct Running {
  float *out, *largest, *total;  // [N, K], [N], [N]
};

template <class E>
static void walk_few(const Problem& p, const float* queries, Rows<const E> k, Rows<const E> v, const Turn& turn,
                     const int32_t* low, const int32_t* high, int64_t b, int64_t g, int64_t from, int64_t to,
                     Running state) {
  int N = (int)p.N(), K = (int)p.K, count = (int)(to - from);
  float scale = 1.44269504f / sqrtf((float)K), scores[FEW][FEW_KEYS], row[256];
  for (int i = 0; i < FEW_KEYS; i++)
    if (i < count) {
      k.announce(b, from + i + AHEAD, g, K), v.announce(b, from + i, g, K);
      fetch<E>(p, k, turn, b, from + i, g, row);
      for (int c = 0; c < N; c++) {
        V dot{};
        for (int d = 0; d < K; d += W) dot += load(row + d) * load(queries + c * K + d);
        scores[c][i] = from + i >= low[c] && from + i <= high[c] ? sum(dot) : -INFINITY;
      }
    } else {
      for (int c = 0; c < N; c++) scores[c][i] = -INFINITY;
    }
  for (int c = 0; c < N; c++) {
    V largest = splat(state.largest[c]), total{};
    for (int i = 0; i < FEW_KEYS; i += W) largest = vmax(load(scores[c] + i), largest);
    float most = max_of(largest), decay = power_of_two(splat((state.largest[c] - most) * scale))[0];
    for (int i = 0; i < FEW_KEYS; i += W) {
      V weight = power_of_two((load(scores[c] + i) - splat(most)) * scale);
      store(scores[c] + i, weight);
      total += weight;
    }
    state.largest[c] = most, state.total[c] = state.total[c] * decay + sum(total);
    for (int d = 0; d < K; d += W) {
      V out = load(state.out + c * K + d) * decay, odd{};
      const E* value = v.at(b, from, g) + d;
      int i = 0;
      for (; i + 1 < count; i += 2, value += 2 * v.stride[1])
        out += load(value) * scores[c][i], odd += load(value + v.stride[1]) * scores[c][i + 1];
      if (i < count) out += load(value) * scores[c][i];
      store(state.out + c * K + d, out + odd);
    }
  }
}

template <class E>
static void forward_few(const Problem& p, Rows<const E> q, Rows<const E> k, Rows<const E> v, Rows<const E> gate,
                        const Turn& query_turn, const Turn& key_turn, Outputs<E> to, int64_t threads) {
  int64_t N = p.N(), K = p.K, heads = p.B * p.G, first = p.first(),
          parts = std::max<int64_t>(1, (p.end() - first + PART - 1) / PART);
  float* memory = scratch<float>(heads * parts * N * (K + 2));
  auto state = [&](int64_t head, int64_t part) {
    float* at = memory + (head * parts + part) * N * (K + 2);
    return Running{at, at + N * K, at + N * (K + 1)};
  };
#pragma omp parallel num_threads(heads* parts == 1 ? 1 : threads)
  {
    FlushSubnormals flush;
    alignas(64) float queries[FEW * 256];
    int32_t low[FEW + COLUMN_BLOCK], high[FEW + COLUMN_BLOCK];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < heads * parts; i++) {
      int64_t head = i / parts, b = head / p.G, g = head % p.G, end = std::min(p.end(), first + (i % parts + 1) * PART);
      Running own = state(head, i % parts);
      for (int64_t c = 0; c < N; c += COLUMN_BLOCK) visible(p, query_turn, b, c, low + c, high + c);
      for (int64_t c = 0; c < N; c++) {
        fetch<E>(p, q, query_turn, b, c / p.R(), g * p.R() + c % p.R(), queries + c * K);
        own.largest[c] = -1e38f, own.total[c] = 0;
      }
      memset(own.out, 0, N * K * sizeof(float));
      for (int64_t from = first + i % parts * PART; from < end; from += FEW_KEYS)
        walk_few<E>(p, queries, k, v, key_turn, low, high, b, g, from, std::min(end, from + FEW_KEYS), own);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < heads * N; i++) {
      int64_t head = i / N, c = i % N;
      Running all = state(head, 0);
      float *out = all.out + c * K, scale = 1.44269504f / sqrtf((float)K), largest = all.largest[c], total = 0;
      for (int64_t part = 1; part < parts; part++) largest = std::max(largest, state(head, part).largest[c]);
      for (int64_t part = 0; part < parts; part++) {
        Running other = state(head, part);
        float factor = power_of_two(splat((other.largest[c] - largest) * scale))[0];
        total += other.total[c] * factor;
        for (int64_t d = 0; d < K; d += W) {
          V sum = load(other.out + c * K + d) * factor;
          store(out + d, part ? load(out + d) + sum : sum);
        }
      }
      for (int64_t d = 0; d < K; d += W) store(out + d, load(out + d) / total);
      finish_column(p, to, gate, head / p.G, head % p.G, c, out, largest, total);
    }
  }
}
