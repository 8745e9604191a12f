"""Lab 08: a scheduler with continuous batching. Requests join and leave the batch at every step.

Read README.md first; it has the contract of each TODO. Check your work: pytest test_lab.py
Knows requests and counts of tokens, and asks a block manager for room; knows nothing of tensors, text or time.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from typing import Any

from labs.harness.todo import TodoError, run_lab
from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import SchedulerConfig
from nano_qwen3_serving.interfaces import (
    BlockManager,
    RequestUpdate,
    SampledTokens,
    ScheduledBatch,
    ScheduledChunk,
    StoppedRequest,
)
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import FinishReason
from nano_qwen3_serving.request import Request, RequestStatus

SEATS, BUDGET = 4, 16
"""Requests that run at once, and tokens of a step, in what this file prints."""
WORKLOAD = [(5, 3), (4, 20), (7, 4), (3, 6), (8, 2), (6, 12), (4, 5), (5, 16), (3, 2), (9, 7), (4, 3), (6, 8)]
"""Tokens of the prompt, and tokens to generate, of twelve requests that arrive at the same time."""


def step(scheduler: "Scheduler", executor: Any, output_processor: Any) -> list[Any]:
    """One step of the engine: schedule, execute, update, process, finish. Returns the output processor's outputs.

    Args:
        scheduler: has schedule(), update(batch, result) and finish(stopped).
        executor: execute(batch) computes a `ScheduledBatch` and returns `SampledTokens`.
        output_processor: process(updates) returns outputs for callers, and requests that end for a reason that only
            it can see, such as a stop string, as `StoppedRequest`s.
    """
    # TODO 1: pass the batch from one to the next, in the order of the sentence above
    raise TodoError("TODO 1: pass the batch from one to the next, in the order of the sentence above", lab="08")


class Scheduler:
    """Says who computes what in the next step.

    Args:
        config: has the budgets of a step, `max_num_seqs` and `max_num_batched_tokens`, and `policy`.
        block_manager: has `num_free_blocks`, `allocate(request_id, num_tokens) -> bool`, `block_table(request_id)` and
            `free(request_id)`, as in Lab 06.
        max_overtaken: so many requests may be admitted before one that came earlier and does not fit.
    """

    def __init__(self, config: SchedulerConfig, block_manager: BlockManager, max_overtaken: int = 0) -> None:
        self.config = config
        self.block_manager = block_manager
        self.max_overtaken = max_overtaken
        self.waiting: list[Request] = []  # in order
        self.running: list[Request] = []  # in the order of admission
        self.overtaken: dict[str, int] = {}  # id of a waiting request → requests that were admitted before it, out of order

    def schedule(self) -> ScheduledBatch:
        """What the next step computes: a token of everyone who runs, then whole prompts (this one is written for you)."""
        decodes = self.decodes()
        return ScheduledBatch([*decodes, *self.admissions(self.config.max_num_batched_tokens - len(decodes))])

    def admit(self, request: Request, tokens_left: int) -> ScheduledChunk | None:
        """Lets a waiting request run, if everything it will ever need is there now; otherwise changes nothing.

        Args:
            request: one of `waiting`.
            tokens_left: tokens that the step can still compute.

        Returns:
            The chunk that computes its whole prompt; None if it has to wait.
        """
        # TODO 2: check seats, tokens and blocks, in any order; then move the request from waiting to running
        raise TodoError("TODO 2: check seats, tokens and blocks, in any order; then move the request from waiting to running", lab="08")

    def decodes(self) -> list[ScheduledChunk]:
        """A chunk of one token for everyone who runs: the last one, which was sampled and is not computed yet."""
        # TODO 3: leave nobody out
        raise TodoError("TODO 3: leave nobody out", lab="08")

    def update(self, batch: ScheduledBatch, result: SampledTokens) -> list[RequestUpdate]:
        """Applies what a step computed: tokens grow, and who is done leaves. Returns an update for each chunk's request.

        A request that ended while it was computed is left as it is, and gets no update.
        """
        # TODO 4: for each chunk's request: its new token, its computed tokens, and whether it is done
        raise TodoError("TODO 4: for each chunk's request: its new token, its computed tokens, and whether it is done", lab="08")

    def end(self, request: Request, reason: FinishReason) -> None:
        """Ends a request that waits or runs: it leaves its list, its blocks are free, its status and reason say so."""
        # TODO 4: the request leaves, and frees
        raise TodoError("TODO 4: the request leaves, and frees", lab="08")

    def finish(self, stopped: Sequence[StoppedRequest]) -> None:
        """Ends requests for reasons that only others can see. Ids that neither wait nor run are no-ops."""
        # TODO 4: note each one's stop_reason, cut its output to num_output_tokens if that is a number, and end it
        raise TodoError("TODO 4: note each one's stop_reason, cut its output to num_output_tokens if that is a number, and end it", lab="08")

    def abort(self, request_id: str) -> None:
        """Ends a request wherever it is; an unknown id is a no-op (this one is written for you)."""
        self.finish([StoppedRequest(request_id, "abort")])

    def add(self, request: Request) -> None:
        """Queues a request at its place: by `request.order`, or by arrival alone if the policy is "fcfs"."""
        # TODO 5: keep `waiting` in order
        raise TodoError("TODO 5: keep `waiting` in order", lab="08")

    def admissions(self, tokens_left: int) -> list[ScheduledChunk]:
        """Admits whoever fits, in order. One that does not fit may be overtaken `max_overtaken` times, in all its life.

        Args:
            tokens_left: tokens that the step can still compute.
        """
        # TODO 5: go through those who wait, and stop behind one who may not be overtaken any more
        raise TodoError("TODO 5: go through those who wait, and stop behind one who may not be overtaken any more", lab="08")


class StaticScheduler(Scheduler):
    """The naive version, static batching: nobody is admitted until everyone who runs has ended (written for you)."""

    def admissions(self, tokens_left: int) -> list[ScheduledChunk]:
        """As before, but only into an empty batch."""
        return [] if self.running else super().admissions(tokens_left)


def reason_to_end(request: Request) -> FinishReason | None:
    """Why the request's newest token ends it, or None (this one is written for you)."""
    count, token, params = len(request.output_token_ids), request.output_token_ids[-1], request.params
    if count >= params.min_tokens:
        if token in request.eos_token_ids and not params.ignore_eos:
            request.stop_reason = None if token == request.eos_token_id else token
            return "stop"
        if token in (params.stop_token_ids or ()):
            request.stop_reason = token
            return "stop"
    return "length" if request.num_tokens >= request.max_total_tokens else None


