"""What is proved of every lab on disk. A new lab needs nothing here: it is found by its lab.toml.

Nothing reads a working-tree starter.py: starters are made from the solution in a temporary folder,
and what is committed is read from git.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grading.authoring import lab_proofs as proofs
from grading.authoring.checklist import CHECKLIST, Step
from labs.harness import regions
from labs.harness.catalog import Lab, all_labs
from labs.harness.learner.results import PREDICTION_POINTS, TOTAL_POINTS

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
LABS = all_labs(PROJECT / "labs")


def names(labs: list[Lab]) -> list[str]:
    return [lab.folder.name for lab in labs]


WITH_REFERENCE = [lab for lab in LABS if lab.reference or lab.reference_file.is_file()]
every_lab = pytest.mark.parametrize("a_lab", LABS, ids=names(LABS))


def python(*arguments, cwd: Path = PROJECT, timeout: float = 900, root: Path = PROJECT, **environment):
    """Run `python arguments`, importing the project at `root`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    env |= {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join([str(root), str(root / "reference_engine")])}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=env | environment, capture_output=True, text=True,
        encoding="utf-8", timeout=timeout,
    )


def solution_of(lab: Lab) -> str:
    return lab.solution.read_text(encoding="utf-8")


def run_suite(lab: Lab, impl: str, report: Path):
    """Run the lab's suite on `impl`: what the plugin recorded, and the finished process."""
    run = python("-m", "pytest", lab.tests, "--impl", impl, "--lab-json", report, "--plain", "-p", "no:cacheprovider")
    assert report.is_file(), run.stdout + run.stderr
    return json.loads(report.read_text())[lab.id], run


OF_A_CHECKOUT = (proofs.starter_is_made_from_the_solution,)
"""Learners edit starters: what was committed is tested below."""
STEPS = [step for step in CHECKLIST if not step.runs and step.check not in OF_A_CHECKOUT]


@every_lab
@pytest.mark.parametrize("step", STEPS, ids=[step.check.__name__ for step in STEPS])
def test_what_check_lab_ticks_off_without_running_anything(a_lab: Lab, step: Step):
    step.check(a_lab)  # raises LabError, which says what is missing


@pytest.mark.share(1)
@every_lab
def test_the_questions_have_truths_that_depend_on_the_seed(a_lab: Lab):
    proofs.questions_have_truths(a_lab)  # raises LabError


@pytest.mark.proof
@every_lab
def test_the_readmes_expected_output_is_what_the_solution_prints(a_lab: Lab):
    proofs.the_program_prints_what_the_readme_shows(a_lab)  # raises LabError


@pytest.mark.share(1)
@every_lab
def test_the_solution_passes_everything(a_lab: Lab, tmp_path: Path):
    outcomes, run = run_suite(a_lab, "solution", tmp_path / "report.json")
    assert run.returncode == 0, run.stdout
    assert " skipped" not in run.stdout
    points = {outcome["test"]: outcome["points"] for outcome in outcomes}
    predictions = PREDICTION_POINTS if (a_lab.folder / "predict.toml").is_file() else 0
    assert sum(points.values()) + predictions == TOTAL_POINTS
    assert {outcome["todo"] for outcome in outcomes} == set(regions.functions_of(solution_of(a_lab)))


@pytest.mark.share(1)
@pytest.mark.parametrize("a_lab", WITH_REFERENCE, ids=names(WITH_REFERENCE))
def test_the_reference_part_passes_everything_it_has_a_seam_for(a_lab: Lab, tmp_path: Path):
    outcomes, run = run_suite(a_lab, "reference", tmp_path / "report.json")
    assert run.returncode == 0, run.stdout
    assert outcomes and " skipped" not in run.stdout
    todos = regions.functions_of(solution_of(a_lab))
    left_out = {int(todo) for todo in re.findall(rf"^Lab {a_lab.id}, TODO (\d+) is left out", run.stdout, re.MULTILINE)}
    assert {outcome["todo"] for outcome in outcomes} == set(todos) - left_out


@pytest.mark.share(1)
@every_lab
def test_the_untouched_starter_fails_every_test_with_that_tests_own_todo(a_lab: Lab, tmp_path: Path):
    (tmp_path / "starter.py").write_text(regions.make_starter(solution_of(a_lab), a_lab.id), encoding="utf-8")
    outcomes, run = run_suite(a_lab, str(tmp_path), tmp_path / "report.json")
    assert run.returncode == 1
    wrong = [outcome for outcome in outcomes if outcome["passed"] or outcome["unwritten"] != outcome["todo"]]
    assert not wrong, f"these did not end with their own TodoError: {wrong}"
    assert {outcome["error"] for outcome in outcomes} == {"TodoError"}
    assert len(run.stdout.splitlines()) < MOST_LINES


MOST_LINES = 200
"""Of a run, however much is wrong."""


@pytest.mark.proof
@pytest.mark.share(1)
@every_lab
def test_where_every_function_gives_none_the_run_fits_on_a_few_screens(a_lab: Lab, tmp_path: Path):
    """Each failure of a kind is told once, and nothing of the harness is."""
    text = regions.make_starter(solution_of(a_lab), a_lab.id)
    (tmp_path / "starter.py").write_text(re.sub(r"raise TodoError\(.*", "return None", text), encoding="utf-8")
    _, run = run_suite(a_lab, str(tmp_path), tmp_path / "report.json")
    assert run.returncode == 1 and len(run.stdout.splitlines()) < MOST_LINES
    assert "labs/harness" not in run.stdout and "Traceback" not in run.stdout


