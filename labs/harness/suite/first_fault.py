"""A lab's part in an engine: the test sees its exception, though the engine would recover and go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nano_qwen3_serving.testing.quiet_logs import quiet_logs


class FirstFault:
    """The first exception of a lab's part in an engine.

    The engine would compute that step again, request by request, and go on. Here the part is not called again.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def call(self, part: Callable, *arguments: Any) -> Any:
        """The part's result, or its first exception, again and again."""
        if self.error is None:
            try:
                return part(*arguments)
            except Exception as error:  # of any kind, because the engine would go on
                self.error = error
        raise self.error


@contextmanager
def first_fault() -> Iterator[FirstFault]:
    """Raises the part's first exception at the end; silences the engine's log, which would print its message."""
    fault = FirstFault()
    with quiet_logs():
        try:
            yield fault
        finally:
            if fault.error is not None:
                raise fault.error
