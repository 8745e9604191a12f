"""Batches: resumed after any kill as if nothing had been, crashed processes, Ctrl-C, flaky checks, a real dozen."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from grading.authoring.mutants import read_mutants
from grading.cohort.batch import Plan, Unit, differing, plan_of, run_batch, seconds_for, slow
from grading.cohort.journal import Journal
from grading.cohort.roster import Remark, read_cohort, read_roster
from grading.cohort.term import read_term
from grading.cohort.worker_pool import Crew, Memory, answer_of, processes
from grading.judge.grader import Settings, grader_of
from grading.judge.intake import Submission
from grading.judge.report import CheckResult, Report
from grading.red_team import synthetic
from grading.sandbox.isolation import Limits
from labs.harness.catalog import find_lab

pytestmark = pytest.mark.slow

LAB = find_lab("06")
PROJECT = Path(__file__).parents[2]
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it\n"
    "from grading.cli.app import app; app()")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def plan(checks: str = "v1", seed_mode: str = "student") -> Plan:
    return Plan({"06": LAB}, Settings(level="none", seed_mode=seed_mode), {"06": {"checks": checks}})


def cohort_in(folder: Path, count: int):
    """So many submissions, each with a text of its own."""
    for number in range(count):
        home = folder / f"s{number:02}"
        home.mkdir(parents=True, exist_ok=True)
        (home / "starter.py").write_text(f"number = {number}\n")
        os.utime(home / "starter.py", (1_800_000_000, 1_800_000_000))
    return read_cohort(folder, [LAB])


def report_of(unit: Unit, checks: str = "v1") -> Report:
    """A score that only the submission's text decides."""
    earned = float(int(hashlib.sha256(unit.submission.files["starter.py"]).hexdigest()[:4], 16) % 100)
    check = CheckResult(1, "a_check", 100.0, earned, False)
    return Report(unit.submission.student, unit.lab, unit.submission.digest, "none", "seed", {"checks": checks}, (check,))


class Here:
    """A worker in this process, which takes its time and notes what it grades."""

    def __init__(self, log: Path, seconds: float) -> None:
        self.log, self.seconds, self.unit = log, seconds, None

    def give(self, unit: Unit) -> None:
        self.unit = unit

    def take(self) -> Report:
        with open(self.log, "a") as log:
            log.write(self.unit.key + "\n")
        time.sleep(self.seconds)
        return answer_of(report_of, self.unit)

    def stop(self, why: str = "") -> None:
        pass


def crew_here(log: Path, seconds: float = 0.0) -> Crew:
    rng = random.Random(0)
    return Crew(3, lambda: Here(log, seconds), lambda workers: [rng.choice(workers)], 60.0)


def outcome(path: Path) -> list[tuple]:
    with Journal(path) as base:
        assert base.results() == len(base.attempts())
        return [(entry.report.to_json(), entry.submitted, entry.final_score) for entry in base.latest()]


