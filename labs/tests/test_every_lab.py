"""What is proved of every lab on disk. A new lab needs nothing here: it is found by its lab.toml.

Nothing reads a working-tree starter.py: starters are made from the solution in a temporary folder,
and what is committed is read from git.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labs.harness import regions
from labs.harness.catalog import Lab, all_labs
from labs.harness.learner.hints import HINTS_PER_TODO, read_hints
from labs.harness.learner.predictions import make_case, seed_of
from labs.harness.learner.results import PREDICTION_POINTS, TOTAL_POINTS

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
LABS = all_labs(PROJECT / "labs")
HEADINGS = [
    "Overview", "Learning Objectives", "Estimated Time", "Prerequisites", "Lab Structure", "Instructions",
    "Expected Output", "Key Concepts", "Troubleshooting", "Going Further", "What this lab still does not solve", "References",
]


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


@pytest.mark.share(2)
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
def test_starter_and_solution_have_the_same_public_signatures(a_lab: Lab):
    starter = regions.make_starter(solution_of(a_lab), a_lab.id)
    assert signatures(starter) == signatures(solution_of(a_lab))


def signatures(source: str) -> dict[str, tuple[str, str, str, bool]]:
    """Function -> kind, arguments, result, whether it is a generator; private and nested ones left out."""
    tree = ast.parse(source)
    nested = {id(inner) for node in regions.definitions(tree).values() for inner in ast.walk(node) if inner is not node}
    return {
        name: (
            type(node).__name__,
            ast.unparse(node.args),
            ast.unparse(node.returns or ast.Constant(None)),
            regions.is_generator(node),
        )
        for name, node in regions.definitions(tree).items()
        if id(node) not in nested and not node.name.startswith("_")
    }


@every_lab
def test_every_todo_has_three_hints_and_a_section_with_its_command(a_lab: Lab):
    todos = list(regions.functions_of(solution_of(a_lab)))
    assert todos == list(range(1, len(todos) + 1))
    hints = read_hints(a_lab)
    assert {todo: len(found) for todo, found in hints.items()} == dict.fromkeys(todos, HINTS_PER_TODO)
    assert all(hint for found in hints.values() for hint in found)
    readme = (a_lab.folder / "README.md").read_text(encoding="utf-8")
    for todo in todos:
        section = readme.split(f"#### TODO {todo}: ")[1].split("\n#")[0]
        assert f"pytest test_lab.py -k todo_{todo}" in section


def points_of_tests(lab: Lab) -> dict[int, float]:
    """TODO -> what its tests are worth together."""
    found: dict[int, float] = {}
    marks = re.compile(r"^@pytest\.mark\.todo\((\d+), points=([\d.]+)\)$", re.MULTILINE)
    for todo, points in marks.findall(lab.tests.read_text(encoding="utf-8")):
        found[int(todo)] = found.get(int(todo), 0) + float(points)
    return dict(sorted(found.items()))


@every_lab
def test_readme_hints_and_tests_have_the_todos_that_lab_toml_names(a_lab: Lab):
    """Their titles and their points."""
    headings = [todo.heading for todo in a_lab.todos]
    for name, level in (("README.md", "####"), ("hints.md", "##")):
        text = (a_lab.folder / name).read_text(encoding="utf-8")
        assert re.findall(rf"^{level} (TODO \d+: .+)$", text, re.MULTILINE) == headings
    assert list(regions.functions_of(solution_of(a_lab))) == [todo.number for todo in a_lab.todos]
    assert points_of_tests(a_lab) == {todo.number: todo.points for todo in a_lab.todos}


@every_lab
def test_the_readme_has_the_headings_of_the_course(a_lab: Lab):
    readme = (a_lab.folder / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# Lab {a_lab.id}: ")
    assert re.findall(r"^## (.+)$", readme, re.MULTILINE) == HEADINGS
    assert "(estimated, not yet measured with learners)" in readme and a_lab.hours in readme
    for file in re.findall(r"[├└]── (\S+)", readme):
        assert (a_lab.folder / file).exists(), f"Lab Structure names {file}"


@pytest.mark.share(2)
@every_lab
def test_the_readmes_expected_output_is_what_the_solution_prints(a_lab: Lab):
    readme = (a_lab.folder / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"## Expected Output\n.*?```\w*\n(.*?)```", readme, re.DOTALL)[1]
    run = python("solution.py", cwd=a_lab.folder)
    assert run.returncode == 0, run.stderr
    assert without_chance(run.stdout) == without_chance(shown)


def without_chance(text: str) -> str:
    """`text` with its decimal numbers and request ids made equal."""
    return re.sub(r"req-[0-9a-z]+", "req-ID", re.sub(r"\d+\.\d+", "N.NN", text)).strip()


@pytest.mark.share(2)
@every_lab
def test_the_questions_have_truths_that_depend_on_the_seed(a_lab: Lab):
    if not (a_lab.folder / "predict.toml").is_file():
        pytest.skip("this lab asks no questions")
    cases = [make_case(a_lab, seed_of(name, a_lab, 0)) for name in ("ada", "bob")]
    assert 5 <= len(cases[0].questions) <= 8
    truths = [[case.truth(question) for question in case.questions] for case in cases]
    assert truths[0] != truths[1]
    for question, truth in zip(cases[0].questions, truths[0], strict=True):
        assert question.read(str(truth)) == truth
        assert "{" not in question.text + question.why and question.why


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


def test_collecting_the_suites_imports_neither_transformers_nor_the_plugin_of_the_notebooks():
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
        "signatures or headings or three_hints",
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
