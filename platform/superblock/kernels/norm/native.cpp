// RMSNorm for processors: what Python calls. See native/norm.h for the legend.
#include "norm.h"
using namespace norm;

ENTRY void rms_norm_forward(const void* x, int64_t x_half, int64_t x_outer, int64_t x_inner, const float* weight,
                            int64_t per_row, double eps, void* y, int64_t y_half, float* wide, float* scales, int64_t M,
                            int64_t G, int64_t D, int64_t threads) {
  Shape s{M, G, D, per_row != 0};
  with_type(x_half, [&](auto x_type) {
    with_type(y_half, [&](auto y_type) {
      using X = Element<decltype(x_type)>;
      using Y = Element<decltype(y_type)>;
      forward<X, Y, None>(s, {(const X*)x, x_outer, x_inner}, weight, {}, (float)eps, (Y*)y, wide, scales, threads);
    });
  });
}

ENTRY void rms_norm_backward(const void* x, int64_t x_half, int64_t x_outer, int64_t x_inner, const float* weight,
                             int64_t per_row, const float* scales, const void* dy, int64_t y_half, int64_t dy_outer,
                             int64_t dy_inner, const float* dwide, int64_t dwide_outer, int64_t dwide_inner,
                             void* dx, float* dweight, float* partial, int64_t M, int64_t G, int64_t D,
                             int64_t threads) {
  Shape s{M, G, D, per_row != 0};
  with_type(x_half, [&](auto x_type) {
    with_type(y_half, [&](auto y_type) {
      using X = Element<decltype(x_type)>;
      using Y = Element<decltype(y_type)>;
      backward<X, Y, None>(s, {(const X*)x, x_outer, x_inner}, weight, {}, scales, {(const Y*)dy, dy_outer, dy_inner},
                           {dwide, dwide_outer, dwide_inner}, {}, (X*)dx, {},
                           dweight, partial, threads);
    });
  });
}

// x is fp32 here: it is the output of a recurrence, which is never rounded.
ENTRY void gated_rms_norm_forward(const float* x, int64_t x_outer, int64_t x_inner, const float* weight, const void* z,
                                  int64_t z_half, int64_t z_outer, int64_t z_inner, double eps, void* y,
                                  int64_t y_half, float* scales, int64_t M, int64_t G, int64_t D, int64_t threads) {
  Shape s{M, G, D, false};
  with_type(z_half, [&](auto z_type) {
    with_type(y_half, [&](auto y_type) {
      using Z = Element<decltype(z_type)>;
      using Y = Element<decltype(y_type)>;
      forward<float, Y, Z>(s, {x, x_outer, x_inner}, weight, {(const Z*)z, z_outer, z_inner}, (float)eps, (Y*)y,
                           nullptr, scales, threads);
    });
  });
}

ENTRY void gated_rms_norm_backward(const float* x, int64_t x_outer, int64_t x_inner, const float* weight, const void* z,
                                   int64_t z_half, int64_t z_outer, int64_t z_inner, const float* scales,
                                   const void* dy, int64_t y_half, int64_t dy_outer, int64_t dy_inner, float* dx,
                                   void* dz, int64_t dz_outer, int64_t dz_inner, float* dweight, float* partial,
                                   int64_t M, int64_t G, int64_t D, int64_t threads) {
  Shape s{M, G, D, false};
  with_type(z_half, [&](auto z_type) {
    with_type(y_half, [&](auto y_type) {
      using Z = Element<decltype(z_type)>;
      using Y = Element<decltype(y_type)>;
      backward<float, Y, Z>(s, {x, x_outer, x_inner}, weight, {(const Z*)z, z_outer, z_inner}, scales,
                            {(const Y*)dy, dy_outer, dy_inner}, {}, {}, dx, {(Z*)dz, dz_outer, dz_inner}, dweight, partial,
                            threads);
    });
  });
}
