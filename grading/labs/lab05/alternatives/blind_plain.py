"""Lab 05, built differently: plain loops; a list of the new tokens beside the text, and the pending tokens with their start."""

import argparse
import statistics
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
    """The keys and values of one sequence, in memory that is set aside once.

    Args:
        config: of the network.
        max_tokens: how many tokens it holds.
        dtype: of the keys and values.
    """

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


def arithmetic_intensity(cost: Cost) -> float:
    """How many floating-point operations there are for each byte that is read."""
    return cost.flops / cost.num_bytes


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


def ridge_batch(dtype: torch.dtype, ceilings: Ceilings) -> float:
    """The batch size, not rounded, at which computing with the matrices takes as long as reading them."""
    return ceilings.flops_per_second / ceilings.bytes_per_second * dtype.itemsize / 2


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
