// Gradients of forward.h. Products of weights run row by row; the gradients of weights are summed over groups of rows
// whose operands are still in the second cache.
#pragma once
#include "forward.h"

struct Gradients {
  Matrix dx;                                   // [N, D]
  float *gate_up, *down;                     // [E, 2 F, D], [E, D, F]; null where nobody asks
  float *shared_gate_up, *shared_down;       // the same without E
  float *weight, *shared_weight;             // [N, k], [N] or null
};

// Where the gradient of one expert's weights is summed up, and whether anything is there.
struct Sums {
  float *gate_up, *down;
  bool started;
};

template <class T>
struct BackwardScratch {
  static constexpr int GROUP = PANEL * WORD<T>;  // rows
  T *down, *gate_up;                             // right operands: [D, F] and [2 F, D]
  T *dy, *dhidden;                               // left operands, BLOCK rows
  T *dy_strips, *x_strips, *dhidden_strips, *act_strips;
  float *tile, *dx;

  BackwardScratch(int64_t D, int64_t F, Arena& arena) {
    down = arena.take<T>(D * F);
    gate_up = arena.take<T>(2 * D * F);
    dy = arena.take<T>(BLOCK * D);
    dhidden = arena.take<T>(BLOCK * 2 * F);
    dy_strips = arena.take<T>(GROUP * D);
    x_strips = arena.take<T>(GROUP * D);
    dhidden_strips = arena.take<T>(GROUP * 2 * F);
    act_strips = arena.take<T>(GROUP * F);
    tile = arena.take<float>(BLOCK * BLOCK);
    dx = arena.take<float>(BLOCK * D);
  }

  void pack(const Weights& w, int64_t D) const {
    for (int64_t d = 0; d < D; d += BLOCK) pack_rows(w.down.from(d), nullptr, BLOCK, BLOCK, w.F, down + d * STRIP, D);
    for (int64_t f = 0; f < w.F; f += STRIP) {
      pack_rows(w.gate_up.from(f), nullptr, STRIP, STRIP, D, gate_up + 2 * f * STRIP, 2 * w.F);
      pack_rows(w.gate_up.from(w.F + f), nullptr, STRIP, STRIP, D, gate_up + (2 * f + STRIP) * STRIP, 2 * w.F);
    }
  }
};

// Gradients of one piece's rows, of which dy is in s.dy: emit(i, d, dx) gets W elements, dweight(i, value) the gradient
// of a row's weight. What the weights' gradients need goes into the strips from row `at` on.
template <class T, class Emit, class Weigh>
static void row_gradients(const BackwardScratch<T>& s, int64_t rows, int64_t at, int64_t D, int64_t F, const T* hidden,
                          const float* weight, const Ahead (&ahead)[3], const Emit& emit, const Weigh& dweight) {
  constexpr int GROUP = BackwardScratch<T>::GROUP;
  V along[BLOCK] = {};
  for (int64_t f = 0; f < F; f += BLOCK) {
    for (const Ahead& next : ahead) next.fetch(f / BLOCK, F / BLOCK);
    product(s.dy, D, pad(rows), s.down + f * D, s.down + (f + STRIP) * D, D, s.tile);
    for (int64_t h = f; h < f + BLOCK; h += STRIP)
      for (int c = 0; c < STRIP; c += W)
        for (int64_t i = 0; i < pad(rows); i += 2) {
          V act[2] = {}, dgate[2] = {}, dup[2] = {};
          for (int64_t z = 0; z < 2 && i + z < rows; z++) {
            const T* kept = hidden + kept_at(i + z, rows, h) + c;
            V gate = load(kept), up = load(kept + STRIP), dact = load(s.tile + (i + z) * BLOCK + h - f + c);
            V open = sigmoid<T>(gate), silu = gate * open;
            act[z] = silu * up;
            along[i + z] += dact * act[z];
            dact = dact * weight[i + z];
            act[z] = act[z] * weight[i + z];
            dgate[z] = dact * up * (open + silu * (1.0f - open));
            dup[z] = dact * silu;
          }
          for (int64_t z = 0; z < 2; z++) put_both(s.dhidden + (i + z) * 2 * F + 2 * h, c, dgate[z], dup[z]);
          put_two(s.act_strips + h * GROUP, at + i, c, act[0], act[1]);
          put_two(s.dhidden_strips + 2 * h * GROUP, at + i, c, dgate[0], dgate[1]);
          put_two(s.dhidden_strips + (2 * h + STRIP) * GROUP, at + i, c, dup[0], dup[1]);
        }
  }
  for (int64_t i = 0; i < rows; i++) dweight(i, sum(along[i]));
  for (int64_t d = 0; d < D; d += BLOCK) {
    product(s.dhidden, 2 * F, pad(rows), s.gate_up + d * 2 * F, s.gate_up + (d + STRIP) * 2 * F, 2 * F, s.tile);
    for (int64_t i = 0; i < rows; i++)
      for (int c = 0; c < BLOCK; c += W) emit(i, d + c, load(s.tile + i * BLOCK + c));
  }
}

