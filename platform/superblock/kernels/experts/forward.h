// y_n = sum_j weight_nj expert_{index_nj}(x_n) + shared(x_n), expert(x) = down (silu(gate x) * up x).
// Hidden rows of an expert hold 16 of the gate, 16 of up, the next 16 of the gate, ...
#pragma once
#include "plan.h"

template <class T>
struct ForwardScratch {
  T *gate_up, *down, *x, *act;
  float *tile, *out;

  ForwardScratch(int64_t D, int64_t F, Arena& arena) {
    gate_up = arena.take<T>(2 * D * F);
    down = arena.take<T>(D * F);
    x = arena.take<T>(BLOCK * D);
    act = arena.take<T>(BLOCK * F);
    tile = arena.take<float>(BLOCK * BLOCK);
    out = arena.take<float>(BLOCK * D);
  }

  void pack(const Weights& w, int64_t D) const {
    for (int64_t f = 0; f < w.F; f += STRIP) {
      pack_columns(w.gate_up.from(f), D, gate_up + 2 * f * D);
      pack_columns(w.gate_up.from(w.F + f), D, gate_up + (2 * f + STRIP) * D);
    }
    for (int64_t d = 0; d < D; d += STRIP) pack_columns(w.down.from(d), w.F, down + d * w.F);
  }
};

// One expert on the rows in s.x. `hidden` [rows, 2 F] is kept for backward unless null. emit(i, d, out) gets W
// elements of a row's output.
template <class T, class Emit>
static void run_expert(const ForwardScratch<T>& s, int64_t rows, int64_t D, int64_t F, T* hidden, const Ahead (&ahead)[2],
                       const Emit& emit) {
  for (int64_t f = 0; f < F; f += STRIP) {
    for (const Ahead& next : ahead) next.fetch(f / STRIP, F / STRIP);
    const T* gate = s.gate_up + 2 * f * D;
    product(s.x, D, pad(rows), gate, gate + STRIP * D, D, s.tile);
    for (int64_t i = 0; i < pad(rows); i++)
      for (int c = 0; c < STRIP; c += W) {
        V g = load(s.tile + i * BLOCK + c), up = load(s.tile + i * BLOCK + STRIP + c);
        store(s.act + i * F + f + c, g * sigmoid<T>(g) * up);
        if (hidden && i < rows) put_both(hidden + kept_at(i, rows, f), c, g, up);
      }
  }
  for (int64_t d = 0; d < D; d += BLOCK) {
    product(s.act, F, pad(rows), s.down + d * F, s.down + (d + STRIP) * F, F, s.tile);
    for (int64_t i = 0; i < rows; i++)
      for (int c = 0; c < BLOCK; c += W) emit(i, d + c, load(s.tile + i * BLOCK + c));
  }
}

// `stream` [N, D] is added to the result unless it is null.
// `hidden` [N k, 2 F] and `shared_hidden` [N, 2 F of the shared expert] may be null; `parts` [N k, D] is for the way;
// power [N / 32 rounded up, 2] gets the sums of squares of the routed and the shared part, 32 tokens at a time.
template <class T>
static void forward(const Problem& p, const Matrix& y, const Matrix& stream, T* hidden, T* shared_hidden, T* parts,
                    float* power, int64_t threads) {
  Plan plan(p);
  int64_t D = p.D, pieces = plan.pieces.size(), blocks = (p.N + BLOCK - 1) / BLOCK, wide = std::max(p.F, p.shared.F);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t q = 0; q < threads; q++) {
    FlushSubnormals flush;
    tiles::Session session;
    const auto s = on_scratch<ForwardScratch<T>>(D, wide);
    int64_t packed = -1;
    for (int64_t z = q * pieces / threads; z < (q + 1) * pieces / threads; z++) {
      const Piece& piece = plan.pieces[z];
      if (piece.expert != packed) s.pack(p.expert(packed = piece.expert), D);
      gather(p.x, plan.token.data() + piece.begin, piece.rows, D, s.x);
      const Piece& next = plan.pieces[std::min(z + 1, pieces - 1)];
      const int32_t* choice = plan.choice.data() + piece.begin;
      T* part = parts + piece.begin * D;
      const Ahead ahead[2] = {{p.x, plan.token.data() + next.begin, next.rows, D},
                              {{part, D, sizeof(T) == 2}, nullptr, piece.rows, D, true}};
      run_expert(s, piece.rows, D, p.F, hidden ? hidden + piece.begin * 2 * p.F : nullptr, ahead,
                 [&](int64_t i, int64_t d, V out) { store(part + i * D + d, out * p.weight[choice[i]]); });
    }
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t q = 0; q < threads; q++) {
    FlushSubnormals flush;
    tiles::Session session;
    const auto s = on_scratch<ForwardScratch<T>>(D, wide);
    int64_t F = p.shared.F;
    if (F) s.pack(p.shared, D);
    for (int64_t b = q * blocks / threads; b < (q + 1) * blocks / threads; b++) {
      int64_t n0 = b * BLOCK, rows = std::min<int64_t>(BLOCK, p.N - n0);
      V routed_power{}, shared_power{};
      if (F) {
        gather(p.x.from(n0), nullptr, rows, D, s.x);
        const Ahead ahead[2] = {{{parts, D, sizeof(T) == 2}, plan.row.data() + n0 * p.k, rows * p.k, D}, {}};
        run_expert(s, rows, D, F, shared_hidden ? shared_hidden + n0 * 2 * F : nullptr, ahead,
                   [&](int64_t i, int64_t d, V out) { store(s.out + i * D + d, out); });
      }
      for (int64_t i = 0; i < rows; i++) {
        const int32_t* row = plan.row.data() + (n0 + i) * p.k;
        float scale = p.shared_weight ? p.shared_weight[n0 + i] : 1.0f;
        for (int64_t d = 0; d < D; d += W) {
          V routed{};
          for (int64_t j = 0; j < p.k; j++) routed += load(parts + row[j] * D + d);
          V shared = F ? load(s.out + i * D + d) * scale : V{};
          y.put(n0 + i, d, stream.data ? stream.get(n0 + i, d) + routed + shared : routed + shared);
          routed_power += routed * routed;
          shared_power += shared * shared;
        }
      }
      power[2 * b] = sum(routed_power);
      power[2 * b + 1] = sum(shared_power);
    }
  }
}
