"""*My engine*: its speed and waste, beside the reference, the naive way and the ceiling.

Measured on a model that does not fit into the processor's cache, so that every step has to read its
weights from memory: only then do batches pay as they do on real models. Weights are random, because
speed does not depend on their values. Pages are `report_page.py`'s.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.harness.mixed_engine.ceilings import Ceilings, measure
from labs.harness.mixed_engine.parts import Engine
from labs.harness.mixed_engine.verdict import Remembering, Verdict, judged
from nano_qwen3_serving.bench import WORKLOADS, Workload, run_workload
from nano_qwen3_serving.ceilings import CacheSize, last_level_cache
from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.engine.arg_utils import num_parameters
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.observe.host import host
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import SamplingParams

MEASURED = {
    "one request": Workload(1, (32, 32), (32, 32)),
    "eight at once": Workload(8, (16, 48), (32, 32)),
}
REPEATS = 3
NAIVE_SECONDS = 15
"""Seconds after which the naive way starts no further request."""
CACHES = 4
"""How many times the largest cache the weights are."""
ENGINE_ARGS: dict[str, Any] = {
    "device": "cpu", "dtype": "float32", "max_model_len": 256, "max_num_seqs": 8, "enable_prefix_caching": False}

HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 1024, 3072, 16, 8, 64, 2048


@dataclass(frozen=True)
class Figures:
    """The figures of one engine under one workload; None for a figure that does not exist."""

    tokens_per_second: float
    ttft: float | None
    """Seconds to the first token, median of the requests; None if not all of them were run."""
    itl: float
    """Seconds between two tokens, median of the requests' means."""
    waste: float | None
    """Share of the held KV slots that keep no token, over all steps."""
    spread: tuple[float, float] | None = None
    """Least and most tokens per second of the runs; None if there was a single run."""


@dataclass(frozen=True)
class EngineReport:
    """The measurements, the machine and model, and the parts."""

    parts: list[str]
    figures: dict[str, dict[str, Figures]]
    """Workload → column (yours, reference, naive, ceiling) → figures."""
    workloads: dict[str, Workload]
    model: str
    weight_bytes: int
    cache: CacheSize
    ceilings: Ceilings
    repeats: int
    seed: int
    host: dict[str, Any]
    verdict: Verdict
    shares: list[tuple[str, float]]
    """Field of `Components` → the share of the learner's engine's time that its part took."""


def make_report(
    engine: Engine, *, model: Path | None = None, size: int | None = None, seed: int = 0,
    say: Callable[[str], object] = print, workloads: dict[str, Workload] = MEASURED, repeats: int = REPEATS,
) -> EngineReport:
    """Measures `engine`, the reference and the naive way, in turns; about a minute by default.

    Args:
        model: a checkpoint's folder; None makes one of `size` MB, by default 4 times the largest cache.
        say: called with a line about each phase.
    """
    cache = last_level_cache()
    target = size * 10**6 if size else CACHES * cache.num_bytes
    with checkpoint(model, target, seed, say) as (folder, name):
        ceilings = [measure()]
        recorders = {"yours": Recorder(), "reference": Recorder()}
        if not engine.parts:
            del recorders["yours"]
        llms = {
            who: Remembering(
                str(folder), recorder=recorder, components=engine.components if who == "yours" else None, **ENGINE_ARGS)
            for who, recorder in recorders.items()}
        config = llms["reference"].llm_engine.config
        figures: dict[str, dict[str, Figures]] = {}
        verdict, seconds = Verdict(), 0.0
        engine.watch.seconds.clear()
        for title, workload in workloads.items():
            say(f"Measuring {title}: {', '.join(llms)}, naive")
            figures[title] = {}
            for who, llm in llms.items():
                began = time.perf_counter()
                figures[title][who] = measured(llm, recorders[who], workload, seed, repeats)
                seconds += (time.perf_counter() - began) * (who == "yours")
            if "yours" in llms and verdict.is_right:
                verdict = judged(engine, llms["yours"], llms["reference"])
            steps = steps_of(llms["reference"], recorders["reference"], workload, seed)
            figures[title]["naive"] = naive(llms["reference"], workload, seed, reserved_waste(steps, config))
            ceilings.append(measure())
        best = Ceilings(max(c.bytes_per_second for c in ceilings), max(c.flops_per_second for c in ceilings))
        for title, workload in workloads.items():
            figures[title]["ceiling"] = ceiling(best, config, workload, seed)
        weights = num_parameters(config.model) * config.dtype.itemsize
    shares = [(field, spent / seconds) for field, spent in engine.watch.seconds.items()]
    return EngineReport(
        engine.in_words(), figures, workloads, name, weights, cache, best, repeats, seed, host(), verdict, shares)


