"""Running labs' suites on many files: one short-lived process each, forked from one that has imported everything.

On Linux the processes are forked from a server that has imported `grading.authoring.prefork`; elsewhere they start
afresh and import everything themselves, which is slower but otherwise the same. Knows pytest, the labs and
time limits; knows nothing of tables.
"""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from labs.harness.catalog import Lab, LabError

PROJECT = Path(__file__).parents[2]
TESTS_RAN = (0, 1)
"""pytest's exit statuses after which its report is complete."""


@dataclass(frozen=True)
class Job:
    """One run of a lab's suite on the text of a file."""

    lab: Lab
    text: str
    select: str = ""
    """A pytest expression of test names, `-k`."""
    stop_first: bool = False
    """Whether to stop after the first test that fails."""
    seconds: float = 120.0
    """The time limit."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    outcomes: tuple[dict, ...] = ()
    """What the labs' plugin recorded of each test; nothing if the run did not get to its end."""
    ended: str = ""
    """`hung` or `crashed` if the run did not get to its end."""
    during: str = ""
    """The test that ran when it hung or crashed; empty if none did."""
    seconds: float = 0.0
    printed: str = ""
    """The last lines that it printed, if the run did not get to its end."""

    def failing(self, todo: int | None = None) -> list[str]:
        """The tests (of one TODO, or all) that did not pass, each once, including a test that hung or crashed."""
        failed = [outcome["test"] for outcome in self.outcomes if not outcome["passed"] and todo in (None, outcome["todo"])]
        name = self.during.partition("::")[2].partition("[")[0]
        if name and (todo is None or name.startswith(f"test_todo_{todo}_")):
            failed.append(name)
        return list(dict.fromkeys(failed))


def run(jobs: Sequence[Job], parallel: int | None = None, done: Callable[[], None] = lambda: None) -> list[Result]:
    """Every job's result, in order; `parallel` processes at a time (default: one per core), `done()` after each."""
    results: dict[int, Result] = {}
    with tempfile.TemporaryDirectory(prefix="kill-") as name, _stopped_at_exit() as running:
        waiting = iter(enumerate(jobs))
        while True:
            while len(running) < (parallel or os.cpu_count() or 1):
                following = next(waiting, None)
                if following is None:
                    break
                index, job = following
                running.append(_Run(index, job, Path(name) / str(index)))
            if not running:
                return [results[index] for index in range(len(jobs))]
            limit = max(0.0, min(child.deadline for child in running) - time.monotonic())
            wait([child.process.sentinel for child in running], timeout=limit)
            for child in [child for child in running if child.is_over()]:
                running.remove(child)
                results[child.index] = child.result()
                done()


@contextmanager
def _stopped_at_exit() -> Iterator[list["_Run"]]:
    """A list of runs; those that are in it at the end are killed."""
    running: list[_Run] = []
    try:
        yield running
    finally:
        for child in running:
            child.kill()


class _Run:
    """One job's process and its files."""

    def __init__(self, index: int, job: Job, folder: Path):
        self.index, self.job, self.folder = index, job, folder
        folder.mkdir()
        (folder / "impl.py").write_text(job.text, encoding="utf-8")
        self.process = _start(str(folder), str(job.lab.tests), job.select, job.stop_first)
        self.began = time.monotonic()  # the first start waits for the imports
        self.deadline = self.began + job.seconds

    def is_over(self) -> bool:
        return not self.process.is_alive() or time.monotonic() >= self.deadline

    def kill(self) -> None:
        """End the process and what it started."""
        if hasattr(os, "killpg") and self.process.pid is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:  # it had not become a group's leader yet, or is gone
                pass
        self.process.kill()
        self.process.join()

    def result(self) -> Result:
        """How the run ended; a process over its time limit is killed."""
        hung = self.process.is_alive()
        if hung:
            self.kill()
        self.process.join()
        seconds, report = time.monotonic() - self.began, self.folder / "report.json"
        if not hung and report.is_file() and self.process.exitcode in TESTS_RAN:
            outcomes = json.loads(report.read_text(encoding="utf-8")).get(self.job.lab.id, [])
            return Result(tuple(outcomes), seconds=seconds)
        printed = (self.folder / "said.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
        journal = self.folder / "journal.txt"
        during = journal.read_text(encoding="utf-8").splitlines()[-1:] if journal.is_file() else []
        return Result((), "hung" if hung else "crashed", "".join(during), seconds, printed)


def _start(folder: str, tests: str, select: str, stop_first: bool) -> BaseProcess:
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["grading.authoring.prefork"])
    else:
        context = multiprocessing.get_context("spawn")
    process = context.Process(target=_work, args=(folder, tests, select, stop_first))
    process.start()
    return process


def _work(folder: str, tests: str, select: str, stop_first: bool) -> None:
    """In the worker: run the suite, what it prints going into a file, and exit with pytest's status."""
    if hasattr(os, "setsid"):
        os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the suite's own processes start in the default way
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    for name in [name for name in os.environ if name.startswith("PYTEST")]:
        del os.environ[name]
    os.chdir(PROJECT)
    with open(Path(folder) / "said.txt", "w", encoding="utf-8") as printed:
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
    import pytest
    import torch

    torch.set_num_threads(1)
    options = ["--impl", f"{folder}/impl.py", "--lab-json", f"{folder}/report.json", "--plain", "-q", "--tb=short"]
    options += ["--limit", "0", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:warnings"]
    options += [*(["-k", select] if select else []), *(["-x"] if stop_first else [])]
    status = pytest.main([tests, *options], plugins=[_Journal(Path(folder) / "journal.txt")])
    sys.stdout.flush()
    os._exit(int(status))


class _Journal:
    """Notes the running test, so that a test that never ends is known by name."""

    def __init__(self, path: Path):
        self.path = path

    def pytest_runtest_logstart(self, nodeid: str, location: object) -> None:
        self.path.write_text(nodeid, encoding="utf-8")

    def pytest_sessionfinish(self, session: object, exitstatus: object) -> None:
        self.path.write_text("", encoding="utf-8")


def baseline(lab: Lab, result: Result) -> float:
    """The time limit for mutants of `lab`, in seconds, from a run of its suite on its solution.

    Raises `LabError` unless every test passed: then a kill table would mean nothing.
    """
    if result.ended or not result.outcomes:
        raise LabError(f"Lab {lab.id}: the suite {result.ended or 'ran no test'} on the solution itself:\n{result.printed}")
    if failing := result.failing():
        raise LabError(
            f"Lab {lab.id}: the solution itself fails {', '.join(failing)}; before that is mended no mutant means anything.")
    return max(60.0, 8 * result.seconds)
