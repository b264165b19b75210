// Memory of one allocation handed out in parts that begin at cache lines.
#pragma once
#include <memory>
#include "simd.h"

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

// Memory for the length of a call, in parts: a structure names them in a constructor, which first only counts.
template <class Parts, class Layer>
struct Temporary {
  Arena count{};
  std::unique_ptr<char, decltype(&free)> memory;
  Parts parts;
  explicit Temporary(const Layer& layer)
      : memory((Parts(layer, count), (char*)allocate(64, (int64_t)count.next)), &free), parts(start(layer)) {}
  Parts start(const Layer& layer) {
    Arena arena{memory.get()};
    return Parts(layer, arena);
  }
};

// Parts in the scratch memory of the calling thread; their constructor takes the arena last, and first only counts.
template <class Parts, class... Sizes>
static Parts on_scratch(Sizes... sizes) {
  Arena count{};
  Parts(sizes..., count);
  Arena arena{scratch<char>((size_t)count.next)};
  return Parts(sizes..., arena);
}