// Adds what the strips hold, `rows` rows (padded), to the gradients of one expert's weights.
template <class T>
static void weight_gradients(const BackwardScratch<T>& s, int64_t rows, int64_t D, int64_t F, Sums& sums) {
  constexpr int GROUP = BackwardScratch<T>::GROUP;
  turn(s.dhidden_strips, 2 * F / STRIP, GROUP, rows);
  turn(s.dy_strips, D / STRIP, GROUP, rows);
  for (int64_t d = 0; d < D; d += BLOCK) {
    const T* x = s.x_strips + d * GROUP;
    for (int64_t f = 0; f < F; f += STRIP) {
      const T* gate = s.dhidden_strips + 2 * f * GROUP;
      gradient(gate, gate + STRIP * GROUP, x, x + STRIP * GROUP, rows, sums.started, sums.gate_up + f * D + d,
               sums.gate_up + (F + f) * D + d, D);
    }
  }
  for (int64_t f = 0; f < F; f += BLOCK) {
    const T* act = s.act_strips + f * GROUP;
    for (int64_t d = 0; d < D; d += BLOCK) {
      const T* dy = s.dy_strips + d * GROUP;
      gradient(dy, dy + STRIP * GROUP, act, act + STRIP * GROUP, rows, sums.started, sums.down + d * F + f,
               sums.down + (d + STRIP) * F + f, F);
    }
  }
  sums.started = true;
}

// Adds sums that belong to another thread's, in an order that depends on the number of threads alone.
static void add_sums(float* to, const float* from, int64_t count, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; i += 16)
    for (int64_t c = i; c < i + 16; c += W) store(to + c, load(to + c) + load(from + c));
}

struct Spare {  // memory for the sums of a second thread on the same expert
  float* memory = nullptr;
  ~Spare() { free(memory); }
  Sums take(int64_t D, int64_t F) {
    memory = (float*)allocate(64, 3 * D * F * sizeof(float));
    return {memory, memory + 2 * D * F, false};
  }
};

