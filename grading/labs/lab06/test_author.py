"""Lab 06's own promises: every number of the README's worked example, its picture, and what the seam checks."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from labs.harness.catalog import find_lab
from labs.harness.loading import load
from labs.harness.mixed_engine.part import load_seam
from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.observe.trace import Recorder

pytestmark = pytest.mark.slow

LAB = find_lab("06", Path(__file__).parents[3] / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(README.split())

TRACE = [{"A": 6, "B": 3}, {"A": 7, "B": 4}, {"A": 8, "B": 5}, {"A": 9, "B": 6}]


@pytest.fixture(scope="module")
def solution():
    """Our solution's module."""
    return load(LAB, LAB.solution)


def manager_after(solution, steps: int):
    """The example's pool after that many of its steps."""
    manager = solution.BlockManager(6, 4)
    for lengths in TRACE[:steps]:
        assert all(manager.allocate(request_id, length) for request_id, length in lengths.items())
    return manager


def rows_of_the_table() -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| \d .*$", README, re.MULTILINE)]


def test_the_table_of_the_worked_example_is_what_the_solution_does(solution):
    rows = []
    for step, lengths in enumerate(TRACE):
        manager = manager_after(solution, step + 1)
        cells = [text for name in "AB" for text in (lengths[name], manager.block_table(name))]
        rows.append([str(cell) for cell in (step, *cells, manager.num_free_blocks)])
    assert rows_of_the_table() == rows


