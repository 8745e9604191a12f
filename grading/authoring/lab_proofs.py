"""What is proved of every lab: functions that raise `LabError`, which says what is missing.

`checklist` has them in the order in which one makes a lab.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from grading.authoring import agreement, kill_table, starter, suite_runner, symptoms
from grading.authoring.alternatives import read_alternatives
from grading.authoring.mutants import read_mutants
from grading.judge.grader import Settings
from grading.labs import authors_folder
from labs.harness import regions
from labs.harness.catalog import Lab, LabError
from labs.harness.learner.hints import HINTS_PER_TODO, read_hints
from labs.harness.learner.predictions import has_questions, make_case, seed_of
from labs.harness.learner.results import PREDICTION_POINTS, TOTAL_POINTS

PROJECT = Path(__file__).parents[2]
UNFINISHED = "✎"
"""Marks text that `new-lab` wrote and the author has not replaced yet."""
HEADINGS = [
    "Overview", "Learning Objectives", "Estimated Time", "Prerequisites", "Lab Structure", "Instructions",
    "Expected Output", "Key Concepts", "Troubleshooting", "Going Further", "What this lab still does not solve", "References",
]
"""The headings of every lab's README."""
_MARK = re.compile(r"^@pytest\.mark\.todo\((\d+), points=([\d.]+)\)$", re.MULTILINE)


def expect(holds: bool, otherwise: str) -> None:
    """Raise `LabError` unless it `holds`."""
    if not holds:
        raise LabError(otherwise)


# the learner's files


def solution_has_the_todos(lab: Lab) -> None:
    """The solution has a region for each TODO of lab.toml, and no other region."""
    expect(lab.solution.is_file(), f"there is no {lab.solution.name}")
    todos = list(regions.functions_of(_text(lab.solution)))
    expect(todos == [todo.number for todo in lab.todos],
           f"solution.py has regions of TODO {_listed(todos)}; lab.toml names {_listed(todo.number for todo in lab.todos)}")


def starter_is_made_from_the_solution(lab: Lab) -> None:
    """The committed starter is the one that the solution generates."""
    expect(not starter.is_stale(lab), "starter.py is not what solution.py makes")


def signatures_stay(lab: Lab) -> None:
    """Starter and solution can be called in the same way."""
    made = starter.generate(lab)
    expect(signatures(made) == signatures(_text(lab.solution)), "the starter's public functions differ from the solution's")


def signatures(source: str) -> dict[str, tuple[str, str, str, bool]]:
    """Function → kind, arguments, result, whether it is a generator; private and nested ones left out."""
    functions = regions.definitions(ast.parse(source))
    nested = {id(inner) for node in functions.values() for inner in ast.walk(node) if inner is not node}
    return {
        name: (type(node).__name__, ast.unparse(node.args), ast.unparse(node.returns or ast.Constant(None)),
               regions.is_generator(node))
        for name, node in functions.items() if id(node) not in nested and not node.name.startswith("_")}


def tests_are_worth_what_lab_toml_says(lab: Lab) -> None:
    """The tests' points match lab.toml, TODO by TODO, and with the predictions they sum to 100."""
    worth: dict[int, float] = {}
    for todo, points in _MARK.findall(_text(lab.tests)):
        worth[int(todo)] = worth.get(int(todo), 0) + float(points)
    for todo in lab.todos:
        expect(worth.get(todo.number) == todo.points,
               f"the tests of TODO {todo.number} are worth {worth.get(todo.number, 0):g} points; lab.toml says {todo.points:g}")
    total = sum(todo.points for todo in lab.todos) + PREDICTION_POINTS * has_questions(lab)
    expect(total == TOTAL_POINTS, f"TODOs and predictions are worth {total:g} points together, not {TOTAL_POINTS}")


def readme_is_whole(lab: Lab) -> None:
    """README.md has its headings, a section with the command for each TODO, and names only files that exist."""
    text = _text(lab.folder / "README.md")
    expect(text.startswith(f"# Lab {lab.id}: "), f"README.md does not begin with '# Lab {lab.id}: '")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    missing = [heading for heading in HEADINGS if heading not in headings]
    expect(headings == HEADINGS, f"README.md lacks {_listed(missing)}" if missing else
           f"README.md has the headings {_listed(headings)}; they are {_listed(HEADINGS)}, in this order")
    _expect_todos(lab, "README.md", "####")
    for todo in lab.todos:
        section = text.split(f"#### {todo.heading}")[1].split("\n#")[0]
        expect(f"pytest test_lab.py -k todo_{todo.number}" in section, f"README.md: {todo.heading} does not say how it is tested")
    expect("(estimated, not yet measured with learners)" in text and lab.hours in text,
           f"README.md, Estimated Time: {lab.hours} hours (estimated, not yet measured with learners)")
    for file in re.findall(r"[├└]── (\S+)", text):
        expect((lab.folder / file).exists(), f"README.md, Lab Structure: there is no {file}")


