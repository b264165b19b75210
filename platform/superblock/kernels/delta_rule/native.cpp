// Gated DeltaNet for processors: what Python calls. See the headers for legends.
#include "layer.h"

// `states` [B, H, chunks, K, VD] and `residuals` [B, H, T, VD] null: nothing is kept for a backward pass.
ENTRY void delta_rule_forward(const RuleArguments* arguments, int64_t recurrent, const float* initial, float* o, float* last,
                              float* states, float* residuals, int64_t threads) {
  const Batch in{*arguments};
  (in.half ? forward_rule<bf16> : forward_rule<float>)(in, initial, o, states, residuals, last, recurrent, threads);
}

// Gradients of q and k have q's dtype if H = G, else they are fp32 and of each value head by itself; that of v has v's.
ENTRY void delta_rule_backward(const RuleArguments* arguments, int64_t from_zero, const float* d_o, const float* d_last,
                               const float* states, const float* residuals, const Targets* to, int64_t threads) {
  const Batch in{*arguments};
  auto run = in.half ? (in.H == in.G ? backward_rule<bf16, bf16> : backward_rule<bf16, float>) : backward_rule<float, float>;
  run(in, d_o, d_last, states, residuals, from_zero, *to, threads);
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

// `stream` [N, D] is what the layer makes of x, in its dtype.
ENTRY void delta_layer_forward(const DeltaArguments* arguments, void* stream, int64_t threads) {
  const DeltaLayer l(*arguments);
  with_operand(l.half, [&](auto operand) {
    using Operand = decltype(operand);
    if (l.half) layer_forward<bf16, Operand>(l, l.as_stream(stream), threads);
    else layer_forward<float, float>(l, l.as_stream(stream), threads);
  });
}

ENTRY void delta_layer_backward(const DeltaArguments* arguments, const DeltaGradients* gradients, int64_t threads) {
  const DeltaLayer l(*arguments);
  with_operand(l.half, [&](auto operand) {
    using Operand = decltype(operand);
    if (l.half) layer_backward<bf16, Operand>(l, *gradients, threads);
    else layer_backward<float, float>(l, *gradients, threads);
  });
}
