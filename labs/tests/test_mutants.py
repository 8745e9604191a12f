"""Wrong solutions are caught, right ones that are built differently pass: of every lab on disk.

`make prove` takes half of each lab's mutants, others after each commit, and runs the tests
of a mutant's TODO to the first that fails; for a few of them the whole suite. All of it:
`python -m grading mutants`. How mutants are written: grading/README.md.
"""

import ast
import subprocess
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from grading.authoring import kill_table, suite_runner
from grading.authoring.alternatives import composed, read_alternatives
from grading.authoring.machine_mutants import read_equivalents
from grading.authoring.mutants import Mutant, mutant_of, read_mutants, some_of
from labs.harness.catalog import LabError, all_labs, lab_at
from labs.harness.regions import functions_of

PROJECT = Path(__file__).parents[2]
LABS = {lab.id: lab for lab in all_labs(PROJECT / "labs")}
SHARE, FEW = 0.5, 2

proof = pytest.mark.proof


def _seed() -> str:
    """The commit; where there is none, a word."""
    try:
        run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return "none"
    return run.stdout.strip() if run.returncode == 0 else "none"


SEED = _seed()


@cache
def mutants_of(lab_id: str) -> list[Mutant]:
    return read_mutants(LABS[lab_id])


@cache
def chosen(lab_id: str) -> list[Mutant]:
    """Those of this commit."""
    return some_of(mutants_of(lab_id), SHARE, f"{SEED}:{lab_id}")


def few(lab_id: str) -> list[Mutant]:
    """Of these, those that are run on the whole suite."""
    return chosen(lab_id)[:FEW]


def guarded(lab_id: str) -> list[Mutant]:
    """The mutants of which the file says that a single test catches them."""
    return [mutant for mutant in mutants_of(lab_id) if mutant.only]


@cache
def judged(lab_id: str) -> dict[str, kill_table.MutantVerdict]:
    """Mutant -> verdict, for those of a lab that are chosen; the first few are run on the whole suite."""
    verdicts = kill_table.judge([LABS[lab_id]], chosen(lab_id), quick=lambda one: one not in few(lab_id))
    return {one.mutant.name: one for one in verdicts}


def cases(find) -> list:
    """One pytest case for each mutant that `find(lab)` gives."""
    return [pytest.param(lab_id, one.name, id=f"lab{lab_id}-{one.name}") for lab_id in LABS for one in find(lab_id)]


every_lab = pytest.mark.parametrize("lab_id", LABS)


@every_lab
def test_every_mutant_is_valid_and_every_todo_has_one(lab_id: str):
    mutants = mutants_of(lab_id)
    todos = functions_of(LABS[lab_id].solution.read_text(encoding="utf-8"))
    assert {mutant.todo for mutant in mutants} == set(todos)
    assert len({mutant.text for mutant in mutants}) == len(mutants), "two mutants are the same"


@every_lab
def test_every_lab_has_alternatives_and_a_guarded_mutant(lab_id: str):
    assert len(read_alternatives(LABS[lab_id])) >= 2
    assert guarded(lab_id), "no mutant names, under `only`, the one test that catches it"


@proof
@pytest.mark.parametrize(("lab_id", "name"), cases(chosen))
def test_a_mutant_is_caught_by_a_test_of_its_todo(lab_id: str, name: str):
    verdict = judged(lab_id)[name]
    assert verdict.caught, (
        f"{name} passes every test of TODO {verdict.mutant.todo}. {verdict.mutant.story} "
        f"(python -m grading mutants {lab_id} --share {SHARE} --seed {SEED})"
    )


@proof
@every_lab
def test_a_mutant_costs_no_points_where_nothing_needs_it(lab_id: str):
    verdicts = [judged(lab_id)[one.name] for one in few(lab_id)]
    spilled = {one.mutant.name: {todo: one.elsewhere[todo] for todo in one.spilled} for one in verdicts if one.spilled}
    assert not spilled, f"seed {SEED}; mutant -> tests of other TODOs that fail: {spilled}"


