"""Every submission that cheats gets what its honest part is worth, at every level that this machine has, and leaves nothing."""

import functools
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from grading.cli import cheats
from grading.cli.cheats import levels_for_cheats
from grading.judge.report import Report
from grading.judge.show import print_report
from grading.red_team import disposable
from grading.red_team.corpus import HERE, Cheat, _heading, composed, read_cheats
from grading.red_team.trial import MOST, TrialResult, verdicts
from grading.sandbox.isolation import LEVELS, Limits, strongest_level
from grading.sandbox.supervisor import SetupError, processes_of
from labs.harness.catalog import LabError, find_lab

pytestmark = pytest.mark.slow

LIMITS = Limits(wall_seconds=1.5, cpu_seconds=1, memory_bytes=768 << 20)
PATIENT = replace(LIMITS, wall_seconds=20.0, cpu_seconds=10)
"""For a cheat whose honest part was too slow on a busy machine."""
LIGHT = "06"
"""The lab whose checks compute little."""
HONEST = (1, 4)
"""TODOs that are graded of every cheat, whatever it cheats at; `python -m grading cheats` grades all."""
MARK = Path("/tmp/nano-qwen3-cheat-was-unpickled")
VECTORS = (
    "os._exit", "sys.exit", "pytest.exit", "pytest.skip", "torch.allclose", "builtins", "json.dumps", "safetensors", "__eq__",
    "__torch_function__", "__reduce__", "_getframe", "gc.get_objects", "/proc", "os.read", "import solution", "importlib",
    "sys.path", "conftest.py", "pytest.ini", "torch.py", ".pyc", "print(FORGED)", "sendall", "x1b", "<script>", "while True",
    "SIG_IGN", "SIGXFSZ", "time.sleep", "os.fork", "os.setsid", "bytearray", "os.truncate", "os.mkdir", "sys.stdout.write",
    "setrecursionlimit", "nan", "inf", "__str__", "connect", "SIGKILL", "SIGSTOP", "ptrace", "threading", "module.Peer",
    "symlink_to", "zipfile", "tarfile",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a whole run over the corpus came to.

    Attributes:
        left: processes and files that are still there.
        grown: bytes, at most, that the judge's process had taken.
    """

    found: tuple[tuple[str, int, bool, str, str], ...]
    left: tuple[str, ...]
    grown: int


def whole_run(level: str) -> Outcome:
    """In a process of its own: all cheats, then what is left of them. At `none` the judge is a process further in."""
    before = set(os.listdir(tempfile.gettempdir()))
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grade = disposable.verdicts if level == "none" else functools.partial(verdicts, level=level)
    usual, others = ([one for one in read_cheats() if (one.lab == LIGHT) == of_lab] for of_lab in (True, False))
    found = {one.cheat.name: one for one in grade(usual, limits=LIMITS, besides=HONEST)}
    # the checks of other labs compute more; graded are the TODOs at which a cheat cheats
    found |= {one.cheat.name: one for one in grade(others, limits=PATIENT, besides=())}
    slow = [one.cheat for one in found.values() if not one.right and (one.cheat.needs_isolation or _was_too_slow(one))]
    found |= {one.cheat.name: one for one in grade(slow, limits=PATIENT, besides=HONEST)}
    mine = [path for path in sorted(set(os.listdir(tempfile.gettempdir())) - before)
            if re.match(r"submission-|runtime-|cheat", path)]
    left = [f"process {pid}" for pid in processes_of(os.getpid())[1:]] + [path for path in mine if _is_of(path)]
    return Outcome(tuple(map(_in_words, found.values())), tuple(left),
                   (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started) * (1 if sys.platform == "darwin" else 1024))


def _was_too_slow(one: TrialResult) -> bool:
    """Whether it lost a check because time was up: on a busy machine that says nothing."""
    lost = [check for check in one.report.checks if not check.passed] if one.report else []
    return any("had not ended after" in check.message or "CPU time" in check.message for check in lost)


def _is_of(name: str) -> bool:
    """Whether a file in the folder for temporary ones is not another run's, which goes on."""
    return name.startswith("cheat-")


def _in_words(one: TrialResult) -> tuple[str, int, bool, str, str]:
    report = one.report
    return one.cheat.name, one.cheat.worth, one.right, one.happened, "" if report is None else report.to_json()


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """The corpus at every level, at two of them at once."""
    levels = levels_for_cheats()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return dict(zip(levels, pool.map(whole_run, levels), strict=True))


@pytest.mark.proof
@pytest.mark.parametrize("level", LEVELS)
def test_every_cheat_gets_what_its_honest_part_is_worth(outcomes: dict[str, Outcome], level: str):
    if level not in outcomes:
        pytest.skip(f"this machine does not have the isolation level {level}; its strongest is {strongest_level()}")
    wrong = [f"{name}, worth {worth} of {MOST}: {happened}" for name, worth, right, happened, _ in outcomes[level].found
             if not right]
    assert not wrong, "\n".join(wrong)


@pytest.mark.proof
def test_where_nothing_stops_them_some_have_their_way_and_the_others_do_not(outcomes: dict[str, Outcome]):
    if "none" not in outcomes:
        pytest.skip("cheats run at the level none inside bubblewrap only")
    reports = {name: Report.from_json(text) if text else None for name, _, _, _, text in outcomes["none"].found}
    unstopped = {one.name: reports[one.name] for one in read_cheats() if one.needs_isolation}
    assert unstopped.pop("kills_the_parents") is None, "it ends the judge"
    assert set(unstopped) == {"reads_descriptors_and_proc", "reads_files_of_the_course"}
    assert all(report.score == report.max_score for report in unstopped.values()), "they find the solution"


@pytest.mark.proof
def test_nothing_is_left_of_them(outcomes: dict[str, Outcome]):
    for level, outcome in outcomes.items():
        assert not outcome.left, f"{level}: {outcome.left}"
    assert not MARK.exists(), "somebody unpickled what a submission sent"


@pytest.mark.proof
def test_they_take_a_bounded_part_of_the_judges_memory(outcomes: dict[str, Outcome]):
    for level, outcome in outcomes.items():  # at `none` the process that is measured only reads what the judge says
        assert outcome.grown < LIMITS.memory_bytes, f"{level}: the judge took {outcome.grown >> 20} MiB"


@pytest.mark.proof
def test_nothing_that_they_say_reaches_a_terminal_as_control(outcomes: dict[str, Outcome]):
    for outcome in outcomes.values():
        for name, _, _, _, text in outcome.found:
            if not text:
                continue  # it ended the judge
            with open(os.devnull, "w") as nowhere:
                console = Console(file=nowhere, record=True, width=200, force_terminal=False)
                print_report(Report.from_json(text), console)
            shown = console.export_text(styles=False)
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown), name


