"""What the pictures draw, looked up in the drawing itself."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.patches import Rectangle

from nano_qwen3_serving import LLM, AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.pictures import (
    Gate,
    Picture,
    Roof,
    StepsByHand,
    WatchedEngine,
    Work,
    apart_and_together,
    at_work,
    attention_reads,
    attention_weights,
    batches_over_time,
    beside,
    blocks_read,
    bytes_for_a_token,
    cache_film,
    card,
    cut_film,
    decode_work,
    drawn,
    exactly,
    flat_batch,
    grouped,
    heads_sharing,
    held,
    in_groups,
    journey,
    kept_for_a_token,
    keys_seen,
    keys_seen_by_torch,
    kv_heads_read,
    latencies,
    layers_film,
    likeliest,
    logits_after,
    misled,
    on_a_clock,
    one_at_a_time,
    one_by_one,
    pool_film,
    pool_over_time,
    probabilities_changed,
    products_apart,
    qwen3_06b,
    random_number,
    read,
    record,
    roofline,
    rotary_pairs,
    rows_film,
    seats_film,
    seats_over_time,
    seen_keys,
    serving,
    shares_drawn,
    slots_held,
    slots_in_blocks,
    stages,
    stations,
    streams_film,
    streams_over_time,
    throughput,
    tokens_again,
    tokens_computed,
    tokens_over_time,
    top_tokens,
    turned_by_hand,
    warm_llm,
    with_and_without_cache,
)
from nano_qwen3_serving.pictures.card import canvas
from nano_qwen3_serving.pictures.chunks import rows_of
from nano_qwen3_serving.pictures.film import HOLD, Film
from nano_qwen3_serving.pictures.schedule import seats_taken

pytestmark = pytest.mark.slow

COURSE = Path(__file__).parents[2]
AT_WORK = COURSE / "reference_engine" / "at_work.svg"
STEPS = [
    {"block_tables": {"A": [1, 2], "B": [3]},
     "chunks": [{"request": "A", "start": 0, "num_tokens": 6}, {"request": "B", "start": 0, "num_tokens": 3}]},
    {"block_tables": {"A": [1, 2], "B": [3, 4]},
     "chunks": [{"request": "A", "start": 6, "num_tokens": 1}, {"request": "B", "start": 3, "num_tokens": 1}]},
]


def rectangles(picture: Picture, panel: int = 0) -> list[tuple[float, float, float, float]]:
    """(left, bottom, width, height) of what a panel shows."""
    found = [patch for patch in picture.figure.axes[panel].patches if isinstance(patch, Rectangle)]
    return [(r.get_x(), r.get_y(), r.get_width(), r.get_height()) for r in found]


def test_a_sentence_that_the_data_do_not_show_is_refused() -> None:
    picture = pool_over_time(STEPS, num_blocks=5)
    with pytest.raises(AssertionError, match="A has no block"):
        picture.says("A has no block.", not STEPS[0]["block_tables"]["A"])
    assert picture.sentence == ""


def test_a_notebook_gets_an_svg_and_the_same_words_as_its_alternative() -> None:
    picture = pool_over_time(STEPS, num_blocks=5).says("B gets a second block.", True)
    data, metadata = picture._repr_mimebundle_()
    assert data["image/svg+xml"].startswith("<svg ")
    assert data["text/plain"] == metadata["image/svg+xml"]["alt"]
    assert data["text/plain"].endswith("B gets a second block.")
    label = ElementTree.fromstring(data["image/svg+xml"]).get("aria-label")
    assert label == data["text/plain"]


def test_the_same_picture_is_the_same_file_and_swaps_paper_and_ink_in_a_dark_page() -> None:
    first, second = (pool_over_time(STEPS, num_blocks=5).says("B <gets> a second block.", True).svg() for _ in range(2))
    assert first == second
    assert set(re.findall(r"var\((--\w+),(#\w+)\)", first)) == {
        ("--paper", card.PAPER), ("--ink", card.INK), ("--faint", card.FAINT)}
    assert not re.search(f"[^,:]{card.INK}|[^,:]{card.PAPER}", first), "no colour of the card is fixed"


@pytest.mark.parametrize("width", [300, 536])
def test_a_sentence_fills_its_lines(width: float) -> None:
    words = "As long as requests wait, nine blocks of ten are in use: what one request leaves, another one takes at once."
    lines = card.wrapped(words, 11, width)
    assert " ".join(lines) == words
    assert all(card.wrapped(f"{line} {after.split()[0]}", 11, width) != [f"{line} {after.split()[0]}"]
               for line, after in pairwise(lines)), "the next word had no room any more"


def test_the_pool_has_a_bar_for_each_stay_of_a_block_with_a_request() -> None:
    picture = pool_over_time(STEPS, num_blocks=5)
    drawn = rectangles(picture)
    assert drawn[0] == (-0.5, -0.5, 2, 1), "the null block, in all steps"
    assert drawn[1:] == [(-0.5, 0.5, 2, 1), (-0.5, 1.5, 2, 1), (-0.5, 2.5, 2, 1), (0.5, 3.5, 1, 1)]
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["null block", "A0", "A1", "B0", "B1"]


def test_every_token_lies_in_the_slot_that_its_table_says() -> None:
    picture = attention_reads({"A": [3, 1], "B": [2]}, {"A": 6, "B": 3}, num_blocks=4, block_size=4, reader="A")
    in_pool = [x for x, y, width, _ in rectangles(picture) if y == 0 and width == 1]
    assert in_pool == [12, 13, 14, 15, 4, 5, 8, 9, 10]
    lines = [line.get_xdata()[1] for line in picture.figure.axes[0].lines]
    assert lines == [12.5, 13.5, 14.5, 15.5, 4.5, 5.5], "from each token of A to its slot"


def test_held_slots_are_drawn_as_kept_and_wasted() -> None:
    lengths = {"A": 9, "B": 3}
    picture = slots_held(lengths, {"reserved": {"A": 16, "B": 16}, "paged": {"A": 12, "B": 4}}, block_size=4)
    assert [width for _, _, width, _ in rectangles(picture, 0)] == [9, 7, 3, 13]
    assert [width for _, _, width, _ in rectangles(picture, 1)] == [9, 3, 3, 1]
    assert [axes.get_title("left") for axes in picture.figure.axes] == ["reserved: 62% wasted", "paged: 25% wasted"]


def test_a_chart_of_batches_has_a_bar_for_each_chunk() -> None:
    picture = batches_over_time({"both": STEPS}, ["A", "B"])
    assert [(x, round(y + 0.4)) for x, y, _, _ in rectangles(picture)] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [patch.get_hatch() for patch in picture.figure.axes[0].patches] == ["///", "", "///", ""], "prompt, token"


def test_where_there_are_many_steps_those_of_a_kind_are_one_bar() -> None:
    steps = [{"chunks": [{"request": "A", "start": n, "num_tokens": 1}] if n != 50 else []} for n in range(100)]
    drawn = rectangles(batches_over_time({"many": steps}, ["A"]))
    assert [(x, width) for x, _, width, _ in drawn] == [(0, 1), (1, 49), (51, 49)], "prompt, tokens, and a step without it"


def test_seats_are_kept_the_first_free_one_is_taken_and_an_empty_one_is_a_bubble() -> None:
    steps = [{"running": ["A", "B"]}, {"running": ["B"]}, {"running": ["B", "C"]}]
    assert seats_taken(steps, 2) == [["A", "B"], [None, "B"], ["C", "B"]]
    picture = seats_over_time({"one": steps}, num_seats=2)
    axes = picture.figure.axes[0]
    assert [(x, round(y + 0.4), width) for x, y, width, _ in rectangles(picture)] == [(0, 0, 1), (1, 0, 1), (2, 0, 1), (0, 1, 3)]
    bubbles = [(patch.get_x(), round(patch.get_y() + 0.4)) for patch in axes.patches if patch.get_hatch() == "xx"]
    assert bubbles == [(1, 0)], "the seat that A left"
    assert [(t.get_text(), *t.get_position()) for t in axes.texts] == [("A", 0.5, 0), ("C", 2.5, 0), ("B", 1.5, 1)]
    assert axes.get_title("left") == "one: 3 steps, bubbles in 1 of 6 places"


TIMED = [  # seconds: A arrived at 10.000; steps from 10.010 to 10.030, from 10.040 to 10.050
    {"time": 10.031, "seconds": {"schedule": 0.001, "execute": 0.019, "output": 0.001},
     "chunks": [{"request": "A", "start": 0, "num_tokens": 2, "samples": True}]},
    {"time": 10.051, "seconds": {"schedule": 0.001, "execute": 0.009, "output": 0.001},
     "chunks": [{"request": "B", "start": 0, "num_tokens": 4, "samples": True},
                {"request": "A", "start": 2, "num_tokens": 1, "samples": True}]},
]


def test_a_token_has_a_bar_while_it_is_computed_and_a_ring_when_it_is_generated() -> None:
    picture = tokens_over_time(TIMED, "A", ["x", " y", "\n", "z"], arrival=10.0)
    bars = [(round(x), round(y + 0.4), round(width)) for x, y, width, _ in rectangles(picture)]
    assert bars == [(10, 0, 20), (10, 1, 20), (40, 2, 10)], "prompt in one step; the last token never"
    rings, ttft, itl = picture.figure.axes[0].lines
    assert [tuple(map(round, point)) for point in zip(*rings.get_data(), strict=True)] == [(30, 2), (50, 3)]
    assert [round(x) for x in ttft.get_xdata()] == [0, 30]
    assert [round(x) for x in itl.get_xdata()] == [30, 50]
    assert [label.get_text() for label in picture.figure.axes[0].get_yticklabels()] == ["x", "␣y", "↵", "z"]


def test_a_step_is_divided_among_its_requests_and_outputs_stand_where_they_arrived() -> None:
    picture = streams_over_time(TIMED, {"A": 10.0, "B": 10.02}, {"A": [10.032, 10.052], "B": [10.053]})
    bars = [(round(x), round(y, 1), round(width), round(height, 1)) for x, y, width, height in rectangles(picture)]
    assert bars == [(10, -1.6, 20, 1.6), (40, -1.6, 10, 0.8), (40, -0.8, 10, 0.8)], "all of the first is A's, then a half each"
    marks = {(line.get_marker(), line.get_ydata()[0]): [round(x) for x in line.get_xdata()]
             for line in picture.figure.axes[0].lines if line.get_marker() != "None"}
    assert marks == {(">", 1): [0], ("o", 1): [32, 52], (">", 2): [20], ("o", 2): [53]}


def test_waiting_is_drawn_from_arrival_to_first_token_and_from_token_to_token() -> None:
    picture = latencies({"A": 0, "B": 2}, {"A": [30, 40], "B": [30]})
    assert [(x, round(y + 0.3), width) for x, y, width, _ in rectangles(picture)] == [(0, 0, 30), (30, 0, 10), (2, 1, 28)]
    assert [patch.get_hatch() for patch in picture.figure.axes[0].patches] == ["///", "", "///"]
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["30", "10", "28"]


def test_each_pair_has_a_point_for_each_position_and_each_distance_a_line() -> None:
    products = {0: {20: 3.0, 21: 3.0}, 4: {20: 1.0, 21: 1.5}}
    picture = rotary_pairs({"fast": [(1, 0), (0, 1)], "slow": [(1, 0), (0.98, 0.2), (0.92, 0.39)]}, products)
    fast, slow, lines = picture.figure.axes
    assert list(zip(*fast.lines[0].get_data(), strict=True)) == [(1, 0), (0, 1)]
    assert list(zip(*slow.lines[0].get_data(), strict=True)) == [(1, 0), (0.98, 0.2), (0.92, 0.39)]
    assert [axes.patches[0].radius for axes in (fast, slow)] == [1, 1]
    assert [list(axes.get_xticks()) for axes in (fast, slow)] == [[-1, 0, 1], [-1, 0, 1]]
    assert [[text.get_text() for text in axes.texts] for axes in (fast, slow)] == [["0", "1"], ["0", "2"]], "where there is room"
    assert [list(zip(*line.get_data(), strict=True)) for line in lines.lines] == [[(20, 3.0), (21, 3.0)], [(20, 1.0), (21, 1.5)]]
    assert [text.get_text() for text in lines.get_legend().texts] == ["0", "4"]


def test_a_line_leads_from_each_query_head_to_the_kv_head_that_it_reads() -> None:
    picture = heads_sharing([0, 0, 1, 1], num_kv_heads=2)
    axes = picture.figure.axes[0]
    boxes = rectangles(picture)
    assert [x + width / 2 for x, _, width, _ in boxes[:2]] == [0.5, 2.5], "each KV head under its group"
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 0.5], [1, 0.5], [2, 2.5], [3, 2.5]]
    assert [patch.get_hatch() for patch in axes.patches] == ["", "///", "", "", "///", "///"]


def test_attention_weights_are_numbers_in_squares_and_zeros_are_hatched() -> None:
    picture = attention_weights({"head": [[1.0, 0.0], [0.254, 0.746]], "other": [[1.0, 0.0], [0.003, 0.997]]}, ["a", "b"])
    axes, other = picture.figure.axes
    place = {(round(p.get_x() + 0.5), round(p.get_y() + 0.5)): p.get_hatch() for p in axes.patches}
    assert place == {(0, 0): None, (1, 0): "///", (0, 1): None, (1, 1): None}, "column, row"
    assert [(*t.get_position(), t.get_text()) for t in axes.texts] == [(0, 0, "100"), (0, 1, "25"), (1, 1, "75")]
    assert [(*t.get_position(), t.get_text()) for t in other.texts] == [(0, 0, "100"), (1, 1, "100")], "none below half a percent"
    shades = [p.get_alpha() for p in axes.patches if p.get_alpha() is not None]
    assert shades == [1.0, 0.254, 0.746], "a shade for each weight"
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first query on top"


def test_the_likeliest_tokens_have_bars_as_long_as_they_are_probable() -> None:
    picture = likeliest(["sun", "rain"], [0.75, 0.125])
    assert [(round(y + 0.38), width) for _, y, width, _ in rectangles(picture)] == [(0, 0.75), (1, 0.125)]
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["75.0%", "12.5%"]


def test_what_is_kept_is_drawn_as_it_is_now_and_what_is_cut_off_hatched_as_it_was() -> None:
    ways = {"top_k=1": [1.0, 0.0], "temperature=2": [0.6, 0.4], "temperature=1": [0.75, 0.25]}
    picture = probabilities_changed(["sun", "rain"], [0.75, 0.25], ways, columns=2)
    panels = picture.figure.axes
    assert [(patch.get_width(), patch.get_hatch()) for patch in panels[0].patches] == [(1.0, None), (0.25, "xxx")]
    assert [width for _, _, width, _ in rectangles(picture, 1)] == [0.6, 0.4]
    ticks = [segment[0][0] for tick in panels[1].collections for segment in tick.get_segments()]
    assert ticks == [0.75, 0.25], "as the network gave it"
    assert [axes.get_visible() for axes in panels] == [True, True, True, False]


def test_digits_are_saved_in_the_drawing_and_never_in_what_is_written() -> None:
    svg = shares_drawn(["sun", "rain"], [0.75, 0.25], {1_000: [0.753, 0.247]}).svg()
    assert "1,000 draws: off by 0.003" in svg
    assert not re.search(r"<path[^>]*\d\.\d{3}", svg)


def test_draws_stand_beside_probabilities_and_the_largest_gap_is_named() -> None:
    picture = shares_drawn(["sun", "rain"], [0.75, 0.25], {10: [0.9, 0.1], 1_000: [0.75, 0.25]})
    assert [width for _, _, width, _ in rectangles(picture)] == [0.9, 0.1]
    assert [axes.get_title("left") for axes in picture.figure.axes] == ["10 draws: off by 0.150", "1,000 draws: off by 0.000"]


def test_a_token_that_comes_again_is_a_cross_in_the_row_of_its_first_time() -> None:
    picture = tokens_again({"loop": [7, 9, 7, 9], "other": [7, 5, 9, 5]})
    drawn = [{line.get_marker(): list(zip(*line.get_data(), strict=True)) for line in axes.lines} for axes in picture.figure.axes]
    assert drawn == [{"o": [(0, 1), (1, 2)], "x": [(2, 1), (3, 2)]}, {"o": [(0, 1), (1, 2), (2, 3)], "x": [(3, 2)]}]
    assert [axes.get_title("left") for axes in picture.figure.axes] == ["loop: 2 different tokens", "other: 3 different tokens"]


def test_every_row_of_a_step_leads_to_its_slot() -> None:
    picture = flat_batch([("A", 6, 10), ("B", 1, 29), ("B", 2, 30)], num_blocks=8, block_size=4)
    (axes,) = picture.figure.axes
    assert [x for x, y, width, _ in rectangles(picture) if y == 0 and width == 1] == [10, 29, 30], "written slots"
    boxes = [(x, width) for x, y, width, _ in rectangles(picture) if y > 1]
    lines = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    assert [list(line) for line in lines] == [
        [pytest.approx(x + width / 2), slot + 0.5] for (x, width), slot in zip(boxes, (10, 29, 30), strict=True)]
    shown = [text.get_text() for text in axes.texts]
    assert {"a6", "b1", "b2", "A: 1 row", "B: 2 rows"} <= set(shown)


def test_a_mask_has_a_square_for_each_row_and_key_filled_by_who_computed_the_key() -> None:
    picture = seen_keys({"right": [[True, True, True, False], [True] * 4]}, start=2)
    assert [(x + 0.5, y + 0.5) for x, y, _, _ in rectangles(picture)] == [(key, row) for row in (0, 1) for key in range(4)]
    hatches = [patch.get_hatch() for patch in picture.figure.axes[0].patches]
    assert hatches == ["", "", "///", "", "", "", "///", "///"]
    faces = [patch.get_facecolor() for patch in picture.figure.axes[0].patches]
    assert faces[0] != faces[3], "a key from before, and one that is not seen"
    assert [label.get_text() for label in picture.figure.axes[0].get_yticklabels()] == ["2", "3"]


def test_blocks_that_are_read_are_stacked_by_request() -> None:
    drawn = rectangles(blocks_read([{"A": 2, "B": 1}, {"A": 3}], ["A", "B"]))
    assert [(round(x + 0.45), y, height) for x, y, _, height in drawn] == [(0, 0, 2), (1, 0, 3), (0, 2, 1), (1, 3, 0)]


def test_tokens_computed_are_drawn_by_step_and_added_up() -> None:
    each, together = tokens_computed({"with": [6, 1, 1], "without": [6, 7, 8]}).figure.axes
    assert [list(line.get_ydata()) for line in each.lines] == [[6, 1, 1], [6, 7, 8]]
    assert [list(line.get_ydata()) for line in together.lines] == [[6, 7, 8], [6, 13, 21]]


@pytest.mark.parametrize(("itemsize", "by_memory", "ridge"), [(2, 2, 3), (4, 1, 6)])
def test_a_roof_is_what_reading_and_computing_both_allow(itemsize: int, by_memory: int, ridge: int) -> None:
    roof = Roof.over(weights=1_000 * itemsize, itemsize=itemsize, bandwidth=4_000, rate=12_000)
    assert roof == (by_memory, 6), "1000 weights, so a token takes 2000 FLOPs"
    assert roof.ridge == ridge
    assert [roof.at(batch) for batch in (1, ridge, 100)] == [by_memory, 6, 6]


def test_intensity_is_flops_for_each_byte() -> None:
    assert Work(flops=3_000, num_bytes=2_000).intensity == 1.5


@pytest.mark.parametrize("batch", [1, 16])
def test_a_weight_is_two_flops_for_each_token_and_read_once(batch: int) -> None:
    matrices = [torch.zeros(4, 3, dtype=torch.bfloat16, device="meta"), torch.zeros(5, 4, dtype=torch.bfloat16, device="meta")]
    assert decode_work(matrices, batch) == (2 * 32 * batch, 2 * 32)


def test_throughput_is_that_of_the_best_step_of_two_rounds() -> None:
    class Slow:
        """Steps that take as long as is written down."""

        recorder = Recorder()
        lasting = iter([4.0, 2.0, 8.0, 8.0, 4.0, 4.0, 1.0, 9.0])  # two steps for each of 1 and 2 requests, twice

        def prepare(self, batch: int):
            return lambda: self.recorder.steps.append({"seconds": {"execute": next(self.lasting)}})

    assert throughput(Slow(), (1, 2), steps=2) == {1: 1 / 2, 2: 2 / 1}


def test_a_roof_rises_with_memory_and_is_flat_from_the_ridge_on() -> None:
    (axes,) = roofline({1: 80.0, 2: 150.0, 16: 600.0}, Roof(by_memory=100, by_compute=800)).figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    roof = lines["roof: the lower of both"]
    assert list(roof.get_xdata()) == [0.8, 8, 20]
    assert list(roof.get_ydata()) == [80, 800, 800]
    assert list(lines["measured"].get_xdata()) == [1, 2, 16]
    assert list(lines["measured"].get_ydata()) == [80, 150, 600]
    assert [text.get_text() for text in axes.texts] == ["ridge: batch 8.0"]


@pytest.mark.parametrize(("by_memory", "by_compute", "heights"), [(100, 10_000, [80, 500]), (100, 50, [50, 50])])
def test_a_ridge_outside_the_picture_is_not_drawn(by_memory, by_compute, heights) -> None:
    (axes,) = roofline({1: 40.0, 4: 45.0}, Roof(by_memory, by_compute)).figure.axes
    (roof,) = [line for line in axes.lines if line.get_label() == "roof: the lower of both"]
    assert [roof.get_ydata()[0], roof.get_ydata()[-1]] == heights
    assert not axes.texts


def test_what_a_token_reads_is_its_share_of_the_weights_and_all_of_its_cache() -> None:
    picture = bytes_for_a_token(8 * 10**9, 10**9, (1, 8))
    drawn = rectangles(picture)
    assert [(round(x + 0.35), y, height) for x, y, _, height in drawn] == [
        (0, 0, pytest.approx(800 / 9)), (1, 0, 50), (0, pytest.approx(800 / 9), pytest.approx(100 / 9)), (1, 50, 50)]
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["9.00 GB", "2.00 GB"]


def test_drawing_leaves_other_peoples_figures_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with canvas(2.0):
        pass
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("guess", "measured", "said"), [
    (None, 4, "steps: 4 steps\n"),
    (4, 4, "steps: 4 steps, as you guessed"),
    (8, 4, "steps: 4 steps; your guess was 8 steps, 2 times too high"),
    (1, 4, "steps: 4 steps; your guess was 1 steps, 4 times too low"),
    (0, 4, "steps: 4 steps; your guess was 0 steps"),
])
def test_a_guess_is_shown_beside_what_was_measured(guess, measured, said, capsys) -> None:
    beside("steps", guess, measured, "steps")
    assert capsys.readouterr().out.startswith(said)


SVG = "{http://www.w3.org/2000/svg}"


def shapes(film: Film, kind: str = "rect") -> list[ElementTree.Element]:
    """The shapes of a film in the order in which they were drawn, without its paper."""
    return list(ElementTree.fromstring(film.svg()).iter(SVG + kind))[kind == "rect":]


def values(film: Film, shape: ElementTree.Element, what: str = "opacity") -> list[str]:
    """What a shape's rule says of each frame."""
    svg = film.svg()
    total = film.frames + HOLD
    for name in re.search(r"animation-name:([\w,]+)", shape.get("style", "")).group(1).split(","):  # type: ignore[union-attr]
        rule = re.search(rf"@keyframes {name}{{(.*?}})}}", svg).group(1)  # type: ignore[union-attr]
        stops = [(float(at), value) for at, value in re.findall(rf"([\d.]+)%{{{what}:([^}}]*)}}", rule)]
        if stops:
            middles = [100 * (frame + 0.5) / total for frame in range(film.frames)]
            return [[value for at, value in stops if at <= middle][-1] for middle in middles]
    raise AssertionError(f"{what} does not change")


