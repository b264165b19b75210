// The gates of Gated DeltaNet: a product with few columns, then write strength and logarithm of the decay, in one pass.
//   [b | a] = x W^T      beta = strength * sigmoid(b)      g = -exp(A_log) * softplus(a + bias)
// Legend: N tokens, D width, H heads, C = 2 H columns. Row (m, t) of x, of M groups of T, is at m * outer + t * inner;
// everything else is contiguous. fp32.
#pragma once
#include "simd.h"

namespace gates {
static constexpr int64_t TILE = 64;  // tokens whose columns lie together: [C, TILE], so that vectors run along tokens
constexpr int64_t MOST_BLOCKS = 64;  // into which sums over tokens are cut
static_assert(TILE % W == 0, "a tile is whole vectors");

struct Input {
  const float* data;
  int64_t outer, inner, T;
  const float* at(int64_t n) const { return data + n / T * outer + n % T * inner; }
};

// log(1 + s) for s in [0, 1], as 2 atanh(s / (2 + s)).
INLINE V log_of_one_plus(V s) {
  V t = s / (2.0f + s), u = t * t;
  V p = u * (1 / 15.0f) + 1 / 13.0f;
  p = p * u + 1 / 11.0f;
  p = p * u + 1 / 9.0f;
  p = p * u + 1 / 7.0f;
  p = p * u + 1 / 5.0f;
  p = p * u + 1 / 3.0f;
  p = p * u + 1.0f;
  return 2.0f * t * p;
}
struct Softplus {
  V value, slope;
  explicit Softplus(V x) {
    V s = vexp(vmin(x, -x));
    value = vmax(x, V{}) + log_of_one_plus(s);
    slope = select(x >= 0.0f, V{} + 1.0f, s) / (1.0f + s);
  }
};

// out[c * TILE + r] = x_r . W_c of R rows.
template <int R>
static void products(const float* const* x, const float* weight, float* out, int64_t C, int64_t D) {
  for (int64_t c = 0; c < C; c += 2) {
    const float *w0 = weight + c * D, *w1 = w0 + D;
    V sums[R][2] = {};
    for_columns(D, [&](int64_t d, auto n) {
      V a = read(w0 + d, n), b = read(w1 + d, n);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        V value = read(x[r] + d, n);
        sums[r][0] += value * a;
        sums[r][1] += value * b;
      }
    });
    for (int r = 0; r < R; r++) out[c * TILE + r] = sum(sums[r][0]), out[(c + 1) * TILE + r] = sum(sums[r][1]);
  }
}

// ba: [tiles, C, TILE], kept for the backward pass.
static void forward(const float* x, int64_t outer, int64_t inner, const float* weight, const float* A_log,
                         const float* bias, double strength, float* g, float* beta, float* ba, int64_t N, int64_t T,
                         int64_t D, int64_t H, int64_t threads) {
  const Input input{x, outer, inner, T};
  const int64_t C = 2 * H, tiles = (N + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t tile = 0; tile < tiles; tile++) {
    FlushSubnormals flush;
    float* columns = ba + tile * C * TILE;
    const int64_t begin = tile * TILE, count = std::min(TILE, N - begin);
    const float* rows[TILE];
    for (int64_t r = 0; r < count; r++) rows[r] = input.at(begin + r);
    if (count < TILE) memset(columns, 0, C * TILE * sizeof(float));
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) products<4>(rows + r, weight, columns + r, C, D);
    for (; r < count; r++) products<1>(rows + r, weight, columns + r, C, D);
    float decay[TILE], write_strength[TILE];
    for (int64_t h = 0; h < H; h++) {
      const float rate = -std::exp(A_log[h]);
      for (int64_t t = 0; t < TILE; t += W) {
        store(write_strength + t, vsigmoid(load(columns + h * TILE + t)) * (float)strength);
        store(decay + t, Softplus(load(columns + (H + h) * TILE + t) + bias[h]).value * rate);
      }
      for (int64_t t = 0; t < count; t++) {
        g[(begin + t) * H + h] = decay[t];
        beta[(begin + t) * H + h] = write_strength[t];
      }
    }
  }
}

#if defined(__AVX512F__)
constexpr int GROUP = 8;  // columns at once: as many sums, weights and gradients of a token in registers
#else
constexpr int GROUP = 4;
#endif

