// What the files of this folder have of each other.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace nano_qwen3 {

using at::Tensor;

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);
Tensor norm_and_rotate(
    const Tensor& heads, const Tensor& weight, double eps, const Tensor& cos, const Tensor& sin, const Tensor& positions);
Tensor silu_and_mul(const Tensor& gate_up);
void write_kv(const Tensor& k, const Tensor& v, Tensor keys, Tensor values, const Tensor& slots);
Tensor paged_decode(
    const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& block_tables, const Tensor& seq_lens,
    double scale);
Tensor packed_linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t outputs);

}  // namespace nano_qwen3