def test_a_shape_is_there_moves_and_grows_as_its_frames_say() -> None:
    film = Film("A film.", 50, frames=3, still=1)
    film.box(0, 0, 10, 10, when=[True, False, True])
    film.box(0, 0, 10, 10, path=[(0, 0), (5, 0), (5, 7)])
    film.box(0, 0, 10, 10, grown=[1, 0.5, 0])
    film.box(0, 0, 10, 10, when=[True, True, True])
    film.box(0, 0, 10, 10, when=[False, False, False])
    blinks, moves, grows, stays = shapes(film)
    assert values(film, blinks) == ["1", "0", "1"]
    assert values(film, moves, "transform") == ["translate(0px,0px)", "translate(5px,0px)", "translate(5px,7px)"]
    assert values(film, grows, "transform") == ["scale(1,1)", "scale(0.5,1)", "scale(0,1)"]
    assert stays.get("style") is None, "what is always there has no rule, and what never is is not drawn"
    assert (blinks.get("opacity"), moves.get("transform"), grows.get("transform")) == ("0", "translate(5,0)", "scale(0.5,1)"), \
        "without motion, the frame that was chosen"


def test_a_film_asks_for_a_value_for_every_frame() -> None:
    with pytest.raises(AssertionError, match="2 values for 3 frames"):
        Film("A film.", 50, frames=3).box(0, 0, 1, 1, when=[True, False])


