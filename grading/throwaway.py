"""Cheats at the level `none`, on something to throw away.

There a submission may do all that the judge's user may. So the judge itself runs inside bubblewrap, with a
copy of the course, an empty /tmp, and processes and a network of its own; of the rest it reads what its
user may and changes nothing. Where a cheat ends the judge, the next one gets a new judge.
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

from grading import cheat_trial
from grading.cheat_corpus import Cheat, read_cheats
from grading.cheat_trial import LIMITS, Verdict
from grading.isolation import Limits, strongest_level
from grading.model import Report
from grading.sandbox import SetupError

COURSE = Path(__file__).parents[1]
PATIENCE = 300.0
"""Seconds without a verdict, after which the judge counts as ended."""
GONE = "the judge was gone before it had a verdict"


def verdicts(
    cheats: Sequence[Cheat], level: str = "none", done: Callable[[], None] = lambda: None, limits: Limits = LIMITS,
    besides: Sequence[int] = range(1, 7)
) -> Iterator[Verdict]:
    """As `cheat_trial.verdicts`.

    Raises:
        SetupError: this machine has no bubblewrap that works.
    """
    if strongest_level() != "namespaces":
        raise SetupError("cheats run at the level none inside bubblewrap only: apt-get install bubblewrap")
    left = list(cheats)
    with tempfile.TemporaryDirectory(prefix="cheats-") as name:
        copy = shutil.copytree(
            COURSE, Path(name, "course"), ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info"), symlinks=True)
        while left:
            for said in _judged(copy, left, level, limits, besides):
                cheat = left.pop(0)
                yield Verdict(cheat, level, Report.from_json(said["report"]) if said["report"] else None, said["error"])
                done()
            if left:  # the judge ended before it had done all
                yield Verdict(left.pop(0), level, None, GONE)
                done()


def _judged(copy: Path, cheats: Sequence[Cheat], level: str, limits: Limits, besides: Sequence[int]) -> Iterator[dict[str, str]]:
    """What one judge says of the cheats, in order, as long as it lives."""
    task = {"names": [one.name for one in cheats], "level": level, "limits": asdict(limits), "besides": list(besides)}
    command = [*_bwrap(copy), sys.executable, "-m", "grading.throwaway", json.dumps(task)]
    judge = subprocess.Popen(command, cwd=COURSE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
    assert judge.stdout is not None
    with judge, judge.stdout as answers:
        while select.select([answers], [], [], PATIENCE)[0] and (line := answers.readline()).endswith(b"\n"):
            yield json.loads(line)
        judge.kill()


def _bwrap(copy: Path) -> list[str]:
    options = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/", "--dev", "/dev",
               "--proc", "/proc", "--tmpfs", "/tmp", "--setenv", "TMPDIR", "/tmp", "--bind", str(copy), str(COURSE)]
    for path in dict.fromkeys([sys.prefix, sys.base_prefix]):  # again, if it was in one of the two
        options += ["--ro-bind", path, path]
    return [*options, "--chdir", str(COURSE)]


def main(task: str) -> None:
    """In the throwaway: a line for each verdict, to where the output was before anything was graded."""
    given = json.loads(task)
    by_name = {one.name: one for one in read_cheats()}
    chosen = [by_name[name] for name in given["names"]]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for one in cheat_trial.verdicts(chosen, given["level"], limits=Limits(**given["limits"]), besides=given["besides"]):
        said = {"report": one.report.to_json() if one.report else "", "error": one.error}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
