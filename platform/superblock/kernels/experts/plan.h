// What an experts' call works on, and in which order.
//
// Legend: N tokens, D model width, F width of an expert, E experts, k experts per token. A choice is one of a token's k
// experts; choice n * k + j belongs to token n. Choices sorted by expert are rows.
#pragma once
#include <vector>
#include "arena.h"
#include "block_products.h"

struct Weights {
  Matrix gate_up;  // [2 F, D], the gate's rows first
  Matrix down;     // [D, F]
  int64_t F;
};

struct Problem {
  Matrix x;                      // [N, D]
  const int64_t* index;        // [N, k]
  const float* weight;         // [N, k]
  const float* shared_weight;  // [N], null is 1
  Matrix gate_up, down;          // of all experts, one below the other
  Weights shared;              // F 0 where there is none
  int64_t N, D, F, E, k;

  Weights expert(int64_t e) const { return {gate_up.from(e * 2 * F), down.from(e * D), F}; }
};

struct Piece {  // rows that are multiplied at once: of one expert, at most BLOCK
  int64_t expert, begin, rows;
};

struct Plan {
  std::vector<int32_t> choice, token;  // of each row
  std::vector<int32_t> row;            // of each choice
  std::vector<int64_t> begin;          // E + 1: an expert's first row
  std::vector<Piece> pieces;

  explicit Plan(const Problem& p) : choice(p.N * p.k), token(p.N * p.k), row(p.N * p.k), begin(p.E + 1) {
    int64_t choices = p.N * p.k;
    for (int64_t c = 0; c < choices; c++) begin[p.index[c] + 1]++;
    for (int64_t e = 0; e < p.E; e++) begin[e + 1] += begin[e];
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t n = 0, c = 0; n < p.N; n++)
      for (int64_t j = 0; j < p.k; j++, c++) {
        int64_t at = next[p.index[c]]++;
        choice[at] = (int32_t)c, token[at] = (int32_t)n, row[c] = (int32_t)at;
      }
    for (int64_t e = 0; e < p.E; e++)
      for (int64_t at = begin[e]; at < begin[e + 1]; at += BLOCK)
        pieces.push_back({e, at, std::min<int64_t>(BLOCK, begin[e + 1] - at)});
  }
};

// Where 32 hidden elements of row i, gate and up of 16 columns from f on, are kept for backward: by columns, then rows.
INLINE int64_t kept_at(int64_t i, int64_t rows, int64_t f) { return (f / STRIP * rows + i) * 2 * STRIP; }

INLINE float sum_of(const V* parts, int count) {
  V total{};
  for (int i = 0; i < count; i++) total += parts[i];
  return sum(total);
}
