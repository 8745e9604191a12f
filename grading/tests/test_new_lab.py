"""A lab from nothing: what `new-lab` writes works, and `check-lab` says what its author still has to do."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grading.authoring import lab_proofs as proofs
from grading.authoring import new_lab, symptoms
from grading.authoring.checklist import CHECKLIST, MEMORY, Passed, Step, walk
from grading.authoring.lab_proofs import UNFINISHED
from grading.authoring.mutants import read_mutants
from grading.cli import authoring
from grading.cli.app import app
from grading.judge.suite import checks_of
from labs.harness.catalog import Lab, LabError, all_labs, find_lab, lab_at
from labs.harness.learner.predictions import make_case

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
    steps = re.findall(r"^[✓✗] (.+?)(?: \(unchanged since it passed\))?$", done.stdout, re.MULTILINE)
    quick = [step for step in CHECKLIST if not (step.runs and "--quick" in options)]
    assert steps == [step.says for step in quick][: len(steps)], done.stdout + done.stderr
    assert done.returncode == ("✗" in done.stdout), done.stderr
    return done.stdout.partition("✗ ")[2]


def test_a_new_lab_lacks_nothing_that_a_program_can_write_but_its_symptoms(course: Path):
    said = missing(course, "--quick")
    assert said.startswith("symptoms.json is current") and "To do: " in said and "python -m grading symptoms 42" in said
    made = lab_at(course / "labs" / "lab42_many_blocks")
    assert made.title == "Many blocks" and [todo.heading for todo in made.todos] == [
        "TODO 1: Blocks of a request", "TODO 2: Blocks of 2 requests"]
    assert sum(todo.points for todo in made.todos) == 85 and made.todos[1].needs == (1,)


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


@pytest.mark.parametrize("todos", [1, 3, new_lab.MOST_TODOS])
def test_a_new_lab_has_as_many_todos_as_are_asked_for_and_each_is_whole(todos: int, tmp_path: Path):
    new_lab.write(42, "many_blocks", todos=todos, project=tmp_path)
    made = lab_at(tmp_path / "labs" / "lab42_many_blocks")
    assert [todo.number for todo in made.todos] == list(range(1, todos + 1))
    for proved in (proofs.solution_has_the_todos, proofs.starter_is_made_from_the_solution, proofs.signatures_stay,
                   proofs.tests_are_worth_what_lab_toml_says, proofs.hints_are_whole):
        proved(made)  # raises LabError, which says what is missing
    assert len(checks_of(made)) == 2 * todos, "the judge tells its tests apart"
    wrong = read_mutants(made, tmp_path / "grading" / "labs")
    assert {mutant.todo for mutant in wrong if mutant.only} == {todo.number for todo in made.todos}
    concepts = symptoms.concepts(made, wrong, tmp_path / "grading" / "labs")
    assert all(concepts[mutant.name].area for mutant in wrong)


@pytest.mark.parametrize("todos", [0, new_lab.MOST_TODOS + 1])
def test_no_todo_and_too_many_are_refused(todos: int, tmp_path: Path):
    with pytest.raises(LabError, match=f"{todos} TODOs: a new lab has from 1 to {new_lab.MOST_TODOS}"):
        new_lab.write(42, "many_blocks", todos=todos, project=tmp_path)
    assert not list(tmp_path.iterdir())


# what check-lab remembers


class Project:
    """A course with one lab, as far as a digest needs it, and the steps that take a while, which count how often they run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("labs/lab42_x/lab.toml", "labs/lab42_x/solution.py", "labs/lab42_x/test_lab.py", "labs/lab42_x/README.md",
                     "labs/harness/suite/plugin.py", "grading/labs/lab42/mutants/todo_1.toml", "grading/judge/suite.py",
                     "reference_engine/nano_qwen3_serving/llm.py", "notebooks/42_x.ipynb", "labs/tests/test_mutants.py"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text('title = "x"\nhours = "1"\npart = "x"\n[[todo]]\ntitle = "x"\npoints = 85\n')
        self.lab = lab_at(root / "labs" / "lab42_x")
        self.ran: list[str] = []
        self.steps = [replace(step, check=self._counted(step)) for step in CHECKLIST if step.runs]

    def _counted(self, step: Step):
        return lambda lab: self.ran.append(step.check.__name__)

    def walk(self, steps: list[Step] | None = None, **options) -> list[str]:
        """The steps that ran."""
        self.ran, known = [], []
        chosen = steps or self.steps
        walk(self.lab, lambda step, what, remembered: known.append(remembered), chosen, Passed(self.root), **options)
        assert known.count(False) == len(self.ran) or steps
        return self.ran

    def remembers(self) -> dict:
        path = self.root / MEMORY
        return json.loads(path.read_text()) if path.is_file() else {}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


ALL = [step.check.__name__ for step in CHECKLIST if step.runs]


def test_what_has_passed_does_not_run_again_unless_everything_is_asked_for(project: Project):
    assert project.walk() == ALL and len(ALL) >= 9
    assert project.walk() == [] and project.walk(anew=True) == ALL and project.walk() == []


@pytest.mark.parametrize(("changed", "runs"), [
    ("labs/lab42_x/solution.py", ALL),
    ("labs/lab42_x/test_lab.py", ALL),
    ("labs/lab42_x/seam.py", ALL),  # it was not there
    ("labs/harness/suite/plugin.py", ALL),
    ("reference_engine/nano_qwen3_serving/llm.py", ALL),
    ("grading/judge/suite.py", ALL),
    ("grading/labs/lab42/mutants/todo_1.toml", ["mutants_are_caught", "a_guard_that_is_broken_is_noticed", "alternatives_pass",
                                                "the_judge_agrees", "the_projects_tests_pass"]),
    ("labs/lab42_x/README.md", ["the_program_prints_what_the_readme_shows", "the_projects_tests_pass"]),
    ("labs/lab42_x/symptoms.json", ["the_program_prints_what_the_readme_shows", "the_projects_tests_pass"]),
    ("notebooks/42_x.ipynb", ["the_program_prints_what_the_readme_shows", "the_projects_tests_pass"]),
    ("labs/lab42_x/__pycache__/solution.pyc", []),
    ("labs/lab42_x/predictions.json", []),
    ("grading/labs/lab43/hidden.py", []),
])
def test_a_step_runs_again_when_a_file_that_it_depends_on_has_changed(project: Project, changed: str, runs: list[str]):
    project.walk()
    path = project.root / changed
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.is_file() else "") + "# changed\n")
    assert project.walk() == runs


