// Gated DeltaNet for processors: what Python calls. See the headers for legends.
#include "layer.h"

// `states` [B, H, chunks, K, VD] and `residuals` [B, H, T, VD] null: nothing is kept for a backward pass.
ENTRY void delta_rule_forward(const void* q, const void* k, const void* v, const float* g, const float* beta,
                              const int32_t* documents, int64_t q_row, int64_t q_step, int64_t q_head, int64_t k_row,
                              int64_t k_step, int64_t k_head, int64_t v_row, int64_t v_step, int64_t v_head, int64_t B,
                              int64_t T, int64_t G, int64_t H, int64_t K, int64_t VD, int64_t C, int64_t is_bf16,
                              int64_t recurrent, const float* initial, float* o, float* last, float* states,
                              float* residuals, int64_t threads) {
  Batch in{q, k, v, g, beta, documents, q_row, q_step, q_head, k_row, k_step, k_head, v_row, v_step, v_head, B, T, G, H, K, VD, C};
  (is_bf16 ? forward_rule<bf16> : forward_rule<float>)(in, initial, o, states, residuals, last, recurrent, threads);
}

// dq, dk [B, T, H, K], with the same strides: in the inputs' dtype if H = G, else fp32 and for each value head by itself. dv
// in the inputs' dtype.
ENTRY void delta_rule_backward(const void* q, const void* k, const void* v, const float* g, const float* beta,
                               const int32_t* documents, int64_t q_row, int64_t q_step, int64_t q_head, int64_t k_row,
                               int64_t k_step, int64_t k_head, int64_t v_row, int64_t v_step, int64_t v_head, int64_t B,
                               int64_t T, int64_t G, int64_t H, int64_t K, int64_t VD, int64_t C, int64_t is_bf16,
                               int64_t from_zero, const float* d_o, const float* d_last, const float* states,
                               const float* residuals, void* dq, void* dk, void* dv, int64_t key_row, int64_t key_step,
                               int64_t key_head, int64_t dv_row, int64_t dv_step, int64_t dv_head, float* dg,
                               float* d_beta, float* d_initial, int64_t threads) {
  Batch in{q, k, v, g, beta, documents, q_row, q_step, q_head, k_row, k_step, k_head, v_row, v_step, v_head, B, T, G, H, K, VD, C};
  auto run = is_bf16 ? (H == G ? backward_rule<bf16, bf16> : backward_rule<bf16, float>) : backward_rule<float, float>;
  Targets to{dq, dk, dv, key_row, key_step, key_head, dv_row, dv_step, dv_head};
  run(in, d_o, d_last, states, residuals, from_zero, to, dg, d_beta, d_initial, threads);
}

// weight [C, TAPS], state and last [B, TAPS - 1, C]: the inputs before the first token (null: zero) and after the last.
ENTRY void convolution_forward(const void* x, const float* weight, const void* state, const int32_t* documents, int64_t row,
                               int64_t step, int64_t B, int64_t T, int64_t C, int64_t taps, int64_t is_bf16, void* y,
                               void* last, int64_t threads) {
  convolution::Batch in{x, state, weight, documents, row, step, B, T, C, taps};
  if (is_bf16)
    convolution::forward(in, (bf16*)y, (bf16*)last, threads);
  else
    convolution::forward(in, (float*)y, (float*)last, threads);
}

// dx comes with strides as x does. `partial` [B, TAPS, C] is room for each sequence's gradient of the weights; `d_state` null:
// not wanted.
ENTRY void convolution_backward(const void* x, const float* weight, const void* state, const int32_t* documents, int64_t row,
                                int64_t step, int64_t B, int64_t T, int64_t C, int64_t taps, int64_t is_bf16, const void* dy,
                                void* dx, int64_t dx_row, int64_t dx_step, void* d_state, float* partial, float* d_weight,
                                int64_t threads) {
  convolution::Batch in{x, state, weight, documents, row, step, B, T, C, taps};
  if (is_bf16)
    convolution::backward(in, (const bf16*)dy, (bf16*)dx, dx_row, dx_step, (bf16*)d_state, partial, d_weight, threads);
  else
    convolution::backward(in, (const float*)dy, (float*)dx, dx_row, dx_step, (float*)d_state, partial, d_weight, threads);
}

