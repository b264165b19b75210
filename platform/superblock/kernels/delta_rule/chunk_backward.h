// One head of one sequence backwards, last chunk first; the formulas of chunk_forward.h, differentiated.
//
// Two pairs share one product each: keys with queries, and what the solved rows send to their right hand side (-dY) with the
// gradient dO of the outputs.
#pragma once
#include "chunk.h"

static size_t backward_scratch(int K, int VD, int C) {
  return (size_t)C * (6 * (K + PAD) + 3 * (VD + PAD) + 6 * (C + PAD)) + K * (C + PAD) + VD * (C + PAD) + K * (VD + PAD) +
         K * (C + PAD) + VD * (K + PAD) + (size_t)C * W + 32 * (C + 16);
}

// Where the gradients of one head go; tokens lie `*_step` elements apart.
template <class X, class Y>
struct Gradients {
  Y *q, *k;
  X* v;
  float *g, *beta, *initial;  // `initial` null: not wanted
  int64_t q_step, v_step, gate_step;
};

// Through `unit`: the part of d along the row does not change its length.
template <class Y>
INLINE void unit_backward(const float* d, const float* row, int K, float factor, float inverse_square, Y* out) {
  V along{};
  for (int j = 0; j < K; j += W) along += load(d + j) * load(row + j);
  float share = sum(along) * inverse_square;
  for (int j = 0; j < K; j += W) store(out + j, (load(d + j) - load(row + j) * share) * factor);
}

// Turns dY U^T, whose opposite is the gradient of K K^T * D, and the gradient of P into those of the bare products, in place,
// and gives row and column sums of what they ask of the logarithm of D.
static void decay_backward(const Chunk& chunk, float* dKK, float* dP, float* row_sums, float* column_sums) {
  const int C = chunk.C, ldc = chunk.ldc;
  memset(column_sums, 0, sizeof(float) * C);
  for (int i = 0; i < C; i++) {
    V total{}, row = splat((float)i);
    for (int j = 0; j <= i; j += W) {
      size_t at = (size_t)i * ldc + j;
      V column = lanes() + (float)j;
      V d_kk = select(column < row, -load(dKK + at), V{}), d_p = select(column <= row, load(dP + at), V{});
      V both = d_kk * load(chunk.KK + at) + d_p * load(chunk.P + at), decay = load(chunk.D + at);
      total += both;
      store(column_sums + j, load(column_sums + j) + both);
      store(dKK + at, d_kk * decay), store(dP + at, d_p * decay);
    }
    row_sums[i] = sum(total);
  }
}

