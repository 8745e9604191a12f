"""A whole decoder layer in one compiled call: see `kernels/layer.cpp`.

Knows which tensors of a layer the call takes; knows nothing of what it computes. A step with few tokens
spends a tenth of its time in Python, starting fifteen operators in each layer. The call returns, bit for bit,
what the layer it replaces returns.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nano_qwen3_serving.attention.cpu_paged import CPUPagedAttention
from nano_qwen3_serving.interfaces import AttentionMetadata
from nano_qwen3_serving.model.products import CompiledProduct


class CompiledLayer:
    """`DecoderLayer.forward` for requests that compute one token each; no module inside is called.

    Args:
        kernels: the operators of `kernels/`.
        layer: a `DecoderLayer` with its weights finalized.
    """

    def __init__(self, kernels: Any, layer: Any) -> None:
        attention = layer.self_attn
        norms = [layer.input_layernorm, attention.q_norm, attention.k_norm, layer.post_attention_layernorm]
        self._decode = kernels.decode_layer.default
        self._norms = [norm.weight for norm in norms]
        self._matrices = [linear.product.packed for linear in matrices_of(layer)]
        self._rotary = attention.rotary
        self._eps, self._scale = layer.input_layernorm.eps, attention.core.scale

    def __call__(self, x: Tensor, positions: Tensor, layer_cache: Any, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes this step's keys and values."""
        return self._decode(
            x, positions, metadata.slot_mapping, metadata.block_tables, metadata.decode_lens, *layer_cache, self._norms,
            self._matrices, self._rotary.cos, self._rotary.sin, self._eps, self._scale)

    @staticmethod
    def takes(kernels: Any, layer: Any) -> bool:
        """Whether every part of the layer has a compiled form; the attention of a replacement, say, has none."""
        return hasattr(kernels, "decode_layer") and type(layer.self_attn.core) is CPUPagedAttention and all(
            isinstance(linear.product, CompiledProduct) and linear.bias is None for linear in matrices_of(layer))


def matrices_of(layer: Any) -> list[Any]:
    """The layer's matrices, in the order of the call's arguments."""
    return [layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj]
