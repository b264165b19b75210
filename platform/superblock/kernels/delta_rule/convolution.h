// Causal depthwise convolution and SiLU over packed documents: y_t = silu(z_t), z_t = sum over lags l of w_l x_{t-l}.
//
// Legend: B sequences, T tokens, C channels (a multiple of 16), TAPS weights per channel; lag l has weight TAPS - 1 - l, so that
// lag 0 is the token itself. x [B, T, C] has any strides but a contiguous last dimension; all else is contiguous. A task takes
// CHANNELS channels of a sequence through tiles of TOKENS tokens, which stay in the first cache; what a tap may not see (another
// document, before the start) is a row of zeros, so that the loops over channels have no branches.
#pragma once
#include "simd.h"

namespace convolution {
constexpr int CHANNELS = 128, TOKENS = 16, MOST_TAPS = 16;

template <class X>
struct Rows {
  const X *x, *state;  // the first token's channels; the inputs before it [TAPS - 1, C], or null
  const int32_t* documents;
  int64_t step, T, C;
  int taps;
  const X* zeros;

  // How many lags token t sees within its document; the state belongs to the first one.
  int reach(int64_t t) const {
    if (!documents) return taps - 1;
    for (int l = 1; l < taps; l++) {
      if (t - l < 0) return taps - 1;
      if (documents[t - l] != documents[t - l + 1]) return l - 1;
    }
    return taps - 1;
  }
  // Input at position t, which may lie before the first token.
  const X* at(int64_t t) const {
    if (t >= 0) return x + t * step;
    return state && t >= 1 - taps ? state + (taps - 1 + t) * C : zeros;
  }
  // What each lag of `count` tokens reads; whether none of it is masked.
  bool rows(int64_t first, int count, const X* (*rows)[MOST_TAPS]) const {
    bool whole = true;
    for (int i = 0; i < count; i++) {
      const int seen = reach(first + i);
      whole &= seen == taps - 1;
      for (int l = 0; l < taps; l++) rows[i][l] = l <= seen ? at(first + i - l) : zeros;
    }
    return whole;
  }
};

// Sum over lags of w_l times row l, by pointers.
template <int TAPS, class P>
INLINE V weighted(const V* w, const P* const* rows, int c, int taps) {
  V z{};
#pragma GCC unroll 4
  for (int l = 0; l < (TAPS ? TAPS : taps); l++) z += w[l] * load(rows[l] + c);
  return z;
}
// The same from registers, in which every input was loaded and widened once.
template <int TAPS>
INLINE V weighted(const V* w, const V* window) {
  V z{};
#pragma GCC unroll 4
  for (int l = 0; l < TAPS; l++) z += w[l] * window[l];
  return z;
}
template <int TAPS>
INLINE void shift(V* window, V newest) {
#pragma GCC unroll 4
  for (int l = TAPS - 1; l > 0; l--) window[l] = window[l - 1];
  window[0] = newest;
}

// The weights of a task by lag, channels next to each other.
struct ByLag {
  float rows[MOST_TAPS][CHANNELS];
  ByLag(const float* weight, int width, int taps) {
    for (int l = 0; l < taps; l++)
      for (int c = 0; c < width; c++) rows[l][c] = weight[c * taps + taps - 1 - l];
  }
  void read(int c, int taps, V* w) const {
    for (int l = 0; l < taps; l++) w[l] = load(rows[l] + c);
  }
};

// Asks for the channels of `count` tokens from `first` on: rows lie apart, so the processor does not foresee them.
template <bool WRITE, class X>
INLINE void ask(const X* rows, int64_t step, int64_t first, int64_t end, int width) {
  for (int64_t t = first; t < std::min(first + TOKENS, end); t++)
    for (int c = 0; c < width; c += 64 / (int)sizeof(X)) __builtin_prefetch(rows + t * step + c, WRITE);
}

template <int TAPS, class X>
static void forward_block(const Rows<X>& in, const float* weight, int width, X* y, X* last) {
  const int taps = TAPS ? TAPS : in.taps;
  const ByLag by_lag(weight, width, taps);
  const X* rows[TOKENS][MOST_TAPS];
  for (int64_t first = 0; first < in.T; first += TOKENS) {
    const int count = (int)std::min<int64_t>(TOKENS, in.T - first);
    const bool whole = in.rows(first, count, rows);
    ask<false>(in.x, in.step, first + TOKENS, in.T, width);
    ask<true>(y, in.C, first + TOKENS, in.T, width);
    for (int c = 0; c < width; c += W) {
      V w[TAPS ? TAPS : MOST_TAPS];
      by_lag.read(c, taps, w);
      X* out = y + first * in.C + c;
      if constexpr (TAPS > 0) {
        if (whole) {
          V window[TAPS];
#pragma GCC unroll 4
          for (int l = 0; l < TAPS - 1; l++) window[l] = load(rows[0][l + 1] + c);
          for (int i = 0; i < count; i++) {
            shift<TAPS>(window, load(rows[i][0] + c));
            V z = weighted<TAPS>(w, window);
            store(out + i * in.C, z * sigmoid<X>(z));
          }
          continue;
        }
      }
      for (int i = 0; i < count; i++) {
        V z = weighted<TAPS>(w, rows[i], c, taps);
        store(out + i * in.C, z * sigmoid<X>(z));
      }
    }
  }
  if (!last) return;
  const int reach = in.reach(in.T - 1);
  for (int l = 1; l < taps; l++)
    memcpy(last + (taps - 1 - l) * in.C, l - 1 <= reach ? in.at(in.T - l) : in.zeros, sizeof(X) * width);
}

// `dx` [T, C] with rows `dx_step` apart, `d_state` [TAPS - 1, C] or null, `d_weight` [TAPS, C] by lag, for this sequence alone.
template <int TAPS, class X>
static void backward_block(const Rows<X>& in, const X* dy, const float* weight, int width, X* dx, int64_t dx_step,
                           X* d_state, float* d_weight) {
  const int taps = TAPS ? TAPS : in.taps;
  const ByLag by_lag(weight, width, taps);
  const X* rows[TOKENS][MOST_TAPS];
  // gradients of z: of the tokens of a tile, and before them of the TAPS - 1 tokens whose inputs they still reach
  static thread_local float dz[TOKENS + MOST_TAPS][CHANNELS], none[CHANNELS];
  memset(dz, 0, sizeof dz);
  for (int l = 0; l < taps; l++) memset(d_weight + l * in.C, 0, sizeof(float) * width);
  for (int64_t first = 0; first < in.T + taps - 1; first += TOKENS) {
    const int count = (int)std::max<int64_t>(0, std::min<int64_t>(TOKENS, in.T - first));
    const int done = (int)std::min<int64_t>(TOKENS, in.T + taps - 1 - first);
    const bool whole = in.rows(first, count, rows);
    ask<false>(in.x, in.step, first + TOKENS, in.T, width);
    ask<false>(dy, in.C, first + TOKENS, in.T, width);
    ask<true>(dx, dx_step, first + TOKENS, in.T, width);
    // inputs that no later token reaches: position first + i - (TAPS - 1), from the tokens at and behind it
    const float* behind[TOKENS][MOST_TAPS];
    for (int i = 0; i < done; i++)
      for (int l = 0; l < taps; l++) {
        int64_t t = first + i - (taps - 1) + l;
        behind[i][l] = t >= 0 && t < in.T && in.reach(t) >= l ? dz[i + l] : none;
      }
    for (int c = 0; c < width; c += W) {
      V w[TAPS ? TAPS : MOST_TAPS], dw[TAPS ? TAPS : MOST_TAPS];
      by_lag.read(c, taps, w);
      for (int l = 0; l < taps; l++) dw[l] = load(d_weight + l * in.C + c);
      const X* gradient = dy + first * in.C + c;
      const auto through_silu = [&](int i, V z) {
        V s = sigmoid<X>(z), d = load(gradient + i * in.C) * s * (1.0f + z * (1.0f - s));
        store(dz[taps - 1 + i] + c, d);
        return d;
      };
      if (TAPS > 0 && whole) {
        V window[TAPS + 1];
#pragma GCC unroll 4
        for (int l = 0; l < TAPS - 1; l++) window[l] = load(rows[0][l + 1] + c);
        for (int i = 0; i < count; i++) {
          shift<TAPS>(window, load(rows[i][0] + c));
          V d = through_silu(i, weighted<TAPS>(w, window));
#pragma GCC unroll 4
          for (int l = 0; l < TAPS; l++) dw[l] += d * window[l];
        }
      } else {
        for (int i = 0; i < count; i++) {
          V d = through_silu(i, weighted<TAPS>(w, rows[i], c, taps));
#pragma GCC unroll 4
          for (int l = 0; l < taps; l++) dw[l] += d * load(rows[i][l] + c);
        }
      }
      for (int l = 0; l < taps; l++) store(d_weight + l * in.C + c, dw[l]);
      for (int i = 0; i < done; i++) {
        const int64_t position = first + i - (taps - 1);
        V d = weighted<TAPS>(w, behind[i], c, taps);
        if (position >= 0)
          store(dx + position * dx_step + c, d);
        else if (d_state)
          store(d_state + (taps - 1 + position) * in.C + c, d);
      }
    }
    for (int l = 0; l < taps - 1; l++) memcpy(dz[l], dz[TOKENS + l], sizeof dz[0]);
  }
}

struct Batch {
  const void *x, *state;
  const float* weight;
  const int32_t* documents;
  int64_t row, step, B, T, C, taps;

