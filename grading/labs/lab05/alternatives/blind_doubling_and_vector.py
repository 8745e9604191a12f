"""Lab 05, built differently: tuples and topk; memory that doubles layer by layer; bytes of a meta tensor; costs from a list of shapes;
the buffer is read by a product with a vector, the matrix product writes to memory made before (out=).
"""

import math


def generate_uncached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The `num_tokens` greedy tokens that follow `prompt`, each from a pass over all tokens so far.

    Nothing is kept between passes. Goes on past an end-of-sequence token.
    """
    def keep_nothing(layer, k, v):
        return k, v

    text = tuple(prompt)
    for _ in range(num_tokens):
        text = (*text, network(list(text), 0, keep_nothing).topk(1).indices.item())
    return list(text[len(prompt):])


class ContiguousCache:
    def __init__(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype) -> None:
        self._config, self._limit, self._dtype = config, max_tokens, dtype
        # per layer: [memory for keys, memory for values, tokens held]; the memory grows by doubling
        self._layers = [[*self._room(min(2, max_tokens)), 0] for _ in range(config.num_hidden_layers)]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k and v, [n, num_key_value_heads, head_dim], behind what `layer` holds already.

        Returns:
            All keys and all values that the layer now holds, [tokens, num_key_value_heads, head_dim]
            each, oldest first, without copying the old ones.

        Raises:
            ValueError: there is no room for n more tokens. Nothing was stored.
        """
        keys, values, held = self._layers[layer]
        n = k.shape[0]
        if n > self._limit - held:
            raise ValueError(f"layer {layer} has room for {self._limit - held} more tokens, not {n}")
        if held + n > len(keys):
            capacity = max(1, len(keys))
            while capacity < held + n:
                capacity *= 2
            more_keys, more_values = self._room(min(capacity, self._limit))
            more_keys[:held].copy_(keys[:held])
            more_values[:held].copy_(values[:held])
            keys, values = more_keys, more_values
        keys.narrow(0, held, n).copy_(k)
        values.narrow(0, held, n).copy_(v)
        self._layers[layer] = [keys, values, held + n]
        return keys.narrow(0, 0, held + n), values.narrow(0, 0, held + n)

    def _room(self, tokens: int) -> tuple[Tensor, Tensor]:
        shape = (tokens, self._config.num_key_value_heads, self._config.head_dim)
        return torch.zeros(shape, dtype=self._dtype), torch.zeros(shape, dtype=self._dtype)


def generate_cached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What `generate_uncached` returns, but the network computes every token once.

    The first pass computes the whole prompt, each further one the newest token.
    """
    if num_tokens == 0:
        return []
    cache = ContiguousCache(network.config, len(prompt) + num_tokens - 1, network.dtype)
    answer = [torch.argmax(network(list(prompt), 0, cache.append)).item()]
    while len(answer) < num_tokens:
        answer.append(torch.argmax(network(answer[-1:], len(prompt) + len(answer) - 1, cache.append)).item())
    return answer


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token, in all layers."""
    one = torch.empty(config.num_hidden_layers, 2, config.num_key_value_heads, config.head_dim, dtype=dtype, device="meta")
    return one.nbytes


def matrices_cost(config: ModelConfig, batch: int, dtype: torch.dtype) -> Cost:
    """A decode step's products with matrices: in every layer q, k, v, o, gate, up and down, and the head.

    Each of the `batch` tokens is multiplied by every matrix, and every matrix is read once.
    """
    h, q, kv = config.hidden_size, config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = [(h, q), (q, h), (h, kv), (h, kv), (h, config.intermediate_size), (h, config.intermediate_size),
             (config.intermediate_size, h)]
    shapes = layer * config.num_hidden_layers + [(h, config.vocab_size)]
    flops = num_bytes = 0
    for rows, columns in shapes:
        flops += batch * rows * columns * 2
        num_bytes += rows * columns * dtype.itemsize
    return Cost(flops=flops, num_bytes=num_bytes)


def attention_cost(config: ModelConfig, batch: int, context: int, dtype: torch.dtype) -> Cost:
    """A decode step's attention: each of `batch` tokens attends to the `context` tokens of its own sequence.

    Counts the two products, query with keys and weights with values, and reading the keys and values.
    """
    per_head = 2 * config.head_dim + 2 * config.head_dim  # with one key, with one value
    flops = sum(batch * context * config.num_attention_heads * per_head for _ in range(config.num_hidden_layers))
    return Cost(flops=flops, num_bytes=kv_bytes_per_token(config, dtype) * context * batch)


def arithmetic_intensity(cost: Cost) -> float:
    """How many floating-point operations there are for each byte that is read."""
    flops, num_bytes = cost
    return flops / num_bytes


def median_seconds(work: Work, repeats: int = 5, clock: Clock = time.perf_counter) -> float:
    """Seconds that one call of `work` takes: the median of `repeats` (an odd number) timed calls.

    One more call goes before them and is not timed. `clock()` is the time in seconds.
    """
    def timed() -> float:
        before = clock()
        work()
        after = clock()
        return after - before

    work()
    return sorted(timed() for _ in range(repeats))[repeats // 2]


def read_bandwidth(num_bytes: int, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """Bytes per second at which torch reads a buffer of at least `num_bytes` from memory.

    `seconds_of(work)` is how long one call of `work` takes.
    """
    rows = max(1, math.ceil(num_bytes / (4 * 1024)))
    buffer, vector = torch.rand(rows, 1024), torch.rand(1024)
    return buffer.nbytes / seconds_of(lambda: torch.mv(buffer, vector))


def matmul_rate(size: int, dtype: torch.dtype, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """Floating-point operations per second of a product of two size × size matrices of `dtype`."""
    left, right = (torch.randn(size, size).to(dtype) for _ in "ab")
    result = torch.empty(size, size, dtype=dtype)
    return 2 * size * size * size / seconds_of(lambda: torch.mm(left, right, out=result))


def predict_step_seconds(
    config: ModelConfig, batch: int, context: int, dtype: torch.dtype, ceilings: Ceilings
) -> float:
    """The least time a decode step can take: that of the matrices plus that of attention.

    Each of the two takes as long as the slower of its two jobs, computing and reading.
    """
    def least(cost: Cost) -> float:
        compute, read = cost.flops / ceilings.flops_per_second, cost.num_bytes / ceilings.bytes_per_second
        return compute if compute > read else read

    return least(attention_cost(config, batch, context, dtype)) + least(matrices_cost(config, batch, dtype))


def ridge_batch(dtype: torch.dtype, ceilings: Ceilings) -> float:
    """The batch size, not rounded, at which computing with the matrices takes as long as reading them."""
    read_a_number = dtype.itemsize / ceilings.bytes_per_second
    use_a_number = 2 / ceilings.flops_per_second
    return read_a_number / use_a_number
