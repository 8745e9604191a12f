"""A lab's part in an engine: what it raises is the test's to see, though the engine would help itself and go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nano_qwen3_serving.testing.quiet_logs import quiet_logs


class FirstFault:
    """The first exception of a lab's part in an engine.

    The engine would compute that step again, request by request, and go on. Here the part is called no more.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def call(self, part: Callable, *arguments: Any) -> Any:
        """What the part gives, or its first exception, again and again."""
        if self.error is None:
            try:
                return part(*arguments)
            except Exception as error:  # of any kind: the engine would go on
                self.error = error
        raise self.error


@contextmanager
def first_fault() -> Iterator[FirstFault]:
    """Raises at the end what the part raised first; the engine's log, which would print its words, is silent."""
    fault = FirstFault()
    with quiet_logs():
        try:
            yield fault
        finally:
            if fault.error is not None:
                raise fault.error
