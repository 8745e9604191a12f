"""Lab 05, built differently: plain loops; a list of the new tokens beside the text, and the pending tokens with their start."""


def generate_uncached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The `num_tokens` greedy tokens that follow `prompt`, each from a pass over all tokens so far.

    Nothing is kept between passes. Goes on past an end-of-sequence token.
    """
    tokens = list(prompt)
    new = []
    for _ in range(num_tokens):
        logits = network(tokens, 0, lambda layer, k, v: (k, v))
        best = int(logits.argmax())
        tokens.append(best)
        new.append(best)
    return new


class ContiguousCache:
    def __init__(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, max_tokens, config.num_key_value_heads, config.head_dim)
        self.max_tokens = max_tokens
        self.keys = torch.empty(shape, dtype=dtype)
        self.values = torch.empty(shape, dtype=dtype)
        self.lengths = [0] * config.num_hidden_layers

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k and v, [n, num_key_value_heads, head_dim], behind what `layer` holds already.

        Returns:
            All keys and all values that the layer now holds, [tokens, num_key_value_heads, head_dim]
            each, oldest first, without copying the old ones.

        Raises:
            ValueError: there is no room for n more tokens. Nothing was stored.
        """
        start = self.lengths[layer]
        end = start + len(k)
        if end > self.max_tokens:
            raise ValueError(f"the cache has room for {self.max_tokens} tokens and holds {start}; {len(k)} more do not fit")
        self.keys[layer, start:end] = k
        self.values[layer, start:end] = v
        self.lengths[layer] = end
        return self.keys[layer, :end], self.values[layer, :end]


def generate_cached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What `generate_uncached` returns, but the network computes every token once.

    The first pass computes the whole prompt, each further one the newest token.
    """
    cache = ContiguousCache(network.config, len(prompt) + num_tokens, network.dtype)
    pending, start = list(prompt), 0
    new = []
    for _ in range(num_tokens):
        best = int(network(pending, start, cache.append).argmax())
        start += len(pending)
        pending = [best]
        new.append(best)
    return new


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token, in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def matrices_cost(config: ModelConfig, batch: int, dtype: torch.dtype) -> Cost:
    """A decode step's products with matrices: in every layer q, k, v, o, gate, up and down, and the head.

    Each of the `batch` tokens is multiplied by every matrix, and every matrix is read once.
    """
    q_o = 2 * config.hidden_size * config.num_attention_heads * config.head_dim
    k_v = 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
    mlp = 3 * config.hidden_size * config.intermediate_size
    head = config.hidden_size * config.vocab_size
    numbers = config.num_hidden_layers * (q_o + k_v + mlp) + head
    return Cost(2 * batch * numbers, numbers * dtype.itemsize)


def attention_cost(config: ModelConfig, batch: int, context: int, dtype: torch.dtype) -> Cost:
    """A decode step's attention: each of `batch` tokens attends to the `context` tokens of its own sequence.

    Counts the two products, query with keys and weights with values, and reading the keys and values.
    """
    products = 2 * config.num_attention_heads * config.head_dim * context * config.num_hidden_layers
    return Cost(2 * batch * products, batch * context * kv_bytes_per_token(config, dtype))


def median_seconds(work: Work, repeats: int = 5, clock: Clock = time.perf_counter) -> float:
    """Seconds that one call of `work` takes: the median of `repeats` (an odd number) timed calls.

    One more call goes before them and is not timed. `clock()` is the time in seconds.
    """
    work()
    times = []
    for _ in range(repeats):
        started = clock()
        work()
        times.append(clock() - started)
    return statistics.median(times)


def read_bandwidth(num_bytes: int, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """Bytes per second at which torch reads a buffer of at least `num_bytes` from memory.

    `seconds_of(work)` is how long one call of `work` takes.
    """
    buffer = torch.ones(-(-num_bytes // 4), dtype=torch.float32)
    seconds = seconds_of(lambda: buffer.sum())
    return buffer.numel() * buffer.element_size() / seconds


def matmul_rate(size: int, dtype: torch.dtype, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """Floating-point operations per second of a product of two size × size matrices of `dtype`."""
    a = torch.ones(size, size, dtype=dtype)
    b = torch.ones(size, size, dtype=dtype)
    seconds = seconds_of(lambda: a @ b)
    return 2 * size**3 / seconds


def predict_step_seconds(
    config: ModelConfig, batch: int, context: int, dtype: torch.dtype, ceilings: Ceilings
) -> float:
    """The least time a decode step can take: that of the matrices plus that of attention.

    Each of the two takes as long as the slower of its two jobs, computing and reading.
    """
    total = 0.0
    for cost in (matrices_cost(config, batch, dtype), attention_cost(config, batch, context, dtype)):
        total += max(cost.flops / ceilings.flops_per_second, cost.num_bytes / ceilings.bytes_per_second)
    return total


def measure_throughput(
    prepare: Callable[[int], Work], batches: Sequence[int], seconds_of: Callable[[Work], float] = median_seconds
) -> dict[int, float]:
    """Tokens per second of decoding, for each batch size.

    `prepare(batch)` computes the prompts of that many sequences and returns a function that does one
    decode step of them all. It ends what an earlier call prepared.
    """
    result = {}
    for batch in batches:
        step = prepare(batch)
        result[batch] = batch / seconds_of(step)
    return result
