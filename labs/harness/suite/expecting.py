"""Tools of labs' tests, wherever these run: in the learner's process, or in the judge's, with the learner's file elsewhere.

A test gets `lab`, the part; `rng`, from which it draws inputs; and, if it needs it, `there`, for objects that have to
live beside the part. It exchanges plain values and tensors with the part and judges the answers:

    @pytest.mark.todo(1, points=2)
    def test_todo_1_every_block_is_free_at_the_start(lab, rng):
        size = rng.randrange(5, 40)
        free = lab.FreeList(size)
        assert len(free) == size - 1, f"..."       # every assertion says what was expected and what came

An error is recognised by the name of its class, because the class itself is the learner's.
"""

import asyncio
import contextlib
import io
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from labs.harness.suite import beside
from labs.harness.suite.operators import Log


class Here:
    """The fixture `there` in the learner's own process, where everything is local.

    The judge has another with the same methods, whose values live in the worker.

    Args:
        patch: undoes `put` after the test.
    """

    def __init__(self, patch: pytest.MonkeyPatch | None = None) -> None:
        self._patch = patch
        self._runner: asyncio.Runner | None = None
        self._ends = contextlib.ExitStack()

    # values

    def hold(self, value: Any) -> Any:
        """The value as an object that the part can change: here it is this very value, so compare with a copy made before."""
        return value

    def look(self, held: Any) -> Any:
        """The present value of a held object."""
        return held

    def kept(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call, as an object that stays there."""
        return call(*arguments)

    def iterator(self, values: Iterable[Any]) -> Any:
        """An iterator over values: it can be read once."""
        return iter(values)

    def is_a(self, kind: type, *values: Any) -> bool:
        """Whether all of them are objects of a class of Python or the engine."""
        return all(isinstance(value, kind) for value in values)

    # functions and classes

    def of(self, thing: Any) -> Any:
        """A function, class or module of Python, the engine or `beside` there: `there.of(LLM)("course")` is an engine there."""
        return thing

    def lend(self, thing: Any, *names: str) -> Any:
        """A function of the test, or an object with methods of these `names`, that is used there and stays here."""
        return thing

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of a module there, until the test ends; a function, or a coroutine function, is lent."""
        if self._patch is None:
            raise TypeError("there.put() needs something that undoes it: Here(monkeypatch)")
        self._patch.setattr(owner, name, value)

    def operators(self) -> Log:
        """Notes which of torch's operators run: `log.watch(call, *arguments)`, and then `log.events`."""
        return Log()

    def nothing_replaced(self, *measured: str) -> None:
        """Fails if the part has replaced a function that `measured` uses.

        Only the judge's worker checks it, see `MEASURED_WITH` of `grading.sandbox.worker.bench`.
        """

    # calls

    def unawaited(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call, even a coroutine or a stream: neither awaited nor read."""
        return call(*arguments)

    def awaited(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """The result of the coroutine that a call returns. All coroutines of a test run on one event loop."""
        self._runner = self._runner or self._ends.enter_context(asyncio.Runner())
        return self._runner.run(beside.awaited(call, *arguments, **named))

    def printed(self, run: Callable[[], Any]) -> str:
        """The text printed there while `run` runs."""
        with contextlib.redirect_stdout(io.StringIO()) as heard:
            run()
        return heard.getvalue()

    def at_end(self, call: Callable[[], Any]) -> None:
        """Register a call for the end of the test, such as an engine's `shutdown`."""
        self._ends.callback(call)

    def close(self) -> None:
        """Runs the calls registered for the end of the test."""
        self._ends.close()


def kinds_of(error: BaseException) -> list[str]:
    """The names of an error's class and of its bases, the nearest first; an error from a worker carries them with it."""
    return getattr(error, "kinds", None) or [kind.__name__ for kind in type(error).__mro__]


def kind_of(value: Any) -> str:
    """The name of a value's class, also of one that lives in a worker."""
    return vars(value)["_kind"] if "_kind" in getattr(value, "__dict__", ()) else type(value).__name__


def refusal(kind: str, call: Callable[[], Any], otherwise: str) -> str:
    """The message of the error, of a class named `kind`, that `call` has to raise; `otherwise` says why.

    Any other error passes through.
    """
    __tracebackhide__ = True
    try:
        answer = call()
    except BaseException as error:  # a cancellation is not an Exception
        if kind in kinds_of(error):
            return getattr(error, "text", None) or str(error)
        raise
    raise AssertionError(f"expected {kind}, and {shown(answer)} came back: {otherwise}")


def same(found: Any, expected: Any) -> bool:
    """Whether two values are equal and of the same types, all the way down: 3.0 is not 3, nor is True 1."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def shown(value: Any) -> str:
    """A value in a line: tensors by shape and dtype, long ones cut."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    return reprlib.repr(value)