// `d_o` [T, VD] rows `o_step` apart; `states`, `residuals` from the forward pass; `d_last` [K, VD] or null.
template <class X, class Y>
static void backward_head(const Head<X>& head, const float* d_o, int64_t o_step, const float* states, const float* residuals,
                          bool from_zero, const float* d_last, const Gradients<X, Y>& out) {
  const int K = head.K, VD = head.VD, C = head.C, ldk = K + PAD, ldv = VD + PAD, ldc = C + PAD;
  Arena arena{(char*)scratch<float>(backward_scratch(K, VD, C))};
  Chunk chunk(K, C, arena);
  float *KQ = chunk.KQ, *K_r = arena.take(C * ldk), *U = arena.take(C * ldv), *U_t = arena.take(VD * ldc);
  float *Y_O = arena.take(2 * C * ldv), *O = Y_O + C * ldv, *dS = arena.take(K * ldv);
  float *dK_rt = arena.take(K * ldc), *S_t = arena.take(VD * ldk);
  float *dKQ = arena.take(2 * C * ldk), *dK_r = arena.take(C * ldk), *dKK = arena.take(2 * C * ldc), *dP = dKK + C * ldc;
  float *d_log = arena.take(C), *columns = arena.take(C), *d_beta = arena.take(C * W);
  // copies, for a store of a vector may change any member, for all the compiler knows
  const float *e = chunk.e, *r = chunk.r, *beta = chunk.beta, *factor = chunk.factor;
  const X *q = head.q, *k = head.k;
  const int64_t q_step = head.q_step, k_step = head.k_step, count = (head.tokens + C - 1) / C;
  bool silent = !d_last;  // nothing has asked anything of the state yet
  if (silent)
    memset(dS, 0, sizeof(float) * K * ldv);
  else
    copy_rows(K, VD, d_last, VD, dS, ldv);
  for (int64_t n = count - 1; n >= 0; n--, silent = false) {
    const int64_t first = n * C;
    const bool empty = n == 0 && from_zero;  // the state before the chunk is zero
    const float* S = states + (size_t)n * K * VD;
    chunk.prepare(head, first);
    const int length = chunk.length;
    const int64_t before = first - C;
    const float *Z = residuals + first * VD, *d_out = d_o + first * o_step;
    Y *dq = out.q + first * out.q_step, *dk = out.k + first * out.q_step;
    X* dv = out.v + first * out.v_step;
    const int64_t dq_step = out.q_step, dv_step = out.v_step;
    for (int i = 0; i < C; i++) {
      if (n > 0) ask(k + (before + i) * k_step, K), ask(q + (before + i) * q_step, K);
      for (int j = i; j < K; j += C) ask(S + (size_t)j * VD, VD);
      for (int j = 0; j < K; j += W) store(K_r + i * ldk + j, load(KQ + i * ldk + j) * r[i]);
      for (int j = 0; j < VD; j += W) {
        store(O + i * ldv + j, i < length ? load(d_out + i * o_step + j) : V{});
        store(U + i * ldv + j, i < length ? load(Z + i * VD + j) * beta[i] : V{});
      }
    }
    // dU = K_r dS + P^T dO, then the triangular system transposed, which leaves dY = beta (dU - KK^T dY)
    if (silent) {
      multiply<true, false, A_UPPER>(C, VD, C, chunk.P, ldc, O, ldv, nullptr, 0, 0, Y_O, ldv);
    } else {
      multiply<false, false, FULL>(C, VD, K, K_r, ldk, dS, ldv, nullptr, 0, 0, Y_O, ldv);
      multiply<true, true, A_UPPER>(C, VD, C, chunk.P, ldc, O, ldv, Y_O, ldv, 1, Y_O, ldv);
    }
    memset(d_beta, 0, sizeof(float) * C * W);
    solve<true>(C, VD, chunk.KK, ldc, Y_O, ldv, [&](int row, int column, V du) {
      V dy = du * beta[row];
      if (row < length) {
        store(dv + row * dv_step + column, dy);
        float* lanes_of_row = d_beta + row * W;
        store(lanes_of_row, load(lanes_of_row) + du * load(Z + row * VD + column));
      }
      return dy;
    });
    transpose_any(C, VD, U, ldv, U_t, ldc);
    multiply<false, false, OUT_LOWER>(C, C, VD, Y_O, ldv, U_t, ldc, nullptr, 0, 0, dKK, ldc);
    multiply<false, false, OUT_LOWER>(C, C, VD, O, ldv, U_t, ldc, nullptr, 0, 0, dP, ldc);
    decay_backward(chunk, dKK, dP, d_log, columns);
    for (int i = 0; i < C; i++) {
      if (i < length) ask_to_write(dk + i * dq_step, K), ask_to_write(dq + i * dq_step, K);
      for (int j = 0; j < VD; j += W) {
        store(Y_O + i * ldv + j, load(Y_O + i * ldv + j) * -e[i]);
        store(O + i * ldv + j, load(O + i * ldv + j) * e[i]);
      }
    }
    float d_a = 0;
    if (!silent) {
      multiply<false, false, FULL>(K, C, VD, dS, ldv, U_t, ldc, nullptr, 0, 0, dK_rt, ldc);
      transpose_any(K, C, dK_rt, ldc, dK_r, ldk);
    }
    if (!empty) {
      transpose_any(K, VD, S, VD, S_t, ldk);
      multiply<false, false, FULL>(2 * C, K, VD, Y_O, ldv, S_t, ldk, nullptr, 0, 0, dKQ, ldk);
      V products{};
      if (!silent && chunk.a != 0)
        for (int i = 0; i < K; i++)
          for (int j = 0; j < VD; j += W) products += load(dS + i * ldv + j) * load(S + i * VD + j);
      d_a = sum(products);
    }
    if (n > 0 || out.initial) multiply<true, true, FULL>(K, VD, 2 * C, KQ, ldk, Y_O, ldv, dS, ldv, chunk.a, dS, ldv);
    float survivors = 0;
    for (int i = 0; i < C; i++) {
      if (n > 0) ask(d_o + (before + i) * o_step, VD), ask(residuals + (before + i) * VD, VD);
      V through_e{}, through_r{}, kept = splat(silent ? 0.0f : r[i]);
      for (int j = 0; j < K; j += W) {
        float *d_k = dKQ + i * ldk + j, *d_q = dKQ + (C + i) * ldk + j;
        V key = load(KQ + i * ldk + j), a = empty ? V{} : load(d_k), b = empty ? V{} : load(d_q);
        V c = silent ? V{} : load(dK_r + i * ldk + j) * kept;
        through_e += a * key + b * load(KQ + (C + i) * ldk + j), through_r += c * key;
        store(d_k, a + c);
        if (empty) store(d_q, b);
      }
      float lost = silent ? 0.0f : sum(through_r);
      survivors += lost;
      d_log[i] += (empty ? 0.0f : sum(through_e)) - lost - columns[i];
    }
    d_log[C - 1] += survivors + d_a * chunk.a;
    multiply<false, true, A_LOWER>(C, K, C, dKK, ldc, KQ, ldk, dKQ, ldk, 1, dKQ, ldk);
    multiply<false, true, A_LOWER>(C, K, C, dP, ldc, KQ, ldk, dKQ + C * ldk, ldk, 1, dKQ + C * ldk, ldk);
    multiply<true, true, A_UPPER>(C, K, C, dKK, ldc, KQ, ldk, dKQ, ldk, 1, dKQ, ldk);
    multiply<true, true, A_UPPER>(C, K, C, dP, ldc, KQ + C * ldk, ldk, dKQ, ldk, 1, dKQ, ldk);
    double running = 0;
    for (int i = C - 1; i >= 0; i--) {
      running += d_log[i];
      if (i >= length) continue;
      unit_backward(dKQ + i * ldk, KQ + i * ldk, K, factor[i], 1, dk + i * dq_step);
      unit_backward(dKQ + (C + i) * ldk, KQ + (C + i) * ldk, K, factor[C + i], (float)K, dq + i * dq_step);
      out.g[(first + i) * out.gate_step] = (float)running;
      out.beta[(first + i) * out.gate_step] = sum(load(d_beta + i * W));
    }
  }
  if (out.initial) copy_rows(K, VD, dS, ldv, out.initial, VD);
}
