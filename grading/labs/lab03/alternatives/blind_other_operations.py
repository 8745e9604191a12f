"""Other operations: complex rotary, grouped einsum in float32 with a hand-made softmax, q and k turned together, split.

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
        wide = x.to(torch.float32)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        root = (length * length / x.shape[-1] + self.eps).sqrt()
        return (wide / root).to(x.dtype) * self.weight.to(x.dtype)


class RotaryEmbedding(nn.Module):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, head_dim], positions [num_tokens] of int64 → x turned, in its dtype.

        The pair (x[i], x[i + head_dim / 2]) turns by position * theta ** (-2 * i / head_dim).
        """
        i = torch.arange(0, self.head_dim, 2, device=x.device, dtype=torch.float32)
        frequencies = torch.exp(i * (-math.log(self.theta) / self.head_dim))
        angles = torch.outer(positions.float(), frequencies)
        turn = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
        half = self.head_dim // 2
        points = torch.complex(x[..., :half].float().contiguous(), x[..., half:].float().contiguous()) * turn
        return torch.cat((points.real, points.imag), dim=-1).to(x.dtype)


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
    grouped = q.float().reshape(num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("qgrd,kgd->grqk", grouped * head_dim**-0.5, k.float())
    future = torch.full((num_queries, num_keys), float("-inf"), device=q.device).triu(num_keys - num_queries + 1)
    scores = scores + future
    scores = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weighted = torch.einsum("grqk,kgd->qgrd", scores, v.float())
    total = scores.sum(dim=-1).permute(2, 0, 1)[..., None]
    return (weighted / total).reshape(num_queries, num_heads, head_dim).to(q.dtype)


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
        v = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim)))
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim)))
        turned = self.rotary(torch.cat([q, k], dim=1), positions)
        q, k = turned.split([self.num_heads, self.num_kv_heads], dim=1)
        return q, k, v

    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes k and v into `metadata.slot_mapping`."""
        q, k, v = self.heads(x, positions)
        self.core.write(layer_cache, k, v, metadata.slot_mapping)
        attended = self.core.forward(q, layer_cache, metadata)
        return self.o_proj(torch.cat(attended.unbind(dim=1), dim=-1))


class MLP(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]: down(silu(gate(x)) * up(x))"""
        up, gate = self.up_proj(x), self.gate_proj(x)
        return self.down_proj(gate / (1 + torch.exp(-gate)) * up)


class DecoderLayer(nn.Module):
    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]: h = x + attention(norm(x)); h + mlp(norm(h))"""
        normed = self.input_layernorm(x)
        h = torch.add(self.self_attn(normed, positions, layer_cache, metadata), x)
        return torch.add(self.mlp(self.post_attention_layernorm(h)), h)


class Qwen3ForCausalLM(nn.Module):
    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Rows of what forward() returned, [rows, hidden] → [rows, vocab_size]."""
        normed = self.model.norm(hidden)
        return self.lm_head(normed)

    def last_logits(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """Logits after the last token of each request: [num_requests, vocab_size].

        The requests' tokens lie one after the other, `metadata.query_lens[i]` of request i; rows after
        the last request's are padding. Only the rows that are returned pass through the head.
        """
        hidden = self(token_ids, positions, cache, metadata)
        requests = hidden[: sum(metadata.query_lens)].split(list(metadata.query_lens))
        rows = torch.stack([rows[-1] for rows in requests])
        return self.lm_head(self.model.norm(rows))


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
