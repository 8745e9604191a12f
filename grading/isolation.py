"""How far a worker is kept from the machine, found out once and said in every report.

    namespaces  bubblewrap: files, processes and network of its own; and all that `limits` has
    limits      a process group, CPU and file limits, another user where the judge is root; on Linux no
                files, processes and network but its own, as far as the kernel has Landlock and seccomp
    none        a process; only where it is asked for, and on systems on which nothing can be graded

At every level the judge's clock, the memory watchdog and the wire of bytes hold. `weaknesses` says what
is missing.
"""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grading.worker import confine

LEVELS = ("namespaces", "limits", "none")
NOBODY = 65534


@dataclass(frozen=True)
class Limits:
    """What one check may use.

    Attributes:
        wall_seconds, cpu_seconds: of one check.
        memory_bytes: resident, of all processes of a worker.
        file_bytes: of one file, and of all files in the folder.
        output_bytes: printed; the rest is dropped, and ten times as much ends the check.
        processes: that a worker may have at once.
    """

    wall_seconds: float = 30.0
    cpu_seconds: int = 15
    memory_bytes: int = 2 << 30
    file_bytes: int = 16 << 20
    output_bytes: int = 64 << 10
    processes: int = 64
    open_files: int = 256


@functools.cache
def strongest_level() -> str:
    """The strongest level that this machine has."""
    if sys.platform == "linux" and shutil.which("bwrap"):
        probe = [*_bwrap(Path("/tmp"), Path("/tmp"), []), sys.executable, "-I", "-S", "-c", "pass"]
        if subprocess.run(probe, capture_output=True, timeout=20).returncode == 0:
            return "namespaces"
    return "limits" if os.name == "posix" else "none"


@functools.cache
def confinement() -> tuple[int, bool]:
    """The version of Landlock that this machine has, or 0, and whether it filters system calls."""
    done = subprocess.run([sys.executable, "-I", "-S", confine.__file__], capture_output=True, text=True, timeout=60)
    said = done.stdout.split()
    return (int(said[0]), said[1] == "1") if done.returncode == 0 and len(said) == 2 else (0, False)


@functools.cache
def other_user() -> int | None:
    """Who submissions are where the judge is root and there are no namespaces.

    Nobody, if root may be that here and read this Python.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return None
    given = [sys.executable, "-I", "-S", confine.__file__, str(NOBODY), os.__file__,
             os.path.join(sysconfig.get_path("purelib"), "torch", "__init__.py")]
    return NOBODY if subprocess.run(given, capture_output=True, timeout=60).returncode == 0 else None


def weaknesses(level: str) -> tuple[str, ...]:
    """What the level does not keep a submission from, as reports say it."""
    if level == "namespaces":
        return ()
    landlock, filters = confinement() if level == "limits" else (0, False)
    said = [] if landlock else ["it could read files that are not its own"]
    said += [] if filters else ["it could use the network"]
    if level == "none" or (other_user() is None and not (filters or landlock >= 6)):
        said.append("it could end or change other processes of the judge's user")
    return tuple(said)


def command(level: str, runtime: Path, folder: Path, hidden: Sequence[str], control: int) -> list[str]:
    """What starts a worker.

    Args:
        runtime: made by `grading.runtime`.
        folder: an empty one, where the submission runs.
        hidden: names of installed packages that it must not find.
        control: the descriptor of the control socket.
    """
    main = [sys.executable, "-I", "-B", "-S", str(runtime / "worker" / "main.py"),
            str(control), sysconfig.get_path("purelib"), str(runtime), ",".join(hidden)]
    return [*_bwrap(runtime, folder, hidden), *main] if level == "namespaces" else main


def _bwrap(runtime: Path, folder: Path, hidden: Sequence[str]) -> list[str]:
    options = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    for path in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives"):
        options += ["--ro-bind-try", path, path]
    site = sysconfig.get_path("purelib")
    options += ["--proc", "/proc", "--dev", "/dev"]
    for path in dict.fromkeys([sys.base_prefix, sys.prefix, os.path.dirname(os.path.realpath(sys.executable)), site]):
        if not Path(path).is_relative_to("/usr"):
            options += _bind_python(path)
    for name in hidden:
        if Path(site, name).is_dir():
            options += ["--tmpfs", f"{site}/{name}"]
    options += ["--ro-bind", str(runtime), str(runtime), "--bind", str(folder), str(folder)]
    options += ["--dir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"]  # nothing to fill memory with
    for name, value in environment(folder).items():
        options += ["--setenv", name, value]
    return options


def _bind_python(path: str) -> list[str]:
    return ["--ro-bind", path, path]


def environment(folder: Path) -> dict[str, str]:
    """A worker's variables: nothing of the judge's; home and temporary files are in `folder`, where it may write."""
    return {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "LOGNAME": "student",
            **dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"), str(folder)),
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