@contextmanager
def checkpoint(model: Path | None, target: int, seed: int, say: Callable[[str], object]) -> Iterator[tuple[Path, str]]:
    """The folder of the model to measure on, and its description; a generated model is deleted afterwards."""
    if model is not None:
        yield model, model.name
        return
    from nano_qwen3_serving.testing.checkpoints import Shape, write_random_checkpoint

    per_layer = 4 * HIDDEN * (2 * HEADS * HEAD_DIM + 2 * KV_HEADS * HEAD_DIM + 3 * MLP)
    layers = max(1, -(-(target - 4 * VOCABULARY * HIDDEN) // per_layer))
    shape = Shape(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)
    size = layers * per_layer + 4 * VOCABULARY * HIDDEN
    layers_in_words = f"{layers} layer{'s' * (layers > 1)}"
    say(f"Making a model of {layers_in_words} with random weights, {size / 1e6:.0f} MB (one layer at least)")
    with tempfile.TemporaryDirectory(prefix="my-engine-") as folder:
        yield write_random_checkpoint(Path(folder), shape, seed=seed), f"{layers} layers, random weights"


def measured(llm: LLM, recorder: Recorder, workload: Workload, seed: int, repeats: int) -> Figures:
    """Medians of `repeats` runs after a warm-up."""
    run_workload(llm, WORKLOADS["quick"], seed)
    recorder.steps.clear()
    runs = [run_workload(llm, workload, seed) for _ in range(repeats)]
    size = llm.llm_engine.config.cache.block_size
    held = [size * sum(map(len, step["block_tables"].values())) for step in recorder.steps]
    rates = [run["output_tokens_per_second"] for run in runs]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return Figures(
        medians["output_tokens_per_second"], medians["ttft_median"], medians["itl_median"], waste(recorder.steps, held),
        (min(rates), max(rates)))


def waste(steps: Sequence[dict[str, Any]], held: Sequence[int]) -> float:
    """The share of `held` slots, a number for each step, that keep no token of the step's requests."""
    used = sum(chunk["start"] + chunk["num_tokens"] for step in steps for chunk in step["chunks"])
    return 1 - used / sum(held)


def steps_of(llm: LLM, recorder: Recorder, workload: Workload, seed: int) -> list[dict[str, Any]]:
    """The recorded steps of one run of the workload."""
    recorder.steps.clear()
    run_workload(llm, workload, seed)
    return list(recorder.steps)


def reserved_waste(steps: Sequence[dict[str, Any]], config: EngineConfig) -> float:
    """The waste of the same steps if each request held `max_model_len` slots in one piece from its start."""
    return waste(steps, [len(step["chunks"]) * config.scheduler.max_model_len for step in steps])


def naive(llm: LLM, workload: Workload, seed: int, wasted: float) -> Figures:
    """One request after the other, and no KV cache: every token computes all tokens before it again.

    This is so slow that it may stop after some of the requests; its speed does not depend on how many run.
    """
    prompts, lengths = workload.draw(llm.llm_engine.config.model.vocab_size, seed)
    once = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    firsts: list[float] = []
    gaps: list[float] = []
    for prompt, length in zip(prompts, lengths, strict=True):
        if firsts and time.perf_counter() - started > NAIVE_SECONDS:
            break
        tokens, times = list(prompt), []
        for _ in range(length):
            output = llm.generate({"prompt_token_ids": tokens}, once, use_tqdm=False)[0]
            tokens = [*tokens, *output.outputs[0].token_ids]
            times.append(time.perf_counter())
        firsts.append(times[0] - started)
        gaps.append((times[-1] - times[0]) / max(length - 1, 1))
    done = sum(lengths[: len(firsts)])
    ttft = statistics.median(firsts) if len(firsts) == len(prompts) else None
    return Figures(done / (time.perf_counter() - started), ttft, statistics.median(gaps), wasted)


def ceiling(ceilings: Ceilings, config: EngineConfig, workload: Workload, seed: int) -> Figures:
    """The speed that no engine can exceed: weights read once a step, two operations per weight and token, nothing else.

    All prompts are computed in one step, then all requests advance by one token a step. Keys and
    values, small here, are not counted.
    """
    prompts, lengths = workload.draw(config.model.vocab_size, seed)
    parameters = num_parameters(config.model)
    head = config.model.vocab_size * config.model.hidden_size
    weight_bytes = parameters * config.dtype.itemsize
    requests, tokens = len(prompts), sum(map(len, prompts))
    first = ceilings.step_seconds(weight_bytes, 2.0 * (parameters - head) * tokens + 2.0 * head * requests)
    step = ceilings.step_seconds(weight_bytes, 2.0 * parameters * requests)
    return Figures(sum(lengths) / (first + (max(lengths) - 1) * step), first, step, 0.0)