def test_two_films_in_one_page_have_rules_of_their_own() -> None:
    one, other = (pool_film(STEPS_OF_A_POOL[:n], num_blocks=5, names=["A", "B"]).svg() for n in (2, 3))
    assert not set(re.findall(r"@keyframes (\w+)", one)) & set(re.findall(r"@keyframes (\w+)", other))


def test_a_line_appears_piece_by_piece() -> None:
    film = Film("A film.", 50, frames=3, still=1)
    film.typed(0, 0, [("a <", [True, True, True]), (" b", [False, False, True])])
    [line] = shapes(film, "text")
    assert [span.text for span in line] == ["a <", " b"]
    assert [span.get("fill-opacity") for span in line] == ["1", "0"], "without motion, the frame that was chosen"
    assert values(film, line[1], "fill-opacity") == ["0", "0", "1"]


@pytest.fixture(scope="module")
def engine_at_work() -> at_work.Run:
    return at_work.run()


def test_the_readmes_film_is_the_one_that_its_script_draws_and_is_described_there(engine_at_work: at_work.Run) -> None:
    """Its elements and words; where a letter lies, and how wide it is, may differ from machine to machine."""
    drawn = at_work.film(engine_at_work)
    committed, now = (ElementTree.fromstring(svg) for svg in (AT_WORK.read_text(encoding="utf-8"), drawn.svg()))
    assert [(part.tag, part.text) for part in committed.iter() if not part.tag.endswith("style")] == [
        (part.tag, part.text) for part in now.iter() if not part.tag.endswith("style")], \
        f"draw it anew: python -m nano_qwen3_serving.pictures.at_work {AT_WORK.relative_to(COURSE)}"
    picture = f"![{drawn.alternative}]({AT_WORK.relative_to(COURSE).as_posix()})"
    for page in (COURSE / "README.md", COURSE / "grading" / "edition" / "templates" / "README.md.in"):
        assert not page.exists() or picture in page.read_text(encoding="utf-8"), page


