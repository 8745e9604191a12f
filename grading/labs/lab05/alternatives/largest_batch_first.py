"""The largest batch is measured first, so the dict has its keys in another order, and one more step of each goes before
those that are timed. One memory with the tokens first, so what comes back has gaps; keys of another dtype are refused;
passes without a cache have a new one each.
"""


def generate_uncached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Each pass has a cache of its own, which is thrown away."""
    text = tuple(prompt)
    for _ in range(num_tokens):
        of_this_pass = ContiguousCache(network.config, len(text), network.dtype)
        text += (network(list(text), 0, of_this_pass.append).max(0).indices.item(),)
    return list(text[len(prompt) :])


class ContiguousCache:
    def __init__(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype) -> None:
        heads = config.num_key_value_heads, config.head_dim
        self._memory = torch.full((max_tokens, 2, config.num_hidden_layers, *heads), torch.nan, dtype=dtype)
        self._counts = [0 for _ in range(config.num_hidden_layers)]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens are the first dimension, so a layer's keys are not side by side."""
        if {k.dtype, v.dtype} != {self._memory.dtype}:
            raise TypeError(f"a cache of {self._memory.dtype} was given {k.dtype} and {v.dtype}")
        free = self._memory[self._counts[layer] :, :, layer]
        if len(free) < len(k):
            raise ValueError(f"there is room for {len(free)} more tokens, and {len(k)} came")
        free[: len(k), 0].copy_(k)
        free[: len(v), 1].copy_(v)
        self._counts[layer] += len(k)
        keys, values = self._memory[: self._counts[layer], :, layer].unbind(1)
        return keys, values


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """A key or a value of one layer, for both and for all layers."""
    one = torch.zeros(config.num_key_value_heads, config.head_dim, dtype=dtype)
    return sum(one.nbytes for _ in range(config.num_hidden_layers) for _ in ("key", "value"))


def median_seconds(work: Work, repeats: int = 5, clock: Clock = time.perf_counter) -> float:
    """The clock is taken off before each call and added after it."""
    times: list[float] = []
    work()
    while len(times) < repeats:
        times.append(-clock())
        work()
        times[-1] += clock()
    return statistics.median_low(times)


def read_bandwidth(num_bytes: int, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """Whole pages of float16; what the memory has is counted."""
    buffer = torch.rand(-(-num_bytes // 4096) * 1024).to(torch.float16).repeat(2)
    return buffer.untyped_storage().nbytes() / seconds_of(buffer.max)


def predict_step_seconds(
    config: ModelConfig, batch: int, context: int, dtype: torch.dtype, ceilings: Ceilings
) -> float:
    """Attention first, then the matrices."""
    seconds = 0.0
    for cost in (attention_cost(config, batch, context, dtype), matrices_cost(config, batch, dtype)):
        seconds += max(cost.num_bytes / ceilings.bytes_per_second, cost.flops / ceilings.flops_per_second)
    return seconds


def measure_throughput(
    prepare: Callable[[int], Work], batches: Sequence[int], seconds_of: Callable[[Work], float] = median_seconds
) -> dict[int, float]:
    """From the largest batch down; a step goes before those that are timed."""
    rates: dict[int, float] = {}
    for batch in sorted(set(batches), reverse=True):
        step = prepare(batch)
        step()
        rates[batch] = 1 / (seconds_of(step) / batch)
    return rates
