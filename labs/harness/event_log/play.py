"""An engine without a model: it plays a workload against a scheduler and writes down what happened.

Knows schedulers and steps; judges nothing. Requests, batches and blocks are the engine's own. Tokens follow a fixed
rule, so a workload of hundreds of requests takes a moment. A workload and its log are plain values: the game can be played
where the part lives, and judged elsewhere.

    workload   [{"request": "A", "step": 0, "prompt": 6, "output": 4}, …]
    log        [{"step": 0, "chunks": [{"request": "A", "start": 0, "num_tokens": 6, "samples": True}], …}, …]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from nano_qwen3_serving.config import SchedulerConfig
from nano_qwen3_serving.interfaces import (
    BlockManager,
    RequestUpdate,
    SampledTokens,
    ScheduledBatch,
    Scheduler,
    StoppedRequest,
)
from nano_qwen3_serving.request import Request, RequestStatus
from nano_qwen3_serving.sampling_params import SamplingParams

END = 0
"""The token that ends a request; the rule gives no other request this token."""
STUCK = 3
"""So many steps in a row that compute nothing, while requests wait and no more arrive, end the game."""


class Arrival(TypedDict):
    """A request of a workload.

    Keys:
        request: its id.
        step: before which step it arrives.
        prompt, output: tokens of its prompt, and tokens it generates.
        max_tokens: what it asks for; by default `output`. A request that ends otherwise generates fewer.
        ends: "length"; "eos", a token that the scheduler sees; or "stop", a string that only the output processor sees.
        priority: the smaller number goes first.
        abort: before which step its caller gives up.
    """

    request: str
    step: int
    prompt: int
    output: int
    max_tokens: NotRequired[int]
    ends: NotRequired[Literal["length", "eos", "stop"]]
    priority: NotRequired[int]
    abort: NotRequired[int]


class Chunk(TypedDict):
    """Tokens of a request that a step computes: `num_tokens` from position `start` on, then perhaps one sampled."""

    request: str
    start: int
    num_tokens: int
    samples: bool


class Step(TypedDict):
    """What happened in a step. The keys are those of `Recorder.steps`, except for `arrived`, `aborted` and `admitted`.

    Keys:
        step: its number.
        arrived, aborted: ids, before the step.
        admitted: ids that have a chunk and did not run in the step before, or were preempted in it.
        chunks: in the order of the batch.
        block_tables: of the batch.
        running, waiting: ids after scheduling, as the scheduler has them.
        preempted: ids that lost their blocks.
        sampled: id → tokens.
        finished: id → finish reason, of those that ended in the step.
        free_blocks: at the end of the step.
    """

    step: int
    arrived: list[str]
    aborted: list[str]
    admitted: list[str]
    chunks: list[Chunk]
    block_tables: dict[str, list[int]]
    running: list[str]
    waiting: list[str]
    preempted: list[str]
    sampled: dict[str, list[int]]
    finished: dict[str, str | None]
    free_blocks: int


StepFunction = Callable[[Any, Any, Any], Any]
"""`step(scheduler, executor, output_processor)`"""


def engine_step(scheduler: Scheduler, executor: Any, output_processor: Any) -> list[Any]:
    """What the engine's `step()` does."""
    batch = scheduler.schedule()
    result = executor.execute(batch)
    updates = scheduler.update(batch, result)
    outputs, stopped = output_processor.process(updates)
    scheduler.finish(stopped)
    return list(outputs)


def play(
    make_scheduler: Callable[[SchedulerConfig, BlockManager], Scheduler],
    workload: Sequence[Arrival],
    bounds: Mapping[str, Any],
    num_blocks: int,
    block_size: int = 4,
    *,
    step: StepFunction = engine_step,
    make_block_manager: Callable[[int, int], BlockManager] | None = None,
) -> list[Step]:
    """Plays until every request has ended, or nothing moves any more; returns a record for each step.

    Args:
        make_scheduler: such as the class `Scheduler`.
        workload: in the order of arrival; a step's arrivals are added in that order.
        bounds: fields of `SchedulerConfig`, such as {"max_num_seqs": 2, "max_num_batched_tokens": 8}.
        num_blocks, block_size: of the pool, the null block among the blocks.
        step: what a step does.
        make_block_manager: by default the engine's own, without prefix caching.
    """
    blocks = (make_block_manager or plain_blocks)(num_blocks, block_size)
    engine = ModelFreeEngine(make_scheduler(SchedulerConfig(**bounds), blocks), blocks, workload, step)
    while engine.goes_on:
        engine.play_step()
    return engine.log


def plain_blocks(num_blocks: int, block_size: int) -> BlockManager:
    """The engine's block manager, in which nothing is shared."""
    from nano_qwen3_serving.scheduling.block_manager import BlockManager

    return BlockManager(num_blocks, block_size, enable_prefix_caching=False)


