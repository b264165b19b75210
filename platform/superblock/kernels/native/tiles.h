// Four tiles of sums (32 x 32) in the registers of AMX, and one step of their product. With EMULATE_TILES the same
// operations run in plain C++ on any processor, so that the code over them can be tested everywhere.
#pragma once
#include "strips.h"

#if defined(EMULATE_TILES)
constexpr bool TILES = true;
namespace tiles {
static thread_local float sums[BLOCK][BLOCK];

INLINE bool allowed() { return true; }
struct Session {
  Session() {}
};
INLINE void clear() { memset(sums, 0, sizeof sums); }
INLINE void read(const float* top, const float* bottom, int64_t stride) {
  for (int i = 0; i < BLOCK; i++) memcpy(sums[i], (i < 16 ? top : bottom) + i % 16 * stride, sizeof sums[i]);
}
INLINE void write(float* top, float* bottom, int64_t stride) {
  for (int i = 0; i < BLOCK; i++) memcpy((i < 16 ? top : bottom) + i % 16 * stride, sums[i], sizeof sums[i]);
}
INLINE void step(const bf16* top, const bf16* bottom, int64_t stride, const bf16* left, const bf16* right) {
  for (int i = 0; i < BLOCK; i++)
    for (int j = 0; j < BLOCK; j++)
      for (int k = 0; k < 32; k++) {
        float a = to_float((i < 16 ? top : bottom)[i % 16 * stride + k]);
        sums[i][j] += a * to_float((j < 16 ? left : right)[k / 2 * 32 + j % 16 * 2 + k % 2]);
      }
}
}  // namespace tiles

#elif defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
constexpr bool TILES = true;
namespace tiles {
// Linux gives the state of the tiles (feature 18) to a process that asks for it.
static bool allowed() {
  static const bool given = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return given;
}
struct alignas(64) Shapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// The calling thread has tiles while this lives.
struct Session {
  Session() {
    Shapes shapes;
    if (allowed()) _tile_loadconfig(&shapes);
  }
  ~Session() {
    if (allowed()) _tile_release();
  }
};
INLINE void clear() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
// `top` and `bottom` are 16 rows of 32 columns each.
INLINE void read(const float* top, const float* bottom, int64_t stride) {
  _tile_loadd(0, top, stride * 4);
  _tile_loadd(1, top + 16, stride * 4);
  _tile_loadd(2, bottom, stride * 4);
  _tile_loadd(3, bottom + 16, stride * 4);
}
INLINE void write(float* top, float* bottom, int64_t stride) {
  _tile_stored(0, top, stride * 4);
  _tile_stored(1, top + 16, stride * 4);
  _tile_stored(2, bottom, stride * 4);
  _tile_stored(3, bottom + 16, stride * 4);
}
// Adds the product of two times 16 rows of 32 elements with two tiles of strips (16 words of 16 columns).
INLINE void step(const bf16* top, const bf16* bottom, int64_t stride, const bf16* left, const bf16* right) {
  _tile_loadd(4, top, stride * 2);
  _tile_loadd(6, left, 64);
  _tile_loadd(7, right, 64);
  _tile_loadd(5, bottom, stride * 2);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}
}  // namespace tiles

#else
constexpr bool TILES = false;
namespace tiles {
struct Session {
  Session() {}
};
}  // namespace tiles
#endif