def test_the_answers_of_that_film_are_those_that_each_question_gets_alone(engine_at_work: at_work.Run) -> None:
    recorder = Recorder()
    llm = LLM("course", dtype="float32", recorder=recorder)
    params = SamplingParams(temperature=0.0, max_tokens=100)
    for name, question in engine_at_work.questions.items():
        [alone] = llm.chat([{"role": "user", "content": question}], params, use_tqdm=False)
        assert "".join(piece for _, piece in engine_at_work.texts[name]) == alone.outputs[0].text
    assert engine_at_work.alone == len(recorder.steps), "as many steps as the film says that they take one after the other"


def test_the_letters_and_blocks_of_that_film_are_there_when_the_engine_had_them(engine_at_work: at_work.Run) -> None:
    root = ElementTree.fromstring(at_work.film(engine_at_work).svg())
    spans = [span for span in root.iter() if span.tag.endswith("tspan")]
    text = "".join(span.text or "" for span in spans).replace(" ", "")
    assert text == "".join(piece for pieces in engine_at_work.texts.values() for _, piece in pieces).replace(" ", "")
    last = engine_at_work.steps[-1]
    (name,) = last["running"]
    held = [at_work._held(last, block) for block in range(1, at_work.BLOCKS)]
    assert sum(kept for holder, kept in held if holder == name) * at_work.BLOCK_SIZE == sum(
        chunk["num_tokens"] for step in engine_at_work.steps for chunk in step["chunks"] if chunk["request"] == name)
    assert {holder for holder, _ in held} == {name, ""}


