"""Lab 05, built differently: one memory, heads first, returned as transposed views; two halves of a buffer read by their dot product;
F.linear; the median of a tensor.
"""


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
        # head-major, keys and values in one tensor: [layers, 2, kv heads, tokens, head_dim]
        self.memory = torch.zeros(
            config.num_hidden_layers, 2, config.num_key_value_heads, max_tokens, config.head_dim, dtype=dtype)
        self.held = torch.zeros(config.num_hidden_layers, dtype=torch.long)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k and v, [n, num_key_value_heads, head_dim], behind what `layer` holds already.

        Returns:
            All keys and all values that the layer now holds, [tokens, num_key_value_heads, head_dim]
            each, oldest first, without copying the old ones.

        Raises:
            ValueError: there is no room for n more tokens. Nothing was stored.
        """
        n, held = k.size(0), int(self.held[layer])
        room = self.memory.size(3) - held
        if room < n:
            raise ValueError(f"{n} tokens, room for {room}")
        mine = self.memory[layer].transpose(1, 2)  # [2, tokens, kv heads, head_dim]
        mine[0, held : held + n].copy_(k)
        mine[1, held : held + n].copy_(v)
        self.held[layer] += n
        keys, values = mine[:, : held + n]
        return keys, values


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
    times = torch.empty(repeats, dtype=torch.float64)
    for i in range(repeats):
        start = clock()
        work()
        times[i] = clock() - start
    return times.median().item()


def read_bandwidth(num_bytes: int, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """Bytes per second at which torch reads a buffer of at least `num_bytes` from memory.

    `seconds_of(work)` is how long one call of `work` takes.
    """
    half = -(-num_bytes // 16)
    buffer = torch.full((2 * half,), 0.5, dtype=torch.float64)
    first, second = buffer[:half], buffer[half:]
    return 8 * len(buffer) / seconds_of(lambda: first.dot(second))


def matmul_rate(size: int, dtype: torch.dtype, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """Floating-point operations per second of a product of two size × size matrices of `dtype`."""
    a, b = torch.eye(size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    return 2 * size**3 / seconds_of(lambda: torch.nn.functional.linear(a, b))


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
