"""Lab 05, built differently: one memory for keys and values, filled by index_copy_; tokens as tensors;
costs from lists of matrix shapes; the median by sorting; bandwidth by the largest number of a buffer of float64.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from labs.harness.todo import run_lab
from labs.lab05_kv_cache_and_roofline import machine
from labs.lab05_kv_cache_and_roofline.drawing import Curves, draw_in_terminal, write_svg
from labs.lab05_kv_cache_and_roofline.network import Network, threads
from nano_qwen3_serving.config import ModelConfig

PROMPT = "What is a KV cache?"
NEW_TOKENS = 32
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 16  # tokens of each sequence when its decode step is measured
MATMUL_SIZE = 2048
QWEN3_06B = ModelConfig(
    vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960)

Clock = Callable[[], float]
Work = Callable[[], object]
"""Something to be timed: called without arguments, its result is dropped."""


class Cost(NamedTuple):
    """What a piece of work computes, and what it reads from memory."""

    flops: int
    num_bytes: int


class Ceilings(NamedTuple):
    """What a machine does at best."""

    bytes_per_second: float
    flops_per_second: float


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
    """The keys and values of one sequence, in memory that is set aside once.

    Args:
        config: of the network.
        max_tokens: how many tokens it holds.
        dtype: of the keys and values.
    """

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


def arithmetic_intensity(cost: Cost) -> float:
    """How many floating-point operations there are for each byte that is read."""
    return cost.flops / cost.num_bytes


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


def main(
    cache: machine.CacheSize | None = None, batches: Sequence[int] = BATCHES, matmul_size: int = MATMUL_SIZE,
    num_threads: int = 1, folder: Path | None = None, svg: Path | None = None,
) -> None:
    """Generate both ways, predict, measure, compare.

    Args:
        cache: the last-level cache; None asks the system.
        batches: sizes to measure.
        matmul_size: of the product that is timed.
        num_threads: that torch measures with. One is disturbed least by other programs.
        folder: where the generated checkpoint stands while it is needed.
        svg: a file for the picture.
    """
    print("=== KV cache and roofline ===\n")
    with threads(1):
        show_generation()
    show_costs()
    cache = cache or machine.last_level_cache()
    dtype = machine.fast_dtype()
    print(f"Measuring this machine, {num_threads} thread{'s' * (num_threads > 1)}...")
    with threads(num_threads):
        ceilings = show_ceilings(cache, dtype, matmul_size)
        show_curve(cache, dtype, ceilings, batches, folder, svg)


def show_generation() -> None:
    """Print an answer of the course's model, and what it took without and with a cache."""
    network = Network("course")
    prompt = network.tokenizer.encode(PROMPT)
    print(f"Prompt: {PROMPT} ({len(prompt)} tokens)")
    answers = []
    for name, generate in (("without a cache", generate_uncached), ("with a cache", generate_cached)):
        watched = Watched(network)
        started = time.perf_counter()
        answers.append(generate(watched, prompt, NEW_TOKENS))
        seconds = time.perf_counter() - started
        if len(answers) == 1:
            print(f"Generated: {network.tokenizer.decode(answers[0]).strip()}")
        print(f"{name:>15}: {NEW_TOKENS} tokens, for which {watched.computed} were computed, in {seconds:.2f} seconds")
    print(f"Both gave the same tokens: {'yes' if answers[0] == answers[1] else 'no'}\n")


class Watched:
    """The network, and how many tokens it was given."""

    def __init__(self, network: Network) -> None:
        self.config, self.dtype, self._network, self.computed = network.config, network.dtype, network, 0

    def __call__(self, token_ids: Sequence[int], start: int, append: Callable) -> Tensor:
        self.computed += len(token_ids)
        return self._network(token_ids, start, append)


def show_costs() -> None:
    """Print the predictions for Qwen3-0.6B, which need no measurement."""
    dtype, context = torch.bfloat16, 1024
    token = kv_bytes_per_token(QWEN3_06B, dtype)
    print(f"Qwen3-0.6B in bfloat16: a token's keys and values are {token:,} bytes; "
          f"1 GiB holds {(1 << 30) // token:,} tokens")
    print(f"One decode step, {context} tokens of context each:")
    for batch in (1, 16, 256):
        matrices, attention = matrices_cost(QWEN3_06B, batch, dtype), attention_cost(QWEN3_06B, batch, context, dtype)
        print(f"  batch {batch:3}: "
              f"matrices {matrices.flops / 1e9:6.2f} GFLOP, {matrices.num_bytes / 1e9:5.2f} GB, "
              f"{arithmetic_intensity(matrices):6.2f} FLOP a byte; "
              f"attention {attention.flops / 1e9:6.2f} GFLOP, {attention.num_bytes / 1e9:5.2f} GB, "
              f"{arithmetic_intensity(attention):5.2f} FLOP a byte")
    print()