def hints_are_whole(lab: Lab) -> None:
    """Every TODO has `HINTS_PER_TODO` hints with a text."""
    _expect_todos(lab, "hints.md", "##")
    for todo, hints in read_hints(lab).items():
        expect(len(hints) == HINTS_PER_TODO and all(hints), f"hints.md: TODO {todo} has not {HINTS_PER_TODO} hints with a text")


def questions_have_truths(lab: Lab) -> None:
    """There are five to eight questions, and their right answers depend on the learner's numbers."""
    cases = [make_case(lab, seed_of(name, lab, 0)) for name in ("ada", "bob")]
    expect(5 <= len(cases[0].questions) <= 8, f"predict.toml has {len(cases[0].questions)} questions; five to eight are asked")
    truths = [[case.truth(question) for question in case.questions] for case in cases]
    expect(truths[0] != truths[1], "the answers to predict.toml are the same whatever the learner's numbers")
    for question, truth in zip(cases[0].questions, truths[0], strict=True):
        expect(question.read(str(truth)) == truth, f"predict.py: {truth!r} is no answer to {question.id}")
        expect("{" not in question.text + question.why and bool(question.why),
               f"predict.toml: {question.id} has a brace left, or no why")


def notebook_is_there(lab: Lab) -> None:
    """A notebook is named after the lab and links to it."""
    path = PROJECT / "notebooks" / f"{lab.folder.name.removeprefix('lab')}.ipynb"
    expect(path.is_file() and f"labs/{lab.folder.name}/README.md" in _text(path),
           f"there is no {path.name} that leads to the lab")


def tables_list_it(lab: Lab) -> None:
    """Both README tables list the lab."""
    page_of = f"{lab.folder.name}/README.md"
    for page, link in (("README.md", f"(labs/{page_of})"), ("labs/README.md", f"({page_of})")):
        expect(link in _text(PROJECT / page), f"{page} does not list the lab: {link}")


def nothing_is_left_to_fill_in(lab: Lab) -> None:
    """No file still has a placeholder that `new-lab` wrote."""
    for home in (lab.folder, authors_folder(lab)):
        for path in sorted(path for path in home.rglob("*") if path.suffix in (".py", ".md", ".toml")):
            expect(UNFINISHED not in _text(path), f"{path.relative_to(PROJECT)} still has a {UNFINISHED}")


def the_projects_tests_pass(lab: Lab) -> None:
    """The author's own tests pass, and those of the notebook, the mutants and the areas."""
    files = ["labs/tests/test_mutants.py", "labs/tests/test_diagnosis.py", f"grading/labs/lab{lab.id}", "notebooks/tests"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", *files, "-k", lab.id, "-m", "not proof"]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, encoding="utf-8", timeout=1800, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) (.+)$", run.stdout, re.MULTILINE)
    expect(run.returncode == 0, "\n".join(failed) or run.stdout[-2000:] + run.stderr[-2000:])


# what runs


def the_solution_passes(lab: Lab) -> None:
    """The solution passes every test, and no test is skipped."""
    [result] = suite_runner.run([suite_runner.Job(lab, _text(lab.solution), seconds=600)])
    expect(not result.ended, f"the suite {result.ended} on the solution in {result.during or 'no test'}:\n{result.printed}")
    expect(bool(result.outcomes) and not result.failing(), f"the solution fails {_listed(result.failing())}")


def the_starter_fails_every_test(lab: Lab) -> None:
    """On the starter, every test fails with the `TodoError` of its own TODO."""
    [result] = suite_runner.run([suite_runner.Job(lab, starter.generate(lab), seconds=600)])
    expect(bool(result.outcomes), f"the suite {result.ended} on the untouched starter:\n{result.printed}")
    wrong = [outcome["test"] for outcome in result.outcomes if outcome["passed"] or outcome["unwritten"] != outcome["todo"]]
    expect(not wrong, f"on the untouched starter these do not end with their own TodoError: {_listed(wrong)}")


def the_judge_agrees(lab: Lab) -> None:
    """Solution and alternatives get everything, the starter nothing, each mutant loses points at its TODO and nowhere else."""
    judgements = agreement.findings(lab, agreement.cases_of(lab), Settings(predictions=False))
    wrong = [f"{judgement.case.kind} {judgement.case.name}: {judgement.wrong}" for judgement in judgements if judgement.wrong]
    expect(not wrong, "the judge says otherwise of\n" + "\n".join(wrong))


