// Grouped-query attention from the projection's rows to the gated output, forward and backward; see the headers.
#include "layer.h"

template <class E>
static void run_forward(const Problem& p, const void* q, const void* k, const void* v, const void* gate,
                        const Turn& query_turn, const Turn& key_turn, void* y, void* o, float* sums, int64_t threads) {
  forward<E>(p, (const E*)q, (const E*)k, (const E*)v, (const E*)gate, query_turn, key_turn, {(E*)y, (E*)o, sums},
             threads);
}

ENTRY void attention_forward(const Problem* p, const void* q, const void* k, const void* v, const void* gate,
                             const float* query_norm, const float* key_norm, const float* cosine, const float* sine,
                             const int64_t* positions, double epsilon, void* y, void* o, float* sums, int64_t threads) {
  Turn query_turn{query_norm, cosine, sine, positions, (float)epsilon};
  Turn key_turn{key_norm, cosine, sine, positions, (float)epsilon};
  auto run = p->half ? run_forward<bf16> : run_forward<float>;
  run(*p, q, k, v, gate, query_turn, key_turn, y, o, sums, threads);
}

template <class E>
static void run_backward(const Problem& p, const void* const* in, const float* sums, const Turn& query_turn,
                         const Turn& key_turn, void* const* out, float* dquery_norm, float* dkey_norm,
                         int64_t threads) {
  auto read = [&](int i, const int64_t* stride) { return Rows<const E>{(const E*)in[i], stride}; };
  auto write = [&](int i, const int64_t* stride) { return Rows<E>{(E*)out[i], stride}; };
  Inputs<E> inputs{read(0, p.q),    read(1, p.k), read(2, p.v), read(3, p.gate), (const E*)in[4],
                   (const E*)in[5], sums,         query_turn,   key_turn};
  Gradients<E> gradients{write(0, p.dq), write(1, p.dk), write(2, p.dv), write(3, p.dgate), dquery_norm, dkey_norm};
  backward<E>(p, inputs, gradients, threads);
}

ENTRY void attention_backward(const Problem* p, const void* q, const void* k, const void* v, const void* gate,
                              const float* query_norm, const float* key_norm, const float* cosine, const float* sine,
                              const int64_t* positions, double epsilon, const void* o, const float* sums,
                              const void* dy, void* dq, void* dk, void* dv, void* dgate, float* dquery_norm,
                              float* dkey_norm, int64_t threads) {
  Turn query_turn{query_norm, cosine, sine, positions, (float)epsilon};
  Turn key_turn{key_norm, cosine, sine, positions, (float)epsilon};
  const void* in[] = {q, k, v, gate, o, dy};
  void* out[] = {dq, dk, dv, dgate};
  auto run = p->half ? run_backward<bf16> : run_backward<float>;
  run(*p, in, sums, query_turn, key_turn, out, dquery_norm, dkey_norm, threads);
}

// Queries and keys normed and rotated, for a cache: rows at the strides of q and k to rows at those of dq and dk.
template <class E>
static void turn_rows(const Problem& p, const void* q, const void* k, const Turn& query_turn, const Turn& key_turn,
                      void* to_q, void* to_k, int64_t threads) {
  Rows<const E> from[] = {{(const E*)q, p.q}, {(const E*)k, p.k}};
  Rows<E> to[] = {{(E*)to_q, p.dq}, {(E*)to_k, p.dk}};
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
    float row[256];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.B * p.T; i++)
      for (int64_t h = 0; h < p.H + p.G; h++) {
        int64_t b = i / p.T, t = i % p.T, key = h >= p.H, at = key ? h - p.H : h;
        fetch<E>(p, from[key], key ? key_turn : query_turn, b, t, at, row);
        for (int d = 0; d < p.K; d += W) store(to[key].at(b, t, at) + d, load(row + d));
      }
  }
}

ENTRY void attention_positions(const Problem* p, const void* q, const void* k, const float* query_norm,
                               const float* key_norm, const float* cosine, const float* sine, const int64_t* positions,
                               double epsilon, void* to_q, void* to_k, int64_t threads) {
  Turn query_turn{query_norm, cosine, sine, positions, (float)epsilon};
  Turn key_turn{key_norm, cosine, sine, positions, (float)epsilon};
  auto run = p->half ? turn_rows<bf16> : turn_rows<float>;
  run(*p, q, k, query_turn, key_turn, to_q, to_k, threads);
}

// `stream` [N, D] is what the layer makes of x, in its dtype.
ENTRY void attention_layer_forward(const AttentionArguments* arguments, void* stream, int64_t threads) {
  const AttentionLayer l(*arguments);
  with_operand(l.half, [&](auto operand) {
    using Operand = decltype(operand);
    if (l.half) layer_forward<bf16, Operand>(l, l.as_stream(stream), threads);
    else layer_forward<float, float>(l, l.as_stream(stream), threads);
  });
}

ENTRY void attention_layer_backward(const AttentionArguments* arguments, const AttentionGradients* gradients,
                                    int64_t threads) {
  const AttentionLayer l(*arguments);
  with_operand(l.half, [&](auto operand) {
    using Operand = decltype(operand);
    if (l.half) layer_backward<bf16, Operand>(l, *gradients, threads);
    else layer_backward<float, float>(l, *gradients, threads);
  });
}
