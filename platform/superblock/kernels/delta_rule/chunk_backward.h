// One head of one sequence backwards, last chunk first; the formulas of chunk_forward.h, differentiated.
//
// Two pairs share one product each: keys with queries, and what the solved rows send to their right hand side (-dY) with the
// gradient dO of the outputs.
#pragma once
#include "chunk.h"

struct BackwardParts {
  Chunk chunk;
  float *K_r, *U, *U_t, *Y_O;               // [C, K], [C, VD], [VD, C], [2C, VD]
  float *dS, *S_t, *dK_rt, *dK_r;           // [K, VD], [VD, K], [K, C], [C, K]
  float *dKQ, *dKK_P;                       // [2C, K], [2C, C]
  float *d_log, *columns, *d_beta;          // [C], [C], [C, W]

  BackwardParts(int K, int VD, int C, Arena& arena) : chunk(K, C, arena) {
    const int ldk = K + PAD, ldv = VD + PAD, ldc = C + PAD;
    K_r = arena.take(C * ldk), U = arena.take(C * ldv), U_t = arena.take(VD * ldc), Y_O = arena.take(2 * C * ldv);
    dS = arena.take(K * ldv), S_t = arena.take(VD * ldk), dK_rt = arena.take(K * ldc), dK_r = arena.take(C * ldk);
    dKQ = arena.take(2 * C * ldk), dKK_P = arena.take(2 * C * ldc);
    d_log = arena.take(C), columns = arena.take(C), d_beta = arena.take(C * W);
  }
};

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

// D + D^T in place for D [C, C], which is zero on its diagonal; what lies above it is not read.
static void symmetric(int C, float* D, int ldd) {
  alignas(64) float turned[16 * 16];
  for (int n = 0; n < C; n += 16) {
    for (int m = 0; m < n; m += 16) transpose<16, 16>(D + n * ldd + m, ldd, D + m * ldd + n, ldd);
    float* square = D + n * ldd + n;
    transpose<16, 16>(square, ldd, turned, 16);
    for (int i = 0; i < 16; i++)
      for (int j = 0; j < 16; j += W) {
        V row = splat((float)i), column = lanes() + (float)j, above = load(turned + i * 16 + j);
        float* at = square + i * ldd + j;
        store(at, select(column < row, load(at), select(row < column, above, V{})));
      }
  }
}

