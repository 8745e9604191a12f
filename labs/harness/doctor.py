"""`python -m labs doctor`: is this machine ready, and if not, what to do?

Runs on the standard library alone, even on a Python that is too old for the course, to report exactly that:
no import of an installed package, and no syntax newer than Python 3.6.
"""

import importlib
import os
import platform
import shutil
import sys
import tempfile

OLDEST, NEWEST = (3, 11), (3, 13)
DISK_GB = 3.0
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

OK, NOTE, BLOCKS = "ok", "note", "BLOCKS"
OPTIONAL = {
    "llguidance": "structured output",
    "fastapi": "Lab 02's Going Further",
    "httpx": "Lab 02's Going Further",
}
"""Packages that no TODO of any lab needs, and what they are for."""


class Finding:
    """One line of the report: a level, what was found, and what to do."""

    def __init__(self, level: str, subject: str, found: str, advice: str = "") -> None:
        self.level, self.subject, self.found, self.advice = level, subject, found, advice


def main(root: str = ROOT) -> int:
    """Print the findings; return 1 if one of them blocks the course, else 0."""
    findings = examine(root)
    for finding in findings:
        print(f"{finding.level:<7} {finding.subject:<14} {finding.found}")
        if finding.advice:
            print("        {:<14} -> {}".format("", finding.advice))
    blocking = sum(finding.level == BLOCKS for finding in findings)
    print()
    if blocking:
        print("{} thing{} to put right first; begin with the topmost.".format(blocking, "s" if blocking > 1 else ""))
    else:
        print("Ready. Begin with: python -m labs list")
    return 1 if blocking else 0


def examine(root: str) -> "list[Finding]":
    """Every finding about this machine, Python first."""
    python = check_python(sys.version_info[:2])
    findings = [python, Finding(OK, "platform", f"{platform.system()} {platform.release()}, {platform.machine()}")]
    if python.level == BLOCKS:
        return findings  # the rest would describe another Python
    findings.append(check_venv())
    findings.append(check_write(os.path.join(root, "labs")))
    pins = read_pins(os.path.join(root, "reference_engine", "requirements.txt"))
    packages = check_packages(pins)
    complete = not any(finding.level == BLOCKS for finding in packages)
    findings.append(check_disk(shutil.disk_usage(root).free / 1e9, complete))
    findings.extend(packages)
    if complete:
        findings.append(check_engine())
    findings.append(check_load())
    return findings


def check_python(version: "tuple[int, int]") -> Finding:
    """`version` is (major, minor)."""
    name = "{}.{}".format(*version)
    if version < OLDEST:
        return Finding(BLOCKS, "Python", f"Python {name} is too old", "install Python 3.11, 3.12 or 3.13 from python.org")
    if version > NEWEST:
        return Finding(
            BLOCKS, "Python", f"Python {name} is newer than the course was tested with", "install Python 3.13 beside it"
        )
    return Finding(OK, "Python", f"{platform.python_version()} at {sys.executable}")


def check_venv() -> Finding:
    """Whether a virtual environment is in use, or can be made."""
    if sys.prefix != sys.base_prefix:
        return Finding(OK, "environment", f"virtual environment {sys.prefix}")
    try:
        importlib.import_module("venv")
        importlib.import_module("ensurepip")
    except ImportError:
        return Finding(
            BLOCKS, "environment", "the venv module is missing",
            "Debian and Ubuntu: sudo apt install python3-venv; elsewhere install Python from python.org",
        )
    return Finding(
        NOTE,
        "environment",
        "no virtual environment in use",
        "{} -m venv .venv, then activate it (labs/README.md)".format("py" if os.name == "nt" else "python3"),
    )


def check_write(folder: str) -> Finding:
    """Whether the labs' folder is writable: progress and backups are written there."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding(OK, "write access", folder)
    except OSError as error:
        return Finding(
            BLOCKS, "write access", f"cannot write in {folder}: {error.strerror}", "copy the course to a folder of your own"
        )


def check_disk(free_gb: float, installed: bool) -> Finding:
    """Whether there is enough disk space: installing needs much, an installed course only a little."""
    needed = 0.2 if installed else DISK_GB
    free = f"{free_gb:.1f} GB free"
    if free_gb >= needed:
        return Finding(OK, "disk", free)
    return Finding(
        BLOCKS,
        "disk",
        free,
        f"free {needed - free_gb:.1f} GB: the course needs about {DISK_GB:.0f} GB, and 8 GB with a CUDA build of torch",
    )


def read_pins(path: str) -> "list[tuple[str, str]]":
    """[(package, version)] from the lines `package==version` of a requirements file."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        lines = [line.split("#")[0].strip() for line in file]
    return [(name, version) for name, _, version in (line.partition("==") for line in lines if "==" in line)]


def check_packages(pins: "list[tuple[str, str]]") -> "list[Finding]":
    """Whether each pinned package is installed, in the version the course was tested with."""
    from importlib import metadata  # new in Python 3.8

    findings = []
    for package, wanted in pins:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            advice = "in the course's folder: pip install -r requirements.txt"
            if package in OPTIONAL:
                version = f"not installed; only for {OPTIONAL[package]}"
                advice = f"if you want that: pip install {package}=={wanted}"
            else:
                version = "not installed"
            findings.append(Finding(NOTE if package in OPTIONAL else BLOCKS, package, version, advice))
            continue
        if version.split("+")[0] == wanted:
            findings.append(Finding(OK, package, version))
        else:
            advice = f"if something fails: pip install {package}=={wanted}"
            findings.append(Finding(NOTE, package, f"{version}; tested with {wanted}", advice))
    return findings


def check_load() -> Finding:
    """Whether other work keeps the cores busy: torch's threads then wait for each other, and all is several times slower."""
    cores = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return Finding(OK, "cores", str(cores))
    state = f"{cores}, load {load:.1f}"
    if load <= cores or os.environ.get("OMP_NUM_THREADS") == "1":
        return Finding(OK, "cores", state)
    setting = "export OMP_NUM_THREADS=1 (bash) makes torch use one core, and is faster here"
    return Finding(NOTE, "cores", f"{state}: more work than cores", setting)


def check_engine() -> Finding:
    """Whether the course itself can be imported."""
    try:
        importlib.import_module("nano_qwen3_serving")
    except Exception as error:
        return Finding(
            BLOCKS, "engine", f"import nano_qwen3_serving failed: {type(error).__name__}: {error}",
            "in the course's folder: pip install -r requirements.txt",
        )
    return Finding(OK, "engine", "import nano_qwen3_serving works")