STEPS_OF_A_POOL: list[dict[str, Any]] = [
    {"step": 0, "waiting": ["B"], "running": ["A"], "block_tables": {"A": [2]}, "preempted": [], "finished": {}},
    {"step": 1, "waiting": [], "running": ["A", "B"], "block_tables": {"A": [2, 1], "B": [4]}, "preempted": [],
     "finished": {"A": "length"}},
    {"step": 2, "waiting": [], "running": ["B"], "block_tables": {"B": [4, 2]}, "preempted": [], "finished": {}},
]


def test_in_the_film_of_a_pool_requests_wait_run_and_end_and_blocks_change_hands() -> None:
    film = pool_film(STEPS_OF_A_POOL, num_blocks=5, names=["A", "B"])
    a, b = shapes(film)[:2]
    assert values(film, a, "transform") == ["translate(0px,28px)", "translate(0px,28px)", "translate(0px,56px)"]
    assert values(film, b, "transform") == ["translate(0px,0px)", "translate(30px,28px)", "translate(0px,28px)"]
    held = {text.text: values(film, text) for text in shapes(film, "text") if re.fullmatch(r"[AB]\d", text.text or "")}
    assert held == {"A0": ["1", "1", "0"], "A1": ["0", "1", "0"], "B0": ["0", "1", "1"], "B1": ["0", "0", "1"]}
    assert "step 1 · A done after this step" in [text.text for text in shapes(film, "text")]


