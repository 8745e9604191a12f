"""Bytes are asked of tensors on the device meta; memory begins as NaN; means in place of sums, einsum in place of @."""

import bisect


def generate_uncached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The text is made anew for each pass."""
    new: list[int] = []
    while len(new) < num_tokens:
        logits = network([*prompt, *new], start=0, append=lambda layer, k, v: (k.clone(), v.clone()))
        new += logits.topk(1).indices.tolist()
    return new


class ContiguousCache:
    def __init__(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype) -> None:
        shape = (max_tokens, config.num_key_value_heads, config.head_dim)
        self.memory = [(torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype))
                       for _ in range(config.num_hidden_layers)]
        self.rest = [max_tokens for _ in range(config.num_hidden_layers)]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`rest` is the room that is left."""
        if len(k) > self.rest[layer]:
            raise ValueError(f"room for {self.rest[layer]} more tokens, not {len(k)}")
        keys, values = self.memory[layer]
        start = len(keys) - self.rest[layer]
        self.rest[layer] -= len(k)
        keys.narrow(0, start, len(k))[:] = k.to(keys.dtype)
        values.narrow(0, start, len(v))[:] = v.to(values.dtype)
        return keys.narrow(0, 0, start + len(k)), values.narrow(0, 0, start + len(k))


def generate_cached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """A cache with no token of room too many."""
    new: list[int] = []
    cache = ContiguousCache(network.config, max(len(prompt) + num_tokens - 1, 0), network.dtype)
    for i in range(num_tokens):
        tokens, start = (list(prompt), 0) if i == 0 else (new[-1:], len(prompt) + i - 1)
        new += network(tokens, start, cache.append).topk(1).indices.tolist()
    return new


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """A tensor on the device meta has a size and no memory."""
    return torch.empty(
        2, config.num_hidden_layers, config.num_key_value_heads, config.head_dim, dtype=dtype, device="meta").nbytes


def matrices_cost(config: ModelConfig, batch: int, dtype: torch.dtype) -> Cost:
    """Matrix by matrix, each a tensor on the device meta."""
    hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
    key, mlp = config.num_key_value_heads * config.head_dim, config.intermediate_size
    layer = [(hidden, query), (query, hidden), (hidden, key), (hidden, key), (hidden, mlp), (hidden, mlp), (mlp, hidden)]
    matrices = [torch.empty(shape, dtype=dtype, device="meta")
                for shape in [*layer * config.num_hidden_layers, (hidden, config.vocab_size)]]
    return Cost(sum(2 * batch * matrix.numel() for matrix in matrices), sum(matrix.nbytes for matrix in matrices))


def median_seconds(work: Work, repeats: int = 5, clock: Clock = time.perf_counter) -> float:
    """The times are put in order while they come."""
    times: list[float] = []
    for call in range(repeats + 1):
        before = clock()
        work()
        took = clock() - before
        if call:
            bisect.insort(times, took)
    return times[len(times) // 2]


def read_bandwidth(num_bytes: int, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """The mean of float64 numbers."""
    buffer = torch.rand(num_bytes // 8 + 1, dtype=torch.float64)
    return buffer.nbytes / seconds_of(lambda: buffer.mean())


def matmul_rate(size: int, dtype: torch.dtype, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """einsum comes to a product of matrices."""
    a, b = torch.full((2, size, size), 0.25, dtype=dtype)
    return 2 * size**3 / seconds_of(lambda: torch.einsum("ij,jk->ik", a, b))


def ridge_batch(dtype: torch.dtype, ceilings: Ceilings) -> float:
    """The seconds to read a number, by the seconds of a multiplication and an addition."""
    return (dtype.itemsize / ceilings.bytes_per_second) / (2 / ceilings.flops_per_second)