@pytest.mark.parametrize("whose", ["the solution's", "the reference's"])
def test_the_table_of_the_worked_example_is_what_the_engine_does(solution, whose):
    ours = Components().using(block_manager=lambda config: load_seam(LAB).block_manager(solution, config))
    args = EngineArgs(model="course-draft", block_size=4, num_gpu_blocks_override=6, enable_prefix_caching=False)
    engine = LLMEngine.from_engine_args(args, ours if whose == "the solution's" else None, recorder=Recorder())
    for name, length in (("A", 6), ("B", 3)):
        prompt = {"prompt_token_ids": [300 + ord(name) + i for i in range(length)]}
        engine.add_request(name, prompt, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    rows = []
    for step in engine.recorder.steps:
        kept = {chunk["request"]: chunk["start"] + chunk["num_tokens"] for chunk in step["chunks"]}
        tables = step["block_tables"]
        free = 5 - sum(map(len, tables.values()))
        rows.append([str(cell) for cell in (step["step"], kept["A"], tables["A"], kept["B"], tables["B"], free)])
    assert rows_of_the_table() == rows
    assert engine.block_manager.num_free_blocks == 5


def test_the_slots_of_the_worked_example(solution):
    table = manager_after(solution, 4).block_table("A")
    six, seven, eight = solution.slots(table, [6, 7, 8], 4)
    assert f"block {table[1]}, at place 2: slot {table[1]} × 4 + 2 = **{six}**. Position 7 is in slot **{seven}**." in WORDS
    assert f"third block, block {table[2]}: slot {table[2]} × 4 + 0 = **{eight}**" in WORDS


def test_freeing_in_the_worked_example(solution):
    manager = manager_after(solution, 4)
    manager.free("A")
    once = manager.num_free_blocks
    manager.free("A")
    assert f"three blocks: **{once}** are free." in WORDS
    assert f"nothing happens: still **{manager.num_free_blocks}**" in WORDS


def test_the_sums_of_the_worked_example(solution):
    def added(numbers: list[int]) -> str:
        return f"{' + '.join(map(str, numbers))} = **{sum(numbers)}**"

    usage = solution.replay(solution.BlockManager(6, 4), TRACE)
    reserved = solution.replay(solution.BlockManager(7, 4), TRACE, reserve=12)
    blocks = [5 - manager_after(solution, step + 1).num_free_blocks for step in range(4)]
    assert (usage.tokens, usage.slots, usage.peak_blocks) == (
        sum(sum(step.values()) for step in TRACE),
        4 * sum(blocks),
        max(blocks),
    )
    assert f"{added([sum(step.values()) for step in TRACE])} tokens were kept" in WORDS
    assert f"{added(blocks)} blocks, which are **{usage.slots}** slots" in WORDS
    assert f"Of these, {usage.slots - usage.tokens} kept no token: **{usage.waste * 100:.0f} %** waste" in WORDS
    assert (
        f"{reserved.peak_blocks} blocks in each step, **{reserved.slots}** slots, **{reserved.waste * 100:.0f} %** waste" in WORDS
    )


def test_the_capacity_of_the_worked_example(solution):
    held, usable = solution.blocks_needed(6, 4), solution.BlockManager(6, 4).num_free_blocks
    assert f"A request of 6 tokens holds {held} of the {usable} usable blocks" in WORDS
    room, shared = solution.capacity(6, 4, 6), usable * 4 // 6
    assert room != shared
    assert f"{usable} // {held} = **{room}** such requests, not for {usable} × 4 // 6 = {shared}." in WORDS


def test_the_reservations_of_the_worked_example_do_not_fit_its_own_pool(solution):
    assert "in a pool large enough for that" in WORDS
    assert solution.capacity(6, 4, 12) < 2 <= solution.capacity(7, 4, 12)


def test_the_dictionary_that_the_readme_advises_hands_out_the_examples_blocks():
    advised = "dict.fromkeys(range(num_blocks - 1, 0, -1))"
    assert f"`{advised}`" in README and f"`{advised}`" in (LAB.folder / "hints.md").read_text(encoding="utf-8")
    free = eval(advised, {"num_blocks": 6})
    assert [free.popitem()[0] for _ in range(5)] == [1, 2, 3, 4, 5]


def test_the_line_that_measures_a_free_list_runs(tmp_path):
    (tmp_path / "starter.py").write_text(LAB.solution.read_text(encoding="utf-8"), encoding="utf-8")
    setup, statement = re.search(r'python -m timeit -s "(.*?)" "(.*?)"', README).groups()
    run = subprocess.run([sys.executable, "-m", "timeit", "-n", "10", "-s", setup, statement], cwd=tmp_path,
                         capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert run.returncode == 0 and "loops" in run.stdout, run.stderr


def test_a_watermark_saves_preemptions_where_the_readme_says_there_are_many(solution):
    """Going Further 1, with its pool, its prompts and its way of counting."""
    settings = re.search(r"EngineArgs\((model=\"course\".*?)\)`", WORDS)[1]
    args = EngineArgs(**eval(f"dict({settings})"))
    assert "the prompts `PROMPTS * 4` and `max_tokens=40`" in WORDS

    def preempted(kept_back: int) -> int:
        class Careful(solution.BlockManager):
            def admit(self, request_id, num_tokens):
                left = self.num_free_blocks - solution.blocks_needed(num_tokens, self.block_size)
                return False if self.tables and left < kept_back else super().admit(request_id, num_tokens)

        part = SimpleNamespace(BlockManager=Careful)
        components = Components().using(block_manager=lambda config: load_seam(LAB).block_manager(part, config))
        recorder = Recorder()
        engine = LLMEngine.from_engine_args(args, components=components, recorder=recorder)
        for number, prompt in enumerate(solution.PROMPTS * 4):
            engine.add_request(str(number), prompt, SamplingParams(temperature=0.0, max_tokens=40))
        while engine.has_unfinished_requests():
            engine.step()
        counting = re.search(r"`(sum\(len\(step.*?)`", WORDS)[1]
        return eval(counting, {"recorder": recorder})

    assert preempted(8) < preempted(0)


def test_the_case_that_fails_fails_as_the_readme_says(solution):
    manager = manager_after(solution, 3)
    before = manager.num_free_blocks, manager.block_table("A"), manager.block_table("B")
    assert manager.allocate("C", 5) is False
    assert before == (manager.num_free_blocks, manager.block_table("A"), manager.block_table("B"))
    with pytest.raises(KeyError):
        manager.block_table("C")
    assert f"It needs {solution.blocks_needed(5, 4)} blocks and {before[0]} is free" in WORDS
    with pytest.raises(solution.OutOfBlocks) as refused:
        solution.replay(solution.BlockManager(6, 4), TRACE, reserve=12)
    assert f"OutOfBlocks: {refused.value}" in README


def test_the_picture_shows_the_pool_in_step_3(solution):
    """Each token's label is followed by the number of its slot; the empty slots have a number alone."""
    manager = manager_after(solution, 4)
    expected = {}
    for name, length in TRACE[3].items():
        for position, slot in enumerate(solution.slots(manager.block_table(name), range(length), 4)):
            expected[slot] = f"{name} {position}"
    texts = [element.text for element in ElementTree.parse(LAB.folder / "pool.svg").iter("{http://www.w3.org/2000/svg}text")]
    drawn = {int(after): label for label, after in itertools.pairwise(texts) if re.fullmatch(r"[AB] \d", label)}
    assert drawn == expected
    empty = 5 * 4 - len(expected)
    assert f"All {empty} empty slots are in the last block" in WORDS
    for name in "AB":
        table = manager.block_table(name)
        assert f"{TRACE[3][name]} tokens, {len(table)} blocks" in texts
        start = texts.index(name) + 1
        assert texts[start : start + len(table)] == [str(block) for block in table]


@pytest.mark.parametrize(
    "old, new, complaint",
    [
        ("range(num_blocks - 1, NULL_BLOCK, -1)", "range(num_blocks - 2, -1, -1)", "null block"),
        ("self.tables.pop(request_id, [])", "self.tables.pop(request_id, [])[1:]", "blocks are free and"),
        ("table.extend(self.free_list.take(missing))", "table.extend([table[-1]] * missing)", "twice in one"),
    ],
)
def test_the_seam_notices_a_part_that_loses_or_doubles_blocks(solution, tmp_path, old, new, complaint):
    text = LAB.solution.read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "broken.py").write_text(text.replace(old, new), encoding="utf-8")
    args = EngineArgs(model="course-draft", block_size=4, num_gpu_blocks_override=6)
    manager = load_seam(LAB).block_manager(load(LAB, tmp_path / "broken.py"), args.create_engine_config())
    with pytest.raises(AssertionError, match=complaint):
        for num_tokens in (6, 9, 20):
            manager.allocate("A", num_tokens)
            manager.check_integrity()
        manager.free("A")
        manager.check_integrity()