def test_the_rows_of_a_recorded_step_stand_where_the_engine_lays_them_out() -> None:
    step = {"chunks": [{"request": "B", "start": 1, "num_tokens": 2}, {"request": "A", "start": 6, "num_tokens": 1}],
            "block_tables": {"A": [5, 2], "B": [7]}}
    assert rows_of(step, block_size=4) == [("A", 6, 10), ("B", 1, 29), ("B", 2, 30)]
    by_hand = StepsByHand({"A": "What is a KV cache?\n", "B": "Hi there!"}, {"A": [5, 2], "B": [7]})
    inputs = by_hand.lay_out(("B", 1, 2), ("A", 6, 1))
    assert inputs.metadata.slot_mapping.tolist() == [10, 29, 30]
    assert inputs.positions.tolist() == [6, 1, 2]


def test_in_the_film_of_rows_each_goes_to_its_slot_one_after_the_other() -> None:
    steps = record({"A": (2, 2), "B": (1, 1)}, num_gpu_blocks_override=4)
    film = rows_film(steps, num_blocks=4, block_size=4)
    assert film.frames == (1 + 3) + (1 + 1)
    *tiles, _clock = [shape for shape in shapes(film) if "translate" in (shape.get("transform") or "")]
    wide = 560 / 16
    landed = [float(re.search(r"translate\((.*?)px", values(film, tile, "transform")[-1]).group(1)) + float(tile.get("x", ""))
              for tile in tiles]  # type: ignore[union-attr]
    slots = [slot for step in steps for _, _, slot in rows_of(step, 4)]
    assert landed == pytest.approx([8 + slot * wide for slot in slots], abs=0.01)
    starts = [values(film, tile, "transform").index(values(film, tile, "transform")[-1]) for tile in tiles]
    assert starts == [1, 2, 3, 5]


def test_in_the_film_a_token_is_computed_once_with_a_cache_and_every_step_without() -> None:
    assert with_and_without_cache("What is a KV cache?", 3) == ([6, 1, 1], [6, 7, 8])
    film = cache_film([2, 1, 1], [2, 3, 4])
    told = [(text.text, values(film, text) if text.get("style") else ["1"] * 3) for text in shapes(film, "text")]
    assert [when for text, when in told if text == "0"] == [["1", "1", "1"], ["1", "0", "0"]], "without, with"
    assert [when for text, when in told if text == "2"] == [["0", "1", "1"], ["0", "1", "0"]]
    assert [when for text, when in told if text == "kv"] == [["0", "1", "1"]] * 2 + [["0", "0", "1"]]
    assert [text for text, _ in told if text and text.startswith("computed so far")] == [
        f"computed so far: {total}" for total in (2, 5, 9, 2, 3, 4)]


def test_recorded_requests_compute_what_was_asked_and_the_last_token_never() -> None:
    steps = record({"A": (6, 4), "B": (3, 4)}, num_gpu_blocks_override=6)
    assert [step["block_tables"] for step in steps] == [
        {"A": [1, 2], "B": [3]}, {"A": [1, 2], "B": [3]}, {"A": [1, 2], "B": [3, 4]}, {"A": [1, 2, 5], "B": [3, 4]}]
    assert sum(chunk["num_tokens"] for step in steps for chunk in step["chunks"]) == (6 + 3) + (3 + 3)


def test_slots_are_counted_in_whole_blocks() -> None:
    assert slots_in_blocks({"A": 9, "B": 4, "C": 1}, 4) == {"A": 12, "B": 4, "C": 4}


def test_rows_of_a_request_are_gathered_from_all_steps_and_their_weights_are_seen() -> None:
    by_hand = StepsByHand({"A": "What is a KV cache?\n", "B": "Hi there!"}, {"A": [5, 2], "B": [7]})
    by_hand.compute(("A", 0, 6), ("B", 0, 1))
    by_hand.compute(("B", 1, 2), ("A", 6, 1))
    for name in "AB":
        q, k, v, out = (by_hand.rows(name, what, 2) for what in ("q", "k", "v", "out"))
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        assert torch.allclose(out, dense, atol=1e-4)
    weights = by_hand.attention.weights[0]  # B's row first, then A's six
    assert weights.shape == (7, 8, 7)
    assert torch.allclose(weights.sum(-1), torch.ones(7, 8), atol=1e-5)
    assert not weights[1:, :, 0].any(), "A reads nothing of B"


def test_attention_alone_sees_what_a_chunk_may_see() -> None:
    shape = StepsByHand({"A": "a"}, {"A": [1]}).shape
    assert keys_seen(4, 8, [3, 1], shape).tolist() == [[key <= 4 + row for key in range(8)] for row in range(4)]
    assert keys_seen_by_torch(4, 8, is_causal=True).sum(1).tolist() == [1, 2, 3, 4], "torch's triangle stands at the left"
    assert keys_seen_by_torch(4, 8).all(), "without a mask"


def test_tables_are_changed_only_where_every_request_computes_one_token() -> None:
    asked = []
    (answer,) = misled(["What is a KV cache?"], lambda tables, lens: asked.append(list(lens)) or tables, max_tokens=3)
    (true,) = misled(["What is a KV cache?"], max_tokens=3)
    assert answer.token_ids == true.token_ids

    def empty(tables: torch.Tensor, lens: Any) -> None:
        tables.zero_()

    (in_place,), (given,) = (misled(["What is a KV cache?"], change, max_tokens=3) for change in (
        empty, lambda tables, lens: torch.zeros_like(tables)))
    assert in_place.token_ids == given.token_ids != true.token_ids, "a copy that is changed counts as one that is given"
    assert asked == [[7]] * 4 + [[8]] * 4, "in each of four layers, after the prompt's six tokens"


ABOUT: journey.About = {part: [] for part in journey.WAY} | {
    "generate": ["01", "02"], "model": ["03", "05"], "attention": ["05", "07"], "text": ["01"]}