@pytest.mark.share(1)
@every_lab
def test_the_suite_run_as_a_program_says_how_tests_are_run(a_lab: Lab):
    run = python(a_lab.tests)
    assert run.returncode == 1 and run.stderr == "These are tests. Run them with: pytest test_lab.py\n"


@pytest.mark.share(1)
@every_lab
def test_the_untouched_starter_as_a_program_ends_with_a_friendly_note(a_lab: Lab, tmp_path: Path):
    (tmp_path / "starter.py").write_text(regions.make_starter(solution_of(a_lab), a_lab.id), encoding="utf-8")
    run = python("starter.py", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (1, "")
    assert "TODO 1" in run.stdout and f"python -m labs hint {a_lab.id} 1" in run.stdout


@every_lab
def test_requirements_can_be_installed_from_inside_the_folder(a_lab: Lab):
    lines = [line for line in (a_lab.folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-r ../../reference_engine/requirements.txt", "-e ../.."]
    assert (a_lab.folder / "../../reference_engine/requirements.txt").is_file()
    assert (a_lab.folder / "../../pyproject.toml").is_file()


@every_lab
def test_the_starter_that_the_committed_solution_makes_was_committed(a_lab: Lab):
    """Learners commit work to starter.py, never to solution.py: so some commit since the solution
    last changed must hold the starter it makes, and later ones may hold anything."""
    solution, starter = (f"labs/{a_lab.folder.name}/{name}.py" for name in ("solution", "starter"))
    latest = git("log", "-1", "--format=%H", "--", solution)
    if not latest:
        pytest.skip("no git history here, or the solution is not committed yet: python -m grading starter --check")
    if git("show", f"{latest}:{solution}").strip() != solution_of(a_lab).strip():
        pytest.skip("solution.py has changes that are not committed: python -m grading starter --check")
    commits = [latest, *git("log", "--format=%H", f"{latest}..HEAD", "--", starter).split()]
    wanted = regions.make_starter(solution_of(a_lab), a_lab.id).strip()
    if not any(git("show", f"{commit}:{starter}").strip() == wanted for commit in commits):
        if git("rev-parse", "--is-shallow-repository").strip() == "true":
            pytest.skip("the history is cut off")
        pytest.fail(f"{starter} is stale: python -m grading starter {a_lab.id}, then commit it", pytrace=False)


def git(*arguments: str) -> str:
    """What git says about the project, or nothing where there is no git or no history."""
    try:
        run = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, encoding="utf-8", timeout=30)
    except FileNotFoundError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


@pytest.mark.proof
def test_the_suites_of_all_labs_run_in_one_process():
    run = python(
        "-m", "pytest", *[lab.tests for lab in LABS], "--impl", "solution", "--plain", "-p", "no:cacheprovider", "-k", "todo_2"
    )
    assert run.returncode == 0, run.stdout
    assert all(f"Lab {lab.id}, {lab.title}: solution" in run.stdout for lab in LABS)


def test_collecting_the_suites_imports_neither_transformers_nor_the_notebooks_plugin():
    """Each takes more than a second, of the five that a TODO may take: a test that needs the oracle imports it itself."""
    suites = [lab.tests for lab in LABS]
    run = python("-X", "importtime", "-m", "pytest", "-s", *suites, "--collect-only", "-q", "-p", "no:cacheprovider")
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert run.returncode == 0 and "torch" in imported, run.stdout + run.stderr[-1000:]
    assert not imported & {"transformers", "nbval", "nbformat"}


@pytest.mark.proof
def test_solving_the_labs_leaves_the_projects_own_tests_alone(tmp_path: Path):
    """In a copy where every starter is solved, or broken, root pytest collects the same tests and passes."""
    copy = tmp_path / "course"
    shutil.copytree(
        PROJECT,
        copy,
        ignore=shutil.ignore_patterns(
            ".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", ".progress.json", ".backups", ".hypothesis"
        ),
    )
    before = collected(copy)
    for lab in all_labs(copy / "labs"):
        shutil.copy(lab.solution, lab.starter)
    assert collected(copy) == before
    for lab in all_labs(copy / "labs"):
        lab.starter.write_text("this is not Python yet (")
    assert collected(copy) == before
    run = python(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "labs/tests/test_every_lab.py",
        "-k",
        "signatures_stay or readme_is_whole or hints_are_whole",
        cwd=copy,
        root=copy,
    )
    assert run.returncode == 0, run.stdout
    assert run.stdout.endswith("\nThis tests the project, not your work. Yours: python -m labs status.\n")


def collected(root: Path) -> list[str]:
    """What `pytest --collect-only` at the project's root finds in labs/tests."""
    run = python("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "labs/tests", cwd=root, root=root)
    assert run.returncode == 0, run.stdout + run.stderr
    tests = [line for line in run.stdout.splitlines() if "::" in line]
    assert tests
    return tests
