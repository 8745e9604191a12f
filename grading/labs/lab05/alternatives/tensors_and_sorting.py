"""Lab 05, built differently: one memory for keys and values, filled by index_copy_; tokens as tensors;
costs from lists of matrix shapes; the median by sorting; bandwidth by the largest number of a buffer of float64.
"""


def generate_uncached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Tokens are a tensor that grows; keys and values go through a function that hands them back."""

    def as_they_came(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v

    tokens = torch.tensor(list(prompt))
    while len(tokens) < len(prompt) + num_tokens:
        best = network(tokens, 0, as_they_came).topk(1).indices
        tokens = torch.cat([tokens, best])
    return tokens[len(prompt) :].tolist()


class ContiguousCache:
    def __init__(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype) -> None:
        self.max_tokens = max_tokens
        self.filled: dict[int, int] = {}
        self.memory = torch.empty(
            2, config.num_hidden_layers, max_tokens, config.num_key_value_heads, config.head_dim, dtype=dtype)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Index i of the memory is token i, of keys in the first half and of values in the second."""
        old = self.filled.get(layer, 0)
        count = k.shape[0]
        if count > self.max_tokens - old:
            raise ValueError(f"{count} tokens, and room for {self.max_tokens - old}")
        places = torch.arange(old, old + count)
        self.memory[0, layer].index_copy_(0, places, k)
        self.memory[1, layer].index_copy_(0, places, v)
        self.filled[layer] = old + count
        keys, values = self.memory[:, layer, : old + count].unbind()
        return keys, values


def generate_cached(network: Network, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What is still to be computed is handed from pass to pass."""
    output: list[int] = []
    if num_tokens == 0:
        return output
    cache = ContiguousCache(network.config, len(prompt) + num_tokens - 1, network.dtype)
    pending, position = list(prompt), 0
    while True:
        best = torch.argmax(network(token_ids=pending, start=position, append=cache.append)).item()
        output.append(best)
        if len(output) == num_tokens:
            return output
        position += len(pending)
        pending = [best]


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Asks a cache of one token."""
    one = torch.empty(2, config.num_hidden_layers, config.num_key_value_heads, config.head_dim, dtype=dtype, device="meta")
    return one.nbytes


def matrices_cost(config: ModelConfig, batch: int, dtype: torch.dtype) -> Cost:
    """From the shapes."""
    hidden = config.hidden_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q)]
    layer += [(config.intermediate_size, hidden), (config.intermediate_size, hidden), (hidden, config.intermediate_size)]
    matrices = layer * config.num_hidden_layers + [(config.vocab_size, hidden)]
    flops = num_bytes = 0
    for outputs, inputs in matrices:
        flops += batch * outputs * (inputs + inputs)  # a multiplication and an addition for each input
        num_bytes += outputs * inputs * dtype.itemsize
    return Cost(flops, num_bytes)


def attention_cost(config: ModelConfig, batch: int, context: int, dtype: torch.dtype) -> Cost:
    """From one head of one layer of one sequence."""
    head = 2 * context * config.head_dim + 2 * context * config.head_dim
    sequences = batch * kv_bytes_per_token(config, dtype)
    return Cost(head * config.num_attention_heads * config.num_hidden_layers * batch, sequences * context)


def median_seconds(work: Work, repeats: int = 7, clock: Clock = time.perf_counter) -> float:
    """The middle one of the sorted times; one reading of the clock serves two calls."""
    work()
    times = [clock()]
    for _ in range(repeats):
        work()
        times.append(clock())
    return sorted(b - a for a, b in zip(times, times[1:]))[repeats // 2]


def read_bandwidth(num_bytes: int, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """The largest of float64 numbers."""
    numbers = torch.linspace(0, 1, num_bytes // 8 + 1, dtype=torch.float64)

    def read() -> Tensor:
        return numbers.max()

    return numbers.numel() * numbers.element_size() / seconds_of(read)


def matmul_rate(size: int, dtype: torch.dtype, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """The result has memory of its own from the beginning."""
    a, b, c = (torch.full((size, size), 0.5, dtype=dtype) for _ in range(3))
    seconds = seconds_of(lambda: torch.mm(a, b, out=c))
    return size * size * (size + size) / seconds


def predict_step_seconds(
    config: ModelConfig, batch: int, context: int, dtype: torch.dtype, ceilings: Ceilings
) -> float:
    """By comparing intensities: below the machine's, reading decides."""
    balance = ceilings.flops_per_second / ceilings.bytes_per_second
    seconds = 0.0
    for cost in (matrices_cost(config, batch, dtype), attention_cost(config, batch, context, dtype)):
        if arithmetic_intensity(cost) < balance:
            seconds += cost.num_bytes / ceilings.bytes_per_second
        else:
            seconds += cost.flops / ceilings.flops_per_second
    return seconds


def ridge_batch(dtype: torch.dtype, ceilings: Ceilings) -> float:
    """A number of a matrix takes itemsize / bandwidth to read, and 2 / rate to use for one sequence."""
    return (dtype.itemsize / ceilings.bytes_per_second) / (2 / ceilings.flops_per_second)


def measure_throughput(
    prepare: Callable[[int], Work], batches: Sequence[int], seconds_of: Callable[[Work], float] = median_seconds
) -> dict[int, float]:
    """A loop."""
    rates = {}
    for batch in batches:
        step = prepare(batch)
        rates[batch] = batch / seconds_of(step)
    return rates