// `d_o` [T, VD] rows `o_step` apart; `states`, `residuals` from the forward pass; `d_last` [K, VD] or null.
template <class X, class Y>
static void backward_head(const Head<X>& head, const float* d_o, int64_t o_step, const float* states, const float* residuals,
                          bool from_zero, const float* d_last, const Gradients<X, Y>& out) {
  const int K = head.K, VD = head.VD, C = head.C, ldk = K + PAD, ldv = VD + PAD, ldc = C + PAD;
  auto parts = on_scratch<BackwardParts>(K, VD, C);
  Chunk& chunk = parts.chunk;
  float *KQ = chunk.KQ, *K_r = parts.K_r, *U = parts.U, *U_t = parts.U_t, *Y_O = parts.Y_O, *O = Y_O + C * ldv;
  float *dS = parts.dS, *S_t = parts.S_t, *dK_rt = parts.dK_rt, *dK_r = parts.dK_r, *dKQ = parts.dKQ;
  float *dKK = parts.dKK_P, *dP = dKK + C * ldc, *d_log = parts.d_log, *columns = parts.columns, *d_beta = parts.d_beta;
  // copies, for a store of a vector may change any member, for all the compiler knows
  const float *e = chunk.e, *r = chunk.r, *beta = chunk.beta, *factor = chunk.factor;
  const X *q = head.q, *k = head.k;
  const int64_t q_step = head.q_step, k_step = head.k_step, count = (head.tokens + C - 1) / C;
  Prefetch prefetch;
  bool silent = !d_last;  // nothing has asked anything of the state yet
  if (silent)
    memset(dS, 0, sizeof(float) * K * ldv);
  else
    copy_rows(K, VD, d_last, VD, dS, ldv);
  for (int64_t n = count - 1; n >= 0; n--, silent = false) {
    const int64_t first = n * C;
    const bool empty = n == 0 && from_zero;  // the state before the chunk is zero
    const float* S = states + (size_t)n * K * VD;
    const int64_t before = first - C;
    const int length = (int)std::min<int64_t>(C, head.tokens - first), earlier = n > 0 ? C : 0;
    const float *Z = residuals + first * VD, *d_out = d_o + first * o_step;
    Y *dq = out.q + first * out.q_step, *dk = out.k + first * out.q_step;
    X* dv = out.v + first * out.v_step;
    const int64_t dq_step = out.q_step, dv_step = out.v_step;
    prefetch.clear();
    prefetch.write(dv, dv_step, length, VD);
    prefetch.write(dk, dq_step, length, K);
    prefetch.write(dq, dq_step, length, K);
    prefetch.read(k + before * k_step, k_step, earlier, K);
    prefetch.read(q + before * q_step, q_step, earlier, K);
    prefetch.read(d_o + before * o_step, o_step, earlier, VD);
    prefetch.read(residuals + before * VD, VD, earlier, VD);
    prefetch.read(S - (size_t)K * VD, VD, n > 0 ? K : 0, VD);
    chunk.prepare(head, first, length, prefetch);
    for (int i = 0; i < C; i++) {
      for (int j = 0; j < K; j += W) store(K_r + i * ldk + j, load(KQ + i * ldk + j) * r[i]);
      for (int j = 0; j < VD; j += W) {
        store(O + i * ldv + j, i < length ? load(d_out + i * o_step + j) : V{});
        store(U + i * ldv + j, i < length ? load(Z + i * VD + j) * beta[i] : V{});
      }
    }
    // dU = K_r dS + P^T dO, then the triangular system transposed, which leaves dY = beta (dU - KK^T dY)
    if (silent) {
      multiply<true, false, A_UPPER>(C, VD, C, chunk.P, ldc, O, ldv, nullptr, 0, 0, Y_O, ldv, prefetch);
    } else {
      multiply<false, false, FULL>(C, VD, K, K_r, ldk, dS, ldv, nullptr, 0, 0, Y_O, ldv, prefetch);
      multiply<true, true, A_UPPER>(C, VD, C, chunk.P, ldc, O, ldv, Y_O, ldv, 1, Y_O, ldv, prefetch);
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
    multiply<false, false, OUT_LOWER>(C, C, VD, Y_O, ldv, U_t, ldc, nullptr, 0, 0, dKK, ldc, prefetch);
    multiply<false, false, OUT_LOWER>(C, C, VD, O, ldv, U_t, ldc, nullptr, 0, 0, dP, ldc, prefetch);
    decay_backward(chunk, dKK, dP, d_log, columns);
    for (int i = 0; i < C; i++) {
      for (int j = 0; j < VD; j += W) {
        store(Y_O + i * ldv + j, load(Y_O + i * ldv + j) * -e[i]);
        store(O + i * ldv + j, load(O + i * ldv + j) * e[i]);
      }
    }
    float d_a = 0;
    if (!silent) {
      multiply<false, false, FULL>(K, C, VD, dS, ldv, U_t, ldc, nullptr, 0, 0, dK_rt, ldc, prefetch);
      transpose_any(K, C, dK_rt, ldc, dK_r, ldk);
    }
    if (!empty) {
      transpose_any(K, VD, S, VD, S_t, ldk);
      multiply<false, false, FULL>(2 * C, K, VD, Y_O, ldv, S_t, ldk, nullptr, 0, 0, dKQ, ldk, prefetch);
      V products{};
      if (!silent && chunk.a != 0)
        for (int i = 0; i < K; i++)
          for (int j = 0; j < VD; j += W) products += load(dS + i * ldv + j) * load(S + i * VD + j);
      d_a = sum(products);
    }
    if (n > 0 || out.initial) multiply<true, true, FULL>(K, VD, 2 * C, KQ, ldk, Y_O, ldv, dS, ldv, chunk.a, dS, ldv, prefetch);
    float survivors = 0;
    for (int i = 0; i < C; i++) {
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
    symmetric(C, dKK, ldc);  // keys meet themselves in K K^T on both sides
    multiply<false, true, FULL>(C, K, C, dKK, ldc, KQ, ldk, dKQ, ldk, 1, dKQ, ldk, prefetch);
    multiply<false, true, A_LOWER>(C, K, C, dP, ldc, KQ, ldk, dKQ + C * ldk, ldk, 1, dKQ + C * ldk, ldk, prefetch);
    multiply<true, true, A_UPPER>(C, K, C, dP, ldc, KQ + C * ldk, ldk, dKQ, ldk, 1, dKQ, ldk, prefetch);
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
