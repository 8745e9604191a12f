"""Lab 07's own promises: every number of the README's worked example, computed."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from labs.harness import loading
from labs.harness.catalog import find_lab
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import NULL_BLOCK, AttentionMetadata

pytestmark = pytest.mark.slow

LAB = find_lab("07", Path(__file__).parents[3] / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")
FLAT = " ".join(README.split())
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def solution():
    return loading.load(LAB, LAB.solution)


@pytest.fixture(scope="module")
def layout(solution):
    return solution.lay_out([solution.B, solution.A], solution.BLOCK_SIZE)


def rows_of_table(first_cell: str) -> list[list[str]]:
    """The cells of the README's table rows whose first cell matches."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines() if re.match(rf"\| {first_cell} \|", line)]


def one_head_config(layers: int = 1, num_heads: int = 2, num_kv_heads: int = 1, head_dim: int = 1) -> ModelConfig:
    return ModelConfig(
        vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads, head_dim=head_dim, max_position_embeddings=64)


def test_the_table_of_rows_is_what_the_solution_lays_out(solution, layout):
    want = []
    for i, chunk in enumerate(layout.chunks):
        for row in range(layout.query_starts[i], layout.query_starts[i + 1]):
            position, slot = layout.positions[row].item(), layout.slot_mapping[row].item()
            place, block, offset = position // 4, slot // 4, slot % 4
            assert chunk.block_table[place] == block
            want.append([str(cell) for cell in (row, solution.name_of(chunk), position, place, block, offset, slot)])
    assert rows_of_table(r"\d") == want


def test_the_lists_of_the_layout_are_what_the_solution_lays_out(solution, layout):
    assert f"Positions `{layout.positions.tolist()}`, slots `{layout.slot_mapping.tolist()}`" in FLAT
    assert f"Query starts `{layout.query_starts}`" in FLAT
    assert f"Sequence lengths `{layout.seq_lens}`" in FLAT
    assert f"Block tables `{layout.block_tables.tolist()}`, filled up with the null block {NULL_BLOCK}" in FLAT
    assert f"its block table is `{solution.A.block_table}`" in FLAT and f"its block table is `{solution.B.block_table}`" in FLAT
    assert f"Request A has {solution.A.num_computed_tokens} tokens in the cache" in FLAT
    assert f"Request B has {solution.B.num_computed_tokens} token in the cache" in FLAT


def test_the_picture_shows_the_slots_that_are_written_and_the_blocks_that_are_read(layout):
    for row, slot in enumerate(layout.slot_mapping.tolist()):
        assert f"R{row} -->|writes slot {slot}| B{slot // 4}" in README
    for block in layout.block_tables.flatten().tolist():
        if block != NULL_BLOCK:
            assert f"block {block}: slots {', '.join(str(block * 4 + i) for i in range(4))}" in README


def test_the_mask_of_the_chunk_is_what_the_solution_sees(solution):
    """Value i is 1 in number i and 0 elsewhere, so that the results are the weights."""
    k_cache, v_cache = torch.zeros(8, 4, 1, 4), torch.zeros(8, 4, 1, 4)
    v_cache[7, :3, 0] = torch.eye(4)[:3]
    weights = solution.chunk_attention(torch.ones(2, 1, 4), k_cache, v_cache, torch.tensor([7]), 1)
    want = [["sees" if weight > 0 else "–" for weight in row[0, :3].tolist()] for row in weights]
    assert [cells[1:] for cells in rows_of_table(r"row \d, position \d")] == want


