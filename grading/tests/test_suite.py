"""One suite: a lab's tests on a part in a worker, and what they ask with."""

from __future__ import annotations

import contextlib
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from grading.judge import suite
from grading.judge.checks import Wrong, ours
from grading.judge.suite import checks_of
from grading.labs import authors_folder
from grading.sandbox.worker.bench import Bench
from grading.tests.test_peer import pair
from labs.harness.catalog import Todo, all_labs, find_lab
from labs.harness.suite import beside
from labs.harness.suite.expecting import Here, kind_of, kinds_of, refusal, same
from labs.harness.suite.first_fault import first_fault
from nano_qwen3_serving import SamplingParams

EVERY_LAB = pytest.mark.parametrize("lab", all_labs(), ids=lambda lab: lab.id)

TESTS = '''
import pytest

@pytest.mark.todo(1, points=4)
@pytest.mark.parametrize("a, b", [(1, 2), (3, 4)])
@pytest.mark.parametrize("c", ["x", "y"])
def test_todo_1_takes_all_cases(lab, rng, a, b, c):
    lab.seen.append((a, b, c, rng.random()))

@pytest.mark.practice
@pytest.mark.todo(1, points=2)
def test_todo_1_looks_into_the_process(lab): ...

@pytest.mark.todo(2, points=5)
def test_todo_2_asserts(lab, there):
    assert there.look(lab.value) == 1, f"1 was expected, {lab.value} came"
'''
HIDDEN = '''
from grading.judge.suite import hidden

@hidden("test_todo_1_looks_into_the_process", "test_todo_1_takes_all_cases", concept="the rest of it")
def test_todo_1_goes_on(lab): ...
'''


@pytest.fixture
def toy(tmp_path: Path) -> Any:
    """A lab of two TODOs, with a hidden file."""
    (tmp_path / "test_lab.py").write_text(TESTS)
    (tmp_path / "lab42").mkdir()
    (tmp_path / "lab42" / "hidden.py").write_text(HIDDEN)
    return SimpleNamespace(id="42", folder=tmp_path, todo=lambda number: Todo(number, ("First", "Second")[number - 1], 85))


def test_a_test_is_a_check_and_a_hidden_one_shares_the_points_of_those_it_belongs_to(toy: Any):
    checks = {check.name: check for check in checks_of(toy, toy.folder)}
    assert {name: (check.todo, check.points, check.hidden) for name, check in checks.items()} == {
        "takes_all_cases": (1, 2, False), "goes_on": (1, 4, True), "asserts": (2, 5, False)}
    assert checks["goes_on"].concept == "the rest of it"
    assert checks["takes_all_cases"].concept == "takes all cases"
    assert checks["asserts"].section == "TODO 2: Second"


def test_a_test_that_only_practice_runs_needs_a_hidden_one(toy: Any):
    (toy.folder / "lab42" / "hidden.py").unlink()
    with pytest.raises(ValueError, match="test_todo_1_looks_into_the_process is left out"):
        checks_of(toy, toy.folder)


def test_no_two_tests_have_one_name_but_for_their_todo(toy: Any):
    (toy.folder / "lab42" / "hidden.py").write_text(HIDDEN.replace("def test_todo_1_goes_on", "def test_todo_1_asserts"))
    with pytest.raises(ValueError, match="two tests are named asserts but for their TODO"):
        checks_of(toy, toy.folder)


def test_all_cases_of_a_test_are_run_with_one_generator(toy: Any):
    check, lab = checks_of(toy, toy.folder)[0], SimpleNamespace(seen=[])
    check.run(lab, random.Random(7))
    numbers = random.Random(7)
    assert sorted(case[:3] for case in lab.seen) == [(1, 2, "x"), (1, 2, "y"), (3, 4, "x"), (3, 4, "y")]
    assert [case[3] for case in lab.seen] == [numbers.random() for _ in range(4)]