// What G columns give: dweight += d_columns x, and dx = or += weight^T d_columns.
template <int G>
static void gradients(const float* const* x, int64_t count, const float* weight, const float* d_columns, float* dweight,
                      float* dx, int64_t D, bool first) {
  for_columns(D, [&](int64_t d, auto n) {
    V sums[G], w[G];
#pragma GCC unroll 8
    for (int c = 0; c < G; c++) sums[c] = read(dweight + c * D + d, n), w[c] = read(weight + c * D + d, n);
    for (int64_t t = 0; t < count; t++) {
      V value = read(x[t] + d, n), total = first ? V{} : read(dx + t * D + d, n);
#pragma GCC unroll 8
      for (int c = 0; c < G; c++) {
        V slope = splat(d_columns[c * TILE + t]);
        sums[c] += value * slope;
        total += w[c] * slope;
      }
      write(dx + t * D + d, total, n);
    }
#pragma GCC unroll 8
    for (int c = 0; c < G; c++) write(dweight + c * D + d, sums[c], n);
  });
}

// dx is contiguous. partial: [64, C * D + C], one row of sums for each block of tiles; the number of blocks depends on
// N alone, and so do the bits of all sums.
static void backward(const float* x, int64_t outer, int64_t inner, const float* weight, const float* A_log,
                          const float* bias, double strength, const float* ba, const float* dg, const float* dbeta,
                          float* dx, float* dweight, float* dA_log, float* dbias, float* partial, int64_t N, int64_t T,
                          int64_t D, int64_t H, int64_t threads) {
  const Input input{x, outer, inner, T};
  const int64_t C = 2 * H, tiles = (N + TILE - 1) / TILE, size = C * D + C;
  const int64_t each = (tiles + MOST_BLOCKS - 1) / MOST_BLOCKS, blocks = (tiles + each - 1) / each;
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
    float* d_columns = scratch<float>(C * TILE);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
      float* sums = partial + block * size;
      memset(sums, 0, size * sizeof(float));
      for (int64_t tile = block * each; tile < std::min(tiles, (block + 1) * each); tile++) {
        const float* columns = ba + tile * C * TILE;
        const int64_t begin = tile * TILE, count = std::min(TILE, N - begin);
        float d_decay[TILE] = {}, d_strength[TILE] = {};
        for (int64_t h = 0; h < H; h++) {
          for (int64_t t = 0; t < count; t++) {
            d_decay[t] = dg[(begin + t) * H + h];
            d_strength[t] = dbeta[(begin + t) * H + h];
          }
          const float rate = -std::exp(A_log[h]);
          V along_rate{}, along_bias{};
          for (int64_t t = 0; t < TILE; t += W) {
            V s = vsigmoid(load(columns + h * TILE + t));
            store(d_columns + h * TILE + t, load(d_strength + t) * s * (1.0f - s) * (float)strength);
            const Softplus softplus(load(columns + (H + h) * TILE + t) + bias[h]);
            V d = load(d_decay + t) * rate, d_a = d * softplus.slope;
            store(d_columns + (H + h) * TILE + t, d_a);
            along_rate += d * softplus.value;
            along_bias += d_a;
          }
          sums[C * D + h] += sum(along_rate);
          sums[C * D + H + h] += sum(along_bias);
        }
        const float* rows[TILE];
        for (int64_t t = 0; t < count; t++) rows[t] = input.at(begin + t);
        for (int64_t t = 0; t < count; t += 16) {  // so few rows of x and dx stay in the first cache for all columns
          const int64_t some = std::min<int64_t>(16, count - t);
          float* dx_rows = dx + (begin + t) * D;
          const float* slopes = d_columns + t;
          int64_t c = 0;
          for (; c + GROUP <= C; c += GROUP)
            gradients<GROUP>(rows + t, some, weight + c * D, slopes + c * TILE, sums + c * D, dx_rows, D, c == 0);
          for (; c < C; c += 2)
            gradients<2>(rows + t, some, weight + c * D, slopes + c * TILE, sums + c * D, dx_rows, D, c == 0);
        }
      }
    }
#pragma omp single
    {
      for_columns(C * D, [&](int64_t i, auto n) {
        V total{};
        for (int64_t block = 0; block < blocks; block++) total += read(partial + block * size + i, n);
        write(dweight + i, total, n);
      });
      for (int64_t h = 0; h < H; h++) {
        dA_log[h] = dbias[h] = 0;
        for (int64_t block = 0; block < blocks; block++) {
          dA_log[h] += partial[block * size + C * D + h];
          dbias[h] += partial[block * size + C * D + H + h];
        }
      }
    }
  }
}
}  // namespace gates
