"""The memory and disk space that processes and folders use, and emptying a folder. Knows nothing of workers and limits."""

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PAGE = 4096
LONGEST_PATH = 3000
"""Characters of a path: the system may refuse to open much longer ones."""
CLEARINGS = 10_000
"""How many levels of folders are deleted; a submission is stopped before it makes that many."""


def processes_of(pid: int) -> list[int]:
    """A process and all its descendants (on Linux; elsewhere the process alone)."""
    pids, pending = [], [pid]
    while pending:
        parent = pending.pop()
        pids.append(parent)
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as children:
                    pending += [int(child) for child in children.read().split()]
        except OSError:
            continue
    return pids


def threads_beside(pid: int) -> int:
    """How many threads a process has besides its first."""
    try:
        return max(0, len(os.listdir(f"/proc/{pid}/task")) - 1)
    except OSError:
        return 0


def lives(pid: int) -> bool:
    """Whether a process still runs: one that has ended stays in the list until its parent waits for it."""
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def resident_bytes(pid: int) -> int:
    """Memory that a process does not share with files, in bytes; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return sum(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
    except (OSError, KeyError, ValueError):
        return 0 if os.path.isdir("/proc/self") else _resident_by_ps(pid)


def share_of_memory(pid: int) -> int | None:
    """The same, with only its share of pages that several processes share; None if the kernel hides that from this user."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            lines = dict(line.split(":", 1) for line in rollup if ":" in line and line.startswith("Pss_"))
        return sum(int(lines[name].split()[0]) << 10 for name in ("Pss_Anon", "Pss_Shmem"))
    except (OSError, KeyError, ValueError):
        return None


def memory_of_worker(pids: Sequence[int]) -> int:
    """Memory of a worker, its child and the processes that the child started, in that order, as `processes_of` lists them.

    Pages that a fork shares count once. The kernel shows only root, and the owner of a user namespace, which pages those
    are (a worker and its child cannot be inspected). For any other user each process counts with what it has beyond the
    worker that all were forked from; so a process that writes to all its inherited pages can exceed its limit by the size
    of the worker at most.
    """
    shares = [share_of_memory(pid) for pid in pids]
    known = [share for share in shares if share is not None]
    if len(known) == len(shares):
        return sum(known)
    worker, *others = map(resident_bytes, pids)
    return worker + sum(max(0, other - worker) for other in others)


def _resident_by_ps(pid: int) -> int:
    output = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return int(output) << 10 if output.isdigit() else 0


def bytes_in(folder: Path, enough: int) -> int:
    """The bytes that a folder uses; counting stops a bit above `enough`.

    An empty file or folder counts as a page; a folder too deep to be opened counts as more than `enough`.
    """
    total, pending = 0, [str(folder)]
    while pending and total <= enough:
        if len(pending[-1]) > LONGEST_PATH:
            return enough + 1
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                total += max(PAGE, entry.stat(follow_symlinks=False).st_blocks * 512)
                if total > enough:
                    break
    return total


def clear(folder: Path) -> bool:
    """Delete what is in a folder, however deep it is nested; returns whether nothing is left."""
    for _ in range(CLEARINGS):
        pending = list(os.scandir(folder))
        if not pending:
            return True
        for entry in pending:
            with contextlib.suppress(OSError):
                _delete(folder, entry)
    return not any(folder.iterdir())


def _delete(folder: Path, entry: os.DirEntry) -> None:
    """Deletes a file, or a folder after moving its own folders into `folder`, so that no path gets long."""
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.path)
        return
    os.chmod(entry.path, 0o700)
    for inner in list(os.scandir(entry.path)):
        if inner.is_dir(follow_symlinks=False):
            os.chmod(inner.path, 0o700)
            os.rename(inner.path, folder / f".{time.monotonic_ns()}")
        else:
            os.unlink(inner.path)
    os.rmdir(entry.path)
