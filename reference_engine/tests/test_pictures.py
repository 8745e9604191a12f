"""What the pictures draw, looked up in the drawing itself."""

from __future__ import annotations

import pytest
from matplotlib.patches import Rectangle

from nano_qwen3_serving.pictures import (
    Picture,
    Roof,
    Work,
    attention_reads,
    attention_weights,
    batches_over_time,
    beside,
    blocks_read,
    bytes_for_a_token,
    flat_batch,
    heads_sharing,
    latencies,
    likeliest,
    pool_over_time,
    probabilities_changed,
    roofline,
    rotary_pairs,
    seats_over_time,
    seen_keys,
    shares_drawn,
    slots_held,
    streams_over_time,
    tokens_again,
    tokens_computed,
    tokens_over_time,
)
from nano_qwen3_serving.pictures.card import canvas
from nano_qwen3_serving.pictures.schedule import seats_taken

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


def test_a_notebook_gets_a_png_and_the_same_words_as_its_alternative() -> None:
    picture = pool_over_time(STEPS, num_blocks=5).says("B gets a second block.", True)
    data, metadata = picture._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"] == metadata["image/png"]["alt"]
    assert data["text/plain"].endswith("B gets a second block.")


def test_the_pool_has_a_square_for_each_block_and_step_that_a_request_holds_it() -> None:
    drawn = rectangles(pool_over_time(STEPS, num_blocks=5))
    assert drawn[0] == (-0.5, -0.5, 2, 1), "the null block, in all steps"
    assert sorted((x + 0.5, y + 0.5) for x, y, _, _ in drawn[1:]) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 4)]


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
    assert [(x, round(y + 0.4)) for x, y, _, _ in rectangles(picture)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    prompts = [patch.get_hatch() for patch in picture.figure.axes[0].patches]
    assert prompts == ["///", "///", "", ""]


def test_seats_are_kept_and_the_first_free_one_is_taken_and_who_is_missing_is_a_bubble() -> None:
    steps = [{"running": ["A", "B"]}, {"running": ["B"]}, {"running": ["B", "C"]}]
    assert seats_taken(steps, 2) == [["A", "B"], [None, "B"], ["C", "B"]]
    picture = seats_over_time({"one": steps}, num_seats=2)
    axes = picture.figure.axes[0]
    assert len(axes.patches) == 6
    bubbles = [(patch.get_x(), round(patch.get_y() + 0.4)) for patch in axes.patches if patch.get_hatch() == "xx"]
    assert bubbles == [(1, 0)], "the seat that A left"
    assert [(t.get_text(), *t.get_position()) for t in axes.texts] == [("A", 0.5, 0), ("B", 0.5, 1), ("C", 2.5, 0)]
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
    picture = rotary_pairs({"fast": [(1, 0), (0, 1)], "slow": [(1, 0), (0.6, 0.8)]}, products)
    circle, lines = picture.figure.axes
    points = [list(zip(*line.get_data(), strict=True)) for line in circle.lines]
    assert points[0] == [(1, 0), (0, 1)]
    assert points[1] == [pytest.approx((1.32, 0)), pytest.approx((0.792, 1.056))], "on a circle of its own"
    assert [text.get_text() for text in circle.texts] == ["0", "1", "0", "1"]
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
    assert len({tuple(p.get_facecolor()) for p in axes.patches if p.get_hatch() is None}) == 3, "a shade for each weight"
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first query on top"


def test_the_likeliest_tokens_have_bars_as_long_as_they_are_probable() -> None:
    picture = likeliest(["sun", "rain"], [0.75, 0.125])
    assert [(round(y + 0.38), width) for _, y, width, _ in rectangles(picture)] == [(0, 0.75), (1, 0.125)]
    assert [text.get_text() for text in picture.figure.axes[0].texts] == [" 75.0%", " 12.5%"]


def test_what_is_kept_is_drawn_as_it_is_now_and_what_is_cut_off_hatched_as_it_was() -> None:
    ways = {"top_k=1": [1.0, 0.0], "temperature=2": [0.6, 0.4], "temperature=1": [0.75, 0.25]}
    picture = probabilities_changed(["sun", "rain"], [0.75, 0.25], ways, columns=2)
    panels = picture.figure.axes
    assert [(patch.get_width(), patch.get_hatch()) for patch in panels[0].patches] == [(1.0, None), (0.25, "xxx")]
    assert [width for _, _, width, _ in rectangles(picture, 1)] == [0.6, 0.4]
    ticks = [segment[0][0] for tick in panels[1].collections for segment in tick.get_segments()]
    assert ticks == [0.75, 0.25], "as the network gave it"
    assert [axes.get_visible() for axes in panels] == [True, True, True, False]


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
    drawn = rectangles(bytes_for_a_token(8 * 10**9, 10**9, (1, 4)))
    assert [(round(x + 0.35), y, height) for x, y, _, height in drawn] == [(0, 0, 8), (1, 0, 2), (0, 8, 1), (1, 2, 1)]


def test_drawing_leaves_other_peoples_figures_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with canvas(2.0):
        pass
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("guess", "measured", "said"), [
    (None, 4, "steps: 4 steps  (no guess made"),
    (4, 4, "steps: 4 steps, as you guessed"),
    (8, 4, "steps: 4 steps; your guess was 8 steps, 2 times too high"),
    (1, 4, "steps: 4 steps; your guess was 1 steps, 4 times too low"),
    (0, 4, "steps: 4 steps; your guess was 0 steps"),
])
def test_a_guess_is_shown_beside_what_was_measured(guess, measured, said, capsys) -> None:
    beside("steps", guess, measured, "steps")
    assert capsys.readouterr().out.startswith(said)