def the_program_prints_what_the_readme_shows(lab: Lab) -> None:
    """The output in README.md is the solution's, except for decimal numbers and request ids."""
    shown = re.search(r"## Expected Output\n.*?```\w*\n(.*?)```", _text(lab.folder / "README.md"), re.DOTALL)
    expect(shown is not None, "README.md, Expected Output: there is no block with what solution.py prints")
    run = subprocess.run([sys.executable, "solution.py"], cwd=lab.folder, capture_output=True, text=True, encoding="utf-8",
                         timeout=900, check=False)
    expect(run.returncode == 0, f"solution.py ends with {run.returncode}:\n{run.stderr}")
    assert shown is not None
    expect(without_chance(run.stdout) == without_chance(shown[1]),
           f"solution.py prints something else than README.md:\n{run.stdout}")


def without_chance(text: str) -> str:
    """A program's output with its decimal numbers and request ids made equal."""
    return re.sub(r"req-[0-9a-z]+", "req-ID", re.sub(r"\d+\.\d+", "N.NN", text)).strip()


# the author's files


def mutants_are_there(lab: Lab) -> None:
    """Every TODO has mutants, no two are the same, and at least one is caught by a single test."""
    mutants = read_mutants(lab)
    without = {todo.number for todo in lab.todos} - {mutant.todo for mutant in mutants}
    expect(not without, f"TODO {_listed(sorted(without))} has no mutant")
    expect(len({mutant.text for mutant in mutants}) == len(mutants), "two mutants are the same")
    expect(any(mutant.only for mutant in mutants), "no mutant names, under only, the one test that catches it")


def mutants_are_caught(lab: Lab) -> None:
    """A test of its TODO catches every mutant, and no other TODO loses points."""
    for verdict in kill_table.judge([lab], read_mutants(lab)):
        mutant = verdict.mutant
        expect(verdict.caught, f"{mutant.name} passes every test of TODO {mutant.todo}. {mutant.story}")
        expect(not verdict.spilled, f"{mutant.name} of TODO {mutant.todo} loses points at TODO {_listed(verdict.spilled)}, too")


def a_guard_that_is_broken_is_noticed(lab: Lab) -> None:
    """A mutant that names, under `only`, the test that catches it survives without that test."""
    guarded = [mutant for mutant in read_mutants(lab) if mutant.only]
    results = suite_runner.run([kill_table.job_of(mutant, lab, 600.0, False, without=mutant.only or "") for mutant in guarded])
    for mutant, result in zip(guarded, results, strict=True):
        expect(not result.failing(), f"{mutant.name} is caught without {mutant.only}, too: {_listed(result.failing())}")


def alternatives_pass(lab: Lab) -> None:
    """There are two or more alternatives, and every one passes."""
    different = read_alternatives(lab)
    expect(len(different) >= 2, f"there are {len(different)} right solutions that are built differently; two are asked")
    for alternative, result in zip(different, kill_table.judge_alternatives([lab], different), strict=True):
        failing = [result.ended] if result.ended else result.failing()
        expect(not failing and bool(result.outcomes), f"{alternative.name} is right, and is rejected: {_listed(failing)}")


def symptoms_are_current(lab: Lab) -> None:
    """symptoms.json is current, and every mutant in it has an area."""
    mutants = read_mutants(lab)
    concepts = symptoms.concepts(lab, mutants)
    without = [mutant.name for mutant in mutants if mutant.kind in symptoms.IN_TABLE and concepts[mutant.name].area is None]
    expect(not without, f"concepts.toml names no area of {_listed(without)}")
    for todo in lab.todos:
        areas = [concepts[mutant.name].area for mutant in mutants if mutant.todo == todo.number]
        whole = areas[0].says if len(areas) > 1 and areas[0] and len(set(areas)) == 1 else ""
        expect(not whole, f"concepts.toml: an area has every mutant of TODO {todo.number}, which says nothing; split it: {whole}")
    expect(symptoms.is_current(lab), "symptoms.json was not made from the mutants, concepts and tests that are there")


def _expect_todos(lab: Lab, file: str, level: str) -> None:
    """The headings of the TODOs are those of lab.toml."""
    headings = re.findall(rf"^{level} (TODO \d+: .+)$", _text(lab.folder / file), re.MULTILINE)
    wanted = [todo.heading for todo in lab.todos]
    expect(headings == wanted,
           f"{file} has the headings {_listed(headings) or 'of no TODO'}; by lab.toml they are {_listed(wanted)}")


def _text(path: Path) -> str:
    expect(path.is_file(), f"there is no {path.name}")
    return path.read_text(encoding="utf-8")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))