def test_at_the_level_none_they_run_inside_bubblewrap_or_not_at_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disposable, "strongest_level", lambda: "limits")
    with pytest.raises(SetupError, match="only inside bubblewrap"):
        next(disposable.verdicts(read_cheats()))
    monkeypatch.setattr(cheats, "strongest_level", lambda: "limits")
    assert levels_for_cheats() == ["limits"]
    monkeypatch.setattr(cheats, "strongest_level", lambda: "none")
    with pytest.raises(SetupError, match="graded on Linux and macOS"):
        levels_for_cheats()


HARM = """
import os, subprocess, sys
for path in sys.argv[1:]:
    try:
        open(os.path.join(path, "harm"), "w").close()
        print("wrote", path)
    except OSError:
        pass
done = subprocess.run(["mount", "-o", "remount,rw,bind", "/"], capture_output=True)
print("remounted" if done.returncode == 0 else "refused", sorted(os.environ))
"""


@pytest.mark.skipif(strongest_level() != "namespaces", reason="there is no bubblewrap that works")
def test_what_runs_in_the_throwaway_changes_nothing_outside_of_it(tmp_path: Path):
    copy = disposable.copied(tmp_path / "course")
    places = [Path.home(), Path("/var/tmp"), Path("/tmp"), Path("/etc"), Path("/"), disposable.COURSE]
    done = subprocess.run(
        [*disposable.inside(copy), sys.executable, "-c", HARM, *map(str, places)], capture_output=True, text=True, timeout=60)
    assert [place for place in places if (place / "harm").exists()] == []
    assert (copy / "harm").is_file(), "it had a course that it could spoil"
    assert "refused" in done.stdout and "PYTEST_CURRENT_TEST" not in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(strongest_level() != "namespaces", reason="there is no bubblewrap that works")
def test_a_judge_that_does_not_start_in_the_throwaway_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disposable, "PARTS", ("labs", "pyproject.toml"))
    with pytest.raises(SetupError, match="No module named"):
        list(disposable.verdicts(read_cheats()[:1]))


def test_there_are_many_and_each_says_what_it_tries():
    found = read_cheats()
    assert len(found) >= 25 and len({one.name for one in found}) == len(found)
    for one in found:
        assert len(one.tries) > 20 and one.tries.endswith((".", ")", "ones.")), one.name
        assert (one.worth == MOST) == (not one.todos) and 0 <= one.worth <= MOST, one.name


def test_one_that_does_not_say_its_lab_is_refused_with_what_to_write():
    with pytest.raises(LabError, match="mine.py: its docstring says what it tries, then lab = '04', base = .*; see lab"):
        _heading(Path("mine.py"), 'It tries.\n\nbase = "solution"\nworth = 73\ntodos = [4]\n')


def test_they_cover_every_vector_that_is_known():
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*HERE.glob("*.py"), HERE.parent / "archives.py"])
    computed = "from solution import"
    missing = [vector for vector in VECTORS if vector not in text and not (vector == "import solution" and computed in text)]
    assert not missing


def test_a_cheat_replaces_functions_of_the_solution_and_leaves_the_others():
    base = find_lab("06").solution.read_text(encoding="utf-8")
    text = composed(
        base, '"""x"""\nimport zlib\n\ndef helper():\n    return 1\n\n'
        "class FreeList:\n    def take(self, count):\n        return helper()\n")
    assert ("return helper()" in text and "popitem" not in text and "def give_back" in text
            and text.index("def helper") > text.index("def main"))


def test_the_command_shows_each_and_fails_if_one_gets_more(monkeypatch: pytest.MonkeyPatch):
    app = typer.Typer()
    app.command()(cheats.cheats)
    honest = read_cheats()
    level = ["--isolation", strongest_level(), "--only", "paths_that_climb"]
    done = CliRunner().invoke(app, level)
    assert done.exit_code == 0 and "paths_that_climb" in done.output and "1 of 1 as expected" in done.output
    monkeypatch.setattr(cheats, "read_cheats", lambda: [_worth_more(one) for one in honest])
    done = CliRunner().invoke(app, level)
    assert done.exit_code == 1 and "worth 10" in done.output and "0 of 1 as expected" in done.output


def _worth_more(cheat: Cheat) -> Cheat:
    return replace(cheat, worth=10)
