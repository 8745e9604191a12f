"""`python -m labs` and `python -m grading`, as they are typed."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

from labs.harness import doctor
from labs.harness.learner.predictions import read_attempts

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]


def test_list_and_status_on_untouched_labs(workshop, toy):
    assert workshop.labs("list").stdout == "07  A toy  1 hours  0 of 3 TODOs solved\n"
    status = workshop.labs("status").stdout
    assert "TODO 1  double: not tested yet" in status
    assert "yours: nothing yet" in status and "ours:  the toy, the engine" in status
    assert status.endswith("\nNext: Lab 07, predictions: python -m labs predict 07\n"
                           "then: Lab 07, TODO 1: cd lab07_toy, then pytest test_lab.py -k todo_1\n")


@pytest.mark.proof
def test_status_of_a_solved_lab(workshop, toy):
    (toy / "starter.py").write_text((toy / "solution.py").read_text())
    workshop.pytest("lab07_toy/test_lab.py")
    status = workshop.labs("status").stdout
    assert "TODO 3  quadruple: 30/30  solved" in status
    assert "yours: the toy" in status
    assert status.endswith("\nNext: Lab 07, predictions: python -m labs predict 07\n"), "the only thing that is open"
    workshop.labs("predict", "7", "--name", "ada", "--answers", "sum=1,larger=b")
    assert workshop.labs("status").stdout.endswith("\nNext: every TODO of every lab is solved\n")


@pytest.mark.proof
def test_status_of_one_lab_and_what_is_next_is_the_lab_worked_on_last(workshop, toy):
    other = workshop.add_lab("lab08_other")
    first = workshop.labs("status", "8").stdout
    assert "Lab 08" in first and "Lab 07" not in first and "then: Lab 08, TODO 1" in first and "From call" not in first
    assert "then: Lab 07, TODO 1" in workshop.labs("status").stdout, "nothing was tested yet"
    workshop.pytest("lab08_other/test_lab.py", "-k", "todo_2")
    assert "Next: Lab 08, predictions" in workshop.labs("status").stdout
    workshop.labs("predict", "8", "--name", "ada", "--answers", "sum=1,larger=b")
    assert "Next: Lab 08, TODO 1" in workshop.labs("status").stdout
    (other / "starter.py").write_text((other / "solution.py").read_text())
    workshop.pytest("lab08_other/test_lab.py")
    assert "then: Lab 07, TODO 1" in workshop.labs("status").stdout, "every TODO of the other is solved"
    assert "There is no lab '9'" in workshop.labs("status", "9").stderr


def test_hints_come_one_by_one_and_are_noted(workshop, toy):
    shown = [workshop.labs("hint", "7", "2").stdout for _ in range(4)]
    assert [re.search(r"hint (\d) of todo 2", text)[1] for text in shown] == ["1", "2", "3", "3"]
    assert "That is the last one" not in shown[1] and "That is the last one" in shown[2]
    assert json.loads((workshop.home / ".progress.json").read_text())["labs"]["07"]["hints"] == {"2": 3}
    every = workshop.labs("hint", "07", "1", "--all").stdout
    assert [re.search(f"hint {n} of todo 1", every) is not None for n in (1, 2, 3)] == [True] * 3
    assert "TODO 1" in workshop.labs("hint", "lab07_toy").stdout, "without a number: the first unsolved TODO"


def sum_asked(workshop, *options: str) -> int:
    """The right answer to the toy's first question, from its text."""
    a, b = re.search(r"What is (\d+) \+ (\d+)", workshop.labs("predict", "7", "--show", *options).stdout).groups()
    return int(a) + int(b)


@pytest.mark.proof
def test_the_first_attempt_counts_and_another_one_has_new_numbers(workshop, toy):
    answer = sum_asked(workshop)
    first = workshop.labs("predict", "7", "--answers", f"sum={answer + 1},larger=B").stdout  # case does not matter
    assert f"wrong  sum: you said {answer + 1}, the engine {answer}. " in first
    assert "1 of 2 right. Your best attempt is worth 7.5 of 15 points." in first
    known = workshop.labs("predict", "7", "--answers", f"sum={answer},larger=b").stdout
    assert "2 of 2 right. This attempt does not count" in known
    new = sum_asked(workshop, "--again")
    assert new != answer
    again = workshop.labs("predict", "7", "--again", "--answers", f"sum={new},larger=b").stdout
    assert "worth 15 of 15 points" in again
    assert "15/15" in workshop.labs("status").stdout
    assert "predictions  15/15   2 of 2 right" in workshop.pytest("lab07_toy", "--plain").stdout


