// One head of one sequence token by token, for the few tokens of decoding: a panel of value columns stays in the first cache
// while all tokens pass over it, for the columns of the state do not see each other.
#pragma once
#include "chunk.h"

// Columns [begin, begin + NV * W). `KQ` [2T, K] unit keys and queries, `S` [K, VD] is updated in place.
template <int NV, class X>
static void recurrent_columns(const Head<X>& head, const float* KQ, int begin, float* S, float* o, int64_t o_step) {
  const int K = head.K, VD = head.VD;
  for (int64_t t = 0; t < head.tokens; t++) {
    const float *k = KQ + t * K, *q = KQ + (head.tokens + t) * K;
    bool starts = head.documents && t > 0 && head.documents[t] != head.documents[t - 1];
    float decay = starts ? 0.0f : std::exp(head.g[t * head.gate_step]), beta = head.beta[t * head.gate_step];
    V k_S[NV] = {}, q_S[NV] = {}, u[NV], q_k{};
    for (int j = 0; j < K; j += W) q_k += load(k + j) * load(q + j);
    float attention = sum(q_k);
    for (int i = 0; i < K; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) {
        V s = load(S + (size_t)i * VD + begin + j * W);
        k_S[j] += s * k[i], q_S[j] += s * q[i];
      }
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      u[j] = (load(head.v + t * head.v_step + begin + j * W) - k_S[j] * decay) * beta;
      store(o + t * o_step + begin + j * W, q_S[j] * decay + u[j] * attention);
    }
    for (int i = 0; i < K; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) {
        float* s = S + (size_t)i * VD + begin + j * W;
        store(s, load(s) * decay + u[j] * k[i]);
      }
  }
}

template <class X>
static void recurrent_head(const Head<X>& head, const float* initial, float* o, int64_t o_step, float* last) {
  const int K = head.K, VD = head.VD;
  if (initial)
    memcpy(last, initial, sizeof(float) * K * VD);
  else
    memset(last, 0, sizeof(float) * K * VD);
  const int T = (int)head.tokens;
  float *KQ = scratch<float>(2 * T * (K + 1)), *factors = KQ + 2 * T * K;
  unit_rows(head.k, head.k_step, T, T, K, 1.0f, KQ, K, factors);
  unit_rows(head.q, head.q_step, T, T, K, 1.0f / std::sqrt((float)K), KQ + T * K, K, factors + T);
  int begin = 0;
  for (; begin + 4 * W <= VD; begin += 4 * W) recurrent_columns<4>(head, KQ, begin, last, o, o_step);
  for (; begin < VD; begin += W) recurrent_columns<1>(head, KQ, begin, last, o, o_step);
}
