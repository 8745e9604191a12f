"""A worker and its supervision: starting it, one child per check, clocks and watchdogs, its end.

Knows processes and limits; knows nothing of labs. Every wait has a deadline. If the worker itself is
gone or does not answer it is killed with all it started, and the next check gets a new one.
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
from pathlib import Path

from grading.isolation import Limits, command, environment, other_user
from grading.worker.peer import Peer
from grading.worker.wire import Ended

START_SECONDS = 120.0
"""For importing torch, on a slow and busy machine."""
SECONDS_BETWEEN_LOOKS = 0.05


class Stopped(Ended):
    """A check was ended; says why in the words of the report.

    Attributes:
        costly: whether it took all the time that a check has.
    """

    def __init__(self, why: str, costly: bool = False) -> None:
        super().__init__(why)
        self.costly = costly


class SetupError(Exception):
    """No worker can be started here: nothing that a submission could help."""


class _Gone(Ended):
    """The child ended by itself."""


class Sandbox:
    """Where the checks of one submission run.

    Args:
        level: of isolation.
        runtime: the folder made by `grading.runtime`.
        hidden: packages that submissions must not find.
        limits: of one check.
    """

    def __init__(self, level: str, runtime: Path, hidden: Sequence[str], limits: Limits) -> None:
        self.level, self.limits = level, limits
        self.cpu_seconds = 0.0
        self.peak_bytes = 0
        self._runtime, self._hidden = runtime, hidden
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def child(self) -> Iterator["Child"]:
        """A fresh process for one check, and its end, whatever happens."""
        if self._process is None:
            self._start()
        wire, theirs = socket.socketpair()
        printed, output = os.pipe()
        child = Child(self, wire, printed)
        try:
            order = {"fork": {"folder": str(self._folder), "cpu_seconds": self.limits.cpu_seconds, "file_bytes": self.limits.file_bytes,
                              "processes": self.limits.processes, "open_files": self.limits.open_files}}
            self._order(order, [theirs.fileno(), output])
            theirs.close()
            os.close(output)
            yield child
        except _Gone:
            before, status = self.cpu_seconds, self._end_child()
            out_of_time = self.cpu_seconds - before >= self.limits.cpu_seconds
            raise Stopped(f"it used more than {self.limits.cpu_seconds} seconds of CPU time" if out_of_time else
                          f"its process ended before it answered{_how(status)}", costly=out_of_time) from None
        finally:
            child.last_words()
            for end in (wire, theirs):
                end.close()
            os.close(printed)
            self._end_child()
            self._clear_folder()

    # the worker

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="submission-"))
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        given = command(self.level, self._runtime, self._folder, self._hidden, theirs.fileno())
        self._process = subprocess.Popen(
            given, env=environment(), cwd=self._folder, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, **self._other_user())
        theirs.close()
        try:
            self._answer("ready")
        except Stopped as stopped:
            raise SetupError(f"a worker could not be started at the isolation level {self.level}: {stopped}") from None

    def _other_user(self) -> dict:
        """Where the judge is root and there are no namespaces, the worker is nobody."""
        user = other_user() if self.level == "limits" else None
        if user is None:
            return {}
        os.chown(self._folder, user, user)
        return {"user": user, "group": user, "extra_groups": []}

    def _order(self, order: dict, descriptors: Sequence[int] = ()) -> dict:
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], list(descriptors))
        except OSError:
            raise self._lost() from None
        return self._answer("started" if "fork" in order else "ended")

    def _answer(self, expected: str) -> dict:
        data = b""
        while not data.endswith(b"\n"):
            try:
                piece = self._control.recv(4096)
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
        said = b""
        if self._process is not None:
            self._kill()
            said = self._process.stderr.read()[-500:]
        self._stop()
        return Stopped("its process was lost" + (f": {said.decode(errors='replace')}" if said else ""))

    def _end_child(self) -> int | None:
        """The status with which the child ended, if it is known."""
        if self._control is None:
            return None
        self._control.settimeout(5.0)
        try:
            answer = self._order({"end": True})
        except Stopped:
            return None
        self.cpu_seconds = answer["cpu_seconds"]
        return answer["ended"]

    def _clear_folder(self) -> None:
        """Whatever the check left behind is gone before the next one."""
        for path in (self._folder.iterdir() if self._folder.is_dir() else ()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in processes_of(self._process.pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def _stop(self) -> None:
        if self._process is not None:
            self._kill()
            self._process.stderr.close()
            self._control.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._control = None

    # the watchdog

    def look(self) -> None:
        """Raise `Stopped` if the worker uses more memory, processes or disk than it may."""
        pids = processes_of(self._process.pid)
        if len(pids) > self.limits.processes:
            raise Stopped(f"it had more than {self.limits.processes} processes")
        resident = sum(map(resident_bytes, pids))
        self.peak_bytes = max(self.peak_bytes, resident)
        if resident > self.limits.memory_bytes:
            raise Stopped(f"it used more than {self.limits.memory_bytes >> 20} MiB of memory")
        if (written := bytes_in(self._folder)) > self.limits.file_bytes:
            raise Stopped(f"it wrote {written >> 20} MiB; {self.limits.file_bytes >> 20} MiB are allowed")


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
        self.peer = Peer(wire, read=self._read)
        self.bench = self.peer.root

    def _read(self, connection: socket.socket, count: int) -> bytes:
        """Exactly `count` bytes of the wire, while clock, watchdog and what is printed are looked after."""
        data = bytearray()
        while len(data) < count:
            sources = [connection, *([] if self._silent else [self._output])]
            ready, _, _ = select.select(sources, [], [], SECONDS_BETWEEN_LOOKS)
            if self._output in ready:
                self._drain()
            if connection in ready:
                data += self._piece(connection, count - len(data))
            self._look_around()
        return bytes(data)

    def _look_around(self) -> None:
        now = time.monotonic()
        if now > self._deadline:
            raise Stopped(f"it had not ended after {self._sandbox.limits.wall_seconds:g} seconds", costly=True)
        if now > self._next_look:
            self._sandbox.look()
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
        """Take what was printed and not read yet."""
        with contextlib.suppress(Stopped):
            self._drain()

    def _drain(self) -> None:
        """Take what was printed; keep the beginning."""
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


def _how(status: int | None) -> str:
    if status is None:
        return ""
    if os.WIFSIGNALED(status):
        return f", by {signal.Signals(os.WTERMSIG(status)).name}"
    return f", with exit status {os.WEXITSTATUS(status)}"


def processes_of(pid: int) -> list[int]:
    """A process and all that descend from it (on Linux; elsewhere itself)."""
    found, pending = [], [pid]
    while pending:
        one = pending.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as children:
                    pending += [int(child) for child in children.read().split()]
        except OSError:
            continue
    return found


def resident_bytes(pid: int) -> int:
    """Memory that a process does not share with files, in bytes; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as facts:
            lines = dict(line.split(":", 1) for line in facts)
        return sum(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
    except (OSError, KeyError, ValueError):
        return 0 if os.path.isdir("/proc/self") else _resident_by_ps(pid)


def _resident_by_ps(pid: int) -> int:
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return int(said) << 10 if said.isdigit() else 0


def bytes_in(folder: Path) -> int:
    """What the files in a folder take."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
    return total