  int64_t blocks() const { return (C + CHANNELS - 1) / CHANNELS; }
  int64_t begin(int64_t task) const { return task % blocks() * CHANNELS; }
  int width(int64_t task) const { return (int)std::min<int64_t>(CHANNELS, C - begin(task)); }
  // Element of a contiguous [B, rows, C] where a task begins.
  int64_t offset(int64_t task, int64_t rows) const { return task / blocks() * rows * C + begin(task); }

  template <class X>
  Rows<X> sequence(int64_t task, const X* zeros) const {
    int64_t b = task / blocks();
    return {(const X*)x + b * row + begin(task),
            state ? (const X*)state + offset(task, taps - 1) : nullptr,
            documents ? documents + b * T : nullptr, step, T, C, (int)taps, zeros};
  }
};

template <class X>
static void forward(const Batch& in, X* y, X* last, int64_t threads) {
  static const X zeros[CHANNELS] = {};
  auto run = in.taps == 4 ? forward_block<4, X> : forward_block<0, X>;
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < in.B * in.blocks(); task++)
      run(in.sequence<X>(task, zeros), in.weight + in.begin(task) * in.taps, in.width(task), y + in.offset(task, in.T),
          last ? last + in.offset(task, in.taps - 1) : nullptr);
  }
}

template <class X>
static void backward(const Batch& in, const X* dy, X* dx, int64_t dx_row, int64_t dx_step, X* d_state, float* partial,
                     float* d_weight, int64_t threads) {
  static const X zeros[CHANNELS] = {};
  auto run = in.taps == 4 ? backward_block<4, X> : backward_block<0, X>;
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < in.B * in.blocks(); task++)
      run(in.sequence<X>(task, zeros), dy + in.offset(task, in.T), in.weight + in.begin(task) * in.taps, in.width(task),
          dx + task / in.blocks() * dx_row + in.begin(task), dx_step,
          d_state ? d_state + in.offset(task, in.taps - 1) : nullptr,
          partial + in.offset(task, in.taps));
#pragma omp for schedule(static)
    for (int64_t c = 0; c < in.C; c++)
      for (int64_t l = 0; l < in.taps; l++) {
        double total = 0;
        for (int64_t b = 0; b < in.B; b++) total += partial[(b * in.taps + l) * in.C + c];
        d_weight[c * in.taps + in.taps - 1 - l] = (float)total;
      }
  }
}
}  // namespace convolution
