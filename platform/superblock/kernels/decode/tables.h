// What a step is told: sizes, and for each layer where its weights and its states lie. Python fills the same structures.
//
// Legend: B sequences, D width, N vocabulary; Gated DeltaNet: G key heads, H value heads, K and V their widths, W taps,
// C = 2GK + HV convolved channels; attention: Q query heads, G kv heads, K head width; E experts, k chosen, F hidden width.
#pragma once
#include <cstdint>

struct Sizes {
  int64_t batch, width, vocabulary, layers;
  int64_t key_heads, value_heads, key_width, value_width, taps;
  int64_t query_heads, kv_heads, head_width, rotated, window, gated;  // window 0: every key is seen
  int64_t experts, chosen, expert_width, shared_width, softmax;
  double epsilon, write_scale, route_scale;  // write_scale 2 allows negative eigenvalues
};

// Null: the layer has no such weight. All are contiguous.
struct Layer {
  int64_t attends;
  const float *norm, *project, *out;                        // [D], [rows, D], [D, heads * width]
  const float *gates, *conv, *decay, *bias, *head_norm;     // delta rule: [2H, D], [C, W], [H], [H], [V]
  const float *query_norm, *key_norm;                       // attention: [K], [K]
  const float *moe_norm, *router, *balance;                 // [D], [E, D], [E]
  const float *gate_up, *down;                              // [E, 2F, D], [E, D, F]
  const float *shared_gate_up, *shared_down, *shared_gate;  // [2F, D], [D, F], [D]
};

struct State {
  // delta rule: the last W - 1 inputs of the convolution [B, W - 1, C] and the matrices [B, H, K, V], before and after
  const float* conv_before;
  int64_t conv_stride;  // floats from one sequence to the next
  float* conv_after;
  const float* matrix_before;
  float* matrix_after;
  // attention: buffers [B, S, G, K] that hold `length` tokens and have room for one more; `stride` is from one sequence to
  // the next. They hold bf16 if `rounded`, else floats.
  void *keys, *values;
  int64_t stride, length, rounded;
};

// Work shared by `count` threads.
struct Team {
  int64_t id, count;

  void wait() const {
    if (count > 1) {
#pragma omp barrier
    }
  }
  int64_t begin(int64_t tasks) const { return tasks * id / count; }
  int64_t end(int64_t tasks) const { return tasks * (id + 1) / count; }
};
