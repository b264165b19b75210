// Rows of memory that are read or written soon.
#pragma once
#include "simd.h"

// Rows lie a token apart, which the processor does not foresee by itself. They are asked for a few lines at a time, between
// blocks of products, which have the time: a core waits for a few dozen lines at most, and asked for all at once they keep
// everything behind them waiting.
class Prefetch {
  struct Rows {
    const char* first;
    int64_t step;  // bytes
    int count, lines;
    bool write;
  };
  static constexpr int MOST = 8, LINES = 12;
  Rows list[MOST];
  int entries = 0, entry = 0, row = 0, line = 0;

 public:
  void clear() { entries = entry = row = line = 0; }

  // `count` rows of `columns` elements, `step` elements apart. What is one too many for the list is not asked for.
  template <class X>
  void read(const X* rows, int64_t step, int count, int columns) {
    add(rows, step, count, columns, false);
  }
  template <class X>
  void write(X* rows, int64_t step, int count, int columns) {
    add(rows, step, count, columns, true);
  }

  // Asks for the next few lines.
  void ask() {
    for (int n = 0; n < LINES && entry < entries; n++) {
      const Rows& rows = list[entry];
      const char* at = rows.first + row * rows.step + line * 64;
      if (rows.write) __builtin_prefetch(at, 1, 2);
      else __builtin_prefetch(at, 0, 2);
      if (++line < rows.lines) continue;
      line = 0;
      if (++row == rows.count) row = 0, entry++;
    }
  }

 private:
  template <class X>
  void add(const X* rows, int64_t step, int count, int columns, bool write) {
    if (count <= 0 || entries == MOST) return;
    const int64_t size = sizeof(X), lines = (columns * size + 63) / 64;
    list[entries++] = {(const char*)rows, step * size, count, (int)lines, write};
  }
};
