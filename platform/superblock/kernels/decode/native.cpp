// One token of a whole model: every layer's mixer and experts, final norm and logits, in one call.
//
// Threads share each product's rows, and wait for each other five times a layer. Legend: see tables.h.
#include "attention.h"
#include "delta.h"
#include "experts.h"
#include "pace.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

struct Memory {  // without a base it only counts
  float* base;
  int64_t used = 0;
  template <class T = float>
  T* take(int64_t count) {
    int64_t begin = used;
    used += (count * (int64_t)sizeof(T) / 4 + 15) / 16 * 16;
    return base ? (T*)(base + begin) : nullptr;
  }
};

int64_t largest_projection(const Sizes& s) {
  int64_t delta = 2 * s.key_heads * s.key_width + 2 * s.value_heads * s.value_width;
  return std::max(delta, ((s.gated ? 2 : 1) * s.query_heads + 2 * s.kv_heads) * s.head_width);
}
int64_t largest_mixed(const Sizes& s) { return std::max(s.value_heads * s.value_width, s.query_heads * s.head_width); }

struct Shared {
  float *projected, *mixed, *pieces, *hidden, *turn;
  Shared(const Sizes& s, int64_t chunks, Memory& memory) {
    projected = memory.take(s.batch * largest_projection(s));
    mixed = memory.take(s.batch * largest_mixed(s));
    pieces = memory.take(s.batch * chunks * piece_floats(s));
    hidden = memory.take(s.batch * (s.chosen + 1) * std::max(s.expert_width, s.shared_width));
    turn = memory.take(s.rotated);
  }
};

struct Own {  // of one thread
  float *normed, *mixed, *head, *gates;
  Routing routing;
  Own(const Sizes& s, Memory& memory) {
    normed = memory.take(s.batch * s.width);
    mixed = memory.take(s.batch * largest_mixed(s));
    head = memory.take(std::max(2 * (s.key_width + s.value_width), s.query_heads * (s.head_width + CHUNK)));
    gates = memory.take(s.batch * GROUP);
    routing.index = memory.take<int64_t>(s.batch * s.chosen);
    routing.weight = memory.take(s.batch * s.chosen);
    routing.shared = memory.take(s.batch);
    routing.scores = memory.take(s.experts + GROUP);
  }
};

struct Step {
  const Sizes& s;
  const Layer* layers;
  const State* states;
  float* x;
  Shared shared;

  // `matrix` [rows, width] times the rows of `from` [B, width]: this thread's share.
  template <class Put>
  void multiply(const Team& team, const float* matrix, int64_t rows, const float* from, int64_t width, Put put) const {
    const float* vectors[MAX_BATCH];
    for (int64_t b = 0; b < s.batch; b++) vectors[b] = from + b * width;
    product(matrix, team.begin(rows / GROUP), team.end(rows / GROUP), width, vectors, s.batch, put);
  }

  void norm(const float* weight, float* y) const {
    for (int64_t b = 0; b < s.batch; b++)
      if (weight)
        rms_norm(x + b * s.width, weight, s.width, s.epsilon, y + b * s.width);
      else
        memcpy(y + b * s.width, x + b * s.width, s.width * 4);
  }

  void mix_delta(const Team& team, const Layer& layer, const State& state, const Own& own) const {
    const int64_t H = s.value_heads, rows = 2 * s.key_heads * s.key_width + 2 * H * s.value_width;
    project(team, layer, rows, own);
    for (int64_t i = team.begin(s.batch * H); i < team.end(s.batch * H); i++) {
      int64_t b = i / H, h = i % H;
      delta_head(s, layer, state, own.normed + b * s.width, shared.projected + b * rows, b, h, own.head,
                 shared.mixed + i * s.value_width);
    }
    team.wait();
    leave(team, layer, shared.mixed, H * s.value_width);
  }

  void mix_attention(const Team& team, const Layer& layer, const State& state, const Own& own) const {
    const int64_t rows = ((s.gated ? 2 : 1) * s.query_heads + 2 * s.kv_heads) * s.head_width;
    project(team, layer, rows, own);
    const Span span(s, state);
    const int64_t tasks = s.batch * span.chunks, columns = s.query_heads * s.head_width;
    for (int64_t i = team.begin(tasks); i < team.end(tasks); i++) {
      int64_t b = i / span.chunks, c = i % span.chunks;
      auto attend = state.rounded ? attend_piece<bf16> : attend_piece<float>;
      attend(s, layer, state, span, shared.projected + b * rows, shared.turn, b, c, own.head,
             shared.pieces + i * piece_floats(s));
    }
    team.wait();
    for (int64_t b = 0; b < s.batch; b++)
      merge_pieces(s, span, shared.pieces + b * span.chunks * piece_floats(s), shared.projected + b * rows,
                   own.mixed + b * columns);
    leave(team, layer, own.mixed, columns);
  }

