// One head of one sequence forwards: chunk after chunk, with the state in the second cache.
//
//     Z = V - e (K S) - (K K^T * D) U     U = beta Z     o = e (Q S) + P U     S' = a S + (r K)^T U
//
// U solves a lower triangular system row by row, which is as accurate as the recurrence itself.
#pragma once
#include "chunk.h"

struct ForwardParts {
  Chunk chunk;
  float *KQ_S, *U, *K_r, *S;  // [2C, VD], [C, VD], [C, K], [K, VD]

  ForwardParts(int K, int VD, int C, Arena& arena) : chunk(K, C, arena) {
    KQ_S = arena.take(2 * C * (VD + PAD)), U = arena.take(C * (VD + PAD)), K_r = arena.take(C * (K + PAD));
    S = arena.take(K * (VD + PAD));
  }
};

// `initial` null: zero. `states` [chunks, K, VD] (before each chunk) and `residuals` [T, VD] (Z) are for the backward pass; null:
// not kept. `o` rows lie `o_step` apart; `last` [K, VD].
template <class X>
static void forward_head(const Head<X>& head, const float* initial, float* o, int64_t o_step, float* states, float* residuals,
                         float* last) {
  const int K = head.K, VD = head.VD, C = head.C, ldk = K + PAD, ldv = VD + PAD, ldc = C + PAD;
  auto parts = on_scratch<ForwardParts>(K, VD, C);
  Chunk& chunk = parts.chunk;
  float *KQ_S = parts.KQ_S, *Q_S = KQ_S + C * ldv, *U = parts.U, *K_r = parts.K_r, *S = parts.S;
  // copies, for a store of a vector may change any member, for all the compiler knows
  const float *KQ = chunk.KQ, *e = chunk.e, *r = chunk.r, *beta = chunk.beta;
  const X *q = head.q, *k = head.k, *v = head.v;
  const int64_t q_step = head.q_step, k_step = head.k_step, v_step = head.v_step, tokens = head.tokens;
  Prefetch prefetch;
  bool empty = !initial;
  if (empty)
    memset(S, 0, sizeof(float) * K * ldv);
  else
    copy_rows(K, VD, initial, VD, S, ldv);
  for (int64_t first = 0; first < tokens; first += C, empty = false) {
    const int64_t next = first + C;
    const int length = (int)std::min<int64_t>(C, tokens - first), more = (int)std::min<int64_t>(C, tokens - next);
    prefetch.clear();
    prefetch.write(o + first * o_step, o_step, length, VD);
    prefetch.read(k + next * k_step, k_step, more, K);
    prefetch.read(q + next * q_step, q_step, more, K);
    prefetch.read(v + next * v_step, v_step, more, VD);
    chunk.prepare(head, first, length, prefetch);
    if (states) {
      for (int i = 0; i < K; i++)
        for (int j = 0; j < VD; j += W) store_past(states + (size_t)i * VD + j, load(S + i * ldv + j));
      states += (size_t)K * VD;
    }
    if (!empty) multiply<false, false, FULL>(2 * C, VD, K, KQ, ldk, S, ldv, nullptr, 0, 0, KQ_S, ldv, prefetch);
    for (int i = 0; i < C; i++) {
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
      multiply<false, true, A_LOWER>(C, VD, C, chunk.P, ldc, U, ldv, Q_S, ldv, 1, o + first * o_step, (int)o_step, prefetch);
    } else {
      multiply<false, true, A_LOWER>(C, VD, C, chunk.P, ldc, U, ldv, Q_S, ldv, 1, Q_S, ldv, prefetch);
      for (int i = 0; i < length; i++) memcpy(o + (first + i) * o_step, Q_S + i * ldv, sizeof(float) * VD);
    }
    for (int i = 0; i < C; i++) {
      for (int j = 0; j < K; j += W) store(K_r + i * ldk + j, load(KQ + i * ldk + j) * r[i]);
    }
    multiply<true, true, FULL>(K, VD, C, K_r, ldk, U, ldv, S, ldv, chunk.a, S, ldv, prefetch);
  }
  if (last) copy_rows(K, VD, S, ldv, last, VD);
}
