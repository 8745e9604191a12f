"""Lab 05, built differently: the cache's memory doubles when it is full, up to its limit, heads first;
the costs come from one small function per matrix; bandwidth from pieces of a buffer, one sum each.
"""

import itertools


def generate_uncached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Recursion: one token, then the others after a longer prompt."""
    if num_tokens == 0:
        return []
    best = max(enumerate(network(prompt, 0, lambda layer, k, v: (k, v)).tolist()), key=lambda pair: pair[1])[0]
    return [best, *generate_uncached(network, [*prompt, best], num_tokens - 1)]


class ContiguousCache:
    def __init__(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype) -> None:
        self._limit = max_tokens
        self._layers = [[0, torch.empty(2, config.num_key_value_heads, 1, config.head_dim, dtype=dtype)]
                        for _ in range(config.num_hidden_layers)]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Each copy of the old tokens doubles the room, so all copies together are at most two of every token."""
        old, memory = self._layers[layer]
        new = old + len(k)
        if new > self._limit:
            raise ValueError(f"limit {self._limit}, asked to hold {new}")
        if new > memory.shape[2]:
            larger = memory.new_empty(2, memory.shape[1], max(new, 2 * memory.shape[2]), memory.shape[3])
            larger[:, :, :old] = memory[:, :, :old]
            memory = larger
        for half, tokens in zip(memory, (k, v)):
            half[:, old:new] = tokens.transpose(0, 1)
        self._layers[layer] = [new, memory]
        keys, values = memory[:, :, :new].transpose(1, 2)
        return keys, values


def generate_cached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """A generator of tokens, of which the first num_tokens are taken."""

    def tokens():
        cache = ContiguousCache(network.config, 1_000_000, network.dtype)
        logits = network(prompt, 0, cache.append)
        for position in itertools.count(len(prompt)):
            best = int(torch.argmax(logits, dim=-1))
            yield best
            logits = network((best,), position, cache.append)

    return list(itertools.islice(tokens(), num_tokens))


def matrices_cost(config: ModelConfig, batch: int, dtype: torch.dtype) -> Cost:
    """Numbers of a layer by what they are for."""
    attention = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    per_layer = config.hidden_size * (attention + 3 * config.intermediate_size)
    weights = sum([per_layer] * config.num_hidden_layers, config.hidden_size * config.vocab_size)
    one = Cost(2 * weights, weights * torch.empty(0, dtype=dtype).element_size())
    return one._replace(flops=batch * one.flops)


def read_bandwidth(num_bytes: int, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """Piece by piece."""
    pieces = torch.zeros(num_bytes + 1 >> 1, dtype=torch.bfloat16).split(1 << 18)

    def read() -> None:
        for piece in pieces:
            piece.sum()

    seconds = seconds_of(read)
    return sum(piece.nbytes for piece in pieces) / seconds


def ridge_batch(dtype: torch.dtype, ceilings: Ceilings) -> float:
    """A batch of one is so many times below the machine's intensity; intensity grows as the batch does."""
    of_one = arithmetic_intensity(matrices_cost(QWEN3_06B, 1, dtype))
    return ceilings.flops_per_second / ceilings.bytes_per_second / of_one