def show_ceilings(cache: machine.CacheSize, dtype: torch.dtype, matmul_size: int) -> Ceilings:
    """Measure what this machine does at best, and print it."""
    print(f"Cache size from: {cache.source}; computing in {str(dtype).removeprefix('torch.')}", file=sys.stderr)
    buffer = machine.TIMES_THE_CACHE * cache.num_bytes
    ceilings = Ceilings(read_bandwidth(buffer), matmul_rate(matmul_size, dtype))
    print(f"Last-level cache: {cache.num_bytes / 2**20:.1f} MiB; a buffer of {buffer / 2**20:.1f} MiB is read "
          f"at {ceilings.bytes_per_second / 1e9:.1f} GB/s")
    print(f"Matrix products: {ceilings.flops_per_second / 1e9:.1f} GFLOP/s")
    print(f"The ridge: matrices take as long to read as to compute with at batch {ridge_batch(dtype, ceilings):.1f}\n")
    return ceilings


def show_curve(
    cache: machine.CacheSize, dtype: torch.dtype, ceilings: Ceilings, batches: Sequence[int],
    folder: Path | None, svg: Path | None,
) -> None:
    """Measure the engine's decode step for every batch size, and print it beside the prediction."""
    shape = machine.shape_beyond(cache.num_bytes, dtype)
    with machine.generated_checkpoint(shape, dtype, folder) as checkpoint:
        bench = machine.DecodeBench(checkpoint, dtype, CONTEXT, max(batches))
        measured = measure_throughput(bench.prepare, batches)
        bench.close()
    config = bench.config
    predicted = {b: b / predict_step_seconds(config, b, CONTEXT, dtype, ceilings) for b in batches}
    weights = matrices_cost(config, 1, dtype).num_bytes
    print(f"Decoding with a generated model: matrices of {weights / 2**20:.1f} MiB, "
          f"{weights / cache.num_bytes:.1f} times the cache")
    for batch in batches:
        step = batch / measured[batch]
        cost = matrices_cost(config, batch, dtype)
        print(f"  batch {batch:2}: at most {predicted[batch]:.1f} tokens/s, measured {measured[batch]:.1f} "
              f"({measured[batch] / predicted[batch]:.2f} of it): matrices read at {cost.num_bytes / step / 1e9:.1f} GB/s, "
              f"computed with at {cost.flops / step / 1e9:.1f} GFLOP/s")
    show_reasons(bench, batches, measured)
    curves = Curves(predicted, measured, ridge_batch(dtype, ceilings))
    warn_of_ceilings(curves)
    if sys.stdout.isatty():
        draw_in_terminal(curves)
    if svg:
        write_svg(curves, svg)


def show_reasons(bench: machine.DecodeBench, batches: Sequence[int], measured: dict[int, float]) -> None:
    """Print why the measured curve lies below the predicted one."""
    first, last = batches[0], batches[-1]
    gain = measured[last] / measured[first]
    print(f"From batch {first} to {last}: {gain:.1f} times the tokens, in {last / first / gain:.1f} times the time a step")
    print("Outside the network (scheduling, text): "
          f"{bench.share_outside_the_network(first):.2f} of a step at batch {first}, "
          f"{bench.share_outside_the_network(last):.2f} at batch {last}")
    print("What else a share below 1.00 is made of: few rows use the arithmetic units worse than the large square product")
    print("did, norms and activations are not counted, and near the ridge reading and computing do not overlap fully.")


def warn_of_ceilings(curves: Curves) -> None:
    """Say so on the error stream if no machine is so: faster than its ceilings, or its ridge far from all others'."""
    share = max(curves.measured[batch] / curves.predicted[batch] for batch in curves.measured)
    if share > 1.1 or not 1 <= curves.ridge <= 1000:
        print(f"A ceiling was mismeasured: the best measured step reaches {share:.2f} of what is possible, and the ridge is\n"
              f"at batch {curves.ridge:.3g} (1 to 1000 is usual). If the machine was busy, run it again. If that changes\n"
              "nothing, look at read_bandwidth: was the buffer filled before, and does the reduction cost less than reading?",
              file=sys.stderr)


def positive(text: str) -> int:
    """A number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, not {text!r}")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="KV cache and roofline, on this machine.")
    parser.add_argument("--threads", type=positive, default=1, help="that torch measures with; default 1")
    parser.add_argument("--folder", type=Path, help="where the generated checkpoint stands while it is needed")
    parser.add_argument("--svg", type=Path, help="write the picture to this file")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    run_lab(lambda: main(num_threads=arguments.threads, folder=arguments.folder, svg=arguments.svg))