def test_attempts_that_count_are_written_beside_the_starter_to_be_handed_in(workshop, toy):
    answer = sum_asked(workshop)
    workshop.labs("predict", "7", "--seed", "5", "--answers", "larger=b")
    assert not (toy / "predictions.json").exists(), "an attempt with a seed of one's own counts nothing"
    workshop.labs("predict", "7", "--answers", f"sum={answer + 1},larger=b")
    workshop.labs("predict", "7", "--answers", f"sum={answer},larger=b")  # the truth is known by now
    (toy / "predictions.json").write_text((toy / "predictions.json").read_text()[:-5], encoding="utf-8")  # cut off
    workshop.labs("predict", "7", "--again", "--answers", "sum=1,larger=b")
    ((seed, answers),) = read_attempts((toy / "predictions.json").read_text(encoding="utf-8"))
    assert answers == {"sum": 1, "larger": "b"} and isinstance(seed, int)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"attempts": 3}',
        '{"attempts": [{"seed": "1", "answers": {}}]}',
        '{"attempts": [{"seed": 1, "answers": {"a": []}}]}',
    ],
)
def test_a_file_of_attempts_that_cannot_be_used_is_a_value_error(text):
    with pytest.raises(ValueError):
        read_attempts(text)


def test_a_name_gives_the_same_numbers_everywhere_and_a_seed_counts_nothing(workshop, toy):
    ada, bob = sum_asked(workshop, "--name", "ada"), sum_asked(workshop, "--name", "bob")
    assert ada != bob and ada == sum_asked(workshop, "--name", "ada")
    assert sum_asked(workshop, "--seed", "5") == sum_asked(workshop, "--seed", "5", "--name", "bob")
    assert "does not count" in workshop.labs("predict", "7", "--seed", "5", "--answers", "larger=b").stdout
    assert "0/15" in workshop.labs("status").stdout


def test_questions_are_asked_and_asked_again_when_the_answer_cannot_be_meant(workshop, toy):
    import subprocess

    env = os.environ | {"NANO_LABS_HOME": str(workshop.home), "PYTHONPATH": str(PROJECT)}
    typed = "ada\ntwelve\n\nc\nb\n"
    run = subprocess.run(
        [sys.executable, "-m", "labs", "predict", "7"], env=env, input=typed, capture_output=True, text=True, timeout=60
    )
    assert "'twelve' is not a whole number" in run.stdout and "'c' is not one of a, b" in run.stdout
    assert "sum: no answer" in run.stdout and "1 of 2 right" in run.stdout
    assert json.loads((workshop.home / ".progress.json").read_text())["name"] == "ada"


def test_reset_keeps_the_work_it_replaces(workshop, toy):
    starter, fresh = toy / "starter.py", (toy / "starter.py").read_text()
    starter.write_text((toy / "solution.py").read_text() + "# mine\n")
    for turn in (1, 2):
        assert "Your work:" in workshop.labs("reset", "7").stdout
        assert starter.read_text() == fresh
        backups = list((workshop.home / ".backups").iterdir())
        assert len(backups) == turn and all(file.read_text().endswith("# mine\n") for file in backups)
        starter.write_text((toy / "solution.py").read_text() + "# mine\n")
    starter.write_text(fresh)
    assert "nothing to reset" in workshop.labs("reset", "7").stdout


def test_reset_of_one_todo_leaves_the_others(workshop, toy):
    starter = toy / "starter.py"
    starter.write_text(
        starter.read_text().replace('raise TodoError("TODO 1: return twice the number", lab="07")', "return 2 * number")
    )
    starter.write_text(starter.read_text().replace('raise TodoError("TODO 3: double twice", lab="07")', "return 9"))
    workshop.labs("reset", "7", "--todo", "3")
    assert "return 2 * number" in starter.read_text() and "TODO 3: double twice\", lab" in starter.read_text()
    assert len(list((workshop.home / ".backups").iterdir())) == 1


