"""Memory that doubles from room for 3 tokens; reductions and products into a place that was made before (out=)."""


class ContiguousCache:
    def __init__(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype) -> None:
        self._limit, self._shape, self._dtype = max_tokens, (config.num_key_value_heads, config.head_dim), dtype
        self._layers = [(torch.zeros(3, *self._shape, dtype=dtype), torch.zeros(3, *self._shape, dtype=dtype), 0)
                        for _ in range(config.num_hidden_layers)]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The room of a layer begins with 3 tokens and doubles when it is full."""
        keys, values, start = self._layers[layer]
        end = start + len(k)
        if end > self._limit:
            raise ValueError(f"{end} tokens, and there is room for {self._limit}")
        while end > len(keys):
            keys, values = (torch.cat([old, torch.zeros_like(old)]) for old in (keys, values))
        keys[start:end].copy_(k)
        values[start:end].copy_(v)
        self._layers[layer] = keys, values, end
        return keys[:end], values[:end]


def read_bandwidth(num_bytes: int, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """The sum of each row goes to a place made before."""
    rows = -(-num_bytes // (4 * 4096))
    buffer, sums = torch.full((rows, 4096), 0.5), torch.zeros(rows)
    return buffer.nbytes / seconds_of(lambda: torch.sum(buffer, dim=1, out=sums))


def matmul_rate(size: int, dtype: torch.dtype, seconds_of: Callable[[Work], float] = median_seconds) -> float:
    """The product goes to a place made before."""
    a, b, c = (torch.ones(size, size, dtype=dtype) for _ in range(3))
    return 2 * size**3 / seconds_of(lambda: torch.mm(a, b, out=c))
