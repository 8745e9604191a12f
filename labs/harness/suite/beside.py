"""Parts of an engine, streams, and measures of time and threads that tests use where the part under test lives.

The test makes every decision: which token, which output comes next. This module only carries questions and answers, and
holds no expected value, because in grading it runs beside the submission.
"""

import asyncio
import datetime
import itertools
import random
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import fields
from types import FrameType, ModuleType
from typing import Any

import numpy
import torch

CLOCKS = (time.time, time.time_ns, time.monotonic, time.monotonic_ns, time.perf_counter, time.perf_counter_ns)


class Listener(list):
    """A listener that keeps everything it is called with; it is false until its first call."""

    __call__ = list.append


class AskingSampler:
    """A sampler that leaves the choice of every token to `ask`.

    `ask(rows)` gets the `row_dict` of each row, and returns a token for each.
    """

    def __init__(self, ask: Callable[[list], list[int]]) -> None:
        self._ask = ask

    def sample(self, logits: Any, rows: Sequence[Any]) -> tuple[list[int], list[None]]:
        return self._ask([row_dict(row) for row in rows]), [None] * len(rows)


def asking_sampler(ask: Callable[[list], list[int]]) -> Callable[[Any], AskingSampler]:
    """What `Components(sampler=…)` takes."""
    return lambda config: AskingSampler(ask)


def row_dict(row: Any) -> dict:
    """Prompt, output so far and seed of a `SamplingRow`; before its first token also its parameters."""
    facts = {"prompt": row.prompt_token_ids, "output": row.output_token_ids, "seed": row.seed}
    if not row.output_token_ids:
        facts["params"] = params_dict(row.params)
    return facts


def params_dict(params: Any) -> dict:
    """Every field of `SamplingParams`."""
    return {field.name: getattr(params, field.name) for field in fields(params)}


def output_dicts(outputs: Sequence[Any]) -> list[dict]:
    """For each `RequestOutput`, its request and the content of its first completion."""
    return [{"request_id": output.request_id, "prompt": output.prompt, "prompt_token_ids": output.prompt_token_ids,
             "finished": output.finished, "text": output.outputs[0].text, "tokens": output.outputs[0].token_ids,
             "finish_reason": output.outputs[0].finish_reason} for output in outputs]


async def handed_out(ask: Callable[[], Any]) -> AsyncGenerator[Any, None]:
    """A stream that calls `ask` for each output when its reader wants it. An exception as answer is raised; None is the end."""
    while (output := ask()) is not None:
        if isinstance(output, BaseException):
            raise output
        yield output


def as_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function that calls `function`, which may be an object of the test's."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def as_coroutine(function: Callable[..., Any]) -> Callable[..., Coroutine]:
    """A coroutine function that calls `function`."""

    async def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


async def awaited(function: Callable[..., Coroutine], *arguments: Any, **named: Any) -> Any:
    """The result of a coroutine function. Raises `TypeError` if its return value cannot be awaited."""
    return await function(*arguments, **named)


async def read(stream: AsyncGenerator[Any, None]) -> list:
    """All outputs of a stream."""
    return [output async for output in stream]


async def read_all(generate: Callable[..., AsyncGenerator[Any, None]], requests: Sequence[Sequence[Any]]) -> list[list]:
    """All outputs of a stream for each request, its arguments; all are read at the same time."""
    return await asyncio.gather(*(read(generate(*request)) for request in requests))


class Neighbour:
    """Other work on the event loop while something is served.

    Attributes:
        turns: how often it got a turn.
        sleeps: calls of time.sleep() on the event loop's thread meanwhile.
    """

    def __init__(self) -> None:
        self.turns = self.sleeps = 0

    async def beside(self, function: Callable[..., Coroutine], *arguments: Any) -> Any:
        """The result of the coroutine function."""
        working = asyncio.create_task(self._work())
        sys.setprofile(self._watch)
        try:
            return await function(*arguments)
        finally:
            sys.setprofile(None)
            working.cancel()

    async def _work(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0.001)

    def _watch(self, frame: FrameType, event: str, called: Any) -> None:
        self.sleeps += event == "c_call" and called is time.sleep


def called(function: Callable[[], Any], times: int) -> list:
    """The results of so many calls."""
    return [function() for _ in range(times)]


def called_while_clocks_stand(function: Callable[[], Any], module: ModuleType, times: int) -> list:
    """The results of so many calls while `module`, and any code that calls `time` or `datetime`, always sees the same time."""
    replaced = _stop_the_clocks(module)
    try:
        return called(function, times)
    finally:
        for home, name, value in replaced:
            setattr(home, name, value)


def _stop_the_clocks(module: ModuleType) -> list[tuple[ModuleType, str, Any]]:
    """The replaced objects: where, under which name, and the original."""
    now = datetime.datetime.now()

    class Stopped(datetime.datetime):
        now = classmethod(lambda cls, tz=None: now)  # type: ignore[assignment]
        utcnow = classmethod(lambda cls: now)  # type: ignore[assignment]

    stopped: list[tuple[Any, Any]] = [(clock, itertools.repeat(clock()).__next__) for clock in CLOCKS]
    replaced = []
    for home in (module, time, datetime):
        for name, value in list(vars(home).items()):
            for known, instead in (*stopped, (datetime.datetime, Stopped)):
                if value is known:
                    replaced.append((home, name, value))
                    setattr(home, name, instead)
    return replaced


def called_after_seeding(function: Callable[[], Any], seed: int, times: int) -> list:
    """The results of so many calls after every random generator was seeded; afterwards each continues where it was."""
    python, numbers, torchs = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    numpy.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        return called(function, times)
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)
        torch.set_rng_state(torchs)


def called_by_threads(function: Callable[[], Any], file: str, threads: int, times: int) -> list[list]:
    """The results of the calls in each of several threads, which may switch between any two instructions of `file`."""
    answers: list[list] = [[] for _ in range(threads)]
    errors: list[BaseException] = []
    start = threading.Barrier(threads)

    def let_the_others_run(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != file:
            return None
        frame.f_trace_opcodes = True
        time.sleep(0)
        return let_the_others_run

    def call(mine: list) -> None:
        start.wait()
        sys.settrace(let_the_others_run)  # of this thread alone
        try:
            mine.extend(function() for _ in range(times))
        except BaseException as error:
            errors.append(error)
        finally:
            sys.settrace(None)

    running = [threading.Thread(target=call, args=(mine,)) for mine in answers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]
    return answers
