"""One small scenario, and an engine that runs it a step at a time and shows its whole visible state.

Knows requests, steps and an engine's state after one; knows nothing of right or wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.interfaces import ScheduledChunk
from nano_qwen3_serving.observe.observer import LastStep
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import SamplingParams

Sampling = tuple[Tensor, list[Any]]
"""Logits [rows, vocab_size] as the sampler got them, and the log-probabilities that it returned."""

SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 3},
    {"temperature": 0.0, "presence_penalty": 0.8, "frequency_penalty": 0.6},
    {"temperature": 0.8, "top_k": 1},
    {"temperature": 0.7, "top_p": 1e-6, "logprobs": 0},
    {"temperature": 1.3, "min_p": 1.0},
)
"""Each leaves a single token to choose, so two samplers must agree even if they draw differently."""


@dataclass(frozen=True)
class Arrival:
    """A request, and the step before which it arrives."""

    step: int
    name: str
    prompt: list[int]
    params: SamplingParams


@dataclass(frozen=True)
class Scenario:
    """The input of both engines."""

    arrivals: list[Arrival]
    aborts: dict[int, str]
    """Step → the request that its caller aborts before it."""
    engine_args: dict[str, Any]


@dataclass
class Snapshot:
    """The visible state of an engine after a step."""

    chunks: dict[str, ScheduledChunk]
    tables: dict[str, list[int]]
    """Block tables of the chunks of this step, and of running requests that had none."""
    record: dict[str, Any]
    slots: dict[str, list[int]]
    """The slots of each chunk's tokens, as the attention backend gives them."""
    kv: dict[str, list[tuple[Tensor, Tensor]]]
    """Request → for each layer keys and values of its computed tokens, [tokens, num_kv_heads, head_dim]."""
    logits: dict[str, Tensor]
    logprobs: dict[str, Any]
    block_size: int
    computed: dict[str, int]
    """Request → how many of its tokens are in the cache."""


def make_scenario(seed: int = 0, model: str = "course", shares_prefixes: bool = False) -> Scenario:
    """Ten requests into a pool that holds about two of them: chunks, mixed batches, preemptions, an abort.

    The last two prompts begin with the same two blocks. With `shares_prefixes` the engine keeps what was computed, and
    the second of the two takes these blocks over: a block then belongs to two requests.

    Prompts have lengths at the edges of blocks, and some are longer than a step's budget. A model of
    one layer, such as course-draft, would hide what attention does to tokens before the last: nothing
    looks at them again.
    """
    rng = random.Random(seed)
    lengths = [7, 4, 9, 21, 8, 13, 5, 17, 24]
    arrivals = [
        Arrival(
            step=3 * i // 2, name=chr(ord("A") + i), prompt=[rng.randrange(300, 2000) for _ in range(length)],
            params=SamplingParams(
                max_tokens=rng.randint(8, 14), ignore_eos=True, detokenize=False, **SETTINGS[i % len(SETTINGS)]))
        for i, length in enumerate(lengths)
    ]
    last = arrivals[-1]
    twin = [*last.prompt[:8], *(rng.randrange(300, 2000) for _ in range(3))]
    arrivals.append(Arrival(last.step + 2, "J", twin, replace(last.params, max_tokens=6)))
    return Scenario(arrivals, {7: "C"}, {
        "model": model, "device": "cpu", "dtype": "float32", "block_size": 4, "num_gpu_blocks_override": 13,
        "max_num_batched_tokens": 16, "max_num_seqs": 4, "enable_prefix_caching": shares_prefixes,
    })


def describe(scenario: Scenario) -> str:
    """The scenario in a line or two."""
    args = scenario.engine_args
    prompts = ", ".join(f"{a.name} {len(a.prompt)}" for a in scenario.arrivals)
    return (
        f"The scenario: prompts of {prompts} tokens; "
        f"{args['num_gpu_blocks_override'] - 1} blocks of {args['block_size']} tokens; "
        f"at most {args['max_num_batched_tokens']} tokens a step; {', '.join(scenario.aborts.values())} is aborted. "
        "On your side, slots that were never written or were freed hold garbage"
        + ("; J shares two blocks with I." if args["enable_prefix_caching"] else "."))


