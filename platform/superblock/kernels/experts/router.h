// The router: scores of all experts, the k best by score and bias, their weights, and the auxiliary losses.
//
// Legend: N tokens, D width, E experts, k chosen, C columns: E, and one more if a gate of the shared expert comes along.
#pragma once
#include <cfloat>
#include <vector>
#include "plan.h"

// The norm that makes the router's tokens, h = x * scale * weight; x null: there is none.
struct Norm {
  Matrix x;               // [N, D]
  const float* weight;  // [D]
  float epsilon;
  float* scales;  // [N], 1 / sqrt(mean(x^2) + epsilon)

  float scale_of(int64_t n, int64_t D) const {
    V squares{};
    for (int64_t d = 0; d < D; d += W) squares += x.get(n, d) * x.get(n, d);
    return 1.0f / std::sqrt(sum(squares) / (float)D + epsilon);
  }
  void write(int64_t n, int64_t D, float* row) const {
    for (int64_t d = 0; d < D; d += W) store(row + d, x.get(n, d) * scales[n] * load(weight + d));
  }
};

struct Router {
  Matrix h;               // [N, D]; with a norm, where its result goes, rounded
  const float* weight;  // [C, D]
  const float* bias;    // [E]
  int64_t N, D, E, C, k;
  bool softmax;  // else sigmoid
  float scale, aux_loss, z_loss;
  Norm norm;

  int64_t width() const { return (C + STRIP - 1) / STRIP * STRIP; }
  int64_t blocks() const { return (N + BLOCK - 1) / BLOCK; }
  // 32 tokens in fp32, where they are if possible; those behind the last one are zero.
  const float* tokens(int64_t n0, int64_t* stride, float* buffer) const {
    if (!norm.x.data && !h.half && n0 + BLOCK <= N) {
      *stride = h.stride;
      return (const float*)h.data + n0 * h.stride;
    }
    *stride = D;
    int64_t rows = std::min<int64_t>(BLOCK, N - n0);
    if (norm.x.data)
      for (int64_t i = 0; i < rows; i++) norm.write(n0 + i, D, buffer + i * D);
    else gather(h.from(n0), nullptr, rows, D, buffer);
    memset(buffer + rows * D, 0, (BLOCK - rows) * D * sizeof(float));
    return buffer;
  }
  // Norms 32 tokens, for the experts too.
  void prepare(int64_t n0) const {
    for (int64_t n = n0; norm.x.data && n < std::min(n0 + BLOCK, N); n++) norm.scales[n] = norm.scale_of(n, D);
  }
  void hand_on(int64_t n0, const float* tokens) const {
    for (int64_t n = n0; norm.x.data && n < std::min(n0 + BLOCK, N); n++)
      for (int64_t d = 0; d < D; d += W) h.put(n, d, load(tokens + (n - n0) * D + d));
  }
};

struct RouterOutputs {
  int64_t* index;  // [N, k]
  float* weight;   // [N, k]
  float* shared;   // [N] sigmoid of column E
  float* scores;   // [N, E]
  float* lse;      // [N] log of the softmax's denominator
  float *loss, *counts, *stats;  // [1], [E], [3]
};

// What one block of tokens adds to the sums over all tokens.
struct BlockSums {
  float *counts, *shares;                      // [E]
  float squares = 0, top = 0, entropy = 0, z = 0;
};

// Scores of one token from its logits, in place; returns the log of the softmax's denominator.
static float scores_of(const Router& r, float* logits) {
  if (!r.softmax) {
    for (int64_t e = 0; e < r.width(); e += W) store(logits + e, vsigmoid(load(logits + e)));
    return 0;
  }
  float gate = r.C > r.E ? logits[r.E] : 0;
  float best = *std::max_element(logits, logits + r.E), total = 0;
  for (int64_t e = 0; e < r.width(); e += W) store(logits + e, vexp(load(logits + e) - best));
  for (int64_t e = 0; e < r.E; e++) total += logits[e];
  for (int64_t e = 0; e < r.E; e++) logits[e] /= total;
  if (r.C > r.E) logits[r.E] = 1 / (1 + std::exp(-gate));
  return best + std::log(total);
}

// The k best; the lower index of equals. NaN never makes an index that does not exist.
static void choose(const Router& r, const float* scores, int64_t* index, std::vector<char>& taken) {
  std::fill(taken.begin(), taken.end(), 0);
  for (int64_t j = 0; j < r.k; j++) {
    int64_t best = -1;
    float value = 0;
    for (int64_t e = 0; e < r.E; e++) {
      float biased = scores[e] + r.bias[e];
      if (!taken[e] && (best < 0 || biased > value)) best = e, value = biased;
    }
    taken[best] = 1;
    index[j] = best;
  }
}

