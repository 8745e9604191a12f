// The parts of a step that torch does on a CPU in many small operators, or only after copying.
//
// Knows pointers and strides. Sizes and dtypes are checked in Python before they come here: float32 or
// bfloat16, rows of a multiple of 16 numbers (of any for argmax and causal_softmax). Sums are in float32 and rounded once, at the end. A row is
// computed in the same order whatever lies beside it.

#include "kernels.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace nano_qwen3 {

using at::BFloat16;

namespace {

constexpr int LANES = 16;
constexpr int TILE = 32;           // keys whose scores are held at once
constexpr int64_t GRAIN = 1 << 13; // numbers below which another thread costs more than it does

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats load(const float* p) {
  Floats x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Floats load(const BFloat16* p) {
  Halves x;
  std::memcpy(&x, p, sizeof x);
  return (Floats)(__builtin_convertvector(x, Words) << 16);
}
inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }
inline void store(BFloat16* p, Floats x) {  // to the nearest, ties to even; NaN stays NaN
  Words bits = (Words)x;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words nan = (Words)(x != x);
  Halves y = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Halves);
  std::memcpy(p, &y, sizeof y);
}
inline float sum(Floats x) {  // by halves
  x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3);
  return (x[0] + x[1]) + (x[2] + x[3]);
}
inline Floats all(float x) { return Floats{} + x; }
inline Floats larger(Floats x, Floats y) {
  Ints first = x > y;
  return (Floats)(((Ints)x & first) | ((Ints)y & ~first));
}

// e^x; relative error under 3e-7. -inf gives 0.
inline Floats exponential(Floats x) {
  Ints lost = x < -87.0f;
  x = (Floats)(((Ints)x & ~lost) | ((Ints)all(-87.0f) & lost));
  const Floats shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Floats k = (x * 1.44269504f + shift) - shift;
  Floats r = x - k * 0.693359375f + k * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Ints power = (__builtin_convertvector(k, Ints) + 127) << 23;
  return (Floats)((Ints)(p * (Floats)power) & ~lost);
}

template <typename T>
float inverse_rms(const T* x, int64_t size, float eps) {
  Floats squares{};
  for (int64_t i = 0; i < size; i += LANES) {
    Floats v = load(x + i);
    squares += v * v;
  }
  return 1.0f / std::sqrt(sum(squares) / size + eps);
}

template <typename Work>
void for_rows(int64_t rows, int64_t row_size, const Work& work) {
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / row_size), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) work(row);
  });
}

#define FLOAT_OR_BFLOAT16(TENSOR, NAME, ...) \
  AT_DISPATCH_SWITCH(TENSOR.scalar_type(), NAME, \
    AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

}  // namespace

// x [rows, size] -> x / rms(x) * weight
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  int64_t rows = x.size(0), size = x.size(1);
  Tensor out = at::empty({rows, size}, x.options());
  FLOAT_OR_BFLOAT16(x, "rms_norm", [&] {
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    for_rows(rows, size, [&](int64_t row) {
      const scalar_t* from = x.const_data_ptr<scalar_t>() + row * x.stride(0);
      scalar_t* to = out.data_ptr<scalar_t>() + row * size;
      float scale = inverse_rms(from, size, eps);
      for (int64_t i = 0; i < size; i += LANES) store(to + i, load(from + i) * scale * load(w + i));
    });
  });
  return out;
}

// Each head of heads [tokens, count, dim], normalised and turned by the angles of its token's position.
// cos and sin are tables [max_positions, dim] whose second half repeats the first.
Tensor norm_and_rotate(
    const Tensor& heads, const Tensor& weight, double eps, const Tensor& cos, const Tensor& sin,
    const Tensor& positions) {
  int64_t tokens = heads.size(0), count = heads.size(1), dim = heads.size(2), half = dim / 2;
  Tensor out = at::empty({tokens, count, dim}, heads.options());
  const int64_t* position = positions.const_data_ptr<int64_t>();
  FLOAT_OR_BFLOAT16(heads, "norm_and_rotate", [&] {
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    for_rows(tokens, count * dim, [&](int64_t token) {
      const scalar_t* c = cos.const_data_ptr<scalar_t>() + position[token] * dim;
      const scalar_t* s = sin.const_data_ptr<scalar_t>() + position[token] * dim;
      for (int64_t head = 0; head < count; head++) {
        const scalar_t* from = heads.const_data_ptr<scalar_t>() + token * heads.stride(0) + head * heads.stride(1);
        scalar_t* to = out.data_ptr<scalar_t>() + (token * count + head) * dim;
        float scale = inverse_rms(from, dim, eps);
        for (int64_t i = 0; i < half; i += LANES) {
          Floats first = load(from + i) * scale * load(w + i);
          Floats second = load(from + half + i) * scale * load(w + half + i);
          store(to + i, first * load(c + i) - second * load(s + i));
          store(to + half + i, second * load(c + half + i) + first * load(s + half + i));
        }
      }
    });
  });
  return out;
}

