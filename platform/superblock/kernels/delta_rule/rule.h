// The gated delta rule (arXiv 2412.06464) for processors: one task per head of a sequence.
//
// Legend: B sequences, T tokens, G key heads, H value heads (H / G of them share a key head), K and VD their widths (multiples
// of 16), C tokens of a chunk (a multiple of 16). q, k [B, T, G, K] and v [B, T, H, VD] come with any strides but a contiguous
// last dimension, and so do their gradients; gates g, beta [B, T, H], states [B, H, K, VD] and other results are contiguous.
#pragma once
#include "chunk_backward.h"
#include "chunk_forward.h"
#include "recurrent.h"

// What Python passes, by these names.
struct RuleArguments {
  const void *q, *k, *v;     // v null: of no use backwards
  const float *g, *beta;
  const int32_t* documents;  // [B, T] or null
  int64_t q_row, q_step, q_head, k_row, k_step, k_head, v_row, v_step, v_head;  // strides in elements
  int64_t B, T, G, H, K, VD, C;
  int64_t half;  // q, k and v are bf16, else fp32
};

struct Batch : RuleArguments {
  template <class X>
  Head<X> head(int64_t task) const {
    int64_t b = task / H, h = task % H, shared = h / (H / G), gate = b * T * H + h;
    return {(const X*)q + b * q_row + shared * q_head,
            (const X*)k + b * k_row + shared * k_head,
            (const X*)v + b * v_row + h * v_head,
            g + gate,
            beta + gate,
            documents ? documents + b * T : nullptr,
            q_step, k_step, v_step, H, T, (int)K, (int)VD, (int)C};
  }
};

template <class X>
static void forward_rule(const Batch& in, const float* initial, float* o, float* states, float* residuals, float* last,
                         bool recurrent, int64_t threads) {
  const int64_t square = in.K * in.VD, chunks = (in.T + in.C - 1) / in.C;
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < in.B * in.H; task++) {
      const Head<X> head = in.head<X>(task);
      const float* first = initial ? initial + task * square : nullptr;
      float* out = o + (task / in.H * in.T * in.H + task % in.H) * in.VD;
      if (recurrent)
        recurrent_head(head, first, out, in.H * in.VD, last + task * square);
      else
        forward_head(head, first, out, in.H * in.VD, states ? states + task * chunks * square : nullptr,
                     residuals ? residuals + task * in.T * in.VD : nullptr, last ? last + task * square : nullptr);
    }
  }
}

// Where gradients go, and how far apart rows, tokens and heads of the first three lie there, in elements. Python passes it.
struct Targets {
  void *q, *k, *v;
  float *g, *beta;
  float* initial;                       // null: not wanted
  int64_t key_row, key_step, key_head;  // of q and of k
  int64_t v_row, v_step, v_head;
};

template <class X, class Y>
static void backward_rule(const Batch& in, const float* d_o, const float* d_last, const float* states, const float* residuals,
                          bool from_zero, const Targets& to, int64_t threads) {
  const int64_t square = in.K * in.VD, chunks = (in.T + in.C - 1) / in.C;
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < in.B * in.H; task++) {
      const int64_t b = task / in.H, h = task % in.H, gate = b * in.T * in.H + h;
      const int64_t key = b * to.key_row + h * to.key_head, value = b * to.v_row + h * to.v_head;
      Gradients<X, Y> out{(Y*)to.q + key, (Y*)to.k + key, (X*)to.v + value, to.g + gate, to.beta + gate,
                          to.initial ? to.initial + task * square : nullptr, to.key_step, to.v_step, in.H};
      backward_head(in.head<X>(task), d_o + gate * in.VD, in.H * in.VD, states + task * chunks * square,
                    residuals + task * in.T * in.VD, from_zero, d_last ? d_last + task * square : nullptr, out);
    }
  }
}
