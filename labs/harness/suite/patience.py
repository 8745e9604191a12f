"""A limit for one test: ends a test that waits or loops for ever, and reports the learner's line where it was.

Works without signals that only some systems have: a thread looks where the others are, and raises in the one that
is in the learner's file; a thread that waits inside the system is woken by the signal of Ctrl-C.
"""

import asyncio
import ctypes
import gc
import linecache
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import AsyncGeneratorType, FrameType, TracebackType

IDLE = 0.01
"""The share of a core below which a process counts as waiting."""
PATIENCE = 15
"""How many times its limit a test may take, however slowly it gets on."""
STUBBORN = 60
"""Seconds after the first attempt until the whole run is ended: a test that ignores every exception cannot be ended alone."""


class WaitsForEver(AssertionError):
    """A test had not ended when its time was up."""


class _Ended(BaseException):
    """Raised in the thread that does not end."""


class Limit:
    """`with Limit(60, file): …` raises `WaitsForEver` if the block computes for longer, or waits for longer without computing.

    Args:
        seconds: of CPU time, or of waiting without CPU time; 0 for no limit.
        file: the learner's; None if it is not known.
        give_up: called with the words if nothing ends the block; the process ends right after.
    """

    def __init__(self, seconds: float, file: Path | None, give_up: Callable[[str], None] = print) -> None:
        self._seconds, self._file, self._give_up = seconds, str(file), give_up
        self._main = threading.get_ident()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._raised_in: set[int] = set()
        self._seen: dict[int, tuple[int, int]] = {}
        self._deaf = False
        self.words = ""
        """Where the block was when its time was up; empty if it ended in time."""

    def __enter__(self) -> "Limit":
        self._outside = sys._getframe(1).f_back
        if self._seconds:
            self._let_be_woken()
            self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._seconds:
            self._stop()
            if self._deaf:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.words:
            raise WaitsForEver(self.words) from None

    def _let_be_woken(self) -> None:
        """Restores Ctrl-C, which wakes a waiting thread: a process in the background may have been started to ignore it."""
        self._deaf = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if self._deaf:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _stop(self) -> None:
        """After this, no exception and no signal of ours arrives."""
        while True:
            try:
                self._over.set()
                self._watch.join()
                for thread in self._raised_in:
                    _raise_in(thread, None)
                return
            except (_Ended, KeyboardInterrupt):
                if not self.words:
                    raise

    def _time_is_up(self) -> str:
        """Waits until the block is over, and returns no words, or until it has computed or idled for too long.

        Time is the process's CPU time, not a clock's: on a busy machine correct code waits for its turn.
        """
        tick = min(1.0, self._seconds / 4)
        start = used = time.process_time()
        idle = ticks = 0
        while not self._over.wait(tick):
            before, used, ticks = used, time.process_time(), ticks + 1
            idle = 0 if used - before > IDLE * tick else idle + 1
            if used - start >= self._seconds:
                return "computing"
            if idle * tick >= self._seconds or ticks * tick >= self._seconds * PATIENCE:
                return "waiting"
        return ""

    def _look(self) -> None:
        if not (doing := self._time_is_up()):
            return
        self.words = f"it does not end: after {self._seconds:g} s of {doing} it was still {self._place()[1]}"
        quiet = 0  # half seconds since an exception was raised in the learner's code
        for _ in range(STUBBORN * 2):
            if not self._is_inside():
                return
            thread, _ = self._place()
            if thread is not None:
                self._raised_in.add(thread)
                _raise_in(thread, _Ended)
            quiet = quiet + 1 if thread is None or thread in self._blocked() else 0
            if quiet % 4 == 1:
                _wake(self._main)
            if self._over.wait(0.5):
                return
        self._give_up(self.words)
        os._exit(1)

    def _is_inside(self) -> bool:
        """Whether the main thread has not left the block."""
        return any(frame is self._outside for frame, _ in _outwards(sys._current_frames().get(self._main)))

    def _blocked(self) -> set[int]:
        """Threads that have not moved since the last call of this: they wait inside the system."""
        now = {thread: (id(frame), frame.f_lasti) for thread, frame in sys._current_frames().items()}
        before, self._seen = self._seen, now
        return {thread for thread, place in now.items() if before.get(thread) == place}

    def _place(self) -> tuple[int | None, str]:
        """The thread that is in the learner's file, or None, and its place in words."""
        frames = sys._current_frames()
        for thread in sorted(frames, key=lambda one: one != self._main):
            for frame, line in _outwards(frames[thread]):
                if frame.f_code.co_filename == self._file:
                    return thread, _in_words(frame, line)
        for frame in _waiting(frames.get(self._main)):
            if frame.f_code.co_filename == self._file:
                return None, _in_words(frame, frame.f_lineno)
        return None, "not in your file: it waits for something that does not come"


def _outwards(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_stack(frame) if frame is not None else iter(())


def _waiting(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of an event loop's coroutines, if one runs in that thread."""
    for one, _ in _outwards(frame):
        loop = one.f_locals.get("self")
        if one.f_code.co_name == "run_forever" and isinstance(loop, asyncio.AbstractEventLoop):
            for task in asyncio.all_tasks(loop):
                yield from reversed(list(_suspended(task.get_coro())))


def _suspended(awaited: object) -> Iterator[FrameType]:
    """The frames of a coroutine and of everything it awaits, outermost first."""
    while awaited is not None:
        kinds = [kind for kind in ("cr", "gi", "ag") if hasattr(awaited, f"{kind}_frame")]
        if not kinds:  # such as the next item of an asynchronous generator, which only gc can find
            awaited = next((one for one in gc.get_referents(awaited) if isinstance(one, AsyncGeneratorType)), None)
            continue
        kind = kinds[0]
        if (frame := getattr(awaited, f"{kind}_frame")) is not None:
            yield frame
        awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")


def _in_words(frame: FrameType, line: int) -> str:
    file = frame.f_code.co_filename
    code = linecache.getline(file, line).strip()
    return f"in line {line} of {Path(file).name}, in {frame.f_code.co_name}" + (f": {code[:100]}" if code else "")


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Makes the thread raise `error` at its next instruction; None takes back an error that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)


def _wake(main: int) -> None:
    """Sends the signal of Ctrl-C, which also ends waiting inside the system."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGINT)
    else:
        import _thread

        _thread.interrupt_main()


def debugged() -> bool:
    """Whether a debugger is active: then no test is ended for taking long."""
    return sys.gettrace() is not None or any(name in sys.modules for name in ("debugpy", "pydevd"))