// gate_up [rows, 2 * size] -> silu(gate) * up
Tensor silu_and_mul(const Tensor& gate_up) {
  int64_t rows = gate_up.size(0), size = gate_up.size(1) / 2;
  Tensor out = at::empty({rows, size}, gate_up.options());
  FLOAT_OR_BFLOAT16(gate_up, "silu_and_mul", [&] {
    for_rows(rows, size, [&](int64_t row) {
      const scalar_t* gate = gate_up.const_data_ptr<scalar_t>() + row * gate_up.stride(0);
      scalar_t* to = out.data_ptr<scalar_t>() + row * size;
      for (int64_t i = 0; i < size; i += LANES) {
        Floats g = load(gate + i);
        // -|g| keeps the power finite: sigmoid(g) = e^min(g, 0) / (1 + e^-|g|)
        Ints negative = g < 0.0f;
        Floats magnitude = (Floats)((Ints)g & 0x7fffffff);
        Floats power = exponential(-magnitude);
        Floats top = (Floats)(((Ints)power & negative) | ((Ints)all(1.0f) & ~negative));
        store(to + i, g * top / (1.0f + power) * load(gate + size + i));
      }
    });
  });
  return out;
}

// Where each row of x [rows, size] is largest: the first such place.
Tensor argmax(const Tensor& x) {
  int64_t rows = x.size(0), size = x.size(1), whole = size / LANES * LANES;
  Tensor out = at::empty({rows}, x.options().dtype(at::kLong));
  FLOAT_OR_BFLOAT16(x, "argmax", [&] {
    for_rows(rows, size, [&](int64_t row) {
      const scalar_t* from = x.const_data_ptr<scalar_t>() + row * x.stride(0);
      Floats best = all(-std::numeric_limits<float>::infinity());
      Ints places{};
      for (int64_t i = 0; i < whole; i += LANES) {
        Floats v = load(from + i);
        Ints larger = v > best;
        best = (Floats)(((Ints)v & larger) | ((Ints)best & ~larger));
        places = (int32_t(i) & larger) | (places & ~larger);
      }
      float highest = -std::numeric_limits<float>::infinity();
      int64_t place = 0;
      auto consider = [&](float value, int64_t at) {
        if (value > highest || (value == highest && at < place)) highest = value, place = at;
      };
      for (int lane = 0; lane < LANES; lane++) consider(best[lane], places[lane] + lane);
      for (int64_t i = whole; i < size; i++) consider(float(from[i]), i);
      out.data_ptr<int64_t>()[row] = place;
    });
  });
  return out;
}

// scores [kv_heads, heads of each * num_queries, num_keys], of the last queries of a sequence in order for each head:
// in their place the softmax of each row over the keys up to its query's own, and 0 for those after it.
Tensor causal_softmax(Tensor scores, int64_t num_queries) {
  TORCH_CHECK(scores.is_contiguous(), "scores are not contiguous");
  int64_t num_keys = scores.size(2), rows = scores.size(0) * scores.size(1);
  FLOAT_OR_BFLOAT16(scores, "causal_softmax", [&] {
    at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / num_keys), [&](int64_t begin, int64_t end) {
      std::vector<float> powers((num_keys + LANES - 1) / LANES * LANES);
      for (int64_t row = begin; row < end; row++) {
        scalar_t* score = scores.data_ptr<scalar_t>() + row * num_keys;
        int64_t seen = num_keys - num_queries + row % num_queries + 1, whole = seen / LANES * LANES;
        scalar_t last[LANES];  // what is left after the whole vectors, filled up
        for (int64_t i = 0; i < LANES; i++)
          last[i] = whole + i < seen ? score[whole + i] : scalar_t(-std::numeric_limits<float>::infinity());
        Floats highest = load(last);
        for (int64_t i = 0; i < whole; i += LANES) highest = larger(highest, load(score + i));
        float most = highest[0];
        for (int lane = 1; lane < LANES; lane++) most = std::max(most, highest[lane]);
        Floats total{};
        for (int64_t i = 0; i < seen; i += LANES) {
          Floats power = exponential((i < whole ? load(score + i) : load(last)) - most);
          store(powers.data() + i, power);
          total += power;
        }
        float share = 1.0f / sum(total);
        for (int64_t i = 0; i < whole; i += LANES) store(score + i, load(powers.data() + i) * share);
        for (int64_t i = whole; i < seen; i++) score[i] = scalar_t(powers[i] * share);
        std::fill(score + seen, score + num_keys, scalar_t(0.0f));
      }
    });
  });
  return scores;
}