def test_the_six_numbers_by_hand_are_those_of_the_solution_and_of_the_engine(solution, layout):
    cache = solution.fill_cache()
    q = torch.tensor([[1.0], [0.0]]).repeat(3, 1, 1)
    mine = solution.batch_attention(q, *cache, layout.query_starts, layout.seq_lens, layout.block_tables)
    metadata = AttentionMetadata(
        [1, 2], layout.seq_lens, layout.block_tables, layout.slot_mapping, layout.num_decodes, 4)
    finite = tuple(t.nan_to_num() for t in cache)  # the engine's own asks for finite numbers in the null block
    theirs = TorchPagedAttention(one_head_config(), 4, torch.float32, CPU).forward(q, finite, metadata)
    torch.testing.assert_close(mine, theirs)
    shown = [[float(cell.split("=")[-1]) for cell in cells[1:]] for cells in rows_of_table(r"[AB], position \d")]
    torch.testing.assert_close(mine[:, :, 0], torch.tensor(shown))
    for cells in rows_of_table(r"[AB], position \d"):
        for cell in cells[1:]:
            if "=" in cell:
                sum_, result = cell.split("=")
                assert eval(sum_.replace("·", "*")) == float(result)  # the README's own arithmetic


def test_the_cases_that_fail_give_the_numbers_of_the_readme(solution):
    keys, values = (solution.column(numbers["B"])[None, :, 0] for numbers in (solution.KEYS, solution.VALUES))
    q = torch.ones(1, 2, 1)
    top_left = F.scaled_dot_product_attention(q, keys, values, is_causal=True, scale=1.0).flatten().tolist()
    right = [50.0, 70.0]
    assert "gives {:.1f} and {:.1f} instead of {:.1f} and {:.1f}".format(*top_left, *right) in FLAT
    scores = torch.tensor(solution.KEYS["B"])
    zeroed = torch.softmax(scores * torch.tensor([1.0, 1.0, 0.0]), 0) @ torch.tensor(solution.VALUES["B"])
    assert f"give {zeroed:.1f} for the first row" in FLAT
    whole = torch.softmax(F.pad(scores, (0, 1)), 0) @ F.pad(torch.tensor(solution.VALUES["B"]), (0, 1))
    assert f"gives {whole:.1f} for the second" in FLAT


def test_the_bytes_are_those_of_the_solution_and_of_the_engine(solution):
    for part in (solution.PagedAttention, TorchPagedAttention):
        small = part(one_head_config(), 4, torch.float32, CPU).bytes_per_block
        assert f"a block of 4 takes 2 · 4 · 4 = {small} bytes" in FLAT
        shape = one_head_config(layers=28, num_heads=16, num_kv_heads=8, head_dim=128)
        token, block = (part(shape, size, torch.bfloat16, CPU).bytes_per_block for size in (1, 16))
        assert f"2 · 28 · 8 · 128 · 2 = {token:,} bytes in the cache, a block of 16 tokens {block:,}" in FLAT


def test_padding_is_zeros_and_goes_to_the_null_block(solution, layout):
    k_cache, v_cache = solution.fill_cache()
    part = solution.PagedAttention(one_head_config(), 4, torch.float32, CPU)
    slots = torch.cat([layout.slot_mapping, torch.tensor([0])])
    part.write((k_cache, v_cache), torch.ones(4, 1, 1), torch.ones(4, 1, 1), slots)
    assert k_cache[NULL_BLOCK, 0].item() == 1
    metadata = AttentionMetadata([1, 2], layout.seq_lens, layout.block_tables, slots, 1, 4)
    assert part.forward(torch.ones(4, 2, 1), (k_cache, v_cache), metadata)[3].tolist() == [[0.0], [0.0]]


