"""How well a worker is isolated from the machine, found out once and named in every report.

    namespaces  bubblewrap: files, processes and network of its own; and all that `limits` has
    limits      a process group, CPU and file limits, another user where the judge is root; on Linux no
                files, processes and network but its own, as far as the kernel has Landlock and seccomp
    none        a plain process; only on request, and on systems on which nothing can be graded

At every level the judge's clock, the memory watchdog and the wire of bytes apply. `weaknesses` names what
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

from grading.sandbox.worker import confine
from labs.harness.imports import ANSWERS

LEVELS = ("namespaces", "limits", "none")
NOBODY = 65534
COURSE = Path(__file__).parents[2]
SITE = sysconfig.get_path("purelib")
SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/bin", "/usr/local/lib", "/usr/local/lib64",
          "/usr/share/zoneinfo", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives")
"""The machine's own files that Python and its libraries may need."""


@dataclass(frozen=True)
class Limits:
    """The limits of one check.

    Attributes:
        wall_seconds, cpu_seconds: of one check.
        memory_bytes: resident memory of all processes of a worker.
        file_bytes: of one file, and of all files in the folder.
        output_bytes: of printed output; the rest is dropped, and ten times as much ends the check.
        processes: how many a worker may have at once.
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
        probe = [*_bwrap(Path("/tmp"), Path("/tmp"), None), sys.executable, "-I", "-S", "-c", "pass"]
        if subprocess.run(probe, capture_output=True, timeout=20).returncode == 0:
            return "namespaces"
    return "limits" if os.name == "posix" else "none"


@functools.cache
def confinement() -> tuple[int, bool]:
    """The version of Landlock that this machine has, or 0, and whether it filters system calls."""
    done = subprocess.run([sys.executable, "-I", "-S", confine.__file__], capture_output=True, text=True, timeout=60)
    words = done.stdout.split()
    return (int(words[0]), words[1] == "1") if done.returncode == 0 and len(words) == 2 else (0, False)


def other_sites() -> list[str]:
    """Other folders with installed packages on this machine, which a worker must not see."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = [f"{prefix}/lib/{of}/{name}-packages" for prefix in (sys.base_prefix, "/usr/local", "/usr")
               for of in (version, "python3") for name in ("site", "dist")]
    return [path for path in dict.fromkeys(folders) if os.path.realpath(path) != os.path.realpath(SITE)]


@functools.cache
def other_user() -> int | None:
    """The user that submissions run as if the judge is root and there are no namespaces.

    It is `nobody`, if root may become that user here and the user can read this Python.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return None
    arguments = [sys.executable, "-I", "-S", confine.__file__, str(NOBODY), os.__file__,
                 os.path.join(SITE, "torch", "__init__.py")]
    return NOBODY if subprocess.run(arguments, capture_output=True, timeout=60).returncode == 0 else None


def weaknesses(level: str) -> tuple[str, ...]:
    """What a submission could still do at this level, in the words of reports."""
    if level == "namespaces":
        return ()
    landlock, filters = confinement() if level == "limits" else (0, False)
    sentences = [] if landlock else ["it could read files that are not its own"]
    sentences += [] if filters else ["it could use the network"]
    if level == "none" or (other_user() is None and not (filters or landlock >= 6)):
        sentences.append("it could end or change other processes of the judge's user")
    return tuple(sentences)


def command(level: str, runtime: Path, folder: Path, libraries: Sequence[str], control: int) -> list[str]:
    """The command that starts a worker.

    Args:
        runtime: made by `grading.sandbox.runtime`.
        folder: an empty folder, where the submission runs.
        libraries: names of the installed packages that it may have.
        control: the descriptor of the control socket.
    """
    main = [sys.executable, "-I", "-B", "-S", str(runtime / "worker" / "main.py"),
            str(control), SITE, str(runtime), ",".join(libraries), ",".join(name for name in ANSWERS if "." in name)]
    return [*_bwrap(runtime, folder, libraries), *main] if level == "namespaces" else main


def _bwrap(runtime: Path, folder: Path, libraries: Sequence[str] | None) -> list[str]:
    options = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    for path in SYSTEM:
        options += ["--ro-bind-try", path, path]
    options += ["--proc", "/proc", "--dev", "/dev"]
    pythons = dict.fromkeys([sys.base_prefix, sys.prefix, os.path.dirname(os.path.realpath(sys.executable)), SITE])
    for path in pythons:
        if not any(Path(path).is_relative_to(root) for root in SYSTEM) and path not in ("/usr", "/usr/local"):
            options += _bind_python(path)
    seen = [*SYSTEM, *pythons]
    options += [part for path in (*other_sites(), str(COURSE)) if os.path.isdir(path) and _lies_in(path, seen)
                for part in ("--tmpfs", path, "--remount-ro", path)]
    if libraries is not None:
        options += _only(libraries)
    options += ["--ro-bind", str(runtime), str(runtime), "--bind", str(folder), str(folder)]
    options += ["--dir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"]  # nothing to fill memory with
    for name, value in environment().items():
        options += ["--setenv", name, value]
    return options


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    """Whether the path lies in one of the folders and contains none of them, as a checkout may contain its environment."""
    seen = any(Path(path).is_relative_to(folder) for folder in folders)
    return seen and not any(Path(folder).is_relative_to(path) for folder in folders)


def _only(libraries: Sequence[str]) -> list[str]:
    """Mounts these installed packages, and nothing else."""
    options = ["--tmpfs", SITE]
    for name in sorted(os.listdir(SITE)):
        if name.split(".")[0] in libraries:
            options += ["--ro-bind", f"{SITE}/{name}", f"{SITE}/{name}"]
    return [*options, "--remount-ro", SITE]


def _bind_python(path: str) -> list[str]:
    return ["--ro-bind", path, path]


def environment() -> dict[str, str]:
    """A worker's environment variables, none of them the judge's. A check's process makes its own folder its home."""
    return {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "LOGNAME": "student",
            "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
