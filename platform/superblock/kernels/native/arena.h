// Memory of one allocation handed out in parts that begin at cache lines.
#pragma once
#include <cstdint>

struct Arena {
  char* next;

  template <class T = float>
  T* take(int64_t count) {
    T* part = (T*)next;
    next += bytes<T>(count);
    return part;
  }
  template <class T>
  static int64_t bytes(int64_t count) {
    return (count * (int64_t)sizeof(T) + 63) / 64 * 64;
  }
};