def test_the_seam_copies_and_reads_blocks_as_the_engines_attention_does(solution):
    spec = importlib.util.spec_from_file_location("lab07_seam", LAB.folder / "seam.py")
    seam = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seam)
    llm = LLM("course-draft", block_size=4, num_gpu_blocks_override=16,
              components=Components(attention=lambda config: seam.attention(solution, config)))
    config, cache = llm.llm_engine.config, llm.llm_engine.model_runner.kv_cache
    llm.generate(["Hello"], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True), use_tqdm=False)
    mine, theirs = llm.llm_engine.model_runner.attention, TorchPagedAttention(config.model, 4, config.dtype, CPU)
    assert mine.bytes_per_block == theirs.bytes_per_block
    other = [tuple(t.clone() for t in pair) for pair in cache]
    mine.copy_blocks(cache, [(1, 9), (2, 10)])
    theirs.copy_blocks(other, [(1, 9), (2, 10)])
    slots = mine.slots([1, 9, 2, 10], range(16))
    assert slots == theirs.slots([1, 9, 2, 10], range(16))
    for mine_pair, other_pair in zip(cache, other, strict=True):
        got, want = mine.read(mine_pair, slots), theirs.read(other_pair, slots)
        assert all(map(torch.equal, got, want)) and all(t.any() for t in got)


@pytest.mark.proof
def test_a_mistake_that_the_engine_helps_itself_out_of_is_found(tmp_path):
    """It computes a step that fails again, request by request: the tokens are right, and nobody would notice."""
    old = "        starts = list(itertools.accumulate(metadata.query_lens, initial=0))\n"
    text = LAB.solution.read_text(encoding="utf-8")
    assert text.count(old) == 1
    mine, report = tmp_path / "mine.py", tmp_path / "report.json"
    mine.write_text(text.replace(
        old, f"        if q.is_inference() and len(metadata.query_lens) > 1:\n            raise IndexError('no room')\n{old}"),
        encoding="utf-8")
    command = [sys.executable, "-m", "pytest", str(LAB.tests), "--impl", str(mine), "--lab-json", str(report), "--plain",
               "-k", "todo_6 and in_the_engine", "-p", "no:cacheprovider"]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False)
    outcomes = json.loads(report.read_text(encoding="utf-8"))["07"]
    assert outcomes and not any(outcome["passed"] for outcome in outcomes)
    for outcome in outcomes:
        assert re.fullmatch(
            r"in the engine a step of \d requests failed and is computed again, request by request: IndexError: no room",
            outcome["message"]), outcome["message"]
    assert "mine.py" in run.stdout, "the line that failed is shown"


def test_the_example_of_the_scale(solution):
    """Five tokens, head_dim 4; with the right scale, without one, and with head_dim itself, whose results the README explains."""
    k_cache, v_cache = torch.zeros(3, 4, 1, 4), torch.zeros(3, 4, 1, 4)
    k_cache[2, 0, 0, 0], v_cache[2, 0] = torch.tensor(4.0).log(), 30
    for factor, told in ((1.0, "4 · 30 / 8 = **{}**"), (2.0, "16 · 30 / 20 = **{}**"), (0.5, "2 · 30 / 6 = **{}**")):
        q = torch.tensor([[2.0 * factor, 0, 0, 0]])
        found = solution.decode_attention(q, k_cache, v_cache, torch.tensor([1, 2]), 5)[0, 0].item()
        assert told.format(round(found, 3)).replace(".0**", "**") in FLAT


def test_a_wrong_result_is_told_by_the_mistake_that_gives_it():
    """Each mistake that the suite knows is named if it is made; nothing is said of other results."""
    spec = importlib.util.spec_from_file_location("lab07_suite", LAB.tests)
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    for spans in ([(5, 4)], [(6, 1)]):
        request = suite.Pool(random.Random(0), *spans, num_heads=6, num_kv_heads=3).requests[0]
        want = suite.dense(request.q, request.keys, request.values, request.start)
        limit = suite.allowed_error(request.q, request.keys, request.values)
        told = 0
        for why, wrong in suite.mistakes(request):
            if (wrong - want).abs().max() > 0.01:
                told += 1
                assert why in suite.story(wrong.float(), want, request, limit)
        assert told > 8
        assert suite.story(want.float(), want, request, limit) == suite.story(want.float() + 0.3, want, request, limit) == ""
        assert "50 stands in all slots" in suite.story(want.float() + 20, want, request, limit)
