"""A progress bar on standard error, for people only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from nano_qwen3_serving.observe.terminal import is_terminal


@contextmanager
def bar(total: int, what: str, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """A bar on standard error; call the yielded function after each item. It starts no thread."""
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), auto_refresh=False, transient=True, disable=quiet or not is_terminal(sys.stderr),
        speed_estimate_period=600.0,
    ) as progress:
        task = progress.add_task(what, total=total)

        def done() -> None:
            progress.advance(task)
            progress.refresh()

        yield done
