"""Lab 03 written as most model code is: tables of cosines made at construction and rounded to the dtype,
rotate_half, the weight multiplied after rounding, an additive mask, query heads folded into groups.
Only the scores are wider than there: float32, and weights rounded before they meet the values.
"""


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → [..., size]: x / sqrt(mean of x² + eps) * weight, in x's dtype.

        The root is computed in float32, whatever the dtype of x.
        """
        # TODO 1: divide each row by its root mean square, computed in float32, and multiply by the weight
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.eps)).to(dtype)


class RotaryEmbedding(nn.Module):
    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        self.register_buffer("inv_freq", 1.0 / theta**exponents, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, head_dim], positions [num_tokens] of int64 → x turned, in its dtype.

        The pair (x[i], x[i + head_dim / 2]) turns by position * theta ** (-2 * i / head_dim).
        """
        # TODO 2: turn the pair (i, i + head_dim / 2) of every head by its token's angle
        angles = positions[:, None].float() * self.inv_freq.to(x.device)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        first, second = x[..., : self.head_dim // 2], x[..., self.head_dim // 2 :]
        half_turned = torch.cat([-second, first], dim=-1)
        return x * angles.cos().to(x.dtype) + half_turned * angles.sin().to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query attends to the keys of its own token and of all tokens before it.

    Args:
        q: [num_queries, num_heads, head_dim], of the last `num_queries` tokens.
        k, v: [num_keys, num_kv_heads, head_dim], of all tokens so far; num_keys >= num_queries.

    Returns:
        [num_queries, num_heads, head_dim], in q's dtype.
    """
    # TODO 4: softmax(q @ k / sqrt(head_dim)) @ v, without the future, each KV head serving its group of query heads
    group = q.shape[1] // k.shape[1]
    folded = (q.float() * q.shape[2] ** -0.5).unflatten(1, (k.shape[1], group))  # [queries, kv heads, group, dim]
    scores = torch.einsum("qhgd,khd->hgqk", folded, k.float())
    mask = torch.full((len(q), len(k)), float("-inf"), device=q.device).triu(len(k) - len(q) + 1)
    weights = torch.softmax(scores + mask, dim=-1).to(q.dtype)
    return torch.einsum("hgqk,khd->qhgd", weights, v).reshape(q.shape)


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
        # TODO 3: project x, cut the rows into heads, normalise the heads of q and k, then turn them
        def cut(projected):
            return torch.stack(projected.split(self.head_dim, dim=-1), dim=1)

        q, k = self.q_norm(cut(self.q_proj(x))), self.k_norm(cut(self.k_proj(x)))
        return self.rotary(q, positions), self.rotary(k, positions), cut(self.v_proj(x))

    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes k and v into `metadata.slot_mapping`."""
        # TODO 4: make the heads, have the core write k and v and then attend, and bring the heads together with o_proj
        num_tokens = x.shape[0]
        q, k, v = self.heads(x, positions)
        self.core.write(layer_cache, k, v, metadata.slot_mapping)
        joined = self.core.forward(q, layer_cache, metadata).contiguous().view(num_tokens, self.num_heads * self.head_dim)
        return self.o_proj(joined)


class Qwen3ForCausalLM(nn.Module):
    def last_logits(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """Logits after the last token of each request: [num_requests, vocab_size].

        The requests' tokens lie one after the other, `metadata.query_lens[i]` of request i; rows after
        the last request's are padding. Only the rows that are returned pass through the head.
        """
        # TODO 6: run the network, then compute logits of each request's last row, and of no other
        hidden = self.forward(token_ids, positions, cache, metadata)
        rows, end = [], 0
        for length in metadata.query_lens:
            end += length
            rows.append(end - 1)
        return self.compute_logits(hidden[rows])


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