def test_what_a_test_asserts_is_told_as_wrong(toy: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(suite, "look", lambda held: held)
    check = checks_of(toy, toy.folder)[-1]
    check.run(SimpleNamespace(value=1), random.Random())
    with pytest.raises(Wrong, match="1 was expected, 2 came"):
        check.run(SimpleNamespace(value=2), random.Random())


def test_a_submission_cannot_catch_what_a_test_asserts_in_what_it_handed_out():
    def fails() -> None:
        raise AssertionError("the model was called twice")

    with pair() as peer, pytest.raises(AssertionError, match="called twice"):
        peer.root.swallows(ours(fails))


def test_a_hidden_test_that_repeats_is_told_which_run_it_is(toy: Any):
    with (toy.folder / "lab42" / "hidden.py").open("a") as file:
        file.write("""
@hidden("test_todo_2_asserts", concept="at any time", repeats="another process gave another value")
def test_todo_2_repeats(lab, which):
    return lab.value, which
""")
    check = checks_of(toy, toy.folder)[-1]
    assert check.name == "repeats" and check.repeats == "another process gave another value"
    assert [check.run(SimpleNamespace(value=5), random.Random(), which) for which in (0, 1)] == [[(5, 0)], [(5, 1)]]


def test_an_error_is_known_by_the_name_of_its_class_here_and_from_a_worker():
    with pair() as peer:
        for raises in (lambda: peer.root.raises("KeyError"), lambda: {}["why"]):
            assert "why" in refusal("KeyError", raises, "there is none") and "why" in refusal("LookupError", raises, "")
        with pytest.raises(Exception, match="why") as caught:
            refusal("ValueError", lambda: peer.root.raises("OutOfBlocks"), "too many")
        assert kinds_of(caught.value)[0] == "OutOfBlocks"
        with pytest.raises(AssertionError, match=r"expected ValueError, and \[1\] came back: nothing is right"):
            refusal("ValueError", lambda: peer.root.gives_back([1]), "nothing is right")


def test_values_live_where_the_part_lives():
    there = Here()
    held = there.hold([1, 2])
    held.append(3)
    assert there.look(held) == [1, 2, 3] and there.kept(sorted, [2, 1]) == [1, 2]
    assert next(there.iterator([5])) == 5 and there.of(math).floor(2.5) == 2 and there.lend(len) is len
    assert kind_of(Here()) == "Here" and kind_of(3) == "int"
    assert same([1, (2.0, "x")], [1, (2.0, "x")]) and not same([1], [True]) and not same((1,), [1])


PART = """
from nano_qwen3_serving import SamplingParams

def word(): return "its own"
def main(): print(word())
def params(): return SamplingParams(max_tokens=3)
async def half(number): return number // 2
async def halves(*numbers): return [await half(number) for number in numbers]
async def stream():
    yield 1
    yield 2
"""


@pytest.fixture(params=["here", "in a worker"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Here]]:
    """A part and what a test knows of the place where it lives."""
    if request.param == "here":
        part, there = ModuleType("part"), Here(monkeypatch)
        exec(PART, vars(part))
        yield part, there
        there.close()
    else:
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # this worker is a thread, and the test's part of one process
        monkeypatch.setitem(sys.modules, "starter", None)
        with pair(root=Bench("part.py")) as peer:
            part = peer.root.load(PART)
            yield part, suite.OverTheWire(part)


def test_a_part_is_asked_alike_wherever_it_lives(place: tuple[Any, Here]):
    lab, there = place
    assert there.printed(lab.main) == "its own\n" and there.of(max)(3, 4) == 4
    assert there.is_a(SamplingParams, lab.params(), lab.params()) and not there.is_a(SamplingParams, lab.params(), 3)
    assert there.awaited(beside.read, there.unawaited(lab.stream)) == [1, 2]
    assert there.awaited(lab.halves, 6, 8) == [3, 4]
    with pytest.raises(TypeError, match="await"):
        there.awaited(lab.word)


def test_what_a_test_puts_in_a_parts_place_is_called_there(place: tuple[Any, Here]):
    lab, there = place

    async def half(number: int) -> float:
        return number / 2

    there.put(lab, "word", lambda: "the test's")
    there.put(lab, "half", half)
    assert there.printed(lab.main) == "the test's\n" and there.awaited(lab.halves, 5) == [2.5]


def test_what_was_put_is_taken_away_and_what_runs_ended_when_a_test_has_ended():
    part, ended = SimpleNamespace(word="its own"), []
    with pytest.MonkeyPatch.context() as patch:
        there = Here(patch)
        there.at_end(lambda: ended.append(part.word))
        there.put(part, "word", "the test's")
        there.close()
    assert ended == ["the test's"] and part.word == "its own"
    with pytest.raises(TypeError, match="undoes"):
        Here().put(part, "word", "for ever")


@EVERY_LAB
def test_every_assertion_of_a_lab_that_the_judge_runs_says_what_came(lab: Any):
    """Without pytest's rewriting a bare `assert` says nothing."""
    import ast

    files = [path for path in (lab.tests, authors_folder(lab) / "hidden.py") if path.is_file()]
    bare = [f"{path.name}:{node.lineno}" for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Assert) and node.msg is None]
    assert not bare


def test_lab_06_has_one_suite_and_the_judge_asks_all_of_it_that_can_be_asked():
    checks = checks_of(find_lab("06"))
    assert len([check for check in checks if not check.hidden]) >= 38 and sum(check.points for check in checks) == 85


def test_operators_are_noted_where_the_part_lives():
    log, product = Here().operators(), torch.ones(2, 3) @ torch.ones(3, 4)
    assert torch.equal(log.watch(torch.matmul, torch.ones(2, 3), torch.ones(3, 4)), product)
    assert [event.made[0].shape for event in log.events if event.name == "aten::mm"] == [(2, 4)]


def test_what_a_part_raises_first_in_an_engine_is_raised_at_the_end():
    def part(number: int) -> int:
        calls.append(number)
        raise ValueError(f"no {number}")

    calls: list[int] = []
    with pytest.raises(ValueError, match="no 1"), first_fault() as fault:
        for number in (1, 2):  # the engine tries again
            with contextlib.suppress(ValueError):
                fault.call(part, number)
    assert calls == [1]


@EVERY_LAB
def test_each_todo_is_worth_what_lab_toml_says(lab: Any):
    points: Counter = Counter()
    for check in checks_of(lab):
        points[check.todo] += check.points
    assert points == {todo.number: todo.points for todo in lab.todos}


@EVERY_LAB
def test_each_check_is_about_a_section_of_the_readme(lab: Any):
    headings = re.findall(r"^#+ (.+)$", (lab.folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    for check in checks_of(lab):
        assert check.section in headings, f"{check.name}: there is no section {check.section!r}"
        assert f"TODO {check.todo}" in check.section, f"{check.name} is of TODO {check.todo} and about {check.section!r}"


@EVERY_LAB
def test_names_are_unique_and_concepts_are_a_few_words(lab: Any):
    checks = checks_of(lab)
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert 1 <= len(check.concept.split()) <= 16 and not check.concept.endswith("."), check.concept
