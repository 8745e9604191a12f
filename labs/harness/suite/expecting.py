"""What labs' tests ask with, wherever they run: in the learner's process, or in the judge's, with the learner's file elsewhere.

A test gets `lab`, the part; `rng`, from which it draws inputs; and, where it needs one, `there`, for what has to live
where the part is. It exchanges plain values and tensors with the part and judges what comes back:

    @pytest.mark.todo(1, points=2)
    def test_todo_1_every_block_is_free_at_the_start(lab, rng):
        size = rng.randrange(5, 40)
        free = lab.FreeList(size)
        assert len(free) == size - 1, f"..."       # every assertion says what was expected and what came

An error is known by the name of its class, for the class itself is the learner's.
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
    """The fixture `there` in the learner's own process, where everything is at hand.

    The judge has another with the same methods, whose values live in the worker.

    Args:
        patch: what undoes `put` after the test.
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
        """What is held, as it is now."""
        return held

    def kept(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call returns, as an object that stays there."""
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
        """Fails where the part has put something of its own in the place of what is `measured` with.

        It is asked about in the judge's worker, see `MEASURED_WITH` of `grading.sandbox.worker.bench`.
        """

    # calls

    def unawaited(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call returns, be it a coroutine or a stream: neither awaited nor read."""
        return call(*arguments)

    def awaited(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What the coroutine comes to that a call returns. All of a test run on one event loop."""
        self._runner = self._runner or self._ends.enter_context(asyncio.Runner())
        return self._runner.run(beside.awaited(call, *arguments, **named))

    def printed(self, run: Callable[[], Any]) -> str:
        """What is printed there while `run` runs."""
        with contextlib.redirect_stdout(io.StringIO()) as heard:
            run()
        return heard.getvalue()

    def at_end(self, call: Callable[[], Any]) -> None:
        """Have something called when the test has ended, such as an engine's `shutdown`."""
        self._ends.callback(call)

    def close(self) -> None:
        """What is left to do when the test has ended."""
        self._ends.close()


def kinds_of(error: BaseException) -> list[str]:
    """The names of an error's class and of that one's bases, the nearest first; an error from a worker brings them along."""
    return getattr(error, "kinds", None) or [kind.__name__ for kind in type(error).__mro__]


def kind_of(value: Any) -> str:
    """The name of a value's class, also of one that lives in a worker."""
    return vars(value)["_kind"] if "_kind" in getattr(value, "__dict__", ()) else type(value).__name__


def refusal(kind: str, call: Callable[[], Any], otherwise: str) -> str:
    """The message of the error, of a class named `kind`, that `call` has to raise; `otherwise` says why.

    What else it raises passes.
    """
    __tracebackhide__ = True
    try:
        answer = call()
    except BaseException as error:  # a cancellation is no Exception
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
