// The cross-entropy of a projection, and what lies between its products: what Python calls.
#include "linear.h"

ENTRY void row_losses(void* logits, int64_t half, const int64_t* labels, double z_loss, int64_t gradient, float* loss,
                      int64_t C, int64_t columns, int64_t threads) {
  if (half) losses((bf16*)logits, labels, (float)z_loss, gradient, loss, C, columns, threads);
  else losses((float*)logits, labels, (float)z_loss, gradient, loss, C, columns, threads);
}

ENTRY void row_scores(const void* logits, int64_t half, const int64_t* labels, float* nll, int64_t* rank, int64_t C,
                      int64_t columns, int64_t threads) {
  if (half) scores((const bf16*)logits, labels, nll, rank, C, columns, threads);
  else scores((const float*)logits, labels, nll, rank, C, columns, threads);
}

// `h_half`, `weight_half`, `dh_half`: stored in bf16, else fp32. `half`: products take bf16 where the level multiplies it.
ENTRY void linear_cross_entropy(void* h, int64_t h_half, void* weight, int64_t weight_half, const int64_t* labels,
                                double z_loss, int64_t half, int64_t chunk, float* loss, void* dh, int64_t dh_half,
                                float* dweight, int64_t N, int64_t D, int64_t columns, int64_t threads) {
  Unembedding u{{h, D, h_half != 0}, {weight, D, weight_half != 0}, labels, (float)z_loss, N, D, columns};
  with_operand(half, [&](auto operand) {
    linear_losses<decltype(operand)>(u, chunk, loss, {dh, D, dh_half != 0}, dweight, threads);
  });
}
