// One head of one sequence forwards: chunk after chunk, with the state in the second cache.
//
//     Z = V - e (K S) - (K K^T * D) U     U = beta Z     o = e (Q S) + P U     S' = a S + (r K)^T U
//
// U solves a lower triangular system row by row, which is as accurate as the recurrence itself.
#pragma once
#include "chunk.h"

static size_t forward_scratch(int K, int VD, int C) {
  return (size_t)C * (5 * (K + PAD) + 4 * (VD + PAD) + 3 * (C + PAD)) + K * (C + PAD) + K * (VD + PAD) + 32 * (C + 16);
}

// `initial` null: zero. `states` [chunks, K, VD] (before each chunk) and `residuals` [T, VD] (Z) are for the backward pass; null:
// not kept. `o` rows lie `o_step` apart; `last` [K, VD].
template <class X>
static void forward_head(const Head<X>& head, const float* initial, float* o, int64_t o_step, float* states, float* residuals,
                         float* last) {
  const int K = head.K, VD = head.VD, C = head.C, ldk = K + PAD, ldv = VD + PAD, ldc = C + PAD;
  Arena arena{(char*)scratch<float>(forward_scratch(K, VD, C))};
  Chunk chunk(K, C, arena);
  float *KQ_S = arena.take(2 * C * ldv), *Q_S = KQ_S + C * ldv, *U = arena.take(C * ldv), *K_r = arena.take(C * ldk);
  float* S = arena.take(K * ldv);
  // copies, for a store of a vector may change any member, for all the compiler knows
  const float *KQ = chunk.KQ, *e = chunk.e, *r = chunk.r, *beta = chunk.beta;
  const X *q = head.q, *k = head.k, *v = head.v;
  const int64_t q_step = head.q_step, k_step = head.k_step, v_step = head.v_step, tokens = head.tokens;
  bool empty = !initial;
  if (empty)
    memset(S, 0, sizeof(float) * K * ldv);
  else
    copy_rows(K, VD, initial, VD, S, ldv);
  for (int64_t first = 0; first < tokens; first += C, empty = false) {
    chunk.prepare(head, first);
    const int length = chunk.length;
    if (states) {
      for (int i = 0; i < K; i++)
        for (int j = 0; j < VD; j += W) store_past(states + (size_t)i * VD + j, load(S + i * ldv + j));
      states += (size_t)K * VD;
    }
    if (!empty) multiply<false, false, FULL>(2 * C, VD, K, KQ, ldk, S, ldv, nullptr, 0, 0, KQ_S, ldv);
    const int64_t next = first + C, more = tokens - next;  // tokens behind this chunk
    for (int i = 0; i < C; i++) {
      if (i < more) ask(k + (next + i) * k_step, K), ask(q + (next + i) * q_step, K);
      for (int j = 0; j < VD; j += W) {
        V value = i < length ? load(v + (first + i) * v_step + j) : V{};
        store(U + i * ldv + j, empty ? value : value - load(KQ_S + i * ldv + j) * e[i]);
        store(Q_S + i * ldv + j, empty ? V{} : load(Q_S + i * ldv + j) * e[i]);
      }
    }
    float* Z = residuals ? residuals + first * VD : nullptr;
    solve<false>(C, VD, chunk.KK, ldc, U, ldv, [&](int row, int column, V z) {
      if (Z && row < length) store_past(Z + (size_t)row * VD + column, z);
      return z * beta[row];
    });
    if (length == C) {
      multiply<false, true, A_LOWER>(C, VD, C, chunk.P, ldc, U, ldv, Q_S, ldv, 1, o + first * o_step, (int)o_step);
    } else {
      multiply<false, true, A_LOWER>(C, VD, C, chunk.P, ldc, U, ldv, Q_S, ldv, 1, Q_S, ldv);
      for (int i = 0; i < length; i++) memcpy(o + (first + i) * o_step, Q_S + i * ldv, sizeof(float) * VD);
    }
    for (int i = 0; i < C; i++) {
      if (i < more) ask(v + (next + i) * v_step, VD);
      for (int j = 0; j < K; j += W) store(K_r + i * ldk + j, load(KQ + i * ldk + j) * r[i]);
    }
    multiply<true, true, FULL>(K, VD, C, K_r, ldk, U, ldv, S, ldv, chunk.a, S, ldv);
  }
  if (last) copy_rows(K, VD, S, ldv, last, VD);
}