@pytest.mark.parametrize("notebook", ["01", "05", "07"])
def test_the_map_lights_up_what_a_notebook_is_about(notebook: str) -> None:
    root = ElementTree.fromstring(journey.svg(notebook, ABOUT))
    lit = [shape for shape in root.iter(SVG + "rect") if shape.get("fill") == card.COLOURS[1]]
    assert len(lit) == sum(notebook in numbers for numbers in ABOUT.values())
    bold = [text.text for text in root.iter(SVG + "text") if text.get("font-weight") and text.text in journey.WAY]
    assert bold == [part for part, numbers in ABOUT.items() if notebook in numbers]


def test_what_is_turned_by_hand_is_the_labs_example() -> None:
    turned = turned_by_hand([1, 1, 0, 0], theta=100, positions=[0, 3])
    assert turned[1].tolist() == pytest.approx([-0.99, 0.96, 0.14, 0.30], abs=5e-3)


def test_a_token_is_followed_through_all_parts_to_what_the_engine_says() -> None:
    watched = WatchedEngine()
    way = stations(watched, "How does a model")
    assert [station.name for station in way[:4]] == ["embedding", "layer 0: attention", "layer 0: MLP", "layer 1: attention"]
    assert len(way) == 9
    (itself,) = watched.tokenizer.encode(" model")
    assert way[0].probabilities.argmax() == itself
    assert torch.allclose(way[-1].probabilities, watched.logits[0].softmax(dim=-1), atol=1e-5)
    assert [station.weights is None for station in way] == [True, False, True, False, True, False, True, False, True]
    for station in way[1::2]:
        assert float(station.weights.sum()) == pytest.approx(1, abs=1e-4)
    film = layers_film(way, watched.words("How does a model"), [("model", itself)])
    bars = [float(value[6:].split(",")[0]) for shape in shapes(film) if "scale" in (shape.get("transform") or "")
            for value in values(film, shape, "transform") if value.endswith(",1)")]
    assert bars[: len(way)] == pytest.approx([float(station.probabilities[itself]) for station in way], abs=1e-5)


def test_stages_cut_scale_and_draw_as_the_sampler_does() -> None:
    ln2 = math.log(2)
    logits = torch.tensor([3.0, 2, 1, 0, -1, -1]) * ln2
    found = stages(logits, temperature=0.5, top_k=3, top_p=0.95)
    assert [int((p > 0).sum()) for p in found.values()] == [6, 6, 3, 2, 2]
    assert list(found.values())[-1].tolist() == pytest.approx([0.8, 0.2, 0, 0, 0, 0])
    shares = drawn(logits, 2_000, temperature=0.5, top_k=3, top_p=0.95)
    assert shares[:2].tolist() == pytest.approx([0.8, 0.2], abs=0.04)
    assert grouped(torch.tensor([0.5, 0.3, 0.2]), [1]) == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize(("number", "word"), [(0.0, "rain"), (0.19, "rain"), (0.21, "sun"), (0.99, "sun")])
def test_in_the_film_of_a_draw_the_number_falls_on_a_piece_in_the_order_of_ids(number: float, word: str) -> None:
    said = {"said": [0.5, 0.3, 0.2], "cut": [0.5, 0.3, 0.0], "scaled up": [0.8, 0.2, 0.0]}
    film = cut_film(["sun", "rain", "all others"], [70, 5], said, number)
    assert film.frames == 4
    assert f"the number {number:.3f} falls on {word}" in [text.text for text in shapes(film, "text")]
    grown = [values(film, shape, "transform") for shape in shapes(film) if "scale" in (shape.get("transform") or "")]
    assert grown == [[f"scale({share},1)" for share in row] for row in (
        ["0.5", "0.5", "0.8", "0.8"], ["0.3", "0.3", "0.2", "0.2"], ["0.2", "0", "0", "0"])]


def test_the_film_of_a_draw_ends_with_the_token_that_the_engine_draws() -> None:
    logits, tokenizer = logits_after("Why")
    best = logits.topk(8).indices.tolist()
    words, wishes = [repr(tokenizer.decode([token])) for token in best], {"temperature": 0.7, "top_k": 6, "top_p": 0.9}
    said = {title: grouped(shares, best) for title, shares in stages(logits, **wishes).items()}
    for seed in range(20):
        row = SamplingRow(SamplingParams(**wishes), prompt_token_ids=[0], output_token_ids=[], seed=seed)
        ((token,), _) = Sampler().sample(logits[None], [row])
        film = cut_film([*words, "all others"], best, said, random_number(seed, 1))
        assert any((text.text or "").endswith(f"falls on {words[best.index(token)]}") for text in shapes(film, "text"))


def test_on_a_clock_that_is_set_by_hand_steps_end_when_they_are_told() -> None:
    times, last = on_a_clock({"A": (6, 3, 0), "B": (3, 5, 2)}, ends=[30, 40, 50, 58, 66])
    assert times == {"A": [30, 40, 50], "B": [30, 40, 50, 58, 66]}
    assert {name: output.metrics.first_token_latency for name, output in last.items()} == {"A": 30, "B": 28}


def test_groups_wait_for_their_slowest_member() -> None:
    lengths = [4, 10, 3, 8]
    assert [len(in_groups(lengths, size, max_num_seqs=2)) for size in (1, 2, 4)] == [25, 10 + 8, 15]


def test_in_the_film_of_seats_a_request_waits_sits_and_is_done() -> None:
    steps = [{"running": ["0", "1"]}, {"running": ["1"]}, {"running": ["1", "2"]}]
    film = seats_film({"one": steps}, num_seats=2)
    tiles = shapes(film)[2:5]  # after the two seats
    places = [[float(value[10:].split("px")[0]) for value in values(film, tile, "transform")] for tile in tiles]
    assert places[0] == [240, 382, 382, 382], "seat 0, then done, with a frame in which all are done"
    assert places[1] == [280, 280, 280, 405]
    assert places[2] == [0, 0, 240, 428], "it waits, and takes the seat that 0 has left"
    assert {"one: 2 of 2 seats taken", "one: 1 of 2 seats taken", "one: done after 3 steps"} <= {
        text.text for text in shapes(film, "text")}