  void project(const Team& team, const Layer& layer, int64_t rows, const Own& own) const {
    norm(layer.norm, own.normed);
    multiply(team, layer.project, rows, own.normed, s.width,
             [&](int64_t b, int64_t n, const float* y) { copy4(y, shared.projected + b * rows + n); });
    team.wait();
  }

  void leave(const Team& team, const Layer& layer, const float* mixed, int64_t columns) const {
    multiply(team, layer.out, s.width, mixed, columns,
             [&](int64_t b, int64_t n, const float* y) { add4(y, 1.0f, x + b * s.width + n); });
    team.wait();
  }

  void run(const Team& team, const Own& own, const float* last_norm, const float* table, float* logits, float* counts) const {
    FlushSubnormals flush;
    for (int64_t l = 0; l < s.layers; l++) {
      const Layer& layer = layers[l];
      if (layer.attends)
        mix_attention(team, layer, states[l], own);
      else
        mix_delta(team, layer, states[l], own);
      norm(layer.moe_norm, own.normed);
      for (int64_t b = 0; b < s.batch; b++) route(s, layer, own.normed + b * s.width, b, own.routing);
      if (team.id == 0)
        for (int64_t i = 0; i < s.batch * s.chosen; i++) counts[l * s.experts + own.routing.index[i]] += 1;
      experts_up(s, layer, own.routing, team, own.normed, own.gates, shared.hidden);
      team.wait();
      experts_down(s, layer, own.routing, team, shared.hidden, x);
      team.wait();
    }
    norm(last_norm, own.normed);
    multiply(team, table, s.vocabulary, own.normed, s.width,
             [&](int64_t b, int64_t n, const float* y) { copy4(y, logits + b * s.vocabulary + n); });
  }
};

// Bytes that a step reads.
int64_t bytes_read(const Sizes& s, const Layer* layers, const State* states) {
  const int64_t busy = std::min(s.experts, s.batch * s.chosen);
  int64_t floats = s.vocabulary * s.width, cached = 0;
  for (int64_t l = 0; l < s.layers; l++) {
    const int64_t inner = s.value_heads * s.value_width;
    if (layers[l].attends) {
      const Span span(s, states[l]);
      floats += ((s.gated ? 3 : 2) * s.query_heads + 2 * s.kv_heads) * s.head_width * s.width;
      cached += 2 * s.batch * (span.end - span.first_key) * s.kv_heads * s.head_width * (states[l].rounded ? 2 : 4);
    } else {
      floats += (2 * s.key_heads * s.key_width + 3 * inner) * s.width + 2 * s.batch * inner * s.key_width;
    }
    floats += 3 * (busy * s.expert_width + s.shared_width) * s.width;
  }
  return 4 * floats + cached;
}

}  // namespace

// Embedded tokens x [B, D], which are overwritten, to logits [B, N]; `states` go on by one token, `counts` [layers, E] are
// added to. `frequencies` [R/2] turn position into angle.
ENTRY void decode_step(const Sizes* sizes, const Layer* layers, const State* states, float* x, const float* norm,
                       const float* table, const float* frequencies, int64_t position, float* logits, float* counts,
                       int64_t threads) {
  const Sizes& s = *sizes;
  int64_t chunks = 0;
  for (int64_t l = 0; l < s.layers; l++)
    if (layers[l].attends) chunks = std::max(chunks, Span(s, states[l]).chunks);
#if !defined(_OPENMP)
  threads = 1;
#endif
  Memory size{nullptr};
  Shared(s, chunks, size);
  int64_t common = size.used;
  Own(s, size);
  int64_t each = size.used - common;
  float* memory = scratch<float>(common + threads * each);

  Memory own{memory};
  Step step{s, layers, states, x, Shared(s, chunks, own)};
  for (int64_t i = 0; i < s.rotated / 2; i++) {
    float angle = (float)position * frequencies[i];
    step.shared.turn[i] = std::cos(angle);
    step.shared.turn[s.rotated / 2 + i] = std::sin(angle);
  }
  auto work = [&](int64_t id, int64_t count) {
    Memory mine{memory + common + id * each};
    step.run(Team{id, count}, Own(s, mine), norm, table, logits, counts);
  };
  static thread_local Pace pace;
  pace.run(threads, bytes_read(s, layers, states), [&](int64_t count) {
    if (count == 1) return work(0, 1);
#if defined(_OPENMP)
#pragma omp parallel num_threads((int)count)
    work(omp_get_thread_num(), omp_get_num_threads());
#endif
  });
}
