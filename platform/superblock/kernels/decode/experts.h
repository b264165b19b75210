// The router and the chosen experts, for a few tokens.
#pragma once
#include "products.h"
#include "tables.h"

constexpr int64_t MAX_BATCH = 64;

// What every thread works out for itself: it costs less than to wait for one that does.
struct Routing {
  int64_t* index;  // [B, k] chosen experts
  float* weight;   // [B, k]
  float* shared;   // [B] factor of the shared expert
  float* scores;   // [E + GROUP] of one token
};

// The score that decides the choice; what is not a number comes first, as in torch, so that it is not lost.
INLINE float rank(float score) { return score != score ? INFINITY : score; }

static void route(const Sizes& s, const Layer& layer, const float* h, int64_t b, const Routing& routing) {
  float *scores = routing.scores, *weight = routing.weight + b * s.chosen, most = -INFINITY, total = 0;
  int64_t* index = routing.index + b * s.chosen;
  for (int64_t e = 0; e < s.experts; e++) {
    scores[e] = dot(h, layer.router + e * s.width, s.width);
    most = std::max(most, scores[e]);
  }
  for (int64_t e = 0; e < s.experts; e++) {
    scores[e] = s.softmax ? std::exp(scores[e] - most) : 1.0f / (1.0f + std::exp(-scores[e]));
    total += scores[e];
  }
  if (s.softmax)
    for (int64_t e = 0; e < s.experts; e++) scores[e] /= total;
  float chosen = 0;
  for (int64_t j = 0; j < s.chosen; j++) {
    int64_t best = -1;
    for (int64_t e = 0; e < s.experts; e++) {
      if (std::find(index, index + j, e) != index + j) continue;
      if (best < 0 || rank(scores[e] + layer.balance[e]) > rank(scores[best] + layer.balance[best])) best = e;
    }
    index[j] = best;
    chosen += scores[best];
  }
  for (int64_t j = 0; j < s.chosen; j++) weight[j] = scores[index[j]] * ((float)s.route_scale / (chosen + 1e-20f));
  routing.shared[b] = layer.shared_gate ? 1.0f / (1.0f + std::exp(-dot(h, layer.shared_gate, s.width))) : 1.0f;
}

// One expert with the tokens that go to it.
struct Expert {
  const float *gate_up, *down;
  int64_t width, tokens;
  int64_t token[MAX_BATCH];
  float* hidden[MAX_BATCH];  // [F] of each of them
  float weight[MAX_BATCH];
};

// Calls visit(expert) for every expert that has tokens, the shared one last. `hidden` is [B, k + 1, widest].
template <class Visit>
static void for_experts(const Sizes& s, const Layer& layer, const Routing& routing, float* hidden, Visit visit) {
  const int64_t widest = std::max(s.expert_width, s.shared_width), slots = s.chosen + 1;
  Expert expert;
  for (int64_t e = 0; e < s.experts; e++) {
    expert.tokens = 0;
    for (int64_t i = 0; i < s.batch * s.chosen; i++)
      if (routing.index[i] == e) {
        int64_t b = i / s.chosen, n = expert.tokens++;
        expert.token[n] = b;
        expert.hidden[n] = hidden + (b * slots + i % s.chosen) * widest;
        expert.weight[n] = routing.weight[i];
      }
    if (!expert.tokens) continue;
    expert.width = s.expert_width;
    expert.gate_up = layer.gate_up + e * 2 * s.expert_width * s.width;
    expert.down = layer.down + e * s.width * s.expert_width;
    visit(expert);
  }
  if (!s.shared_width) return;
  expert.tokens = s.batch;
  for (int64_t b = 0; b < s.batch; b++) {
    expert.token[b] = b;
    expert.hidden[b] = hidden + (b * slots + s.chosen) * widest;
    expert.weight[b] = routing.shared[b];
  }
  expert.width = s.shared_width, expert.gate_up = layer.shared_gate_up, expert.down = layer.shared_down;
  visit(expert);
}

// hidden = silu(gate x) * up x: this thread's share of all experts' rows. `normed` [B, D]; `gates` has B GROUP floats.
static void experts_up(const Sizes& s, const Layer& layer, const Routing& routing, const Team& team, const float* normed,
                       float* gates, float* hidden) {
  int64_t total = 0, before = 0;
  for_experts(s, layer, routing, hidden, [&](const Expert& expert) { total += expert.width / GROUP; });
  const int64_t begin = team.begin(total), end = team.end(total);
  for_experts(s, layer, routing, hidden, [&](const Expert& expert) {
    const int64_t groups = expert.width / GROUP;
    const float* x[MAX_BATCH];
    for (int64_t i = 0; i < expert.tokens; i++) x[i] = normed + expert.token[i] * s.width;
    for (int64_t n = std::max<int64_t>(0, begin - before); n < std::min(groups, end - before); n++) {
      product(expert.gate_up, n, n + 1, s.width, x, expert.tokens,
              [&](int64_t i, int64_t row, const float* y) { copy4(y, gates + i * GROUP + row % GROUP); });
      product(expert.gate_up + expert.width * s.width, n, n + 1, s.width, x, expert.tokens,
              [&](int64_t i, int64_t row, const float* y) { copy4(y, expert.hidden[i] + row); });
      for (int64_t i = 0; i < expert.tokens; i++)
        for (int j = 0; j < GROUP; j += W) {
          float* up = expert.hidden[i] + n * GROUP + j;
          store(up, vsilu(load(gates + i * GROUP + j)) * load(up));
        }
    }
    before += groups;
  });
}

// x += sum over experts of weight * down hidden: this thread's share of the columns of x [B, D].
static void experts_down(const Sizes& s, const Layer& layer, const Routing& routing, const Team& team, float* hidden,
                         float* x) {
  const int64_t begin = team.begin(s.width / GROUP), end = team.end(s.width / GROUP);
  for_experts(s, layer, routing, hidden, [&](const Expert& expert) {
    product(expert.down, begin, end, expert.width, expert.hidden, expert.tokens,
            [&](int64_t i, int64_t n, const float* y) { add4(y, expert.weight[i], x + expert.token[i] * s.width + n); });
  });
}
