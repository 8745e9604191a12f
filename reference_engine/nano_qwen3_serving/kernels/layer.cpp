// A decoder layer in one call: what `model/layers.py` does in fifteen, so that Python starts one operator and not those.
//
// The operators are those of the other files, in the same order: not a bit differs.

#include "kernels.h"

#include <ATen/ops/add.h>
#include <torch/library.h>

#ifdef __AVX512BF16__

namespace nano_qwen3 {

// Requests that compute one token each.
//   x [tokens, hidden], positions, slots, seq_lens [tokens], block_tables [tokens, max_blocks]
//   keys, values: [blocks, block_size, kv_heads, dim]
//   norms: of the input, of q, of k, before the MLP
//   matrices: qkv, o, gate_up, down; packed, without bias
Tensor decode_layer(
    const Tensor& x, const Tensor& positions, const Tensor& slots, const Tensor& block_tables, const Tensor& seq_lens,
    const Tensor& keys, const Tensor& values, at::TensorList norms, at::TensorList matrices, const Tensor& cos,
    const Tensor& sin, double eps, double scale) {
  int64_t tokens = x.size(0), hidden = x.size(1), kv_heads = keys.size(2), dim = keys.size(3);
  int64_t heads = matrices[1].size(1) * 2 / dim, inner = matrices[3].size(1) * 2;
  Tensor qkv = packed_linear(rms_norm(x, norms[0], eps), matrices[0], {}, (heads + 2 * kv_heads) * dim)
                   .view({tokens, heads + 2 * kv_heads, dim});
  Tensor q = norm_and_rotate(qkv.narrow(1, 0, heads), norms[1], eps, cos, sin, positions);
  Tensor k = norm_and_rotate(qkv.narrow(1, heads, kv_heads), norms[2], eps, cos, sin, positions);
  write_kv(k, qkv.narrow(1, heads + kv_heads, kv_heads), keys, values, slots);
  Tensor attended = paged_decode(q, keys, values, block_tables, seq_lens, scale).view({tokens, heads * dim});
  Tensor h = at::add(x, packed_linear(attended, matrices[1], {}, hidden));
  Tensor gate_up = packed_linear(rms_norm(h, norms[3], eps), matrices[2], {}, 2 * inner);
  return at::add(h, packed_linear(silu_and_mul(gate_up), matrices[3], {}, hidden));
}

TORCH_LIBRARY_FRAGMENT(nano_qwen3_cpu, library) {
  library.def(
      "decode_layer(Tensor x, Tensor positions, Tensor slots, Tensor block_tables, Tensor seq_lens, Tensor(a!) keys, "
      "Tensor(b!) values, Tensor[] norms, Tensor[] matrices, Tensor cos, Tensor sin, float eps, float scale) -> Tensor",
      &decode_layer);
}

}  // namespace nano_qwen3

#endif
