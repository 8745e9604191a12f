"""Plain torch in the README's order: repeat_interleave, boolean mask, scores widened before the product, cumsum of query_lens.

Lab 03: the network, Qwen3, from token ids to logits.

Read README.md first; it has the contract of each TODO. Check your work: pytest test_lab.py
Everything is flat: a tensor's first dimension counts tokens, and there is no batch dimension.
"""

import math


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → [..., size]: x / sqrt(mean of x² + eps) * weight, in x's dtype.

        The root is computed in float32, whatever the dtype of x.
        """
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class RotaryEmbedding(nn.Module):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, head_dim], positions [num_tokens] of int64 → x turned, in its dtype.

        The pair (x[i], x[i + head_dim / 2]) turns by position * theta ** (-2 * i / head_dim).
        """
        half = self.head_dim // 2
        steps = torch.arange(half, device=x.device, dtype=torch.float32)
        frequencies = self.theta ** (-2 * steps / self.head_dim)
        angles = positions[:, None].float() * frequencies
        cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query attends to the keys of its own token and of all tokens before it.

    Args:
        q: [num_queries, num_heads, head_dim], of the last `num_queries` tokens.
        k, v: [num_keys, num_kv_heads, head_dim], of all tokens so far; num_keys >= num_queries.

    Returns:
        [num_queries, num_heads, head_dim], in q's dtype.
    """
    num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    group = num_heads // num_kv_heads
    queries = q.float().transpose(0, 1)
    keys = k.float().repeat_interleave(group, dim=1).transpose(0, 1)
    values = v.repeat_interleave(group, dim=1).transpose(0, 1)
    scores = queries @ keys.transpose(1, 2) / math.sqrt(head_dim)
    own = torch.arange(num_keys - num_queries, num_keys, device=q.device)
    future = torch.arange(num_keys, device=q.device)[None, :] > own[:, None]
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return (weights.to(q.dtype) @ values).transpose(0, 1)


class DenseCore:
    def make_cache(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype = torch.float32) -> list:
        """One empty cache per layer."""
        shape = (max_tokens, config.num_key_value_heads, config.head_dim)
        return [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(config.num_hidden_layers)]


def one_request(start: int, end: int) -> AttentionMetadata:
    """What a core is told when tokens [start, end) of one request are computed (written for you)."""
    return AttentionMetadata(
        query_lens=[end - start], seq_lens=[end], block_tables=torch.zeros(1, 1, dtype=torch.long),
        slot_mapping=torch.arange(start, end), num_decodes=int(end - start == 1), block_size=end,
    )


class Attention(nn.Module):
    def heads(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [num_tokens, hidden], positions [num_tokens] → q, k, v, ready for attention.

        q is [num_tokens, num_heads, head_dim], k and v are [num_tokens, num_kv_heads, head_dim].
        """
        tokens = x.shape[0]
        q = self.q_proj(x).view(tokens, self.num_heads, self.head_dim)
        k = self.k_proj(x).view(tokens, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x).view(tokens, self.num_kv_heads, self.head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        return self.rotary(q, positions), self.rotary(k, positions), v

    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes k and v into `metadata.slot_mapping`."""
        q, k, v = self.heads(x, positions)
        self.core.write(layer_cache, k, v, metadata.slot_mapping)
        out = self.core.forward(q, layer_cache, metadata)
        return self.o_proj(out.reshape(x.shape[0], self.num_heads * self.head_dim))


class Qwen3ForCausalLM(nn.Module):
    def last_logits(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """Logits after the last token of each request: [num_requests, vocab_size].

        The requests' tokens lie one after the other, `metadata.query_lens[i]` of request i; rows after
        the last request's are padding. Only the rows that are returned pass through the head.
        """
        hidden = self(token_ids, positions, cache, metadata)
        last = torch.tensor(metadata.query_lens, device=hidden.device).cumsum(0) - 1
        return self.compute_logits(hidden[last])


def show_example() -> None:
    """The worked example of README.md, as far as it needs no matrices."""
    norm = RMSNorm(4, eps=1e-6)
    norm.weight.fill_(1.0)
    print("RMSNorm of 2 4 4 8:          ", numbers(norm(torch.tensor([2.0, 4.0, 4.0, 8.0]))))
    rotary = RotaryEmbedding(head_dim=4, theta=100.0)
    print("1 1 0 0 turned, position 3:  ", numbers(rotary(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]), torch.tensor([3]))))
    q = torch.tensor([2.0, 0.0, 0.0, 0.0]).expand(3, 1, 4)
    k = torch.zeros(3, 1, 4)
    k[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0]).log()
    v = torch.tensor([6.0, 12.0, 24.0]).view(3, 1, 1).expand(3, 1, 4)
    print("Attention over 6, 12, 24:    ", numbers(causal_attention(q, k, v)[:, 0, 0]))
    print()


def numbers(values: Tensor) -> str:
    """Two decimals of each."""
    return " ".join(f"{value:.2f}" for value in values.flatten().tolist())


def write_answer(network: Qwen3ForCausalLM, core: DenseCore, tokenizer) -> str:
    """Greedy text after `PROMPT`, printed as it comes; every token recomputes all those before it."""
    token_ids, answer = tokenizer.encode(PROMPT), []
    print(f"Your network answers {PROMPT.strip()!r}, computing all tokens again for each new one:")
    started = time.perf_counter()
    computed = 0
    while len(answer) < 64:
        computed += len(token_ids) + len(answer)
        best = int(logits_after(network, core, token_ids + answer).argmax())
        if best in network.config.eos_token_ids:
            break
        answer.append(best)
        print(tokenizer.decode([best]), end="", flush=True)
    seconds = time.perf_counter() - started
    print(f"\n{len(answer)} tokens in {seconds:.2f} seconds. To write them, {computed} tokens were computed.\n")
    return tokenizer.decode(answer)


def logits_after(network: Qwen3ForCausalLM, core: DenseCore, token_ids: list[int]) -> Tensor:
    """Logits of the token after `token_ids`, [vocab_size]."""
    length = len(token_ids)
    cache = core.make_cache(network.config, length)
    return network.last_logits(torch.tensor(token_ids), torch.arange(length), cache, one_request(0, length))[0]
