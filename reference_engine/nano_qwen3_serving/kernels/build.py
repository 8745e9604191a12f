"""Compiles the C++ files of this folder with the machine's own compiler and hands its operators to torch.

Knows compilers and files; knows nothing of models. The library is built once, in a few seconds, and
kept in the user's cache under a name that changes with the source, torch, the compiler and the
processor. It appears there complete or not at all, so that processes may build at the same time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

HEADER = Path(__file__).with_name("kernels.h")
SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "linear.cpp", "layer.cpp"))
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-std=c++20", "-shared", "-fPIC", "-w")
SECONDS = 180  # the longest a compilation may take


class BuildError(Exception):
    """The operators cannot be built here; the message says why, and what would help."""


@functools.cache
def cpu_kernels() -> Any:
    """The operators of the C++ files, built if they are not in the cache.

    Raises:
        BuildError: the system is not Linux, there is no C++ compiler, or the compiler failed.
    """
    if sys.platform != "linux":
        raise BuildError(f"CPU kernels are built on Linux only, and this is {platform.system()}")
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler was found; install g++ (on Debian and Ubuntu: sudo apt install g++)")
    try:
        library = cache_folder() / f"cpu_{key(compiler)}.so"
        if not library.is_file():
            compile_library(compiler, library)
        torch.ops.load_library(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"CPU kernels could not be built or loaded: {error}") from error
    return torch.ops.nano_qwen3_cpu


def cache_folder() -> Path:
    """Where built libraries are kept: `$XDG_CACHE_HOME` or `~/.cache`, and this package's name."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nano_qwen3_serving"


def key(compiler: str) -> str:
    """A key that changes with everything a built library depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=SECONDS).stdout
    features = re.search(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    parts = [
        *(source.read_text(encoding="utf-8") for source in (HEADER, *SOURCES)),
        " ".join(FLAGS),
        torch.__version__,
        version,
        platform.machine(),
        features[1] if features else "",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def compile_library(compiler: str, library: Path) -> None:
    """Builds beside `library`, then moves it into place.

    Raises:
        BuildError: with the compiler's first error.
    """
    root = Path(torch.__file__).parent
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [
            compiler, *FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}", f"-I{root / 'include'}",
            *map(str, SOURCES), "-o", str(built), f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or ["it said nothing"]
            raise BuildError(f"{compiler} could not compile the kernels: {errors[0]}")
        os.replace(built, library)
