"""Lab 10's own promises: the README's example and table, the model over thousands of operations, `--use` with Lab 06."""

import random
from pathlib import Path

import pytest

from labs.harness import loading
from labs.harness.catalog import LabError, find_lab
from labs.harness.mixed_engine.parts import read_uses
from labs.lab10_prefix_caching import test_lab, workloads
from nano_qwen3_serving.scheduling import block_manager

pytestmark = pytest.mark.slow

LAB = find_lab("10", Path(__file__).parents[3] / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(README.split())


@pytest.fixture(scope="module")
def solution():
    """Our solution's module."""
    return loading.load(LAB, LAB.solution)


def test_the_worked_example_is_what_the_solution_does(solution):
    manager, a, b = solution.BlockManager(6, 4), list(range(10)), [*range(8), 90, 91]
    manager.allocate("A", 10)
    manager.commit("A", a)
    assert f"| A is allocated | {manager.block_table('A')} | | {manager.num_free_blocks} |" in README
    found = manager.find_cached_prefix("B", b)
    manager.allocate("B", 10, b[:found])
    tables = f"{manager.block_table('A')} | {manager.block_table('B')}"
    assert f"| B finds {found} tokens and is allocated | {tables} | {manager.num_free_blocks} |" in README
    [copy] = manager.fork("A", "A2", 10)
    assert f"the copy {copy} is due" in WORDS and f"| A is forked | {tables} | {manager.num_free_blocks} |" in README
    for request in ("A", "A2", "B"):
        manager.free(request)
    assert f"| A, its fork and B are freed | | | {manager.num_free_blocks} |" in README
    first, second = manager.evictable
    assert f"{first} is evicted first, then {second}" in WORDS
    assert f"first 8 tokens finds {manager.find_cached_prefix('C', a[:8])} of them" in WORDS
    assert manager.allocate("C", 24, a[:8]) is False and manager.num_free_blocks == 5


def test_the_table_of_workloads_is_what_the_solution_does(solution):
    for name in workloads.WORKLOADS:
        row = " ".join(f"{rate:9.1%}" for rate in workloads.columns(name, solution.BlockManager))
        assert f"{name:20} {row}" in README


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_the_reference_clears_the_threshold_with_margin_and_the_naive_one_misses_it(name):
    _, reference, naive = workloads.columns(name)
    assert reference - naive > 0.05


class ReferenceUnderTest(block_manager.BlockManager):
    """The engine's manager, with the name that the model's play uses."""

    def cached_blocks(self, tokens, salt=""):
        return [entry.block_id for entry in self._match("looked for", tokens, salt)]


@pytest.mark.parametrize("whose", ["the solution's", "the reference's"])
def test_the_model_agrees_over_thousands_of_operations(solution, whose):
    make = solution.BlockManager if whose == "the solution's" else ReferenceUnderTest
    for number in range(60):
        rng = random.Random(number)
        usable, size = rng.randrange(4, 24), rng.randrange(1, 5)
        test_lab.play(make(usable + 1, size), usable, size, rng, 60)


@pytest.mark.parametrize("uses", [["solution:06,10"], ["solution:10", "solution:06"]])
def test_lab_10_takes_the_place_of_lab_06(uses):
    assert [choice.lab.id for choice in read_uses(uses, home=LAB.folder.parent)] == ["10"]


def test_the_references_part_takes_nobodys_place_so_the_choice_is_refused():
    with pytest.raises(LabError, match="both make the engine's block manager"):
        read_uses(["solution:06", "reference:10"], home=LAB.folder.parent)
