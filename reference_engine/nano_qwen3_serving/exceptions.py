"""Every error the engine raises on purpose: one tree, each naming the value and the way out.

    EngineError
    ├── InvalidParametersError        the caller's argument (also a ValueError)
    │   ├── UnknownArgumentError      an argument that does not exist (also a TypeError)
    │   └── PromptTooLongError        a prompt that could never be served
    ├── ModelLoadError                the checkpoint cannot be used
    ├── QueueFullError                too many requests are waiting; try again later
    ├── RequestTimeoutError           the request's own timeout passed
    ├── GenerationError               this request failed; the others go on
    └── EngineDeadError               the engine cannot go on, or was shut down
"""

from __future__ import annotations

import copy
import pickle
import reprlib
from collections.abc import Callable
from typing import Any

SHORT_REPR = reprlib.Repr()
SHORT_REPR.maxlevel, SHORT_REPR.maxdict, SHORT_REPR.maxlist, SHORT_REPR.maxtuple = 6, 20, 20, 20
SHORT_REPR.maxstring, SHORT_REPR.maxlong, SHORT_REPR.maxother = 200, 80, 400


class EngineError(Exception):
    """Base of every error raised on purpose by this package.

    An error goes through pickle, copy and deepcopy with its message and its attributes, so that it reaches the
    parent of a worker process. An attribute that cannot be pickled arrives as its repr.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), self.args, kept(self.__dict__, through_pickle))

    def __copy__(self) -> EngineError:
        """A copy to raise: it has the same cause, and a traceback of its own."""
        twin = rebuilt(type(self), self.args, dict(self.__dict__))
        twin.__cause__ = self.__cause__
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineError:
        return rebuilt(type(self), self.args, kept(self.__dict__, lambda value: copy.deepcopy(value, memo)))


def rebuilt(kind: type[EngineError], args: tuple[Any, ...], attributes: dict[str, Any]) -> EngineError:
    """Rebuilds the error without calling its constructor, whose arguments differ from the exception's `args`."""
    error = kind.__new__(kind, *args)
    error.args = args  # OSError sets args only in its constructor
    error.__dict__.update(attributes)
    return error


def kept(attributes: dict[str, Any], carried: Callable[[Any], Any]) -> dict[str, Any]:
    """The attributes, each `carried`; one that cannot be becomes its repr, because callers put any kind of value there."""
    result = {}
    for name, value in attributes.items():
        try:
            result[name] = carried(value)
        except Exception:
            result[name] = shown(value)
    return result


def through_pickle(value: Any) -> Any:
    """The value itself, if pickle takes it. Raises whatever pickle raises if not."""
    pickle.dumps(value)
    return value


def shown(value: Any) -> str:
    """A value as error messages show it: its repr, shortened where it is long or deep. Never raises."""
    try:
        return SHORT_REPR.repr(value)
    except Exception:  # ints of thousands of digits, objects whose repr fails
        return f"<{type(value).__name__}>"


class InvalidParametersError(EngineError, ValueError):
    """An argument has a wrong type or value.

    Attributes:
        parameter: the argument's name.
        value: what was given.
    """

    def __init__(self, message: str, *, parameter: str, value: Any = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value


class UnknownArgumentError(InvalidParametersError, TypeError):
    """An argument that the called function does not have. Unknown arguments are never dropped."""


class PromptTooLongError(InvalidParametersError):
    """The prompt has more tokens than the engine could ever hold; nothing was queued."""


class ModelLoadError(EngineError):
    """A checkpoint is missing, corrupt, incomplete or of an architecture that is not Qwen3."""


class QueueFullError(EngineError):
    """As many requests as allowed are waiting already; nothing was queued.

    Attributes:
        limit: the bound that was reached (`max_num_queued_reqs`).
        retry_after: seconds after which trying again is sensible.
    """

    def __init__(self, limit: int, retry_after: float = 1.0) -> None:
        super().__init__(
            f"{limit} requests are waiting already, which is the limit; try again in about "
            f"{retry_after:g} s, or start the engine with a larger max_num_queued_reqs"
        )
        self.limit = limit
        self.retry_after = retry_after


class RequestTimeoutError(EngineError, TimeoutError):
    """The request's timeout passed before it finished; its blocks are free again.

    Attributes:
        partial: the `RequestOutput` with what was generated until then; for a stream of deltas, what its
            consumer had not read.
    """

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class GenerationError(EngineError):
    """This one request failed while it ran. Its neighbours are not affected.

    Attributes:
        outputs: raised by `LLM.generate`: the `RequestOutput` of every prompt, those that
            succeeded among them.
    """

    outputs: list[Any] | None = None


class EngineDeadError(EngineError):
    """The engine stopped, by an error it could not recover from or by `shutdown()`.

    Every waiting request fails with this error, and every later call raises it.
    """