def run_in_child(folder: Path, journal: Path, log: Path, kill_after: float | None) -> bool:
    """A whole batch in a forked process; whether it got to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with Journal(journal, create=True) as base:
                run_batch(base, plan(), read_cohort(folder, [LAB]), crew_here(log, 0.004))
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.proof
@needs_fork
def test_a_batch_killed_thirty_times_and_resumed_ends_like_an_uninterrupted_one(tmp_path):
    cohort_in(tmp_path / "submissions", 12)
    began = time.monotonic()
    assert run_in_child(tmp_path / "submissions", tmp_path / "whole", tmp_path / "whole.log", None)
    took, wanted, interrupted = time.monotonic() - began, outcome(tmp_path / "whole"), 0
    assert len(wanted) == 12
    rng = random.Random(6)
    for number in range(30):
        journal, log = tmp_path / f"{number}", tmp_path / f"{number}.log"
        began = time.monotonic()
        if run_in_child(tmp_path / "submissions", journal, log, rng.uniform(0, took)):
            took = min(took, time.monotonic() - began)  # the machine has become faster
        else:
            interrupted += 1
        with Journal(journal, create=True) as base:
            before = base.results()
        assert run_in_child(tmp_path / "submissions", journal, log, None)
        assert outcome(journal) == wanted, f"killed at instant {number}, with {before} results, and resumed"
        graded = Counter(log.read_text().split())
        assert len(graded) == 12 and sum(graded.values()) <= 13, "only the one that was in work may have been graded twice"
    assert interrupted >= 10, f"only {interrupted} of 30 kills came before the end"


def test_what_is_unchanged_is_not_graded_again_and_what_changed_is(tmp_path):
    def graded(**settings) -> int:
        with Journal(tmp_path / "journal", create=True) as base:
            return run_batch(base, plan(**settings), cohort_in(tmp_path / "submissions", 4), crew_here(tmp_path / "log")).graded

    assert [graded(), graded()] == [4, 0]
    assert [graded(checks="v2"), graded(checks="v2"), graded(checks="v1")] == [4, 0, 0], (
        "other checks are another result, kept beside the first")
    (tmp_path / "submissions" / "s04").mkdir()
    (tmp_path / "submissions" / "s04" / "starter.py").write_text("new = 1\n")
    assert graded() == 1


def test_every_setting_that_matters_is_in_the_key(tmp_path):
    one, = cohort_in(tmp_path, 1).handed_in
    base = Settings(level="none")
    others = [replace(base, secret="another secret 123"), replace(base, seed="5"), replace(base, level="limits"),
              replace(base, predictions=False), replace(base, limits=Limits(wall_seconds=1.0)), replace(base, seed_mode="cohort"),
              replace(base, seconds=600.0)]
    keys = {Plan({"06": LAB}, settings, {"06": {"checks": "v1"}}).unit(one).key for settings in [base, *others]}
    assert len(keys) == len(others) + 1
    assert plan().unit(one).key == plan().unit(one).key != plan(checks="v2").unit(one).key


def test_a_submission_that_takes_long_is_named_and_one_whose_time_was_over_too():
    passed = tuple(CheckResult(1, f"c{number}", 1.0, 1.0, False) for number in range(30))
    quick = Report("ada", "06", "d", "none", "seed", {}, passed)
    assert slow(quick, 20.0) == slow(replace(quick, checks=passed[:1]), 20.0) == []
    assert [line.text for line in slow(quick, 870.0)] == [
        "it took 870 s, 29.0 s for each of 30 checks; seconds_per_submission in term.toml limits that"]
    late = replace(quick, checks=(*passed[:20], *(
        replace(one, earned=0.0, message="not tried in time: the 600 s that a submission has were over") for one in passed[20:])))
    assert [(line.kind, line.text) for line in slow(late, 600.0)] == [
        ("slow", "10 of 30 checks were not tried: it took too long")]


def test_a_judge_is_given_up_when_its_checks_and_its_submission_are_out_of_time():
    whole = Plan({"06": LAB}, Settings(level="none", limits=Limits(wall_seconds=30.0)), {"06": {"checks": "v1"}})
    assert seconds_for(whole, 32) == 32 * 30 + 180
    assert seconds_for(replace(whole, settings=replace(whole.settings, seconds=100.0)), 32) == 100 + 30 + 180
    assert seconds_for(replace(whole, settings=replace(whole.settings, seconds=5000.0)), 32) == 32 * 30 + 180


def test_a_submissions_time_is_for_all_its_checks_together():
    text = f"import time\ntime.sleep(0.5)\n{LAB.solution.read_text(encoding='utf-8')}"
    with grader_of(LAB, Settings(predictions=False, level="limits", seconds=2.0)) as grader:
        report = grader.grade(Submission("ada", {"starter.py": text.encode()}))
    late = [check.message for check in report.checks if not check.passed]
    assert 0 < report.score < report.max_score and report.checks[0].passed, "some began in time: each takes half a second"
    assert late and set(late) == {"not tried in time: the 2 s that a submission has were over"}


def test_other_checks_lower_nobody_and_it_is_said(tmp_path):
    cohort = cohort_in(tmp_path / "submissions", 1)
    with Journal(tmp_path / "journal", create=True) as base:
        unit = plan("v0").unit(cohort.handed_in[0])
        run_batch(base, plan("v0"), cohort, crew_here(tmp_path / "log"))
        good = report_of(unit)
        base.record("better", replace(good, checks=(replace(good.checks[0], earned=100.0),)))
        summary = run_batch(base, plan("v1"), cohort_in(tmp_path / "submissions", 1), crew_here(tmp_path / "log"))
        assert [line.kind for line in summary.lines] == ["lower"] and "100, given earlier, stands" in summary.lines[0].text
        assert base.latest()[0].report.score == 100.0


def test_what_counts_though_it_is_not_there_any_more_is_said(tmp_path):
    cohort_in(tmp_path / "submissions", 1)
    with Journal(tmp_path / "journal", create=True) as base:
        run_batch(base, plan(), read_cohort(tmp_path / "submissions", [LAB]), crew_here(tmp_path / "log"))
        path = tmp_path / "submissions" / "s00" / "starter.py"
        path.write_text("changed = 1\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        summary = run_batch(base, plan(), read_cohort(tmp_path / "submissions", [LAB]), crew_here(tmp_path / "log"))
    assert [line.kind for line in summary.lines] == ["older"] and "that of 2027-01-15 08:00 UTC," in summary.lines[0].text


def test_two_equal_runs_that_differ_are_flaky_by_check():
    def once(**earned: float) -> Report:
        checks = tuple(CheckResult(1, name, 2.0, value, False, "" if value else "sometimes") for name, value in earned.items())
        return Report("alice", "06", "d", "none", "seed", {}, checks)

    assert differing([once(steady=2.0, failing=0.0)] * 3) == []
    assert differing([once(a=2.0, b=2.0), once(a=2.0, b=0.0), once(a=2.0, b=2.0)]) == [
        Remark("flaky", "alice", "06", "b (TODO 1) passed 2 of 3 times; else: sometimes")]


# processes


@dataclass(frozen=True)
class Bumpy:
    """Makes a grader whose process is killed by some students: by `once` the first time, by `always` every time."""

    marks: Path

    @contextmanager
    def __call__(self) -> Iterator:
        def grade(unit: Unit) -> Report:
            student = unit.submission.student
            mark = self.marks / student
            if student == "s00" or (student == "s01" and not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if student == "s02":
                raise RuntimeError("the judge has a bug")
            return report_of(unit)

        yield grade


@pytest.mark.proof
def test_a_process_that_crashes_costs_a_second_try_and_nobody_elses_result(tmp_path):
    cohort = cohort_in(tmp_path / "submissions", 6)
    memory = Memory()
    with Journal(tmp_path / "journal", create=True) as base:
        summary = run_batch(base, plan(), cohort, processes(2, Bumpy(tmp_path), 120.0, memory))
        assert [entry.report.student for entry in base.latest()] == ["s01", "s03", "s04", "s05"]
    killed, bug = "its process ended, killed by SIGKILL", "RuntimeError: the judge has a bug"
    said = {(line.kind, line.student): line.text for line in summary.lines}
    assert said == {
        ("error", "s00"): f"not graded: {killed}; {killed}; the same command tries again",
        ("crash", "s01"): f"{killed}; graded at the second try",
        ("error", "s02"): f"not graded: {bug}; {bug}; the same command tries again"}
    assert (summary.found, summary.graded, summary.failed, summary.is_good) == (6, 4, 2, False)
    assert memory.peak > 50 << 20


@dataclass(frozen=True)
class Endless:
    """Makes a grader that never ends with s00."""

    @contextmanager
    def __call__(self) -> Iterator:
        yield lambda unit: time.sleep(3600) if unit.submission.student == "s00" else report_of(unit)


@pytest.mark.proof
def test_a_judge_that_hangs_is_given_up(tmp_path):
    cohort = cohort_in(tmp_path / "submissions", 2)
    cohort.handed_in.reverse()  # the other one comes first: then the process is there, and has nothing to import
    crew = processes(1, Endless(), 120.0, Memory())
    with Journal(tmp_path / "journal", create=True) as base:
        summary = run_batch(base, plan(), cohort, crew, done=lambda: setattr(crew, "seconds", 2.0))
    assert (summary.graded, summary.failed) == (1, 1)
    assert "not graded: it had not ended after 2 seconds; it had not ended after 2 seconds" in summary.lines[0].text


ORPHAN = """
import contextlib, functools, time
from grading.cohort.worker_pool import Memory, processes