class ModelFreeEngine:
    """The engine around a scheduler: executor, output processor, and the one who writes the log.

    Args:
        scheduler: the one that plays.
        blocks: the scheduler's block manager.
        workload: what arrives when.
        step: what a step does.
    """

    def __init__(
        self, scheduler: Scheduler, blocks: BlockManager, workload: Sequence[Arrival], step: StepFunction
    ) -> None:
        self.log: list[Step] = []
        self._scheduler, self._blocks, self._step = scheduler, blocks, step
        self._arrivals = {arrival["request"]: arrival for arrival in workload}
        self._requests = {name: make_request(arrival, place) for place, (name, arrival) in enumerate(self._arrivals.items())}
        self._ran: set[str] = set()
        self._ended: set[str] = set()
        self._empty = 0
        # A request may be preempted for every token of another: bounded, and far beyond what a sane scheduler needs.
        tokens = sum(arrival["prompt"] + arrival["output"] for arrival in workload)
        self._most = max((arrival["step"] for arrival in workload), default=0) + 4 * tokens

    @property
    def goes_on(self) -> bool:
        """Whether a request has not ended, and there is hope that it will."""
        return len(self._ended) < len(self._arrivals) and self._empty < STUCK and len(self.log) < self._most

    def play_step(self) -> None:
        """Arrivals, aborts, one step, and its record."""
        number = len(self.log)
        arrived = [name for name, arrival in self._arrivals.items() if arrival["step"] == number]
        aborted = [name for name, arrival in self._arrivals.items() if arrival.get("abort") == number]
        self.log.append({
            "step": number, "arrived": arrived, "aborted": aborted, "admitted": [], "chunks": [], "block_tables": {},
            "running": [], "waiting": [], "preempted": [], "sampled": {}, "finished": {}, "free_blocks": 0})
        for name in arrived:
            self._scheduler.add(self._requests[name])
        for name in aborted:
            self._scheduler.abort(name)
        self._step(self._scheduler, self, self)
        self._close(self.log[-1])

    def execute(self, batch: ScheduledBatch) -> SampledTokens:
        """Notes what the batch computes, and gives a token to each chunk that samples."""
        record = self.log[-1]
        record["preempted"] = [request.request_id for request in batch.preempted]
        record["running"] = [request.request_id for request in self._scheduler.running]
        record["waiting"] = [request.request_id for request in self._scheduler.waiting]
        sampled: dict[str, list[int]] = {}
        for chunk in batch.chunks:
            name = chunk.request.request_id
            record["chunks"].append(
                {"request": name, "start": chunk.start, "num_tokens": chunk.num_tokens, "samples": chunk.samples})
            record["block_tables"][name] = list(chunk.block_table)
            if name not in self._ran or name in record["preempted"]:
                record["admitted"].append(name)
            if chunk.samples:
                sampled[name] = [token_of(self._arrivals[name], self._requests[name])]
        record["sampled"] = {name: list(tokens) for name, tokens in sampled.items()}
        self._ran = set(record["block_tables"]) | (self._ran & set(record["running"]) - set(record["preempted"]))
        return SampledTokens(sampled)

    def process(self, updates: Sequence[RequestUpdate]) -> tuple[list[str], list[StoppedRequest]]:
        """Ids of those that got tokens; and those whose stop string is complete."""
        stopped = []
        for update in updates:
            arrival = self._arrivals[update.request.request_id]
            done = len(update.request.output_token_ids) >= arrival["output"]
            if arrival.get("ends") == "stop" and done and update.request.finish_reason is None:
                stopped.append(StoppedRequest(arrival["request"], "stop", "a stop string"))
        return [update.request.request_id for update in updates], stopped

    def _close(self, record: Step) -> None:
        ended = [name for name, request in self._requests.items()
                 if request.status is RequestStatus.FINISHED and name not in self._ended]
        self._ended.update(ended)
        self._ran.difference_update(ended)
        record["finished"] = {name: self._requests[name].finish_reason for name in ended}
        record["free_blocks"] = self._blocks.num_free_blocks
        coming = any(arrival["step"] > record["step"] for arrival in self._arrivals.values())
        self._empty = 0 if record["chunks"] or ended or coming else self._empty + 1


def make_request(arrival: Arrival, place: int) -> Request:
    """The engine's `Request`; `place` is its place in the order of arrival."""
    wanted = arrival.get("max_tokens", arrival["output"])
    return Request(
        arrival["request"], None, [1 + (7 * place + 3 * i) % 499 for i in range(arrival["prompt"])],
        SamplingParams(temperature=0.0, max_tokens=wanted), seed=0, max_total_tokens=arrival["prompt"] + wanted,
        priority=arrival.get("priority", 0), arrival_number=place, eos_token_ids=frozenset({END}), eos_token_id=END)


def token_of(arrival: Arrival, request: Request) -> int:
    """The next token of a request: `END` where it ends so, otherwise one that its place and length decide."""
    count = len(request.output_token_ids) + 1
    if arrival.get("ends") == "eos" and count >= arrival["output"]:
        return END
    return 1 + (7 * request.arrival_number + 3 * (arrival["prompt"] + count)) % 499
