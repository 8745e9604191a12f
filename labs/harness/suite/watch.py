"""`labs watch`: the tests of the TODO being worked on, whenever `starter.py` is saved.

This process imports once everything that the suite imports; each run is a process forked from this one, so the answer
to a save comes quickly. Where forking is not safe (macOS, Windows) a run starts afresh. A save
during a run ends that run and begins another: there are never two.
"""

import ast
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from labs.harness import loading
from labs.harness.catalog import Lab, LabError
from labs.harness.learner import learning_path
from labs.harness.learner.progress import Progress
from labs.harness.regions import definitions
from labs.harness.suite.preload import import_plugins, import_what_is_imported_by

SECONDS_BETWEEN_LOOKS = 0.15
_OPTIONS = ["--tb=short", "-q", "--no-header", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def watch(lab: Lab, todo: int | None = None, rounds: int | None = None, say: Callable[[str], None] = print) -> None:
    """Run the tests now and after every save, `rounds` times or until Ctrl-C.

    Args:
        todo: the TODO whose tests run; by default the one whose function was changed, and at first the
            first open one.
    """
    import_plugins()
    import_what_is_imported_by([lab.tests, lab.starter, lab.seam])
    gc.freeze()  # a garbage collection in a forked run would copy all these pages
    chosen, last = todo or _first_open(lab), _Saved(lab.starter)
    while True:
        tested = _one_round(lab, chosen, say)
        rounds = None if rounds is None else rounds - 1
        if rounds == 0:
            return
        if tested == _Saved(lab.starter):
            say(f"\nWatching {lab.starter.name}: save it and the tests run again. Ctrl-C ends this.")
        saved = _next_save(lab.starter, tested)
        chosen = todo or _changed(lab, last, saved) or _first_open(lab)
        last = saved if saved.functions is not None else last


class _Saved:
    """A file at one time; equal to a later one if the file has not been written since."""

    def __init__(self, path: Path):
        try:
            state = path.stat()
            self.stamp: tuple[int, int, int] | None = (state.st_mtime_ns, state.st_size, state.st_ino)
            self.text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # an editor may take the file away for a moment
            self.stamp, self.text = None, ""

    @property
    def functions(self) -> dict[str, str] | None:
        """Function -> its meaning; None if the file is not Python."""
        try:
            return {name: ast.dump(node) for name, node in definitions(ast.parse(self.text)).items()}
        except (SyntaxError, ValueError):  # a null byte is a ValueError in Python 3.11
            return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Saved) and self.stamp == other.stamp


def _one_round(lab: Lab, todo: int | None, say: Callable[[str], None]) -> _Saved:
    """Run the tests to their end, or to the next save; return the file that was tested."""
    saved = _Saved(lab.starter)
    try:
        loading.refuse_imports(lab, loading.parse(lab.starter), lab.starter.name)
    except LabError as error:
        say(str(error))
        return saved
    except OSError:
        say(f"There is no {lab.starter.name}. As it was at the start: python -m labs reset {lab.id}")
        return saved
    say(f"\nLab {lab.id}, {f'TODO {todo}' if todo else 'every TODO'}")
    process = _start(lab, todo)
    try:
        while process.is_alive() and _Saved(lab.starter) == saved:
            process.join(SECONDS_BETWEEN_LOOKS)
    finally:
        if process.is_alive():
            _end(process)
            say("\nEnded, before the tests were through.")
        process.join()
    return saved


def _next_save(path: Path, last: _Saved) -> _Saved:
    """The file once it differs from `last` and is not being written any more."""
    now, before = _Saved(path), None
    while now == last or now.stamp is None or now != before:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        now, before = _Saved(path), now
    return now


def _first_open(lab: Lab) -> int | None:
    """The first open TODO; None if none is open, and then all are tested."""
    return next(iter(learning_path.open_todos(lab, Progress(lab.folder.parent))), None)


def _changed(lab: Lab, before: _Saved, after: _Saved) -> int | None:
    """The first TODO with a function whose meaning has changed."""
    old, new = before.functions, after.functions
    if old is None or new is None:
        return None
    for todo, names in learning_path.functions(lab).items():
        if any(name in new and old.get(name) != new[name] for name in names):
            return todo
    return None


# the process of one run


def _start(lab: Lab, todo: int | None) -> BaseProcess:
    context = multiprocessing.get_context("fork") if sys.platform == "linux" else multiprocessing.get_context("spawn")
    select = ["-k", f"test_todo_{todo}_"] if todo else []
    sys.stdout.flush()
    process = context.Process(target=_run_tests, args=([str(lab.tests), *_OPTIONS, *select],), daemon=False)
    process.start()
    return process


def _run_tests(arguments: list[str]) -> None:
    """In the process of a run: pytest, out of reach of the terminal's Ctrl-C, which only the watcher handles."""
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import pytest

    status = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(int(status))


def _end(process: BaseProcess) -> None:
    """End a run and all processes that it started."""
    if hasattr(os, "killpg") and process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:  # it had not become a group's leader yet, or is gone
            pass
    process.kill()
