"""A lab from nothing: what `new-lab` writes works, and `check-lab` says what its author still has to do."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grading.authoring import new_lab
from grading.authoring.checklist import CHECKLIST, Step, walk
from grading.authoring.lab_proofs import UNFINISHED
from labs.harness.catalog import Lab, LabError, find_lab, lab_at

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
NOT_COPIED = (".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", ".progress.json", ".backups", ".hypothesis")


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the course with a new lab in it."""
    copy = tmp_path_factory.mktemp("new") / "course"
    shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    done = grading(copy, "new-lab", "42", "many_blocks", "--title", "Many blocks")
    assert done.returncode == 0, done.stderr
    yield copy
    shutil.rmtree(copy)


def grading(course: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(course), str(course / "reference_engine")])
    return subprocess.run([sys.executable, "-m", "grading", *arguments], cwd=course, env=os.environ | {"PYTHONPATH": path},
                          capture_output=True, text=True, encoding="utf-8", timeout=900, check=False)


def missing(course: Path, *options: str) -> str:
    """The step at which `check-lab` ends, and what it says of it; empty where it ticks off all."""
    done = grading(course, "check-lab", "42", *options)
    steps = re.findall("^[✓✗] (.+)$", done.stdout, re.MULTILINE)
    quick = [step for step in CHECKLIST if not (step.runs and "--quick" in options)]
    assert steps == [step.says for step in quick][: len(steps)], done.stdout + done.stderr
    assert done.returncode == ("✗" in done.stdout), done.stderr
    return done.stdout.partition("✗ ")[2]


def test_a_new_lab_lacks_nothing_that_a_program_can_write_but_its_symptoms(course: Path):
    said = missing(course, "--quick")
    assert said.startswith("symptoms.json is current") and "To do: " in said and "python -m grading symptoms 42" in said
    made = lab_at(course / "labs" / "lab42_many_blocks")
    assert made.title == "Many blocks" and [todo.heading for todo in made.todos] == ["TODO 1: Blocks of a request"]


@pytest.mark.proof
def test_a_new_lab_goes_all_the_way(course: Path):
    """Its suite, mutants, alternative and the judge agree; what is left is for a person to fill in."""
    assert grading(course, "symptoms", "42").returncode == 0
    assert missing(course).startswith("README.md and labs/README.md list the lab")
    for page, link in (("README.md", "labs/lab42_many_blocks/README.md"), ("labs/README.md", "lab42_many_blocks/README.md")):
        with (course / page).open("a", encoding="utf-8") as file:
            file.write(f"\n[42 many blocks]({link})\n")
    assert missing(course, "--quick").startswith("nothing is left to fill in")
    for home in ("labs/lab42_many_blocks", "grading/labs/lab42"):
        for path in [path for path in (course / home).rglob("*") if path.suffix in (".py", ".md", ".toml")]:
            path.write_text(path.read_text(encoding="utf-8").replace(UNFINISHED, ""), encoding="utf-8")
    assert grading(course, "starter", "42").returncode == 0
    assert grading(course, "symptoms", "42").returncode == 0
    said = missing(course)
    assert said.startswith("the project's own tests of it pass")
    assert "test_mutants" not in said and "test_author" not in said and "test_notebooks" in said, "a notebook is left to write"
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "grading/labs/lab42"], cwd=course, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join([str(course), str(course / "reference_engine")])},
                         timeout=300, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(("number", "name", "complaint"), [
    (6, "other", "lab 06 is there already: labs/lab06_block_manager"),
    (42, "Many Blocks", "'Many Blocks' is no name for a folder"),
    (42, "../x", "is no name for a folder"),
])
def test_a_number_that_is_taken_and_a_name_that_is_none_are_refused(number: int, name: str, complaint: str):
    with pytest.raises(LabError, match=re.escape(complaint)):
        new_lab.write(number, name)


def test_the_list_ends_at_the_first_step_that_fails_and_says_what_to_do():
    def fails(lab: Lab) -> None:
        raise LabError("no tests")

    steps, shown = [Step("first", "do it", lambda lab: None), Step("second", "write them", fails), Step("third", "", fails)], []
    assert not walk(find_lab("06"), lambda step, what: shown.append((step.says, what)), steps)
    assert shown == [("first", None), ("second", "no tests")]
    assert walk(find_lab("06"), lambda step, what: None, steps[:1])
