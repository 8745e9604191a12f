"""A worker and its supervision: starting it, one child per check, clocks and watchdogs, its end.

Knows processes and limits; knows nothing of labs. Every wait has a deadline. A worker that is gone or does
not answer is killed with all that it started, and the next check gets a new one.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from grading.sandbox.footprint import bytes_in, clear, lives, memory_of_worker, processes_of, resident_bytes, threads_beside
from grading.sandbox.isolation import COURSE, Limits, command, confinement, environment, other_sites, other_user
from grading.sandbox.worker.peer import Peer
from grading.sandbox.worker.wire import Ended

START_SECONDS = 120.0
"""Seconds for importing torch, on a slow and busy machine."""
ANSWER_SECONDS = 20.0
"""Seconds for forking, and for ending the forked process."""
KILL_SECONDS = 5.0
TRIES = 2
SECONDS_BETWEEN_LOOKS = 0.05


NOT_HERE = "submissions are graded on Linux and macOS; on Windows, use its Linux (WSL)"


class Stopped(Ended):
    """A check was ended; the message says why, in the words of the report.

    Attributes:
        costly: whether it took all the time that a check has.
    """

    def __init__(self, why: str, costly: bool = False) -> None:
        super().__init__(why)
        self.costly = costly


class SetupError(Exception):
    """No worker can be started here, whatever the submission."""


class _Gone(Ended):
    """The child ended by itself."""


class Sandbox:
    """Where the checks of one submission run.

    Args:
        level: of isolation.
        runtime: the folder made by `grading.sandbox.runtime`.
        libraries: packages that submissions may have.
        limits: of one check.
    """

    def __init__(self, level: str, runtime: Path, libraries: Sequence[str], limits: Limits) -> None:
        if not hasattr(socket, "send_fds"):
            raise SetupError(NOT_HERE)
        self.level, self.limits = level, limits
        self.cpu_seconds = 0.0
        self.peak_bytes = self._number = 0
        self._user = other_user() if level == "limits" else None
        self._runtime, self._libraries = runtime, libraries
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def child(self) -> Iterator["Child"]:
        """A fresh process for one check, and its end, whatever happens."""
        wire, printed = self._fork()
        child = Child(self, wire, printed)
        try:
            yield child
        except _Gone:
            before, status = self.cpu_seconds, self._end_child()
            out_of_time = self.cpu_seconds - before >= self.limits.cpu_seconds
            raise Stopped(f"it used more than {self.limits.cpu_seconds} seconds of CPU time" if out_of_time else
                          f"its process ended before it answered{_how(status)}", costly=out_of_time) from None
        finally:
            child.last_words()
            wire.close()
            os.close(printed)
            self._end_child()
            self._clear_folder()

    def begin_anew(self) -> None:
        """The next check gets a new worker."""
        self._stop()

    def look_for_room(self) -> None:
        """Raises `SetupError` if the disk has less room than a check may use, because a failure would then mean nothing."""
        if self._process is not None and (free := shutil.disk_usage(self._folder).free) < self.limits.file_bytes:
            raise SetupError(
                f"the disk of {self._folder} is full: {free >> 10} KiB are left, and a check may use "
                f"{self.limits.file_bytes >> 20} MiB; make room, or set TMPDIR to a folder on another disk")

    # the worker

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="submission-"))
        if self._user is not None:
            self._folder.chmod(0o755)
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        arguments = command(self.level, self._runtime, self._folder, self._libraries, theirs.fileno())
        try:
            self._process = subprocess.Popen(
                arguments, env=environment(), cwd=self._folder, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            self._control.close()
            self._control = None
            self._folder.rmdir()
            raise SetupError(f"a worker could not be started at the isolation level {self.level}: {error}") from None
        finally:
            theirs.close()
        try:
            self._answer(self._control, "ready")
        except Stopped as stopped:
            raise SetupError(f"a worker could not be started at the isolation level {self.level}: {stopped}") from None

    def _fork(self) -> tuple[socket.socket, int]:
        """The judge's ends of a new child's wire and output.

        A worker that does not answer is replaced, because a new child would not help.
        """
        for _ in range(TRIES):
            if self._process is None:
                self._start()
            for_child = {"folders": str(self._folder), "folder": str(self._new_folder()), "user": self._user,
                         "unseen": [*other_sites(), str(COURSE)], "confined": None if self.level == "none" else confinement()}
            wire, theirs = socket.socketpair()
            printed, output = os.pipe()
            try:
                self._order({"fork": {**asdict(self.limits), **for_child}}, [theirs.fileno(), output])
                return wire, printed
            except Stopped:
                wire.close()
                os.close(printed)
            finally:
                theirs.close()
                os.close(output)
        raise SetupError(f"a worker at the isolation level {self.level} does not answer, {TRIES} times")

    def _order(self, order: dict, descriptors: Sequence[int] = ()) -> dict:
        if self._control is None or self._process is None:
            raise self._lost()
        self._process.send_signal(signal.SIGCONT)  # at the level `none` a submission may have stopped it
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], list(descriptors))
        except OSError:
            raise self._lost() from None
        return self._answer(self._control, "started" if "fork" in order else "ended")

    def _answer(self, control: socket.socket, expected: str) -> dict:
        data = b""
        while not data.endswith(b"\n"):
            try:
                piece = control.recv(4096)
            except OSError:
                piece = b""
            if not piece:
                raise self._lost()
            data += piece
        answer = json.loads(data)
        if expected not in answer:
            raise self._lost()
        return answer

    def _lost(self) -> Stopped:
        errors = b""
        if self._process is not None:
            _kill(self._process)
            errors = self._process.stderr.read()[-500:] if self._process.stderr else b""
        self._stop()
        return Stopped("its process was lost" + (f": {errors.decode(errors='replace')}" if errors else ""), costly=True)

    def _end_child(self) -> int | None:
        """The status with which the child ended, if it is known."""
        if self._control is None:
            return None
        self._control.settimeout(ANSWER_SECONDS)
        try:
            answer = self._order({"end": True})
        except Stopped:
            return None
        self.cpu_seconds = answer["cpu_seconds"]
        if answer["left"]:
            self._stop()
        return answer["ended"]

    def _new_folder(self) -> Path:
        """A new folder without any mark of an earlier check, not even a time or an attribute."""
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        if self._user is not None:
            os.chown(folder, self._user, self._user)
        return folder

    def _clear_folder(self) -> None:
        """Removes everything that a check left behind, before the next one."""
        if self._process is not None and not clear(self._folder):
            self._stop()

    def _stop(self) -> None:
        if self._process is not None and self._control is not None:
            _kill(self._process)
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._control.close()
            clear(self._folder)
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._control = None

    # the watchdog

    def look(self) -> None:
        """Raise `Stopped` if the worker is gone, or uses more memory, processes, threads or disk than it may."""
        if self._process is None or self._process.poll() is not None:
            raise self._lost()
        limits, pids = self.limits, processes_of(self._process.pid)
        if len(pids) + sum(map(threads_beside, pids[: limits.processes])) > limits.processes:
            raise Stopped(f"it had more than {limits.processes} processes and threads")
        resident = sum(map(resident_bytes, pids))
        if resident > limits.memory_bytes:  # perhaps only because forked processes share it
            resident = memory_of_worker(pids)
        self.peak_bytes = max(self.peak_bytes, resident)
        if resident > limits.memory_bytes:
            raise Stopped(f"it used more than {limits.memory_bytes >> 20} MiB of memory")
        if bytes_in(self._folder, limits.file_bytes) > limits.file_bytes:
            raise Stopped(f"it wrote more than {limits.file_bytes >> 20} MiB, or too many files")


class Child:
    """One check's process.

    Attributes:
        printed: the beginning of what it printed.
    """

    def __init__(self, sandbox: Sandbox, wire: socket.socket, output: int) -> None:
        self.printed = b""
        self._dropped, self._silent, self._next_look = 0, False, 0.0
        self._sandbox, self._output = sandbox, output
        self._deadline = time.monotonic() + sandbox.limits.wall_seconds
        os.set_blocking(output, False)
        self._before = resident_bytes(os.getpid())
        self.peer = Peer(wire, read=self._read, write=self._write)
        self.bench = self.peer.root

    def _read(self, connection: socket.socket, count: int) -> bytes:
        """Exactly `count` bytes of the wire, while clock, watchdog and printed output are attended to."""
        data = bytearray()
        while len(data) < count:
            sources: list[socket.socket | int] = [connection, *([] if self._silent else [self._output])]
            ready, _, _ = select.select(sources, [], [], SECONDS_BETWEEN_LOOKS)
            if self._output in ready:
                self._drain()
            if connection in ready:
                data += self._piece(connection, count - len(data))
            self._look_around()
        return bytes(data)

    def _write(self, connection: socket.socket, data: bytes) -> None:
        """Sends all of it, with the same attention to clock and output: a submission may never read."""
        left = memoryview(data)
        while left:
            sources = [] if self._silent else [self._output]
            printed, ready, _ = select.select(sources, [connection], [], SECONDS_BETWEEN_LOOKS)
            if printed:
                self._drain()
            if ready:
                left = left[self._taken(connection, left) :]
            self._look_around()

    def _taken(self, connection: socket.socket, data: memoryview) -> int:
        try:
            return connection.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            raise _Gone from None

    def _look_around(self) -> None:
        now = time.monotonic()
        if now > self._deadline:
            raise Stopped(f"it had not ended after {self._sandbox.limits.wall_seconds:g} seconds", costly=True)
        if now > self._next_look:
            self._sandbox.look()
            if resident_bytes(os.getpid()) - self._before > self._sandbox.limits.memory_bytes:
                raise Stopped(f"its answers took more than {self._sandbox.limits.memory_bytes >> 20} MiB of the judge's memory")
            self._next_look = now + SECONDS_BETWEEN_LOOKS

    def _piece(self, connection: socket.socket, count: int) -> bytes:
        try:
            piece = connection.recv(min(count, 1 << 20))
        except OSError:
            piece = b""
        if not piece:
            raise _Gone
        return piece

    def last_words(self) -> None:
        """Take the printed output that was not read yet."""
        with contextlib.suppress(Stopped):
            self._drain()

    def _drain(self) -> None:
        """Take printed output; keep the beginning."""
        limit = self._sandbox.limits.output_bytes
        while True:
            try:
                piece = os.read(self._output, 65536)
            except OSError:
                return
            if not piece:
                self._silent = True
                return
            kept = piece[: max(0, limit - len(self.printed))]
            self.printed += kept
            self._dropped += len(piece) - len(kept)
            if self._dropped > 10 * limit:
                raise Stopped(f"it printed more than {10 * limit >> 10} KiB")


def _kill(worker: subprocess.Popen[bytes]) -> None:
    """All processes of a worker, with itself last: while it lives, it adopts orphans."""
    deadline = time.monotonic() + KILL_SECONDS
    while (pids := [pid for pid in processes_of(worker.pid)[1:] if lives(pid)]) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
        worker.poll()
    with contextlib.suppress(OSError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.kill()
    worker.wait()


def _how(status: int | None) -> str:
    if status is None:
        return ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f", by {signal.Signals(number).name if number in set(signal.Signals) else f'signal {number}'}"
    return f", with exit status {os.WEXITSTATUS(status)}"
