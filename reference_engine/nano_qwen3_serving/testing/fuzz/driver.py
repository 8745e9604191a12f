"""Runs one episode on the real `AsyncLLMEngine`; the driver controls the clock and every step.

The step gate lets one step through at a time, and no operation happens before everything that the
last one set off has come to rest: the step thread stands at the gate or has nothing to do, every
prompt is tokenised or held, every reader waits. So an episode always runs the same way.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from nano_qwen3_serving.exceptions import InvalidParametersError, QueueFullError
from nano_qwen3_serving.observe.observer import LastStep
from nano_qwen3_serving.testing.fuzz.caller import Caller
from nano_qwen3_serving.testing.fuzz.checks import Checker, Violation, require, root
from nano_qwen3_serving.testing.fuzz.episode import SEEDS_PER_REQUEST, Episode, Operation
from nano_qwen3_serving.testing.fuzz.faults import BrokenText, Faults, HeldText
from nano_qwen3_serving.testing.fuzz.homes import Here, Thread, turns
from nano_qwen3_serving.testing.fuzz.params import params_of
from nano_qwen3_serving.testing.fuzz.places import Places
from nano_qwen3_serving.testing.fuzz.setup import Setup
from nano_qwen3_serving.testing.fuzz.watched import Gate, watched_engine

T = TypeVar("T")

PATIENCE = 10.0  #: seconds after which something that should happen at once never will


class Driver:
    """Runs the operations of one episode, and checks everything.

    Args:
        episode: what to do.
        setup: what the engine is made of, its configuration and the oracle.
    """

    def __init__(self, episode: Episode, setup: Setup) -> None:
        self.episode = episode
        self.setup = setup
        self.faults = Faults()
        self.gate = Gate()
        self.now = 0.0
        self.engine = watched_engine(setup, self.faults, self.gate, lambda: self.now)
        self.last_step = LastStep()
        self.engine.engine.observers.add(self.last_step)
        limit = setup.config.max_num_queued_reqs
        self.checker = Checker(setup.oracle, setup.config.scheduler.max_model_len, limit)
        self.places = Places(limit)
        two_loops = any(op.get("second_loop") for op in episode.operations)
        self.homes: list[Here | Thread] = [Here(), Thread()] if two_loops else [Here()]
        self.callers: dict[int, Caller] = {}
        self.held: dict[int, HeldText] = {}
        self.asides: list[asyncio.Future[Any]] = []
        self.stopped = False
        self.totals: Counter[str] = Counter()
        self.history: list[Any] = []  # what every step computed: equal for equal episodes

    async def run(self) -> None:
        """The whole episode. Raises `Violation` if the engine does wrong."""
        try:
            for op in self.episode.operations:
                await getattr(self, f"_{op['op']}")(op)
                await self._settle()
            await self._drain()
            self._check_end()
        except Violation:
            raise
        except AssertionError as broken:  # an invariant of the engine's own
            raise Violation(str(broken)) from broken
        finally:
            await self._clean_up()
            left = [task for home in self.homes for task in await home.close()]
        require(not left, f"tasks are left over: {left}")

    # --- operations ---

    async def _submit(self, op: Operation) -> None:
        caller = self._caller(op)
        taken = self.places.bounds(self.callers.values(), self.now, self.totals["steps"], not self.gate.parked.is_set())
        self.callers[op["key"]] = caller
        started = self._on_its_loop(caller, caller.start(self.engine, wait=not op["held"]))
        await self._soon(started, f"{caller.name} is neither queued nor refused")
        if op["held"]:
            text = caller.prompt["prompt"]
            await self._until(lambda: text.entered.is_set() or caller.submitted.is_set(), "tokenising")
            self.held[op["key"]] = text
        if not isinstance(caller.error, InvalidParametersError):
            wrong = self.places.complaint(caller.params.n, taken, isinstance(caller.error, QueueFullError))
            require(wrong is None, f"{caller.name} {wrong}")

    def _caller(self, op: Operation) -> Caller:
        """The caller that submits, with everything that is known about its request beforehand."""
        tokens = op["prompt"]
        prompt: Any = {"prompt_token_ids": list(tokens), "cache_salt": op["salt"]}
        if op["text"]:
            text = bytes(tokens).decode()
            tokens = self.setup.oracle.tokenizer.encode(text)
            kind = HeldText if op["held"] else BrokenText if op["broken"] else str
            prompt = {"prompt": kind(text), "cache_salt": op["salt"]}
        caller = Caller(op, prompt, params_of(op["params"]), tokens)
        caller.deadline = None if op["timeout"] is None else self.now + op["timeout"]
        if op["doomed"]:
            part, after = op["doomed"]
            getattr(self.faults, part)[op["key"]] = after
        return caller

    async def _release(self, op: Operation) -> None:
        text = self.held.pop(op["key"], None)
        if text is not None:
            text.released.set()
            caller = self.callers[op["key"]]
            await self._soon(self._on_its_loop(caller, caller.submitted.wait()), "a released prompt is not queued")

    async def _step(self, op: Operation) -> None:
        for _ in range(op["count"]):
            if not self.gate.parked.is_set():
                return
            await self._one_step()

    async def _fetch(self, op: Operation) -> None:
        if op["key"] in self.callers:
            caller = self.callers[op["key"]]
            await self._on_its_loop(caller, caller.fetch())

    async def _abort(self, op: Operation) -> None:
        for caller in self.callers.values():
            if caller.op["id"] == op["id"] and caller.outcome is None:
                caller.abort_wanted = True
        await self.engine.abort(op["id"])

    async def _vanish(self, op: Operation) -> None:
        caller = self.callers.get(op["key"])
        if caller is not None and caller.outcome is None:
            self.totals["cancellations"] += 1
            await self._on_its_loop(caller, caller.vanish(op["how"]))

    async def _advance(self, op: Operation) -> None:
        self.now += op["seconds"]

    async def _fault(self, op: Operation) -> None:
        self.faults.model = op["kind"]

    async def _reset(self, op: Operation) -> None:
        self._aside(self.engine.reset_prefix_cache())

    async def _stop(self, op: Operation) -> None:
        self.stopped = True
        if op["how"] == "die" and self.gate.parked.is_set():
            self.faults.model = "die"
            self.gate.release()
            await self._until(lambda: self.engine.errored, "dying")
        elif op["how"] == "shutdown":
            down = asyncio.create_task(asyncio.to_thread(self.engine.shutdown))
            await self._until(lambda: self.engine.is_stopped, "shutting down")
            self.gate.open()
            await self._soon(down, "shutdown() does not come back")

    # --- one step, and rest ---

    async def _one_step(self) -> None:
        before = self.last_step.record
        done = {key for key, c in self.callers.items() if c.ended_at is not None and c.ended_at < self.totals["steps"]}
        self.totals["steps"] += 1
        self.gate.release()
        await self._settle()
        step = self.last_step.record
        if step is None or step is before:
            return
        batch = step.batch
        hard = self.faults.model == "step"
        self.faults.model = None
        self.totals["preemptions"] += len(batch.preempted)
        for chunk in batch.chunks:
            key = chunk.request.seed // SEEDS_PER_REQUEST
            require(key not in done, f"a step computed tokens of {self.callers[key].name}, which is over")
            self.callers[key].may_fail |= hard
            self.places.computed.add((key, chunk.request.sample_index))
        self.history.append([(c.request.request_id, c.start, c.num_tokens) for c in batch.chunks])

    async def _settle(self) -> None:
        """Waits until nothing moves: the step thread stands at the gate or sleeps, readers wait."""
        for _ in range(2):
            await self._turns()
            if not self.gate.parked.is_set() and not self.engine.is_stopped:
                await self._rest_of_steps()
        await self._turns()
        for caller in self.callers.values():
            if caller.outcome is not None and caller.ended_at is None:
                caller.ended_at, caller.ended_time = self.totals["steps"], self.now
        if self.engine.errored and not self.stopped:
            raise Violation(root(self.engine.dead_error))

    async def _rest_of_steps(self) -> None:
        """Waits until the step thread is at the gate, or reports between two commands that it has nothing to do.

        It may still report work when its last request is about to time out: then this asks again.
        """
        parked = asyncio.ensure_future(self.gate.parked.wait())
        try:
            last = time.monotonic() + PATIENCE
            while not self.engine.is_stopped:
                stats = self._aside(self.engine.get_stats())
                await asyncio.wait({parked, stats}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                if parked.done() or (stats.done() and (stats.exception() or not in_flight(stats.result()))):
                    return
                require(time.monotonic() < last, "the step thread does not come to its next step")
        finally:
            parked.cancel()

    async def _turns(self) -> None:
        for home in self.homes:
            await home.run(turns())

    def _on_its_loop(self, caller: Caller, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Runs a caller's `work` on the caller's own event loop."""
        return self.homes[bool(caller.op["second_loop"])].run(work)

    # --- the end ---

    async def _drain(self) -> None:
        """Every caller reads to the end, and the engine steps until they can."""
        for key in list(self.held):
            await self._release({"key": key})
        longest = self.setup.config.scheduler.max_model_len
        bound = 20 + sum(longest * c.params.n for c in self.callers.values())
        still = 0
        while any(c.outcome is None for c in self.callers.values()):
            for caller in self._waiting():
                await self._on_its_loop(caller, caller.fetch())
            await self._settle()
            if self.gate.parked.is_set():
                bound -= 1
                require(bound > 0, f"no end in sight: {[c.name for c in self._waiting()]}")
                await self._one_step()
                still = 0
            else:
                still += 1
                require(still < 200, f"waiting for ever: {[c.name for c in self._waiting()]}")
        while self.gate.parked.is_set() and not self.engine.is_stopped:  # of callers who are gone
            bound -= 1
            require(bound > 0, "the engine keeps working although every caller is gone")
            await self._one_step()
        await self._settle()

    def _check_end(self) -> None:
        """Checks that no caller hangs, no block is lost and nothing is left over."""
        self.totals["requests"] = len(self.callers)
        for caller in self.callers.values():
            self.checker.check(caller, self.stopped)
            self.totals[ending(caller)] += 1
            self.totals["full"] += isinstance(caller.error, QueueFullError)
            self.totals["structured"] += caller.params.structured_outputs is not None
            self.totals["second_loop"] += caller.op["second_loop"]
        self.checker.check_sharing(list(self.callers.values()))
        self.totals["faults"] = self.faults.struck
        inner = self.engine.engine
        self.totals["evictions"] = getattr(inner.block_manager, "num_evictions", 0)
        if not self.stopped:
            inner.check_invariants()
            require(not inner.has_unfinished_requests(), "the engine is idle with unfinished requests")
            require(not (inner.scheduler.running or inner.scheduler.waiting), "the scheduler kept a request")
            require(inner.reset_prefix_cache(), "an idle engine refuses to reset its prefix cache")
        require(len(self.engine.waiting_room) == 0, "a request is still counted as waiting")
        kept = getattr(self.engine, "_streams", {})
        require(not kept, f"the engine still knows {sorted(kept)}")

    async def _clean_up(self) -> None:
        """Ends threads and tasks, whatever went wrong."""
        for text in self.held.values():
            text.released.set()
        down = asyncio.create_task(asyncio.to_thread(self.engine.shutdown))
        await asyncio.sleep(0.001)
        self.gate.open()
        with suppress(Exception):
            await down
        for caller in self.callers.values():
            if caller.running:
                await self._on_its_loop(caller, caller.end())
        for task in self.asides:
            task.cancel()
        await asyncio.gather(*self.asides, return_exceptions=True)
        await self._turns()

    # --- waiting ---

    def _aside(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        """A command whose answer comes when the step thread next takes commands."""
        self.asides = [task for task in self.asides if not task.done()]
        task = asyncio.ensure_future(work)
        task.add_done_callback(retrieve)
        self.asides.append(task)
        return task

    def _waiting(self) -> list[Caller]:
        return [c for c in self.callers.values() if c.outcome is None]

    async def _soon(self, what: Awaitable[Any], otherwise: str) -> None:
        try:
            await asyncio.wait_for(what, PATIENCE)
        except TimeoutError:
            raise Violation(otherwise) from None

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for another thread."""
        last = time.monotonic() + PATIENCE
        while not condition():
            require(time.monotonic() < last, f"{what} takes for ever")
            await asyncio.sleep(0.0005)


def retrieve(task: asyncio.Future[Any]) -> None:
    """Looks at a task's error, so that asyncio does not complain: a stopped engine may refuse."""
    if not task.cancelled():
        task.exception()


def in_flight(stats: dict[str, Any]) -> int:
    """The requests that the engine holds."""
    return stats["num_requests_running"] + stats["num_requests_waiting"]


def ending(caller: Caller) -> str:
    """Which total a caller counts in."""
    if caller.outcome != "error":
        aborted = any(c.finish_reason == "abort" for c in caller.completions())
        return "vanished" if caller.outcome == "gone" else "aborts" if aborted else "finished"
    return {
        "RequestTimeoutError": "timeouts", "GenerationError": "failed", "EngineDeadError": "stopped",
    }.get(type(caller.error).__name__, "refused")