static void route_token(const Router& r, const RouterOutputs& out, int64_t n, float* logits, BlockSums& sums,
                        std::vector<char>& taken) {
  for (int64_t e = 0; e < r.E; e++) sums.squares += logits[e] * logits[e];
  float lse = scores_of(r, logits);
  memcpy(out.scores + n * r.E, logits, r.E * sizeof(float));
  if (r.C > r.E) out.shared[n] = logits[r.E];
  int64_t* index = out.index + n * r.k;
  choose(r, logits, index, taken);
  float total = 1e-20f, top = 0, all = FLT_MIN;
  for (int64_t j = 0; j < r.k; j++) total += logits[index[j]];
  for (int64_t j = 0; j < r.k; j++) {
    float share = logits[index[j]] / total;
    out.weight[n * r.k + j] = share * r.scale;
    sums.counts[index[j]] += 1;
    sums.entropy -= share > 0 ? share * std::log(share) : 0;
    top = std::max(top, share);
  }
  sums.top += top;
  if (r.softmax) all = 1;
  else
    for (int64_t e = 0; e < r.E; e++) all += logits[e];
  for (int64_t e = 0; e < r.E; e++) sums.shares[e] += logits[e] / all;
  if (r.z_loss != 0) out.lse[n] = lse, sums.z += lse * lse;
}

// logits [32, width] = tokens [32, D] times the packed weights
static void all_logits(const Router& r, const float* h, int64_t stride, const float* packed, float* logits) {
  constexpr int NV = STRIP / W < 2 ? 1 : 2;
  for (int64_t e = 0; e < r.width(); e += NV * W) {
    const float* right[NV];
    for (int j = 0; j < NV; j++) right[j] = packed + (e + j * W) / STRIP * STRIP * r.D + (e + j * W) % STRIP;
    for (int i = 0; i < BLOCK; i += ROWS)
      multiply(h + i * stride, stride, 1, right, STRIP, r.D, false, logits + i * r.width() + e, r.width());
  }
}

static void route(const Router& r, const RouterOutputs& out, int64_t threads) {
  int64_t blocks = r.blocks(), each = 2 * r.E + 4;
  std::vector<float> parts(blocks * each), packed(r.width() * r.D), padded_weight(r.width() * r.D);
  memcpy(padded_weight.data(), r.weight, r.C * r.D * sizeof(float));
  for (int64_t e = 0; e < r.width(); e += STRIP)
    pack_columns(Matrix{padded_weight.data() + e * r.D, r.D, false}, r.D, packed.data() + e * r.D);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t b = 0; b < blocks; b++) {
    FlushSubnormals flush;
    Arena arena{scratch<char>(BLOCK * (r.D + r.width()) * sizeof(float) + 64 * 2)};
    float *buffer = arena.take<float>(BLOCK * r.D), *logits = arena.take<float>(BLOCK * r.width());
    std::vector<char> taken(r.E);
    float* part = parts.data() + b * each;
    BlockSums sums{part, part + r.E};
    int64_t stride, n0 = b * BLOCK;
    r.prepare(n0);
    const float* h = r.tokens(n0, &stride, buffer);
    r.hand_on(n0, h);
    all_logits(r, h, stride, packed.data(), logits);
    for (int64_t n = n0; n < std::min(n0 + BLOCK, r.N); n++)
      route_token(r, out, n, logits + (n - n0) * r.width(), sums, taken);
    float* last = part + 2 * r.E;
    last[0] = sums.squares, last[1] = sums.top, last[2] = sums.entropy, last[3] = sums.z;
  }
  std::vector<double> total(each);  // in the order of the blocks: the same for any number of threads
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t i = 0; i < each; i++) total[i] += parts[b * each + i];
  double balance = 0, N = (double)r.N;
  for (int64_t e = 0; e < r.E; e++) {
    out.counts[e] = (float)total[e];
    balance += total[e] * total[r.E + e];
  }
  const double* last = total.data() + 2 * r.E;
  *out.loss = (float)(r.aux_loss * balance * r.E / (r.k * N * N) + r.z_loss * last[3] / N);
  out.stats[0] = (float)std::sqrt(last[0] / (N * r.E));
  out.stats[1] = (float)(last[1] / N);
  out.stats[2] = (float)(last[2] / N / std::log(std::max<double>(2, r.k)));
}

struct RouterGradients {
  const int64_t* index;  // what forward gave
  const float *weight, *scores, *shared, *lse, *counts;
  const float *dweight, *dshared;  // [N, k], [N]; null is zero
  float dloss;
  float *dh, *drouter;  // [N, D], [C, D]; no dh with a norm, but
  Matrix dnormed;      // [N, D], the gradient of h by whoever else reads it, or null
  Matrix dstream, dx;  // [N, D], the gradient of x by whoever else reads it, or null, and all of it
  float* dnorm;         // [D]
};

// From the gradient of a token's normed row, which is overwritten, to that of the row; adds to the weight's.
static void norm_gradient(const Router& r, const RouterGradients& g, int64_t n, float* dh, float* dweight) {
  const Norm& norm = r.norm;
  const float scale = norm.scales[n];
  V along{};
  for (int64_t d = 0; d < r.D; d += W) {
    V normed = norm.x.get(n, d) * scale, dy = load(dh + d);
    if (g.dnormed.data) dy += g.dnormed.get(n, d);
    store(dweight + d, load(dweight + d) + dy * normed);
    dy *= load(norm.weight + d);
    store(dh + d, dy);
    along += dy * normed;
  }
  const float mean = sum(along) / (float)r.D;
  for (int64_t d = 0; d < r.D; d += W) {
    V normed = norm.x.get(n, d) * scale;
    V dx = (load(dh + d) - normed * mean) * scale;
    g.dx.put(n, d, g.dstream.data ? g.dstream.get(n, d) + dx : dx);
  }
}

