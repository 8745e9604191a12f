"""A decode loop with no engine around it: the ceiling that an engine in torch can reach.

The same packed products, the same attention call over gathered blocks, and nothing else: no
scheduler, no requests, no sampling but argmax, block tables laid out once for all tokens to come.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.model.qwen3 import Qwen3ForCausalLM

BLOCK = 16


class BareLoop:
    """Decodes `batch` sequences side by side with a network that was loaded for the engine.

    Args:
        network: its weights are used where they are.
        config: its shape.
        batch: sequences.
        length: most tokens of one, prompt and output.
    """

    def __init__(self, network: Qwen3ForCausalLM, config: ModelConfig, batch: int, length: int) -> None:
        self.network, self.config, self.batch = network, config, batch
        blocks = -(-length // BLOCK)
        shape = (batch * blocks, BLOCK, config.num_key_value_heads, config.head_dim)
        dtype = network.model.norm.weight.dtype
        self.cache = [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
                      for _ in range(config.num_hidden_layers)]
        self.tables = torch.arange(batch * blocks).view(batch, blocks)

    @torch.inference_mode()
    def run(self, prompts: Tensor, output_tokens: int) -> float:
        """Seconds for a prompt [batch, prompt_tokens] and `output_tokens` tokens of each sequence."""
        started = time.perf_counter()
        tokens = self._forward(prompts.flatten(), range(prompts.shape[1]))
        for position in range(prompts.shape[1], prompts.shape[1] + output_tokens - 1):
            tokens = self._forward(tokens, range(position, position + 1))
        return time.perf_counter() - started

    def _forward(self, tokens: Tensor, span: range) -> Tensor:
        """One pass over positions `span` of all sequences; the next token of each."""
        inner, count = self.network.model, len(span)
        positions = torch.arange(span.start, span.stop).repeat(self.batch)
        slots = self.tables.repeat_interleave(count, 0)[
            torch.arange(self.batch * count), positions // BLOCK] * BLOCK + positions % BLOCK
        hidden = F.embedding(tokens, inner.embed_tokens.weight)
        for layer, cache in zip(inner.layers, self.cache, strict=True):
            attention = layer.self_attn
            x = layer.input_layernorm(hidden)
            heads = attention.qkv_proj(x).view(x.shape[0], -1, self.config.head_dim)
            q, k, v = heads.split([attention.num_heads, attention.num_kv_heads, attention.num_kv_heads], dim=1)
            q = inner.rotary(attention.q_norm(q), positions)
            k = inner.rotary(attention.k_norm(k), positions)
            for tensor, new in zip(cache, (k, v), strict=True):
                tensor.view(-1, *tensor.shape[2:])[slots] = new
            out = self._attend(q, cache, span)
            hidden = hidden + attention.o_proj(out.reshape(x.shape[0], -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        last = inner.norm(hidden).view(self.batch, count, -1)[:, -1]
        return self.network.lm_head(last).argmax(-1)

    def _attend(self, q: Tensor, cache: tuple[Tensor, Tensor], span: range) -> Tensor:
        """All sequences have the same length, so one call without a mask does it."""
        blocks = -(-span.stop // BLOCK)
        keys, values = (
            F.embedding(self.tables[:, :blocks], t.view(t.shape[0], -1))
            .view(self.batch, -1, *t.shape[2:])[:, : span.stop].transpose(1, 2) for t in cache)
        if len(span) == 1:
            folded = q.view(self.batch, self.config.num_key_value_heads, -1, self.config.head_dim)
            return F.scaled_dot_product_attention(folded, keys, values).reshape(q.shape)
        rows = q.view(self.batch, len(span), *q.shape[1:]).transpose(1, 2)
        out = F.scaled_dot_product_attention(rows, keys, values, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(q.shape)
