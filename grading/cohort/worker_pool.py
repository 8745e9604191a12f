"""Processes that grade, and the loop that hands them submissions. A crash costs one retry and nothing more.

Knows nothing of labs, journals and reports: a unit goes in, an answer comes out. `grading.cohort.ray_cluster` has
workers of another kind for the same loop.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Generic, Protocol, TypeVar

from grading.sandbox.supervisor import processes_of, resident_bytes

TRIES = 2
SECONDS_BETWEEN_LOOKS = 1.0
STOP_SECONDS = 5.0
PR_SET_PDEATHSIG = 1
"""Of Linux' prctl(2)."""

Make = Callable[[], AbstractContextManager[Callable[[Any], Any]]]
"""Called in each process, returns the function that grades one unit. It has to be picklable."""


class Crashed(Exception):
    """A worker is gone; the message says how it ended."""


class Failed(str):
    """A worker's answer where grading raised."""


class Worker(Protocol):
    """A process or actor that grades one unit at a time."""

    def give(self, unit: Any) -> None:
        """Hand it a unit. The answer to its last unit was taken before."""

    def take(self) -> Any:
        """The answer, which has arrived. Raises `Crashed` instead if the worker is gone."""

    def stop(self, why: str = "") -> None:
        """End it, whatever it is doing. If it had a unit, `take` raises `Crashed` with these words."""


@dataclass
class UnitOutcome:
    """How a unit ended.

    Attributes:
        answer: the result of grading; None if every try failed.
        crashes: one reason for each failed try.
        seconds: how long the last try took.
    """

    unit: Any
    answer: Any = None
    crashes: list[str] = field(default_factory=list)
    seconds: float = 0.0


W = TypeVar("W", bound=Worker)


@dataclass
class Crew(Generic[W]):
    """Workers of one kind.

    Attributes:
        count: units in work at a time.
        hire: makes a worker.
        ready: waits, not for long, and says which of these have something to take.
        seconds: that a unit may take, all in all.
    """

    count: int
    hire: Callable[[], W]
    ready: Callable[[Sequence[W]], Sequence[W]]
    seconds: float


def schedule(units: Sequence[Any], crew: Crew[W]) -> Generator[UnitOutcome, None, None]:
    """Outcomes, as they come. Whatever ends it, closing the iterator included, stops every worker."""
    waiting = deque(map(UnitOutcome, units))
    idle: list[W] = []
    busy: dict[W, UnitOutcome] = {}
    began: dict[W, float] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < crew.count:
                worker = idle.pop() if idle else crew.hire()
                busy[worker], began[worker] = waiting.popleft(), time.monotonic()
                worker.give(busy[worker].unit)
            for worker in crew.ready(list(busy)):
                outcome = busy.pop(worker)
                outcome.seconds = time.monotonic() - began.pop(worker)
                if _answered(outcome, worker):
                    idle.append(worker)
                if outcome.answer is None and len(outcome.crashes) < TRIES:
                    waiting.append(outcome)
                else:
                    yield outcome
            for worker in [worker for worker in busy if time.monotonic() - began[worker] > crew.seconds]:
                worker.stop(f"it had not ended after {crew.seconds:g} seconds")
    finally:
        for worker in (*idle, *busy):
            worker.stop()


def _answered(outcome: UnitOutcome, worker: Worker) -> bool:
    """Take the worker's answer; returns whether it can go on."""
    try:
        answer = worker.take()
    except Crashed as crash:
        worker.stop()
        outcome.crashes.append(str(crash))
        return False
    if isinstance(answer, Failed):
        outcome.crashes.append(str(answer))
    else:
        outcome.answer = answer
    return True


def answer_of(grade: Callable[[Any], Any], unit: Any) -> Any:
    """A worker's answer: an exception in grading becomes a `Failed`, and the worker lives on."""
    try:
        return grade(unit)
    except Exception as error:
        return Failed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


# processes of this machine


class Process:
    """A worker that is a process, started afresh."""

    def __init__(self, make: Make) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process, self._why = context.Process(target=_serve, args=(theirs, make), daemon=False), ""
        with _interrupts_ignored():
            self.process.start()
        theirs.close()

    def give(self, unit: Any) -> None:
        with suppress(OSError):  # the worker is gone; take() will notice
            self.connection.send(unit)

    def take(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(STOP_SECONDS)
            raise Crashed(self._why or f"its process ended, {_how(self.process.exitcode)}") from None

    def stop(self, why: str = "") -> None:
        self._why = self._why or why
        self.process.terminate()
        self.process.join(STOP_SECONDS)
        self.process.kill()
        self.process.join()


def processes(count: int, make: Make, seconds: float, memory: "Memory") -> Crew[Process]:
    """`count` processes; while they work, `memory` is measured."""

    def ready(workers: Sequence[Process]) -> list[Process]:
        there = wait([worker.connection for worker in workers], timeout=SECONDS_BETWEEN_LOOKS)
        memory.look()
        return [worker for worker in workers if worker.connection in there]

    return Crew(count, lambda: Process(make), ready, seconds)


def _serve(connection: Any, make: Make) -> None:
    """In the process: grade every unit that comes, until the parent is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves the `with` blocks: a sandbox ends its workers
    _end_with_parent()
    with suppress(EOFError, OSError), make() as grade:
        while True:
            connection.send(answer_of(grade, connection.recv()))


def _end_with_parent() -> None:
    """On Linux this process is asked to end when its parent is killed, not only when it next asks for work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
            sys.exit(0)  # it was killed before that


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started here ignore Ctrl-C, which a terminal sends to all its processes: their parent ends them."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, where signals cannot be set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _how(status: int | None) -> str:
    if status is None:
        return "nobody knows how"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


class Memory:
    """The most memory that this process and all that it started had at once, sampled now and then.

    Attributes:
        peak: in bytes. Pages that several processes share count once (where Linux says so).
    """

    def __init__(self) -> None:
        self.peak, self._next = 0, 0.0

    def look(self) -> None:
        """May be called often: it measures only once in a while."""
        now = time.monotonic()
        if now >= self._next:
            self.peak = max(self.peak, sum(map(_share_of, processes_of(os.getpid()))))
            self._next = now + SECONDS_BETWEEN_LOOKS


def _share_of(pid: int) -> int:
    """Resident bytes of a process, of shared pages its share."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))
    except (OSError, StopIteration, ValueError):
        return resident_bytes(pid)
