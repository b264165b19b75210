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
  Arena arena{scratch<float>(forward_scratch(K, VD, C))};
  Chunk chunk(K, C, arena);
  float *KQ_S = arena.take(2 * C * ldv), *Q_S = KQ_S + C * ldv, *U = arena.take(C * ldv), *K_r = arena.take(C * ldk);
  float* S = arena.take(K * ldv);
  bool empty = !initial;
  if (empty)
    memset(S, 0, sizeof(float) * K * ldv);
  else
    copy_rows(K, VD, initial, VD, S, ldv);
  for (int64_t first = 0; first < head.tokens; first += C, empty = false) {
    chunk.prepare(head, first);
    if (states) {
      for (int i = 0; i < K; i++)
        for (int j = 0; j < VD; j += W) store_past(states + (size_t)i * VD + j, load(S + i * ldv + j));
      states += (size_t)K * VD;
    }
    if (!empty) multiply<false, false, FULL>(2 * C, VD, K, chunk.KQ, ldk, S, ldv, nullptr, 0, 0, KQ_S, ldv);
    const int64_t next = first + C, more = head.tokens - next;  // tokens behind this chunk
    for (int i = 0; i < C; i++) {
      if (i < more) ask(head.k + (next + i) * head.k_step, K), ask(head.q + (next + i) * head.q_step, K);
      for (int j = 0; j < VD; j += W) {
        V value = i < chunk.length ? load(head.v + (first + i) * head.v_step + j) : V{};
        store(U + i * ldv + j, empty ? value : value - load(KQ_S + i * ldv + j) * chunk.e[i]);
        store(Q_S + i * ldv + j, empty ? V{} : load(Q_S + i * ldv + j) * chunk.e[i]);
      }
    }
    float* Z = residuals ? residuals + first * VD : nullptr;
    solve<false>(C, VD, chunk.KK, ldc, U, ldv, [&](int row, int column, V z) {
      if (Z && row < chunk.length) store_past(Z + (size_t)row * VD + column, z);
      return z * chunk.beta[row];
    });
    if (chunk.length == C) {
      multiply<false, true, A_LOWER>(C, VD, C, chunk.P, ldc, U, ldv, Q_S, ldv, 1, o + first * o_step, (int)o_step);
    } else {
      multiply<false, true, A_LOWER>(C, VD, C, chunk.P, ldc, U, ldv, Q_S, ldv, 1, Q_S, ldv);
      for (int i = 0; i < chunk.length; i++) memcpy(o + (first + i) * o_step, Q_S + i * ldv, sizeof(float) * VD);
    }
    for (int i = 0; i < C; i++) {
      if (i < more) ask(head.v + (next + i) * head.v_step, VD);
      for (int j = 0; j < K; j += W) store(K_r + i * ldk + j, load(chunk.KQ + i * ldk + j) * chunk.r[i]);
    }
    multiply<true, true, FULL>(K, VD, C, K_r, ldk, U, ldv, S, ldv, chunk.a, S, ldv);
  }
  copy_rows(K, VD, S, ldv, last, VD);
}
