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

from typing import Any


class EngineError(Exception):
    """Base of every error raised on purpose by this package."""


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
        limit: the bound that was met (`max_num_queued_reqs`).
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
        partial: the `RequestOutput` with what was generated until then; of a stream of deltas, what its
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

    Every request that was waiting gets it, and so does every later call.
    """