@proof
@every_lab
def test_breaking_the_guard_is_noticed(lab_id: str):
    """A guarded mutant is caught by the one test it names; without that test it survives."""
    mutants = guarded(lab_id)[:FEW]
    kept = [suite_runner.Job(LABS[lab_id], mutant.text, mutant.only) for mutant in mutants]
    left_out = [kill_table.job_of(mutant, LABS[lab_id], 120.0, False, without=mutant.only) for mutant in mutants]
    results = suite_runner.run([*kept, *left_out])
    for mutant, caught, survived in zip(mutants, results, results[len(mutants) :], strict=False):
        assert caught.failing() == [mutant.only], f"{mutant.name} with {mutant.only} alone: {caught}"
        assert survived.outcomes and not survived.ended, f"{mutant.name} without {mutant.only}: {survived}"
        assert survived.failing() == [], f"{mutant.name} is caught by more than {mutant.only}"


@proof
@every_lab
def test_right_solutions_that_are_built_differently_pass(lab_id: str):
    alternatives = read_alternatives(LABS[lab_id])
    results = kill_table.judge_alternatives([LABS[lab_id]], alternatives)
    for one, result in zip(alternatives, results, strict=True):
        assert result.outcomes and not result.ended, f"{one.name} {result.ended} in {result.during}:\n{result.printed}"
        assert result.failing() == [], f"{one.name} is right, and is rejected"


@every_lab
def test_what_is_listed_as_equivalent_is_still_there(lab_id: str):
    assert all(read_equivalents(LABS[lab_id]).values())


# the machinery itself


@proof
def test_a_run_that_hangs_or_crashes_is_known_by_the_test_it_was_in(toy: Path):
    lab = lab_at(toy)
    solution = lab.solution.read_text(encoding="utf-8")
    hangs = solution.replace("return 2 * number", "import time; time.sleep(1000)")
    crashes = solution.replace("for number in range(limit):", "import os; os._exit(7)\n    for number in range(limit):")
    jobs = [suite_runner.Job(lab, text, seconds=12) for text in (solution, hangs, crashes)]
    right, hung, crashed = suite_runner.run(jobs, parallel=3)
    assert len(right.outcomes) == 5 and right.failing() == [] and right.ended == ""
    assert (hung.ended, hung.failing(), hung.failing(2)) == ("hung", ["test_todo_1_doubles_four"], [])
    assert (crashed.ended, crashed.failing(2), crashed.failing(1)) == ("crashed", ["test_todo_2_counts"], [])
    assert suite_runner.baseline(lab, right) >= 60
    with pytest.raises(LabError, match="Lab 07: the suite hung on the solution itself"):
        suite_runner.baseline(lab, hung)


@proof
def test_points_lost_where_nothing_needs_the_todo_are_seen(toy: Path):
    """TODO 3 needs TODO 1, so of a mistake in TODO 1 that breaks the others too, it is 2 that spills."""
    lab = lab_at(toy)
    text = lab.solution.read_text(encoding="utf-8").replace("return 2 * number", "globals().pop('count', None)")
    mutant = Mutant("07", "slip", 1, "author", "a slip", text)
    [one] = kill_table.judge([lab], [mutant])
    assert one.caught_by == ("test_todo_1_doubles_four", "test_todo_1_doubles_other_numbers")
    assert set(one.elsewhere) == {2} and one.spilled == (2,)
    again = kill_table.verdict(lab, replace(mutant, spills=(2,)), one.result, one.limit)
    assert again.spilled == ()
    assert kill_table.needing(lab, 1) == {3} and kill_table.needing(lab, 2) == set()


SOLUTION = '''\
def double(number: int) -> int:
    # TODO 1: twice
    ### BEGIN SOLUTION
    return 2 * number
    ### END SOLUTION


class Pair:
    def swap(self, a, b=3):
        # TODO 2: the other way round
        ### BEGIN SOLUTION
        return b, a
        ### END SOLUTION
'''
SLIP = 'name = "slip"\nstory = "a slip"\nkind = "author"\nsymptom = "it is odd"\nhint = 1\n'
"""What every mutant needs besides replacements."""


def slip(todo: int, text: str) -> Mutant:
    return mutant_of({**tomllib.loads(SLIP + text), "todo": todo}, "07", SOLUTION)


def test_text_is_replaced_by_text():
    mutant = slip(1, "[[replace]]\nold = '2 * number'\nnew = '3 * number'\n")
    assert mutant.text == SOLUTION.replace("2 * number", "3 * number")
    assert (mutant.lab, mutant.name, mutant.todo, mutant.spills, mutant.only) == ("07", "slip", 1, (), None)