// Gradient of one token's logits [C].
static void logit_gradients(const Router& r, const RouterGradients& g, int64_t n, float* dlogits) {
  const float* scores = g.scores + n * r.E;
  float mean = 0;  // of the weights' gradients, by the shares
  std::fill(dlogits, dlogits + r.width(), 0.0f);
  if (g.dweight) {
    const float *dweight = g.dweight + n * r.k, *weight = g.weight + n * r.k;
    for (int64_t j = 0; j < r.k; j++) mean += dweight[j] * weight[j] / r.scale;
    for (int64_t j = 0; j < r.k; j++) dlogits[g.index[n * r.k + j]] = weight[j] * (dweight[j] - mean);
  }
  // so far score times its gradient; the same of the balancing loss
  float pull = g.dloss * r.aux_loss * r.E / ((float)r.k * r.N * r.N), all = FLT_MIN, balance = 0;
  if (r.softmax) all = 1;
  else
    for (int64_t e = 0; e < r.E; e++) all += scores[e];
  if (pull != 0) {
    if (!r.softmax)
      for (int64_t e = 0; e < r.E; e++) balance += g.counts[e] * scores[e] / all;
    for (int64_t e = 0; e < r.E; e++) dlogits[e] += pull * scores[e] / all * (g.counts[e] - balance);
  }
  if (r.softmax) {
    float total = 0, z = r.z_loss != 0 ? g.dloss * r.z_loss * 2 * g.lse[n] / r.N : 0;
    for (int64_t e = 0; e < r.E; e++) total += dlogits[e];
    for (int64_t e = 0; e < r.E; e++) dlogits[e] += scores[e] * (z - total);
  } else {
    for (int64_t e = 0; e < r.E; e++) dlogits[e] *= 1 - scores[e];
  }
  if (g.dshared) dlogits[r.E] = g.dshared[n] * g.shared[n] * (1 - g.shared[n]);
}

// dh [32, D] = dlogits times weights, and sums += dlogits^T h, both by blocks of ROWS by COLUMNS vectors.
static void token_gradients(const Router& r, const float* dlogits, const float* h, int64_t stride, int64_t rows,
                            const float* weight, float* dh, float* sums) {
  for (int64_t d = 0; d < r.D; d += COLUMNS * W) {
    const float *right[COLUMNS], *tokens[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) right[j] = weight + d + j * W, tokens[j] = h + d + j * W;
    for (int64_t i = 0; i < rows; i += ROWS)
      multiply(dlogits + i * r.width(), r.width(), 1, right, r.D, r.C, false, dh + i * r.D + d, r.D);
    for (int64_t e = 0; e < r.C; e += ROWS)
      multiply(dlogits + e, 1, r.width(), tokens, stride, BLOCK, true, sums + e * r.D + d, r.D);
  }
}

static void route_backward(const Router& r, const RouterGradients& g, int64_t threads) {
  int64_t blocks = r.blocks(), size = (r.width() + 1) * r.D;  // the last row is the norm's
  std::vector<float> sums(threads * size);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t q = 0; q < threads; q++) {
    FlushSubnormals flush;
    Arena arena{scratch<char>(BLOCK * (2 * r.D + r.width()) * sizeof(float) + 64 * 3)};
    float *buffer = arena.take<float>(BLOCK * r.D), *spare = arena.take<float>(BLOCK * r.D);
    float* dlogits = arena.take<float>(BLOCK * r.width());
    for (int64_t b = q * blocks / threads; b < (q + 1) * blocks / threads; b++) {
      int64_t stride, n0 = b * BLOCK, rows = std::min<int64_t>(BLOCK, r.N - n0);
      const float* h = r.tokens(n0, &stride, buffer);
      for (int64_t i = 0; i < rows; i++) logit_gradients(r, g, n0 + i, dlogits + i * r.width());
      std::fill(dlogits + rows * r.width(), dlogits + BLOCK * r.width(), 0.0f);
      float *own = sums.data() + q * size, *dh = rows == BLOCK && g.dh ? g.dh + n0 * r.D : spare;
      token_gradients(r, dlogits, h, stride, BLOCK, r.weight, dh, own);
      for (int64_t i = 0; r.norm.x.data && i < rows; i++)
        norm_gradient(r, g, n0 + i, dh + i * r.D, own + r.width() * r.D);
      if (dh == spare && g.dh) memcpy(g.dh + n0 * r.D, spare, rows * r.D * sizeof(float));
    }
  }
  for (int64_t q = 1; q < threads; q++)
    for (int64_t i = 0; i < size; i++) sums[i] += sums[q * size + i];
  memcpy(g.drouter, sums.data(), r.C * r.D * sizeof(float));
  if (g.dnorm) memcpy(g.dnorm, sums.data() + r.width() * r.D, r.D * sizeof(float));
}