// `hidden` and `shared_hidden` are what forward kept; `parts` [N k, D] is for the way.
template <class T>
static void backward(const Problem& p, const Matrix& dy, const T* hidden, const T* shared_hidden, T* parts,
                     const Gradients& g, int64_t threads) {
  Plan plan(p);
  int64_t D = p.D, pieces = plan.pieces.size(), blocks = (p.N + BLOCK - 1) / BLOCK, wide = std::max(p.F, p.shared.F);
  constexpr int GROUP = BackwardScratch<T>::GROUP;
  auto own = [&](int64_t e) { return Sums{g.gate_up + e * 2 * p.F * D, g.down + e * D * p.F, false}; };
  if (g.gate_up)
    for (int64_t e = 0; e < p.E; e++)
      if (plan.begin[e] == plan.begin[e + 1]) {
        memset(own(e).gate_up, 0, 2 * p.F * D * sizeof(float));
        memset(own(e).down, 0, p.F * D * sizeof(float));
      }

  std::vector<Spare> spare(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t q = 0; q < threads; q++) {
    FlushSubnormals flush;
    tiles::Session session;
    const auto s = on_scratch<BackwardScratch<T>>(D, wide);
    Matrix kept_dy{s.dy, D, sizeof(T) == 2};
    int64_t first = q * pieces / threads, last = (q + 1) * pieces / threads, expert = -1, height = 0;
    Sums sums{};
    float weight[BLOCK];
    for (int64_t z = first; z < last; z++) {
      const Piece& piece = plan.pieces[z];
      if (piece.expert != expert) {
        expert = piece.expert;
        s.pack(p.expert(expert), D);
        bool begun = z > 0 && plan.pieces[z - 1].expert == expert;  // by the thread before
        if (g.gate_up) sums = begun ? spare[q].take(D, p.F) : own(expert);
      }
      const int32_t *token = plan.token.data() + piece.begin, *choice = plan.choice.data() + piece.begin;
      for (int64_t i = 0; i < piece.rows; i++) weight[i] = p.weight[choice[i]];
      gather(dy, token, piece.rows, D, s.dy);
      const Piece& next = plan.pieces[std::min(z + 1, last - 1)];
      Matrix next_hidden{(void*)(hidden + next.begin * 2 * p.F), 2 * p.F, sizeof(T) == 2};
      Ahead ahead[3] = {{dy, plan.token.data() + next.begin, next.rows, D},
                        {p.x, token, piece.rows, D},
                        {next_hidden, nullptr, next.rows, 2 * p.F}};
      T* part = parts + piece.begin * D;
      row_gradients(
          s, piece.rows, height, D, p.F, hidden + piece.begin * 2 * p.F, weight, ahead,
          [&](int64_t i, int64_t d, V dx) { store(part + i * D + d, dx); },
          [&](int64_t i, float dweight) { g.weight[choice[i]] = dweight; });
      if (!g.gate_up) continue;
      pack_rows(kept_dy, nullptr, piece.rows, pad(piece.rows), D, s.dy_strips + height * STRIP, GROUP);
      pack_rows(p.x, token, piece.rows, pad(piece.rows), D, s.x_strips + height * STRIP, GROUP);
      height += pad(piece.rows);
      if (height + BLOCK > GROUP || z + 1 == last || plan.pieces[z + 1].expert != expert) {
        weight_gradients(s, height, D, p.F, sums);
        height = 0;
      }
    }
  }
  for (int64_t q = 0; q < threads; q++)
    if (spare[q].memory) {
      Sums to = own(plan.pieces[q * pieces / threads].expert);
      add_sums(to.gate_up, spare[q].memory, 2 * p.F * D, threads);
      add_sums(to.down, spare[q].memory + 2 * p.F * D, p.F * D, threads);
    }

  int64_t F = p.shared.F;
  std::vector<Spare> shared_spare(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t q = 0; q < threads; q++) {
    FlushSubnormals flush;
    tiles::Session session;
    const auto s = on_scratch<BackwardScratch<T>>(D, wide);
    Matrix kept_dy{s.dy, D, sizeof(T) == 2};
    int64_t first = q * blocks / threads, last = (q + 1) * blocks / threads, height = 0;
    bool learns = F && g.shared_gate_up && first < last;
    Sums sums{g.shared_gate_up, g.shared_down, false};
    if (learns && first > 0) sums = shared_spare[q].take(D, F);
    if (F && first < last) s.pack(p.shared, D);
    for (int64_t b = first; b < last; b++) {
      int64_t n0 = b * BLOCK, rows = std::min<int64_t>(BLOCK, p.N - n0);
      if (F) {
        float weight[BLOCK];
        for (int64_t i = 0; i < rows; i++) weight[i] = p.shared_weight ? p.shared_weight[n0 + i] : 1.0f;
        Ahead ahead[3] = {};  // the next tokens are neighbours in memory
        gather(dy.from(n0), nullptr, rows, D, s.dy);
        row_gradients(
            s, rows, height, D, F, shared_hidden + n0 * 2 * F, weight, ahead,
            [&](int64_t i, int64_t d, V dx) { store(s.dx + i * D + d, dx); },
            [&](int64_t i, float dweight) {
              if (g.shared_weight) g.shared_weight[n0 + i] = dweight;
            });
      }
      for (int64_t i = 0; i < rows; i++) {
        const int32_t* row = plan.row.data() + (n0 + i) * p.k;
        for (int64_t d = 0; d < D; d += W) {
          V dx = F ? load(s.dx + i * D + d) : V{};
          for (int64_t j = 0; j < p.k; j++) dx += load(parts + row[j] * D + d);
          g.dx.put(n0 + i, d, dx);
        }
      }
      if (!learns) continue;
      pack_rows(kept_dy, nullptr, rows, pad(rows), D, s.dy_strips + height * STRIP, GROUP);
      pack_rows(p.x.from(n0), nullptr, rows, pad(rows), D, s.x_strips + height * STRIP, GROUP);
      height += pad(rows);
      if (height + BLOCK > GROUP || b + 1 == last) {
        weight_gradients(s, height, D, F, sums);
        height = 0;
      }
    }
  }
  for (int64_t q = 0; q < threads; q++)
    if (shared_spare[q].memory) {
      add_sums(g.shared_gate_up, shared_spare[q].memory, 2 * F * D, threads);
      add_sums(g.shared_down, shared_spare[q].memory + 2 * F * D, F * D, threads);
    }
}
