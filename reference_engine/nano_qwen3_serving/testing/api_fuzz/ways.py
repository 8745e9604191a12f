"""The ways in which a call is made: here, elsewhere, with moving arguments, through pickle, in a fork."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from nano_qwen3_serving.exceptions import EngineDeadError, EngineError
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.testing.api_fuzz.calls import Call
from nano_qwen3_serving.testing.api_fuzz.values import hostile
from nano_qwen3_serving.testing.api_fuzz.world import World

PATIENCE = 60.0
Way = Callable[[Call, World, Random], Coroutine[Any, Any, Any]]


async def here(call: Call, world: World, random: Random) -> Any:
    """In this event loop."""
    return await call.run(world, call.arguments)


async def elsewhere(call: Call, world: World, random: Random) -> Any:
    """On a thread of its own, in an event loop of its own."""
    return await asyncio.to_thread(lambda: asyncio.run(here(call, world, random)))


async def changing(call: Call, world: World, random: Random) -> Any:
    """While another thread changes everything that was passed."""
    over = threading.Event()

    def change() -> None:
        while not over.wait(0.0005):
            for value in call.arguments.values():
                spoil(value, random)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        return await here(call, world, random)
    finally:
        over.set()
        thread.join()


async def pickled(call: Call, world: World, random: Random) -> Any:
    """With arguments that were pickled, if pickle takes them, and an answer that is pickled too."""
    try:
        arguments = pickle.loads(pickle.dumps(call.arguments))
    except Exception:
        arguments = call.arguments
    result = await call.run(world, arguments)
    try:
        return pickle.loads(pickle.dumps(result))
    except TypeError as error:
        raise AssertionError(f"a result cannot be pickled: {error}") from error


async def forked(call: Call, world: World, random: Random) -> Any:
    """In a forked child, without its parent's threads: it must answer. A hanging child is killed and counts as wrong."""
    if not call.in_fork or not hasattr(os, "fork"):
        return await here(call, world, random)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, ending_in_child(call, world).encode("utf-8", "backslashreplace"))
        os._exit(0)
    os.close(writer)
    killer = threading.Timer(PATIENCE, lambda: os.kill(child, signal.SIGKILL))
    killer.start()
    answer = await asyncio.to_thread(read_all, reader)
    killer.cancel()
    os.waitpid(child, 0)
    assert answer, "a forked child hangs, or dies"
    assert answer.startswith("fine"), answer
    return answer


def ending_in_child(call: Call, world: World) -> str:
    """What a call in a child ends in: "fine", or what is wrong."""
    try:
        asyncio.run(here(call, world, Random()))
    except EngineDeadError:
        return "fine: it is told that the engine stayed behind"
    except EngineError as error:
        return f"fine: {type(error).__name__}"
    except BaseException as error:
        return f"in a forked child: {type(error).__name__}: {error}"
    return "fine"


def read_all(descriptor: int) -> str:
    """All text that comes through a pipe until it is closed."""
    with os.fdopen(descriptor, encoding="utf-8") as file:
        return file.read()


def spoil(value: Any, random: Random) -> None:
    """Changes a list, a dict or parameters in place, deep inside."""
    if type(value) is list and value:
        spoil(value[0], random) if value[0] is not value else None
        value[random.randrange(len(value))] = hostile(random)
    elif type(value) is dict and value:
        value[random.choice(list(value))] = hostile(random)
    elif isinstance(value, SamplingParams):
        setattr(value, random.choice(list(vars(value))), hostile(random))


WAYS: list[tuple[Way, int]] = [(here, 50), (elsewhere, 20), (changing, 15), (pickled, 15), (forked, 1)]