ENTRY void gates_forward(const float* x, int64_t outer, int64_t inner, const float* weight, const float* A_log,
                         const float* bias, double strength, float* g, float* beta, float* ba, int64_t N, int64_t T,
                         int64_t D, int64_t H, int64_t threads) {
  gates::forward(x, outer, inner, weight, A_log, bias, strength, g, beta, ba, N, T, D, H, threads);
}

ENTRY void gates_backward(const float* x, int64_t outer, int64_t inner, const float* weight, const float* A_log,
                          const float* bias, double strength, const float* ba, const float* dg, const float* dbeta,
                          float* dx, float* dweight, float* dA_log, float* dbias, float* partial, int64_t N, int64_t T,
                          int64_t D, int64_t H, int64_t threads) {
  gates::backward(x, outer, inner, weight, A_log, bias, strength, ba, dg, dbeta, dx, dweight, dA_log, dbias, partial, N,
                  T, D, H, threads);
}

// Every function of the layer begins with these; see layer.h. Weights of the projections are all bf16 if `weights_half`.
#define LAYER                                                                                                          \
  void *x, int64_t x_half, const float *norm, void *qkvz, const float *conv, const float *ba, const float *A_log,      \
      const float *dt_bias, const float *gated_norm, void *out, int64_t weights_half, const int32_t *documents,        \
      int64_t B, int64_t T, int64_t D, int64_t G, int64_t H, int64_t K, int64_t VD, int64_t taps, int64_t chunk,       \
      int64_t half, double strength, double epsilon, void *h, float *wide, float *scales, void *rows, void *mixed,     \
      float *g, float *beta, float *ba_kept, float *states, float *residuals, float *o, float *gated_scales, void *y
#define PASSED                                                                                                         \
  x, x_half, norm, qkvz, conv, ba, A_log, dt_bias, gated_norm, out, weights_half, documents, B, T, D, G, H, K, VD,     \
      taps, chunk, half, strength, epsilon, h, wide, scales, rows, mixed, g, beta, ba_kept, states, residuals, o,      \
      gated_scales, y

static DeltaLayer layer_of(LAYER) {
  DeltaLayer l{{}, conv, ba, A_log, dt_bias, gated_norm, documents, B, T, D, G, H, K, VD, taps, chunk, half != 0, strength,
               h, wide, scales, rows, mixed, g, beta, ba_kept, states, residuals, o, gated_scales, y};
  Matrix enter{qkvz, D, weights_half != 0}, leave{out, l.values(), weights_half != 0};
  l.ends = {{x, D, x_half != 0}, norm, (float)epsilon, enter, leave, l.N(), D, l.M(), l.values()};
  return l;
}

ENTRY void delta_layer_forward(LAYER, void* stream, int64_t threads) {
  DeltaLayer l = layer_of(PASSED);
  Matrix to{stream, D, x_half != 0};
  with_operand(l.half, [&](auto operand) {
    using Operand = decltype(operand);
    if (l.half) layer_forward<bf16, Operand>(l, to, threads);
    else layer_forward<float, float>(l, to, threads);
  });
}

// `dstream` [N, D] in the dtype of x, as is dx; all other gradients are fp32.
ENTRY void delta_layer_backward(LAYER, void* dstream, void* dx, float* dnorm, float* dqkvz, float* dconv, float* dba,
                                float* dA_log, float* dbias, float* dgated_norm, float* dout, int64_t threads) {
  DeltaLayer l = layer_of(PASSED);
  Matrix from{dstream, D, x_half != 0};
  DeltaGradients to{{dx, D, x_half != 0}, dnorm, dqkvz, dconv, dba, dA_log, dbias, dgated_norm, dout};
  with_operand(l.half, [&](auto operand) {
    using Operand = decltype(operand);
    if (l.half) layer_backward<bf16, Operand>(l, from, to, threads);
    else layer_backward<float, float>(l, from, to, threads);
  });
}