def test_a_step_that_fails_or_is_interrupted_is_forgotten(project: Project):
    def fails(lab: Lab) -> None:
        raise LabError("no tests")

    def interrupted(lab: Lab) -> None:
        raise KeyboardInterrupt

    project.walk()
    first = project.steps[0]
    assert first.says in " ".join(project.remembers())
    project.walk([replace(first, check=fails)], anew=True)
    assert first.says not in " ".join(project.remembers()) and project.walk() == ALL[:1]
    with pytest.raises(KeyboardInterrupt):
        project.walk([replace(first, check=interrupted)], anew=True)
    assert first.says not in " ".join(project.remembers()) and project.walk() == ALL[:1]


def test_what_was_changed_while_a_step_ran_is_not_remembered_as_passed(project: Project):
    def edited(lab: Lab) -> None:
        lab.solution.write_text("x = 2\n")

    project.walk([replace(project.steps[0], check=edited)])
    assert project.remembers() == {}


def test_a_failed_write_keeps_the_old_memory_and_one_that_leaves_a_falsehood_raises(
        project: Project, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    project.walk(project.steps[:1])
    before = project.remembers()
    with monkeypatch.context() as patch:
        patch.setattr("nano_qwen3_serving.observe.files.os.replace", full)
        assert project.walk() == ALL[1:], "they pass, and are not remembered"
        assert project.remembers() == before
        with pytest.raises(LabError, match=r"checked.json cannot be written: No space left on device; delete it, or make room"):
            project.walk(anew=True)
    assert [path.name for path in project.root.iterdir() if path.name.startswith(".")] == [MEMORY], "no half-written file is left"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"42: x": 3}', "\xff"])
def test_a_memory_that_cannot_be_read_remembers_nothing(project: Project, text: str):
    (project.root / MEMORY).write_bytes(text.encode("latin-1"))
    assert project.walk() == ALL and project.walk() == []


def test_labs_do_not_share_what_they_remember_and_git_ignores_the_file(project: Project):
    project.walk()
    other = project.root / "labs" / "lab43_x"
    shutil.copytree(project.lab.folder, other)
    project.lab = lab_at(other)
    assert project.walk() == ALL
    assert MEMORY in (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_command_says_what_is_unchanged(project: Project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(authoring, "CHECKLIST", project.steps)
    monkeypatch.setattr(authoring, "Passed", lambda: Passed(project.root))
    monkeypatch.setattr(authoring, "find_lab", lambda name: project.lab)

    def said(*options: str) -> int:
        done = CliRunner().invoke(app, ["check-lab", "42", *options])
        assert done.exit_code == 0, done.output
        return done.output.count("(unchanged since it passed)")

    assert (said(), said(), said("--all"), said("--quick"), said()) == (0, len(ALL), 0, 0, len(ALL))


# what is asked before coding


def test_the_drawn_predictions_of_a_seed_are_shown_with_their_answers():
    lab = all_labs()[0]
    shown = {seed: CliRunner().invoke(app, ["predictions", lab.id, "--seed", seed]).output for seed in ("1", "2")}
    case = make_case(lab, 1)
    for question in case.questions:
        assert question.text in shown["1"] and f"{case.truth(question)}: {question.why}" in shown["1"]
    assert shown["1"] != shown["2"] and f"Lab {lab.id}, seed 1: " in shown["1"]


def test_the_list_ends_at_the_first_step_that_fails_and_says_what_to_do():
    def fails(lab: Lab) -> None:
        raise LabError("no tests")

    steps, shown = [Step("first", "do it", lambda lab: None), Step("second", "write them", fails), Step("third", "", fails)], []
    assert not walk(find_lab("06"), lambda step, what, known: shown.append((step.says, what)), steps)
    assert shown == [("first", None), ("second", "no tests")]
    assert walk(find_lab("06"), lambda step, what, known: None, steps[:1])