def test_a_function_is_replaced_whole_and_indented_as_the_old_one():
    new = "\ndef swap(self, a, b=3):\n    return a, b\n"
    mutant = slip(2, f"[[replace]]\nfunction = 'Pair.swap'\nnew = '''{new}'''\n")
    assert mutant.text == SOLUTION[: SOLUTION.index("    def swap")] + "    def swap(self, a, b=3):\n        return a, b\n"


@pytest.mark.parametrize(
    ("todo", "text", "complaint"),
    [
        (1, "colour = 'red'\n[[replace]]\nold = '2'\nnew = '3'\n", "unknown key colour"),
        (1, "replace = []\n", r"no \[\[mutant.replace\]\]"),
        (1, "", "lacks replace"),
        (3, "[[replace]]\nold = '2 *'\nnew = '3 *'\n", "no TODO 3; it has 1, 2"),
        (1, "only = 'test_todo_2_x'\n[[replace]]\nold = '2 *'\nnew = '3 *'\n", "names a test of TODO 1"),
        (1, "[[replace]]\nold = 'gone'\nnew = '3 *'\n", "does not stand in the solution(?s:.)*gone"),
        (1, "[[replace]]\nold = 'return'\nnew = 'yield'\n", "2 times(?s:.)*return"),
        (1, "[[replace]]\nold = '2 * number'\nnew = '2 * ('\n", "line 4 of the mutated solution"),
        (1, "[[replace]]\nold = 'double(number: int)'\nnew = 'double(n: int)'\n", "double has to keep"),
        (2, "[[replace]]\nold = '2 * number'\nnew = '3 * number'\n", "nothing changes in TODO 2"),
        (1, "[[replace]]\nold = '2 * number'\n", "has old and new, or function and new"),
        (1, "[[replace]]\nfunction = 'triple'\nnew = 'pass'\n", "no function triple"),
    ],
)
def test_a_mutant_that_is_not_valid_says_what_is_wrong(todo: int, text: str, complaint: str):
    with pytest.raises(LabError, match=complaint):
        slip(todo, text)


DIFFERENCE = '''\
"""The other way round, by a helper."""

from operator import itemgetter

SWAPPED = 1, 0


def _swapped(pair):
    return itemgetter(*SWAPPED)(pair)


class Pair:
    def swap(self, a, b=3):
        return _swapped((a, b))

    def again(self):
        return self.swap(1)
'''


def test_an_alternative_is_the_solution_with_what_differs_in_its_place():
    text = composed(SOLUTION, ast.parse(DIFFERENCE))
    names = [getattr(node, "name", "") or ast.unparse(node) for node in ast.parse(text).body]
    assert names == ["from operator import itemgetter", "double", "SWAPPED = (1, 0)", "_swapped", "Pair"]
    space: dict = {}
    exec(text, space)
    assert space["Pair"]().again() == (3, 1) and space["double"](4) == 8


def test_a_class_with_fields_takes_the_place_of_ours_whole():
    text = composed(SOLUTION, ast.parse("class Pair:\n    a = 1\n    def turn(self): ...\n"))
    assert "class Pair:\n    a = 1" in text and "swap" not in text


TWICE = "return 2 * number", "return 3 * number"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("todo_1.toml", f"[[mutant]]\n{SLIP}", r"todo_1\.toml: slip: it lacks replace"),
        ("todo_1.toml", "[[mutant]]\nhint = 2\n", r"todo_1\.toml: a mutant without a name: it lacks kind, name"),
        ("todo_1.toml", "[[mutant]\n", r"todo_1\.toml: Expected"),
        ("todo_1.toml", "[mutant]\n", r"todo_1\.toml: it holds \[\[mutant\]\] tables"),
        ("slip.toml", "", r"slip\.toml: a file of mutants is named after their TODO"),
        ("todo_1.toml", 2 * f"[[mutant]]\n{SLIP}[[mutant.replace]]\nold = '{TWICE[0]}'\nnew = '{TWICE[1]}'\n",
         "slip: there is another mutant of that name"),
    ],
)
def test_a_file_of_mutants_that_is_not_valid_is_named(tmp_path: Path, toy: Path, name: str, text: str, complaint: str):
    folder = tmp_path / "lab07" / "mutants"
    folder.mkdir(parents=True)
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=complaint):
        read_mutants(lab_at(toy), tmp_path)