// Puts k and v [tokens, kv_heads, dim] into rows `slots` [tokens] of keys and values [slots, kv_heads, dim].
void write_kv(const Tensor& k, const Tensor& v, Tensor keys, Tensor values, const Tensor& slots) {
  int64_t row_size = k.size(1) * k.size(2), bytes = row_size * k.element_size();
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  auto copy = [&](const Tensor& from, Tensor& to, int64_t i) {
    std::memcpy(static_cast<char*>(to.data_ptr()) + slot[i] * bytes,
                static_cast<const char*>(from.const_data_ptr()) + i * from.stride(0) * from.element_size(), bytes);
  };
  for_rows(k.size(0), 2 * row_size, [&](int64_t i) {
    copy(k, keys, i);
    copy(v, values, i);
  });
}

namespace {

// Asks for a row before it is needed: the rows of one head lie apart, so the processor does not guess them.
template <int DIM, typename T>
inline void prefetch(const T* row) {
  for (size_t byte = 0; byte < DIM * sizeof(T); byte += 64) __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

// GROUP queries of one KV head of one request against its keys, a tile at a time, with the softmax carried along
// (Milakov and Gimelshein, 2018): best and total are those of the keys seen so far. Where the keys end, those
// of `next_keys` are fetched, from the same rows: what is called for next.
template <typename T, int DIM, int GROUP>
void attend(
    const T* q, T* out, const T* keys, const T* values, int64_t row_stride, const int64_t* table,
    int64_t block_size, int64_t length, float scale, const T* next_keys) {
  constexpr int PARTS = DIM / LANES;
  Floats query[GROUP][PARTS], sums[GROUP][PARTS];
  float best[GROUP], total[GROUP];
  for (int g = 0; g < GROUP; g++) {
    best[g] = -std::numeric_limits<float>::infinity();
    total[g] = 0;
    for (int i = 0; i < PARTS; i++) {
      query[g][i] = load(q + g * DIM + i * LANES) * scale;
      sums[g][i] = Floats{};
    }
  }
  int64_t rows[TILE], next[TILE];  // of this tile and of the one after
  alignas(64) float weights[GROUP][TILE];
  auto find_rows = [&](int64_t start, int64_t* found) {
    int64_t end = std::min<int64_t>(start + TILE, length);
    for (int64_t i = start; i < end; i++)
      found[i - start] = (table[i / block_size] * block_size + i % block_size) * row_stride;
    return int(std::max<int64_t>(end - start, 0));
  };
  int count = find_rows(0, next), following = 0;
  for (int64_t start = 0; start < length; start += TILE, count = following) {
    std::copy(next, next + count, rows);
    const T* ahead = start + TILE < length ? keys : next_keys;
    following = find_rows(start + TILE < length ? start + TILE : 0, next);
    for (int g = 0; g < GROUP; g++)
      for (int t = count; t < TILE; t++) weights[g][t] = -std::numeric_limits<float>::infinity();
    for (int t = 0; t < count; t++) {
      prefetch<DIM>(values + rows[t]);
      Floats products[GROUP];
      Floats key = load(keys + rows[t]);
      for (int g = 0; g < GROUP; g++) products[g] = query[g][0] * key;
      for (int i = 1; i < PARTS; i++) {
        key = load(keys + rows[t] + i * LANES);
        for (int g = 0; g < GROUP; g++) products[g] += query[g][i] * key;
      }
      for (int g = 0; g < GROUP; g++) weights[g][t] = sum(products[g]);
    }
    for (int g = 0; g < GROUP; g++) {
      float highest = best[g];
      for (int t = 0; t < count; t++) highest = std::max(highest, weights[g][t]);
      float shrink = std::exp(best[g] - highest);
      Floats added{};
      for (int t = 0; t < TILE; t += LANES) {
        Floats w = exponential(load(weights[g] + t) - highest);
        store(weights[g] + t, w);
        added += w;
      }
      best[g] = highest;
      total[g] = total[g] * shrink + sum(added);
      for (int i = 0; i < PARTS; i++) sums[g][i] *= shrink;
    }
    for (int t = 0; t < count; t++) {
      if (t < following) prefetch<DIM>(ahead + next[t]);
      for (int i = 0; i < PARTS; i++) {
        Floats value = load(values + rows[t] + i * LANES);
        for (int g = 0; g < GROUP; g++) sums[g][i] += value * weights[g][t];
      }
    }
  }
  for (int g = 0; g < GROUP; g++)
    for (int i = 0; i < PARTS; i++) store(out + g * DIM + i * LANES, sums[g][i] / total[g]);
}

// Any number of query heads that share a KV head: by fours, and what is left by twos and ones. Keys and values
// that the first of them read are in the cache for the others.
template <typename T, int DIM>
void attend_group(
    int64_t group, const T* q, T* out, const T* keys, const T* values, int64_t row_stride, const int64_t* table,
    int64_t block_size, int64_t length, float scale, const T* next_keys) {
  while (group > 0) {
    int heads = group >= 4 ? 4 : group >= 2 ? 2 : 1;
    auto kernel = heads == 4 ? attend<T, DIM, 4> : heads == 2 ? attend<T, DIM, 2> : attend<T, DIM, 1>;
    kernel(q, out, keys, values, row_stride, table, block_size, length, scale, next_keys);
    q += heads * DIM, out += heads * DIM, group -= heads;
  }
}

}  // namespace

// One token of each request, q [requests, heads, dim], against keys and values
// [blocks, block_size, kv_heads, dim] read where they lie, through block_tables [requests, max_blocks].
Tensor paged_decode(
    const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& block_tables, const Tensor& seq_lens,
    double scale) {
  int64_t requests = q.size(0), heads = q.size(1), dim = q.size(2);
  int64_t block_size = keys.size(1), kv_heads = keys.size(2), group = heads / kv_heads;
  Tensor out = at::empty({requests, heads, dim}, q.options());
  const int64_t* lengths = seq_lens.const_data_ptr<int64_t>();
  FLOAT_OR_BFLOAT16(q, "paged_decode", [&] {
    auto kernel = dim == 128 ? attend_group<scalar_t, 128> : dim == 64 ? attend_group<scalar_t, 64> : attend_group<scalar_t, 32>;
    at::parallel_for(0, requests * kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) {
        int64_t request = task / kv_heads, head = task % kv_heads;
        kernel(group, q.const_data_ptr<scalar_t>() + request * q.stride(0) + head * group * dim,
               out.data_ptr<scalar_t>() + (request * heads + head * group) * dim,
               keys.const_data_ptr<scalar_t>() + head * dim, values.const_data_ptr<scalar_t>() + head * dim,
               kv_heads * dim, block_tables.const_data_ptr<int64_t>() + request * block_tables.stride(0), block_size,
               lengths[request], float(scale), keys.const_data_ptr<scalar_t>() + (head + 1) % kv_heads * dim);
      }
    });
  });
  return out;
}

TORCH_LIBRARY(nano_qwen3_cpu, library) {
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", &rms_norm);
  library.def(
      "norm_and_rotate(Tensor heads, Tensor weight, float eps, Tensor cos, Tensor sin, Tensor positions) -> Tensor",
      &norm_and_rotate);
  library.def("silu_and_mul(Tensor gate_up) -> Tensor", &silu_and_mul);
  library.def("argmax(Tensor x) -> Tensor", &argmax);
  library.def("causal_softmax(Tensor(a!) scores, int num_queries) -> Tensor(a!)", &causal_softmax);
  library.def("write_kv(Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor slots) -> ()", &write_kv);
  library.def(
      "paged_decode(Tensor q, Tensor keys, Tensor values, Tensor block_tables, Tensor seq_lens, float scale) -> Tensor",
      &paged_decode);
}

}  // namespace nano_qwen3