if __name__ == "__main__":
    crew = processes(1, functools.partial(contextlib.nullcontext, time.sleep), 3600.0, Memory())
    worker = crew.hire()
    worker.give(0.0)
    while not crew.ready([worker]):
        pass
    worker.take()
    worker.give(3600.0)
    print(worker.process.pid, flush=True)
    time.sleep(3600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_a_process_that_is_busy_ends_when_its_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "reference_engine")])}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        worker = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 60
        while is_there(worker):
            assert time.monotonic() < deadline, "it sleeps on for an hour"
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.stdout.close()


def is_there(pid: int) -> bool:
    """Whether a process is there and not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# the command, on real submissions


def dozen(folder: Path) -> None:
    """Solution, starter, mutants, a cheat, and what cannot be graded."""
    mutants = read_mutants(LAB)[::16]
    texts = {"solution": LAB.solution.read_text(), "starter": LAB.starter.read_text(), "exits": "import os\nos._exit(0)\n",
             **{f"mutant{number}": one.text for number, one in enumerate(mutants)}}
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "starter.py").write_text(text)
    (folder / "empty").mkdir()
    (folder / "binary.py").write_bytes(b"\0\1\2")
    (folder / "broken.zip").write_bytes(b"PK\3\4")
    (folder / "syntax.py").write_text("def :\n")
    (folder / "import.py").write_text("from nano_qwen3_serving.core import block_manager\n")


def command(tmp_path: Path, journal: str, *more: str) -> list[str]:
    students = sorted(path.name.partition(".")[0] for path in (tmp_path / "submissions").iterdir())
    (tmp_path / "roster.csv").write_text("student\n" + "\n".join(students))
    (tmp_path / "term.toml").write_text(
        f'journal = "{journal}"\n[submissions]\nfolder = "submissions"\n[roster]\nfile = "roster.csv"\n'
        "[labs]\n06 = {}\n[grading]\npredictions = false\n")
    return [sys.executable, "-c", COMMAND, "batch", "--term-file", str(tmp_path / "term.toml"), "--jobs", "2",
            "--json", str(tmp_path / f"{journal}.json"), *more]


def wait_for_results(journal: Path, count: int, process: subprocess.Popen) -> int:
    """How many results there are as soon as there are `count`."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if journal.is_file() and journal.stat().st_size:
            with Journal(journal, create=True) as base:
                if base.results() >= count:
                    return base.results()
        time.sleep(0.2)
    raise AssertionError(f"{count} results did not come; exit status {process.poll()}")