MakeScheduler = Callable[[SchedulerConfig, BlockManager], Any]


def serve(make_scheduler: MakeScheduler | None) -> list[dict]:
    """The steps in which the engine serves `WORKLOAD`; None is the engine's own scheduler (written for you)."""
    components = Components()
    if make_scheduler is not None:
        components = components.using(scheduler=lambda config, blocks: make_scheduler(config.scheduler, blocks))
    args = EngineArgs(
        model="course-draft", block_size=4, max_num_seqs=SEATS, max_num_batched_tokens=BUDGET, max_model_len=BUDGET * 2,
        enable_prefix_caching=False)
    engine = LLMEngine.from_engine_args(args, components=components, recorder=Recorder())
    for number, (prompt, output) in enumerate(WORKLOAD):
        tokens = {"prompt_token_ids": list(range(300, 300 + prompt))}
        engine.add_request(str(number), tokens, SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    return engine.recorder.steps


def measure(steps: Sequence[dict]) -> tuple[int, float, int]:
    """Steps, occupancy in [0, 1], and keys that decodes read in a layer (written for you)."""
    chunks = [chunk for one in steps for chunk in one["chunks"]]
    occupancy = sum(chunk["samples"] for chunk in chunks) / (SEATS * len(steps))
    return len(steps), occupancy, sum(chunk["start"] + 1 for chunk in chunks if chunk["start"])


def limit() -> tuple[int, float, int]:
    """What no scheduler can beat: every seat gives a token in every step, until there are none to give."""
    tokens = sum(output for _, output in WORKLOAD)
    steps = max(-(-tokens // SEATS), max(output for _, output in WORKLOAD))
    keys = sum(prompt + i for prompt, output in WORKLOAD for i in range(1, output))
    return steps, tokens / (SEATS * steps), keys


def main() -> None:
    """One workload, served in three ways, and the limit."""
    print("=== Lab 08: Continuous batching ===\n")
    print(f"{len(WORKLOAD)} requests, at most {SEATS} at once and {BUDGET} tokens in a step:\n")
    print(f"{'':22}{'steps':>6}{'occupancy':>11}{'keys read':>11}{'weights read':>14}")
    ways: list[tuple[str, tuple[int, float, int]]] = [("limit", limit()), ("reference", measure(serve(None)))]
    ways += [("naive: static", measure(serve(StaticScheduler))), ("yours: continuous", measure(serve(Scheduler)))]
    for name, (steps, occupancy, keys) in ways:
        print(f"{name:22}{steps:>6}{occupancy:>11.0%}{keys:>11}{f'{steps} times':>14}")


if __name__ == "__main__":
    run_lab(main)