def test_reset_brings_back_a_deleted_starter(workshop, toy):
    fresh = (toy / "starter.py").read_text()
    (toy / "starter.py").unlink()
    workshop.labs("reset", "7")
    assert (toy / "starter.py").read_text() == fresh


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hint", "9"], "labs: There is no lab '9'. The labs here: 07 (lab07_toy)."),
        (["hint", "7", "4"], "labs: Lab 07 has no TODO 4; it has 1, 2, 3."),
        (["reset", "nope"], "labs: There is no lab 'nope'."),
        (["reset", "7", "--todo", "8"], "labs: Lab 07 has no TODO 8; it has 1, 2, 3."),
        (["predict", "7", "--answers", "total=3"], "labs: There is no question 'total'. The questions: sum, larger."),
        (["predict", "7", "--answers", "sum"], "labs: 'sum': write question=answer, for example sum=3."),
        (["predict", "7", "--answers", "sum=many"], "labs: sum: 'many' is not a whole number."),
        (["predict", "7", "--answers", "larger=c"], "labs: larger: 'c' is not one of a, b."),
    ],
)
def test_bad_input_is_answered_in_one_line(workshop, toy, arguments: list[str], said: str):
    run = workshop.labs(*arguments)
    assert run.returncode == 2 and run.stderr.startswith(said) and run.stderr.count("\n") == 1


@pytest.mark.proof
def test_starters_are_made_checked_and_never_lost(workshop, toy):
    assert "1 starter up to date" in workshop.run("-m", "grading", "starter", "--check").stdout
    (toy / "starter.py").write_text("# my work\n")
    stale = workshop.run("-m", "grading", "starter", "--check", "lab07")
    assert stale.returncode == 1 and f"stale: {toy / 'starter.py'}" in stale.stdout
    assert "wrote" in workshop.run("-m", "grading", "starter").stdout
    assert workshop.run("-m", "grading", "starter", "--check").returncode == 0
    assert [file.read_text() for file in (workshop.home / ".backups").iterdir()] == ["# my work\n"]
    assert "There is no lab '3'" in workshop.run("-m", "grading", "starter", "3").stderr


# doctor


def test_the_doctor_needs_nothing_installed_and_says_what_is_missing(workshop):
    """-S leaves out site-packages: neither typer nor torch can be imported."""
    run = workshop.run("-S", "-m", "labs", "doctor", cwd=PROJECT)
    assert run.returncode == 1, run.stderr
    assert "BLOCKS  torch          not installed" in run.stdout
    assert "-> in the course's folder: pip install -r requirements.txt" in run.stdout
    other = workshop.run("-S", "-m", "labs", "list", cwd=PROJECT)
    assert "What to do about it: python -m labs doctor" in other.stderr and "Traceback" not in other.stderr


def test_the_doctor_speaks_the_syntax_of_python_3_7():
    for file in ("harness/doctor.py", "harness/__init__.py", "__main__.py", "__init__.py"):
        ast.parse((PROJECT / "labs" / file).read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize(("version", "level"), [((3, 9), "BLOCKS"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "BLOCKS")])
def test_the_doctor_knows_which_pythons_will_do(version, level):
    finding = doctor.check_python(version)
    assert finding.level == level
    if level != "ok":
        assert "{}.{}".format(*version) in finding.found and finding.advice.startswith("install Python 3.1")


def test_the_doctor_looks_at_disk_and_write_access(tmp_path, monkeypatch):
    assert doctor.check_disk(1.0, installed=False).level == "BLOCKS"
    assert doctor.check_disk(1.0, installed=True).level == "ok"
    assert doctor.check_write(str(tmp_path)).level == "ok"
    assert doctor.check_write(str(tmp_path / "absent")).level == "BLOCKS"


def test_the_doctor_tells_what_is_needed_from_what_is_optional(monkeypatch):
    from importlib import metadata

    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)
    torch, llguidance = doctor.check_packages([("torch", "2.0"), ("llguidance", "1.0")])
    assert (torch.level, llguidance.level) == ("BLOCKS", "note")
    assert "only for structured output" in llguidance.found and "pip install llguidance==1.0" in llguidance.advice
    assert "copydetect" not in (PROJECT / "reference_engine" / "requirements.txt").read_text()


def test_the_doctor_says_when_there_is_more_work_than_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (9.0, 1.0, 1.0), raising=False)
    assert doctor.check_load().level == "note" and "OMP_NUM_THREADS=1" in doctor.check_load().advice
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (1.5, 1.0, 1.0), raising=False)
    assert doctor.check_load().level == "ok"
    monkeypatch.delattr(doctor.os, "getloadavg")
    assert doctor.check_load().level == "ok", "Windows has no load"


def test_another_version_of_a_package_is_noted_but_does_not_block():
    (finding,) = doctor.check_packages([("pytest", "1.0")])
    assert finding.level == "note" and "tested with 1.0" in finding.found
