"""Lab 03 in loops over heads and queries: slow, with nothing hidden in broadcasting.
"""


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → [..., size]: x / sqrt(mean of x² + eps) * weight, in x's dtype.

        The root is computed in float32, whatever the dtype of x.
        """
        # TODO 1: divide each row by its root mean square, computed in float32, and multiply by the weight
        rows = x.reshape(-1, x.shape[-1]).float()
        rows = torch.stack([row / ((row @ row) / len(row) + self.eps) ** 0.5 for row in rows])
        return (rows * self.weight).to(x.dtype).view(x.shape)


class RotaryEmbedding(nn.Module):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, head_dim], positions [num_tokens] of int64 → x turned, in its dtype.

        The pair (x[i], x[i + head_dim / 2]) turns by position * theta ** (-2 * i / head_dim).
        """
        # TODO 2: turn the pair (i, i + head_dim / 2) of every head by its token's angle
        half = self.head_dim // 2
        out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        for i in range(half):
            angle = positions.double() * self.theta ** (-2 * i / self.head_dim)
            cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
            out[:, :, i] = x[:, :, i] * cos - x[:, :, i + half] * sin
            out[:, :, i + half] = x[:, :, i + half] * cos + x[:, :, i] * sin
        return out.to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query attends to the keys of its own token and of all tokens before it.

    Args:
        q: [num_queries, num_heads, head_dim], of the last `num_queries` tokens.
        k, v: [num_keys, num_kv_heads, head_dim], of all tokens so far; num_keys >= num_queries.

    Returns:
        [num_queries, num_heads, head_dim], in q's dtype.
    """
    # TODO 4: softmax(q @ k / sqrt(head_dim)) @ v, without the future, each KV head serving its group of query heads
    out, group = torch.empty_like(q), q.shape[1] // k.shape[1]
    for i in range(len(q)):
        seen = len(k) - len(q) + i + 1
        for head in range(q.shape[1]):
            scores = k[:seen, head // group].float() @ q[i, head].float() / q.shape[2] ** 0.5
            out[i, head] = (scores.softmax(dim=0) @ v[:seen, head // group].float()).to(q.dtype)
    return out


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


class DecoderLayer(nn.Module):
    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]: h = x + attention(norm(x)); h + mlp(norm(h))"""
        # TODO 5: add what attention makes of the normalised x, then what the MLP makes of the normalised sum
        x = x + self.self_attn(self.input_layernorm(x), positions, layer_cache, metadata)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Qwen3ForCausalLM(nn.Module):
    def last_logits(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """Logits after the last token of each request: [num_requests, vocab_size].

        The requests' tokens lie one after the other, `metadata.query_lens[i]` of request i; rows after
        the last request's are padding. Only the rows that are returned pass through the head.
        """
        # TODO 6: run the network, then compute logits of each request's last row, and of no other
        hidden = self(token_ids, positions, cache, metadata)
        logits, end = [], 0
        for length in metadata.query_lens:
            end += length
            logits.append(self.compute_logits(hidden[end - 1 : end]))
        return torch.cat(logits)


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