def scores(journal: Path) -> dict[str, float]:
    with Journal(journal) as base:
        return {entry.report.student: entry.report.score for entry in base.latest("06")}


@pytest.mark.proof
@needs_fork
def test_a_real_dozen_killed_interrupted_and_resumed_has_every_score_once(tmp_path):
    dozen(tmp_path / "submissions")
    journal, environment = tmp_path / "j", {**os.environ, "OMP_NUM_THREADS": "1"}
    for number, blow in ((2, signal.SIGKILL), (5, signal.SIGINT)):
        process = subprocess.Popen(command(tmp_path, "j"), cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True,
                                   start_new_session=True)
        wait_for_results(journal, number, process)
        if blow == signal.SIGKILL:
            process.kill()
            process.wait()
        else:
            os.killpg(process.pid, blow)
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 130 and "the same command goes on from there" in said
    with Journal(journal) as base:
        known = base.results()
    done = subprocess.run(command(tmp_path, "j"), cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary, found = json.loads((tmp_path / "j.json").read_text()), scores(journal)
    assert (summary["known"], summary["graded"], summary["found"]) == (known, len(found) - known, len(found)) and known >= 5
    assert set(found) == {path.name.partition(".")[0] for path in (tmp_path / "submissions").iterdir()}
    assert found["solution"] == 85
    assert all(found[name] == 0 for name in ("starter", "exits", "empty", "binary", "broken", "syntax", "import"))
    assert all(0 < found[name] < 85 for name in found if name.startswith("mutant"))
    assert {line["student"] for line in summary["lines"]} == {"empty", "binary", "broken"} and summary["peak_bytes"] > 100 << 20
    assert_as_uninterrupted(tmp_path, found)


def assert_as_uninterrupted(tmp_path: Path, found: dict[str, float]) -> None:
    """Graded one after another by the judge itself, in another order, it is the same."""
    from grading.judge.grader import grader_of

    settings = Settings(predictions=False)
    cohort = read_cohort(tmp_path / "submissions", [LAB])
    with grader_of(LAB, settings) as grader, grader.sandbox() as shared:
        reports = {one.submission.student: grader.grade(one.submission, shared=shared) for one in cohort.handed_in[::-1]
                   if "mutant" in one.submission.student}
    with Journal(tmp_path / "j") as base:
        kept = [entry.report for entry in base.latest() if entry.report.student in reports]
    assert {report.student: verdict_of(report) for report in kept} == {
        student: verdict_of(report) for student, report in reports.items()}
    assert {student: report.score for student, report in reports.items()}.items() <= found.items()


def verdict_of(report: Report) -> tuple:
    """What each check earned, and what else counts. (A message may name an address in memory.)"""
    return report.seed, report.digest, report.versions, [(check.name, check.earned) for check in report.checks]


def test_a_journal_has_one_secret(tmp_path):
    from grading.cli.batch import _same_seeds

    with Journal(tmp_path / "j", create=True) as base:
        _same_seeds(base, plan())
        _same_seeds(base, plan("v2"))
        with pytest.raises(ValueError, match="another term secret or seed_mode"):
            _same_seeds(base, plan(seed_mode="cohort"))


def test_the_lab_plan_has_the_judges_versions():
    assert plan_of([LAB], Settings(level="none")).versions["06"].keys() == {"checks", "python", "torch"}


@pytest.mark.proof
def test_synthetic_submissions_are_the_same_for_the_same_seed_and_can_be_read(tmp_path):
    made, again = synthetic.make(LAB, 60, "1"), synthetic.make(LAB, 60, "1")
    assert [(one.student, one.kind, one.text) for one in made] == [(one.student, one.kind, one.text) for one in again]
    assert {one.kind.split()[0] for one in made} == {"solution", "starter", "mutant", "cheat", "mixture:"}
    for one in made:
        compile(one.text, one.student, "exec")
    synthetic.write(tmp_path / "out", LAB, made)
    cohort = read_cohort(tmp_path / "out" / "submissions", [LAB], read_roster(tmp_path / "out" / "roster.csv"))
    assert [one.submission.student for one in cohort.handed_in] == [one.student for one in made]
    term = read_term(tmp_path / "out" / "term.toml")
    assert (list(term.labs), list(term.roster.students), term.predictions) == (["06"], [one.student for one in made], False)
    assert all(handed_in.submission.text() == one.text for handed_in, one in zip(cohort.handed_in, made, strict=True)
               if not one.cheat)
    with pytest.raises(ValueError, match="is not empty"):
        synthetic.write(tmp_path / "out", LAB, made)