def test_in_the_film_of_streams_each_token_goes_to_its_reader_when_its_step_ends() -> None:
    steps = [{"sampled": {"A": [7]}, "block_tables": {"A": [1]}},
             {"sampled": {"A": [8], "B": [9]}, "block_tables": {"A": [1], "B": [2]}}]
    film = streams_film(steps, ["A", "B"])
    *tokens, _clock = [shape for shape in shapes(film) if "translate" in (shape.get("transform") or "")]
    assert len(tokens) == 3
    there = [values(film, token) if "opacity" in token.attrib else ["1", "1"] for token in tokens]
    assert there == [["1", "1"], ["0", "1"], ["0", "1"]]
    assert "step 1: a token for A and B" in [text.text for text in shapes(film, "text")]


@pytest.mark.asyncio
async def test_callers_come_one_after_the_other_and_a_closed_gate_holds_the_step_thread() -> None:
    gate, recorder = Gate(), Recorder()
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course"), recorder=recorder, gate=gate)
    try:
        asked, received = await one_by_one(engine, {"A": ("Hello", 8), "B": ("Hello", 4)}, outputs=2)
        assert list(asked) == ["A", "B"]
        assert asked["B"] >= received["A"][1]
        recorder.steps.clear()
        gate.close()
        stream = await engine.add_request("C", "Hello", exactly(2))
        await gate.reached()
        assert not recorder.steps
        gate.open()
        await read(stream)
        assert len(recorder.steps) == 2
    finally:
        engine.shutdown()


def test_hatches_ticks_and_letters_on_a_colour_can_be_read_on_light_and_dark_pages() -> None:
    for i, colour in enumerate(card.COLOURS):
        fill = card.fill_of("ABCDEFGH", "ABCDEFGH"[i])
        assert fill["facecolor"] == colour
        assert fill["hatchcolor"] == card.letters_on(colour) not in card.NAMES, "the page's ink turns light, the fill does not"
    film = cut_film(["x", "y"], [0, 1], {"said": [0.5, 0.5]}, number=0.7).svg()
    assert re.search(r'fill="(#\w+)"[^>]*>y</text>', film.split("0 … 1")[1])[1] == card.letters_on(card.COLOURS[1])  # type: ignore[index]
    picture = shares_drawn(["x"], [0.5], {10: [0.6]})
    (ticks,) = picture.figure.axes[0].collections
    assert ticks.get_path_effects()


def test_apart_and_together_answers_are_equal_and_together_takes_the_longests_steps() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=9)
    apart, together, outputs = apart_and_together(["What is a token?", "Hello!"], params)
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert (len(apart), len(together)) == (sum(lengths), max(lengths))


def test_paged_attention_is_shown_beside_dense_attention_for_each_layer_and_request() -> None:
    steps = StepsByHand({"A": "What is a KV cache?\n", "B": "Hi there!"}, {"A": [5, 2], "B": [7]})
    assert steps.rows_of(steps.lay_out(("B", 1, 2), ("A", 6, 1))) == [("A", 6, 10), ("B", 1, 29), ("B", 2, 30)]
    steps.compute(("A", 0, 6), ("B", 0, 1))
    steps.compute(("B", 1, 2), ("A", 6, 1))
    pairs = list(steps.beside_dense())
    assert [paged.shape[1] for paged, _ in pairs] == [7, 3] * steps.num_layers
    for paged, dense in pairs:
        torch.testing.assert_close(paged, dense, rtol=0, atol=1e-4)


def test_what_notebooks_read_off_an_engine_and_a_step() -> None:
    watched = WatchedEngine()
    assert watched.ids(" model") == [("' model'", watched.tokenizer.encode(" model")[0])]
    weights = dict(watched.network.named_parameters())
    assert torch.equal(weights.pop("lm_head.weight"), weights["model.embed_tokens.weight"])
    assert watched.sizes() == {name: weight.numel() for name, weight in weights.items()}
    watched.compute(text="Once upon a time")
    ids, words, shares = top_tokens(watched.logits[0], watched.tokenizer, 3)
    assert words[0] == "','" and watched.tokenizer.decode(ids[:1]) == "," and shares == sorted(shares, reverse=True)
    steps = StepsByHand({"A": "What is a KV cache?\n", "B": "Hi there!"}, {"A": [5, 2], "B": [7]})
    assert steps.described(steps.lay_out(("B", 1, 2), ("A", 6, 1))).splitlines()[1:] == [
        "query_lens [1, 2]  seq_lens [7, 3]", "block_tables [[5, 2], [7, 0]]"]
    assert one_at_a_time(top_k=[3], top_p=[0.5, 0.9]) == {
        "top_k=3": {"top_k": 3}, "top_p=0.5": {"top_p": 0.5}, "top_p=0.9": {"top_p": 0.9}}
    llm, recorder = warm_llm()
    llm.generate("Hello!", SamplingParams(max_tokens=1), use_tqdm=False)
    assert len(recorder.steps) == 1, "what was warmed up with is forgotten"


def test_products_go_by_distance_and_heads_read_in_groups() -> None:
    watched = WatchedEngine()
    products = products_apart(watched.network, range(20, 24), [0, 4])
    assert {distance: list(found) for distance, found in products.items()} == {0: [20, 21, 22, 23], 4: [20, 21, 22, 23]}
    assert products[0][20] == pytest.approx(32, abs=1e-3), "brought to length √32, and multiplied with itself"
    assert products[4][20] == pytest.approx(products[4][23], abs=1e-3)
    assert kv_heads_read(watched.shape) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_token_of_the_small_qwen_keeps_112_kib() -> None:
    assert kept_for_a_token(qwen3_06b(), torch.bfloat16) == 28 * 2 * 8 * 128 * 2


async def test_what_is_handed_in_while_the_step_thread_is_held_is_in_one_step() -> None:
    gate = Gate()
    engine, steps = serving(gate, block_size=4)
    async with held(engine, gate):
        streams = [await engine.add_request(name, {"prompt_token_ids": [300, 301]}, exactly(2)) for name in "AB"]
    for stream in streams:
        await read(stream)
    engine.shutdown()
    assert [list(step["sampled"]) for step in steps] == [["early"], ["A", "B"], ["A", "B"]]
