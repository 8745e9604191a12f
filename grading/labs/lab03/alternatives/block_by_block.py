"""Lab 03 as fused kernels compute: attention goes through the keys block by block, and keeps a running maximum and sum.

No key is repeated, no row of scores is ever whole. Angles turn points by matrices of 2 by 2, from frequencies that each module
keeps for a device. The heads' numbers are copied into rows that were made for them.
"""

BLOCK = 16
"""Keys that are looked at together."""


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → [..., size]: x / sqrt(mean of x² + eps) * weight, in x's dtype.

        The root is computed in float32, whatever the dtype of x.
        """
        wide = x.float()
        squares = torch.einsum("...i,...i->...", wide, wide)[..., None]
        return (wide / (squares / x.shape[-1] + self.eps).sqrt() * self.weight.float()).to(x.dtype)


class RotaryEmbedding(nn.Module):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, head_dim], positions [num_tokens] of int64 → x turned, in its dtype.

        The pair (x[i], x[i + head_dim / 2]) turns by position * theta ** (-2 * i / head_dim).
        """
        frequencies = self.__dict__.setdefault("frequencies", {})  # they depend on nothing but the device
        if x.device not in frequencies:
            with torch.inference_mode(False):
                numbers = torch.arange(self.head_dim // 2, dtype=torch.float32, device=x.device)
                frequencies[x.device] = self.theta ** (numbers * (-2 / self.head_dim))
        angles = positions.float()[:, None] * frequencies[x.device]
        turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=-1).unflatten(-1, (2, 2))
        points = x.float().unflatten(-1, (2, -1)).transpose(-1, -2)[..., None]  # [num_tokens, heads, head_dim / 2, 2, 1]
        return (turns[:, None] @ points)[..., 0].transpose(-1, -2).flatten(-2).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query attends to the keys of its own token and of all tokens before it.

    Args:
        q: [num_queries, num_heads, head_dim], of the last `num_queries` tokens.
        k, v: [num_keys, num_kv_heads, head_dim], of all tokens so far; num_keys >= num_queries.

    Returns:
        [num_queries, num_heads, head_dim], in q's dtype. Scores and weights are computed in float32.
    """
    (num_queries, num_heads, dim), (num_keys, num_kv_heads, _) = q.shape, k.shape
    grouped = q.float().unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)  # [num_kv_heads, group, num_queries, head_dim]
    places = torch.arange(num_keys - num_queries, num_keys, device=q.device)[:, None]
    highest = grouped.new_full((*grouped.shape[:-1], 1), float("-inf"))
    total, out = torch.zeros_like(highest), torch.zeros_like(grouped)
    for start in range(0, num_keys, BLOCK):
        keys, values = (t[start : start + BLOCK].float().transpose(0, 1)[:, None] for t in (k, v))
        scores = grouped @ keys.transpose(-1, -2) * dim**-0.5
        future = torch.arange(start, start + keys.shape[2], device=q.device) > places
        scores = scores.masked_fill(future, float("-inf"))
        higher = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
        shares, shrunk = (scores - higher).exp(), (highest - higher).exp()
        total, out, highest = total * shrunk + shares.sum(dim=-1, keepdim=True), out * shrunk + shares @ values, higher
    return (out / total).permute(2, 0, 1, 3).reshape(num_queries, num_heads, dim).to(q.dtype)


class Attention(nn.Module):
    def heads(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [num_tokens, hidden], positions [num_tokens] → q, k, v, ready for attention.

        q is [num_tokens, num_heads, head_dim], k and v are [num_tokens, num_kv_heads, head_dim].
        """
        q, k, v = (matrix(x).unflatten(-1, (-1, self.head_dim)) for matrix in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (self.rotary(norm(rows), positions) for norm, rows in ((self.q_norm, q), (self.k_norm, k)))
        return q, k, v

    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes k and v into `metadata.slot_mapping`."""
        q, k, v = self.heads(x, positions)
        self.core.write(layer_cache, k, v, metadata.slot_mapping)
        side_by_side = torch.empty(len(x), self.o_proj.in_features, dtype=x.dtype, device=x.device)
        side_by_side.view(q.shape).copy_(self.core.forward(q, layer_cache, metadata))
        return self.o_proj(side_by_side)


class MLP(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]: down(silu(gate(x)) * up(x))"""
        gate = self.gate_proj(x)
        opened = (gate.float() / (1 + (-gate.float()).exp())).to(gate.dtype)
        return self.down_proj(opened * self.up_proj(x))


class DecoderLayer(nn.Module):
    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]: h = x + attention(norm(x)); h + mlp(norm(h))"""
        branches = (
            (self.input_layernorm, lambda rows: self.self_attn(rows, positions, layer_cache, metadata)),
            (self.post_attention_layernorm, self.mlp),
        )
        for norm, branch in branches:
            x = x + branch(norm(x))
        return x


class Qwen3ForCausalLM(nn.Module):
    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Rows of what forward() returned, [rows, hidden] → [rows, vocab_size]."""
        return self.lm_head(self.model.norm(hidden)[:, None])[:, 0]

    def last_logits(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """Logits after the last token of each request: [num_requests, vocab_size].

        The requests' tokens lie one after the other, `metadata.query_lens[i]` of request i; rows after
        the last request's are padding. Only the rows that are returned pass through the head.
        """
        hidden = self(token_ids, positions, cache, metadata)
        ends = torch.tensor(metadata.query_lens, device=hidden.device).cumsum(dim=0)
        return self.compute_logits(hidden.index_select(0, ends - 1))
