"""Cheats at the level `none`, inside a throwaway environment.

At this level a submission may do all that the judge's user may. So the judge itself runs inside bubblewrap, without
any privilege: with a copy of the course, empty folders for temporary files, and processes and a network of its
own. The rest of the disk it can read and not change. Where a cheat ends the judge, the next one gets a new judge.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from grading.judge.report import Report
from grading.red_team import trial
from grading.red_team.corpus import Cheat, read_cheats
from grading.red_team.trial import GONE, LIMITS, TrialResult
from grading.sandbox.isolation import Limits, strongest_level
from grading.sandbox.supervisor import SetupError

COURSE = Path(__file__).parents[2]
PARTS = ("grading", "labs", "reference_engine", "pyproject.toml")
"""The parts of the course that a judge needs."""
PATIENCE = 300.0
"""How many seconds without a verdict count as the judge's end."""
READY = b"ready"


def verdicts(
    cheats: Sequence[Cheat], done: Callable[[], None] = lambda: None, limits: Limits = LIMITS,
    besides: Sequence[int] = range(1, 7)
) -> Iterator[TrialResult]:
    """Like `trial.verdicts`, at the level `none`.

    Raises:
        SetupError: bubblewrap does not work on this machine, or no judge starts in it.
    """
    if strongest_level() != "namespaces":
        raise SetupError("cheats run at the level none only inside bubblewrap (Linux), which does not work here; "
                         "leave out --isolation none")
    left = list(cheats)
    with tempfile.TemporaryDirectory(prefix="cheats-") as name:
        copy = copied(Path(name, "course"))
        while left:
            for answer in _judged(copy, left, limits, besides):
                report = Report.from_json(answer["report"]) if answer["report"] else None
                yield TrialResult(left.pop(0), "none", report, answer["error"])
                done()
            if left:  # the judge ended before it had done all
                yield TrialResult(left.pop(0), "none", None, GONE)
                done()


def copied(folder: Path) -> Path:
    """A copy of the course, for a judge."""
    folder.mkdir()
    for part in PARTS:
        if (COURSE / part).is_dir():
            shutil.copytree(COURSE / part, folder / part, ignore=shutil.ignore_patterns(".*", "__pycache__"), symlinks=True)
        else:
            shutil.copy(COURSE / part, folder)
    return folder


def inside(copy: Path) -> list[str]:
    """The command prefix that runs a command in the throwaway, with `copy` in the place of the course."""
    options = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
               "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8", "--ro-bind", "/", "/",
               "--dev", "/dev", "--proc", "/proc"]
    for folder in ("/tmp", "/var/tmp", "/run"):
        options += ["--tmpfs", folder]
    options += ["--bind", str(copy), str(COURSE)]
    for path in dict.fromkeys([sys.prefix, sys.base_prefix]):  # Python may lie in a folder that was just covered
        options += ["--ro-bind", path, path]
    return [*options, "--chdir", str(COURSE)]


def _judged(copy: Path, cheats: Sequence[Cheat], limits: Limits, besides: Sequence[int]) -> Iterator[dict[str, str]]:
    """One judge's verdicts on the cheats, in order, as long as the judge lives."""
    task = {"names": [cheat.name for cheat in cheats], "limits": asdict(limits), "besides": list(besides)}
    command = [*inside(copy), sys.executable, "-m", "grading.red_team.disposable", json.dumps(task)]
    with (tempfile.TemporaryFile() as errors,
          subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as judge):
        try:
            lines = _lines(judge)
            if next(lines, b"") != READY:
                errors.seek(0)
                raise SetupError(f"no judge starts inside bubblewrap: {errors.read()[-2000:].decode(errors='replace')}")
            yield from map(json.loads, lines)
        finally:
            judge.kill()


def _lines(judge: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """The judge's lines, until it is silent for too long or is gone."""
    assert judge.stdout is not None
    answers, begun = judge.stdout.fileno(), b""
    while select.select([answers], [], [], PATIENCE)[0] and (piece := os.read(answers, 1 << 16)):
        *lines, begun = (begun + piece).split(b"\n")
        yield from lines


def main(task: str) -> None:
    """In the throwaway: writes a line for each verdict to the original stdout; anything printed later goes to stderr."""
    arguments = json.loads(task)
    by_name = {cheat.name: cheat for cheat in read_cheats()}
    chosen = [by_name[name] for name in arguments["names"]]
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        answers.write(READY + b"\n")
        for result in trial.verdicts(chosen, "none", limits=Limits(**arguments["limits"]), besides=arguments["besides"]):
            answer = {"report": result.report.to_json() if result.report else "", "error": result.error}
            answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