class Side:
    """One of the two engines."""

    def __init__(self, scenario: Scenario, components: Components, garbage: float | None = None) -> None:
        """`garbage` is put into slots that were never written, or were freed: their content must not matter."""
        self.scenario, self.garbage = scenario, garbage
        self.tap: list[Sampling] = []
        self.recorder = Recorder()
        self.engine = LLMEngine.from_engine_args(
            EngineArgs(**scenario.engine_args), components.using(sampler=tapped(components.sampler, self.tap)),
            recorder=self.recorder)
        self.last_step = LastStep()
        self.engine.observers.add(self.last_step)
        self.tables: dict[str, tuple[list[int], int]] = {}
        """For the requests seen last: their block tables, and how many of their tokens were computed."""
        for tensor in self._cached():
            tensor[:] = float(garbage or 0)

    def has_work(self, step: int) -> bool:
        """Whether requests are in flight or still to arrive."""
        return self.engine.has_unfinished_requests() or any(a.step >= step for a in self.scenario.arrivals)

    def step(self, number: int) -> Snapshot:
        """Runs a step; returns the state after it."""
        self.advance(number)
        return self.look()

    def advance(self, number: int) -> None:
        """Adds and aborts the requests of this step, and runs it. Raises the error of a request that failed."""
        for arrival in self.scenario.arrivals:
            if arrival.step == number:
                self.engine.add_request(arrival.name, {"prompt_token_ids": arrival.prompt}, arrival.params)
        if number in self.scenario.aborts:
            self.engine.abort_request(self.scenario.aborts[number])
        self.tap.clear()
        for output in self.engine.step():
            if output.error is not None:
                raise output.error

    def look(self) -> Snapshot:
        """The visible state after a step; slots freed in it are filled with garbage."""
        snapshot = self._look()
        self._spoil_what_was_freed(snapshot)
        return snapshot

    def _spoil_what_was_freed(self, seen: Snapshot) -> None:
        """Fills the blocks of requests that are gone with garbage; if content is kept, only blocks that are not full."""
        cache = self.engine.config.cache
        held = {block for r in self.engine.scheduler.running for block in self.engine.block_manager.block_table(r.request_id)}
        running = {r.request_id for r in self.engine.scheduler.running}
        now = {name: (table, seen.computed[name]) for name, table in seen.tables.items()}
        for table, computed in (pair for name, pair in (self.tables | now).items() if name not in running):
            kept = computed // cache.block_size if self.scenario.engine_args["enable_prefix_caching"] else 0
            for block in set(table[kept:]) - held:
                for tensor in self._cached():
                    if tensor.shape[0] == cache.num_blocks:
                        tensor[block] = float(self.garbage or 0)
        self.tables = {name: pair for name, pair in now.items() if name in running}

    def _cached(self) -> list[Tensor]:
        """The tensors of the KV cache to fill with garbage."""
        if self.garbage is None:
            return []
        return [tensor for tensor in tensors_in(self.engine.model_runner.kv_cache) if tensor.is_floating_point()]

    def _look(self) -> Snapshot:
        engine, runner = self.engine, self.engine.model_runner
        assert self.last_step.record is not None  # there was a step
        chunks = {chunk.request.request_id: chunk for chunk in self.last_step.record.batch.chunks}
        tables = {r.request_id: list(engine.block_manager.block_table(r.request_id)) for r in engine.scheduler.running}
        computed = {r.request_id: r.num_computed_tokens for r in engine.scheduler.running}
        for name, chunk in chunks.items():
            tables[name], computed[name] = list(chunk.block_table), chunk.end
        size, read = engine.config.cache.block_size, runner.attention.read
        kv = {
            name: [read(cache, slots_by_table(table, range(computed[name]), size)) for cache in runner.kv_cache]
            for name, table in tables.items() if len(table) * size >= computed[name]
        }
        slots = {n: runner.attention.slots(c.block_table, range(c.start, c.end)) for n, c in chunks.items()}
        names = list(self.recorder.steps[-1]["sampled"])
        logits, logprobs = self.tap[-1] if names else ((), ())
        return Snapshot(
            chunks, tables, self.recorder.steps[-1], slots, kv,
            dict(zip(names, logits, strict=True)), dict(zip(names, logprobs, strict=True)), size, computed)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a cache, however it is nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


class Tapped:
    """A sampler whose inputs and outputs are kept."""

    def __init__(self, inner: Any, tap: list[Sampling]) -> None:
        self._inner, self._tap = inner, tap

    def sample(self, logits: Tensor, rows: Any) -> Any:
        """The sampler's own answer."""
        before = logits.float().clone()
        tokens, logprobs = self._inner.sample(logits, rows)
        self._tap.append((before, logprobs))
        return tokens, logprobs


def tapped(make: Any, tap: list[Sampling]) -> Any:
    """The sampler factory `make`, whose samplers record into `tap`."""
    return lambda config: Tapped(make(config), tap)


def slots_by_table(table: Sequence[int], positions: range, size: int) -> list[int]:
    """The slots of a request's positions, by definition."""
    return [table[i // size] * size + i % size for i in positions]
