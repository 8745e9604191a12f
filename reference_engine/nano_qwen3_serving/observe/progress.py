"""Progress bars for people: shown when standard error is a terminal, silent otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nano_qwen3_serving.observe.terminal import is_terminal

T = TypeVar("T")


@contextmanager
def progress_bar(show: bool = True) -> Iterator[Progress]:
    """A rich progress display on standard error, gone when done."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True,
        disable=not (show and is_terminal(sys.stderr)),
    ) as bar:
        yield bar


def track(items: Iterable[T], description: str, show: bool = True) -> Iterator[T]:
    """Yields `items` and moves a bar."""
    items = list(items)
    with progress_bar(show) as bar:
        task = bar.add_task(description, total=len(items), note="")
        for item in items:
            yield item
            bar.advance(task)
