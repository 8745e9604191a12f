"""What stands in for a TODO in the student edition does the same as the solution, and explains nothing."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from grading.edition.sealing import bare, seal
from labs.harness import loading, originals, regions
from labs.harness.catalog import LabError, all_labs, find_lab

SOLUTION = '''\
"""A lab with every way to name a variable."""

import math
from functools import lru_cache as cached

total = 100


@cached
def area(radius: float, *, scale: float = 1.0) -> float:
    """The answer, explained."""
    # TODO 1: a circle's area
    ### BEGIN SOLUTION
    # here is how
    squared = radius * radius
    try:
        half = squared / 2
    except TypeError as error:
        raise ValueError(f"{squared=}") from error
    result = [total * part * scale for part in (half, half) if (seen := part) or not seen]
    return math.pi * sum(map(lambda value: value, result)) / total
    ### END SOLUTION


def outer(start: int):
    count = start

    def inner(step: int = 1) -> int:
        """Counts on."""
        # TODO 2: count
        ### BEGIN SOLUTION
        nonlocal count
        before = count
        count += step
        return before
        ### END SOLUTION

    return inner


class Box:
    size = 3

    def __init__(self, size: int) -> None:
        # TODO 3: keep it
        ### BEGIN SOLUTION
        larger, *_ = sorted([size, self.size], reverse=True)
        self.size = larger
        ### END SOLUTION

    def given(self) -> str:
        explained = "not sealed"
        return explained
'''


class Wide:
    """A radius whose square is no number."""

    def __mul__(self, other: object) -> str:
        return "wide"


@pytest.fixture
def without_solution(tmp_path: Path):
    folder = tmp_path / "lab99_names"
    folder.mkdir()
    lab = replace(find_lab("06"), folder=folder, number=99, refuse=())
    lab.solution.write_text(SOLUTION, encoding="utf-8")
    starter = regions.make_starter(SOLUTION, "99")
    lab.sealed.write_text(seal(lab), encoding="utf-8")
    for path in (lab.starter, lab.untouched):
        path.write_text(starter, encoding="utf-8")
    lab.solution.unlink()
    return lab


def test_our_functions_do_what_they_did(without_solution):
    module = loading.load(without_solution, without_solution.starter, stand_ins=(1, 2, 3))
    assert module.area(2.0, scale=3.0) == pytest.approx(37.699, abs=1e-3)
    with pytest.raises(ValueError, match="squared='wide'"):
        module.area(Wide())
    counter = module.outer(5)
    assert (counter(), counter(step=2), counter()) == (5, 6, 8)
    assert (module.Box(1).size, module.Box(7).size, module.Box(1).given()) == (3, 7, "not sealed")


def test_names_comments_and_words_are_gone_and_parameters_stay():
    text = bare(SOLUTION)
    gone = ("explained", "here is how", "half", "seen", "before", "larger", "not sealed", "The answer", "Counts on", "BEGIN")
    for word in gone:
        assert word not in text.replace("squared=", ""), word
    for name in ("area", "radius", "scale", "total", "count", "step", "Box", "size"):
        assert name in text
    assert set(regions.definitions(ast.parse(text))) == {"area", "outer.inner", "Box.__init__"}


def test_nothing_of_it_can_be_read_and_it_opens_again():
    for lab in all_labs():
        sealed = seal(lab)
        heading, _, packed = sealed.partition("\n")
        assert packed.isascii() and "def " not in packed and heading.startswith("Sealed: our functions")
        assert originals.opened(sealed) == bare(lab.solution.read_text(encoding="utf-8"))
        names = {name for found in originals.functions(lab).values() for name in found}
        assert names <= set(regions.definitions(ast.parse(originals.opened(sealed))))


def test_a_sealed_file_that_is_damaged_or_gone_is_said_to_be(without_solution):
    without_solution.sealed.write_text("Sealed\nabc$", encoding="utf-8")
    with pytest.raises(LabError, match="ours.sealed is damaged. Take it from the course again"):
        loading.load(without_solution, without_solution.starter, stand_ins=(1,))
    without_solution.sealed.unlink()
    with pytest.raises(LabError, match="Nothing can stand in for unwritten functions"):
        loading.load(without_solution, without_solution.starter, stand_ins=(1,))
