"""A command under half a core and 768 MiB, as Gradescope's default container has them: by Linux control groups.

Works where groups may be made (as root, or in a container that was given them), with version 1 of the
interface and with version 2. Knows nothing of grading.
"""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
SECONDS_BETWEEN_LOOKS = 0.05
PERIOD = 100_000
"""The period in microseconds to which the share of a core applies."""


@dataclass(frozen=True)
class Used:
    """The resources that a command used.

    Attributes:
        seconds: by the wall clock.
        cpu_seconds: of all its processes.
        peak_bytes: the most memory of its own, all processes together: memory that cannot be read again from a file.
        charged_bytes: the most that the group was charged with, including pages of files.
        killed: how many processes were ended because memory ran out.
    """

    returncode: int
    output: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    charged_bytes: int
    killed: int


class NoGroups(Exception):
    """No group can be made here."""


def run(
    command: Sequence[str], environment: dict[str, str], cpus: float = 0.5, memory_bytes: int = 768 << 20, timeout: float = 600.0
) -> Used:
    """Run a command to its end.

    Raises:
        NoGroups: this machine cannot limit a command.
        subprocess.TimeoutExpired: after `timeout` seconds.
    """
    with _group(cpus, memory_bytes) as group:
        begin, ended, peak = time.monotonic(), threading.Event(), [0]

        def watch() -> None:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                peak[0] = max(peak[0], group.own_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                timeout=timeout, preexec_fn=group.enter)
        finally:
            ended.set()
            watcher.join()
        return Used(done.returncode, done.stdout, time.monotonic() - begin, group.cpu_seconds(), peak[0], group.charged(),
                    group.killed())


class _GroupV1:
    """Version 1: a folder for each kind of limit."""

    def __init__(self, name: str, cpus: float, memory_bytes: int) -> None:
        self.folders = [GROUPS / kind / name for kind in ("cpu", "cpuacct", "memory")]
        self.cpu, self.account, self.memory = self.folders
        for folder in self.folders:
            folder.mkdir(exist_ok=True)
        (self.cpu / "cpu.cfs_period_us").write_text(str(PERIOD))
        (self.cpu / "cpu.cfs_quota_us").write_text(str(int(cpus * PERIOD)))
        (self.memory / "memory.limit_in_bytes").write_text(str(memory_bytes))

    def own_bytes(self) -> int:
        counters = _counters(self.memory / "memory.stat")
        return counters["total_rss"] + counters.get("total_shmem", 0)

    def cpu_seconds(self) -> float:
        return int((self.account / "cpuacct.usage").read_text()) / 1e9

    def charged(self) -> int:
        return int((self.memory / "memory.max_usage_in_bytes").read_text())

    def killed(self) -> int:
        return _counters(self.memory / "memory.oom_control").get("oom_kill", 0)

    def enter(self) -> None:
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))


class _GroupV2:
    """Version 2: one folder."""

    def __init__(self, name: str, cpus: float, memory_bytes: int) -> None:
        with contextlib.suppress(OSError):
            (GROUPS / "cgroup.subtree_control").write_text("+cpu +memory")
        self.folder = GROUPS / name
        self.folders = [self.folder]
        self.folder.mkdir()
        (self.folder / "cpu.max").write_text(f"{int(cpus * PERIOD)} {PERIOD}")
        (self.folder / "memory.max").write_text(str(memory_bytes))

    def own_bytes(self) -> int:
        counters = _counters(self.folder / "memory.stat")
        return counters["anon"] + counters["shmem"]

    def cpu_seconds(self) -> float:
        return _counters(self.folder / "cpu.stat")["usage_usec"] / 1e6

    def charged(self) -> int:
        return int((self.folder / "memory.peak").read_text())

    def killed(self) -> int:
        return _counters(self.folder / "memory.events")["oom_kill"]

    def enter(self) -> None:
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def _group(cpus: float, memory_bytes: int) -> Iterator[_GroupV1 | _GroupV2]:
    name = f"grading-{os.getpid()}-{threading.get_ident()}"
    kind = _GroupV2 if (GROUPS / "cgroup.controllers").is_file() else _GroupV1
    try:
        group = kind(name, cpus, memory_bytes)
    except OSError as error:
        raise NoGroups(
            f"no control group can be made here ({error}); "
            "as root, or with docker run --cpus 0.5 --memory 768m, one can") from None
    try:
        yield group
    finally:
        for folder in group.folders:
            _remove(folder)


def _remove(folder: Path) -> None:
    """End the processes left in a group, and remove the group. In version 1 two groups may be one folder under two names."""
    for _ in range(50):
        if not folder.is_dir():
            return
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), 9)
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)


def _counters(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
