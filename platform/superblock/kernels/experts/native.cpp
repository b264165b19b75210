// A mixture of SwiGLU experts on a processor: what Python calls. See plan.h for the legend.
#include "backward.h"
#include "router.h"

static Problem problem(void* x, int64_t x_half, int64_t x_stride, void* gate_up, void* down, int64_t half,
                       const int64_t* index, const float* weight, void* shared_gate_up, void* shared_down,
                       const float* shared_weight, int64_t N, int64_t D, int64_t F, int64_t shared_F, int64_t E,
                       int64_t k) {
  Weights shared{{shared_gate_up, D, half != 0}, {shared_down, shared_F, half != 0}, shared_F};
  Matrix all_gate_up{gate_up, D, half != 0}, all_down{down, F, half != 0};
  return {{x, x_stride, x_half != 0}, index, weight, shared_weight, all_gate_up, all_down, shared, N, D, F, E, k};
}

// `stream`, of the dtype of y, is added to the result unless it is null. `in_half`: multiply in bf16, and `hidden`,
// `shared_hidden` and `parts` are bf16; the level must have its products.
ENTRY void experts_forward(void* x, int64_t x_half, int64_t x_stride, void* gate_up, void* down, int64_t half,
                           const int64_t* index, const float* weight, void* shared_gate_up, void* shared_down,
                           const float* shared_weight, int64_t N, int64_t D, int64_t F, int64_t shared_F, int64_t E,
                           int64_t k, int64_t in_half, void* y, int64_t y_half, void* stream, int64_t stream_stride,
                           void* hidden, void* shared_hidden, void* parts, float* power, int64_t threads) {
  Problem p = problem(x, x_half, x_stride, gate_up, down, half, index, weight, shared_gate_up, shared_down,
                      shared_weight, N, D, F, shared_F, E, k);
  Matrix out{y, D, y_half != 0}, added{stream, stream_stride, y_half != 0};
#if defined(__AVX512BF16__)
  if (in_half) return forward(p, out, added, (bf16*)hidden, (bf16*)shared_hidden, (bf16*)parts, power, threads);
#endif
  forward(p, out, added, (float*)hidden, (float*)shared_hidden, (float*)parts, power, threads);
}

ENTRY void experts_backward(void* x, int64_t x_half, int64_t x_stride, void* gate_up, void* down, int64_t half,
                            const int64_t* index, const float* weight, void* shared_gate_up, void* shared_down,
                            const float* shared_weight, int64_t N, int64_t D, int64_t F, int64_t shared_F, int64_t E,
                            int64_t k, int64_t in_half, void* dy, int64_t dy_half, int64_t dy_stride, void* hidden,
                            void* shared_hidden, void* parts, void* dx, int64_t dx_half, float* dgate_up, float* ddown,
                            float* dshared_gate_up, float* dshared_down, float* dweight, float* dshared_weight,
                            int64_t threads) {
  Problem p = problem(x, x_half, x_stride, gate_up, down, half, index, weight, shared_gate_up, shared_down,
                      shared_weight, N, D, F, shared_F, E, k);
  Gradients g{{dx, D, dx_half != 0}, dgate_up, ddown, dshared_gate_up, dshared_down, dweight, dshared_weight};
  Matrix dout{dy, dy_stride, dy_half != 0};
#if defined(__AVX512BF16__)
  if (in_half) return backward(p, dout, (bf16*)hidden, (bf16*)shared_hidden, (bf16*)parts, g, threads);
#endif
  backward(p, dout, (float*)hidden, (float*)shared_hidden, (float*)parts, g, threads);
}

// Every router function begins with these. x null: h [N, D] is given, and is not written.
#define ROUTER                                                                                                         \
  void *h, int64_t half, int64_t stride, void *x, int64_t x_half, int64_t x_stride, const float *norm_weight,          \
      double epsilon, float *scales, const float *router, const float *bias, int64_t N, int64_t D, int64_t E,          \
      int64_t C, int64_t k, int64_t softmax, double scale, double aux_loss, double z_loss

static Router problem_of(ROUTER) {
  Norm norm{{x, x_stride, x_half != 0}, norm_weight, (float)epsilon, scales};
  Matrix tokens{h, stride, half != 0};
  return {tokens, router, bias, N, D, E, C, k, softmax != 0, (float)scale, (float)aux_loss, (float)z_loss, norm};
}
#define PASSED                                                                                                         \
  h, half, stride, x, x_half, x_stride, norm_weight, epsilon, scales, router, bias, N, D, E, C, k, softmax, scale,     \
      aux_loss, z_loss

ENTRY void router_forward(ROUTER, int64_t* index, float* weight, float* shared, float* loss, float* counts,
                          float* stats, float* scores, float* lse, int64_t threads) {
  route(problem_of(PASSED), {index, weight, shared, scores, lse, loss, counts, stats}, threads);
}

// With x: dnormed [N, D] in the dtype of h, dstream (strided) and dx [N, D] in that of x, dnorm [D]; else dh.
ENTRY void router_backward(ROUTER, const int64_t* index, const float* weight, const float* shared, const float* counts,
                           const float* scores, const float* lse, const float* dweight, const float* dshared,
                           const float* dloss, float* dh, float* drouter, void* dnormed, void* dstream,
                           int64_t dstream_stride, void* dx, float* dnorm, int64_t threads) {
  float pull = dloss ? *dloss : 0;
  Matrix others{dnormed, D, half != 0}, upstream{dstream, dstream_stride, x_half != 0}, to{dx, D, x_half != 0};
  route_backward(problem_of(PASSED),
                 {index, weight, scores, shared, lse, counts, dweight, dshared, pull, dh, drouter, others, upstream, to,
                  dnorm},
                 threads);
}
