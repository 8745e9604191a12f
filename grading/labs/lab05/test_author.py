"""Lab 05's own promises: the README's worked example, and the network, model and picture that it gives."""

import contextlib
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from labs.harness import loading
from labs.harness.catalog import find_lab
from labs.lab05_kv_cache_and_roofline import drawing, machine
from labs.lab05_kv_cache_and_roofline.network import Network
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.model.checkpoint import BUNDLED, read_model_config
from nano_qwen3_serving.testing.checkpoints import Shape, write_random_checkpoint
from nano_qwen3_serving.testing.oracle import Oracle

pytestmark = pytest.mark.slow

LAB = find_lab("05", Path(__file__).parents[3] / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(README.split())

TINY = ModelConfig(
    vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, max_position_embeddings=64)
PROMPT, NEW, CONTEXT = 6, 3, 8


@pytest.fixture(scope="module")
def lab():
    return loading.load(LAB, LAB.solution)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Network:
    """The example's model, with random weights."""
    fields = {name: getattr(TINY, name) for name in vars(Shape()) if hasattr(TINY, name) and name != "rope_theta"}
    return Network(write_random_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", Shape(**fields)), torch.bfloat16)


def test_the_network_refuses_angles_that_it_does_not_compute(tmp_path):
    folder = write_random_checkpoint(tmp_path / "checkpoint", Shape())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="YaRN.* without YaRN") as caught:
        Network(folder)
    assert str(folder) in str(caught.value)


def spans_of(generate, network: Network) -> list[tuple[int, int]]:
    """Which positions each pass of request A computes."""
    spans = []

    def watched(token_ids, start, append):
        spans.append((start, start + len(token_ids)))
        return network(token_ids, start, append)

    watched.config, watched.dtype = network.config, network.dtype
    generate(watched, list(range(PROMPT)), NEW)
    return spans


def test_the_tokens_of_request_a(lab, tiny):
    sizes = [end - start for start, end in spans_of(lab.generate_uncached, tiny)]
    assert f"the passes compute {sizes[0]}, {sizes[1]} and {sizes[2]} tokens, {sum(sizes)} in all" in WORDS
    spans = spans_of(lab.generate_cached, tiny)
    sizes = [end - start for start, end in spans]
    assert f"they compute {sizes[0]}, {sizes[1]} and {sizes[2]}:" in WORDS
    assert f"{PROMPT} + {NEW} − 1 = {sum(sizes)} tokens" in WORDS
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| [123] \| .*start \d \|$", README, re.M)
    ]
    called = ["the prompt", "the first new token", "the second new token"]
    assert rows == [
        [str(i), f"{a}–{b - 1}" if b - a > 1 else str(a), str(b), f"{called[i - 1]}, start {a}"]
        for i, (a, b) in enumerate(spans, start=1)]


def test_the_bytes_and_flops_of_the_example(lab):
    token = lab.kv_bytes_per_token(TINY, torch.bfloat16)
    assert f"2 × 2 × 2 × 4 × 2 = {token} bytes. The {CONTEXT} tokens of A take {CONTEXT * token}." in WORDS
    matrices = lab.matrices_cost(TINY, 1, torch.bfloat16)
    head = TINY.hidden_size * TINY.vocab_size
    layer = (matrices.num_bytes // 2 - head) // TINY.num_hidden_layers
    assert (
        f"= 96 each: {layer}. Two layers and the head of 8 × 20 = {head} "
        f"make {matrices.num_bytes // 2} numbers, {matrices.num_bytes} bytes"
        in WORDS
    )
    assert f"the product is added: {matrices.flops} FLOPs" in WORDS
    attention = lab.attention_cost(TINY, 1, CONTEXT, torch.bfloat16)
    assert (
        f"2 × 2 × 2 × 4 × 4 × 8 = {attention.flops} FLOPs for each sequence. It reads the sequence's {attention.num_bytes} bytes"
        in WORDS
    )


def ceilings_of_the_example(lab):
    """Measured as the README tells it: by a clock that moves as it says."""
    took, now = iter([9, 3, 1, 2]), [0.0]

    def work():
        now[0] += next(took)

    seconds = lab.median_seconds(work, repeats=3, clock=lambda: now[0])
    return lab.Ceilings(lab.read_bandwidth(2000, lambda _: seconds), lab.matmul_rate(10, torch.bfloat16, lambda _: 0.5))


def test_the_ceilings_and_the_ridge_of_the_example(lab):
    ceilings = ceilings_of_the_example(lab)
    assert "takes 9 seconds, then 3, 1 and 2." in WORDS
    assert f"reads {ceilings.bytes_per_second:.0f} bytes a second" in WORDS
    assert f"takes 0.5 seconds: {ceilings.flops_per_second:.0f} FLOPs a second" in WORDS
    ridge = f"{ceilings.flops_per_second / ceilings.bytes_per_second:.0f}"
    assert f"The machine can do {ridge} FLOPs in the time it takes to read a byte" in WORDS
    assert f"So the ridge is at batch {lab.ridge_batch(torch.bfloat16, ceilings):.0f}." in WORDS


def test_the_table_of_batches(lab):
    ceilings, rows = ceilings_of_the_example(lab), []
    for batch in (1, 4, 16):
        cells = []
        for cost in (lab.matrices_cost(TINY, batch, torch.bfloat16), lab.attention_cost(TINY, batch, CONTEXT, torch.bfloat16)):
            compute, read = cost.flops / ceilings.flops_per_second, cost.num_bytes / ceilings.bytes_per_second
            text = [f"{compute:.3f} s", f"{read:.3f} s"]
            slower = int(read >= compute)
            text[slower] = f"**{text[slower]}**"
            cells.append(", ".join(text))
        step = lab.predict_step_seconds(TINY, batch, CONTEXT, torch.bfloat16, ceilings)
        rows.append(f"| {batch} | {cells[0]} | {cells[1]} | {step:.3f} s | {batch / step:.3f} |")
    assert re.findall(r"^\| \d+ \| .* s \| \d\.\d+ \|$", README, re.M) == rows


def test_the_case_that_fails_fails_with_the_words_of_the_readme(lab):
    cache = lab.ContiguousCache(TINY, 7, torch.bfloat16)
    new = [torch.zeros(n, TINY.num_key_value_heads, TINY.head_dim, dtype=torch.bfloat16) for n in (6, 1, 1)]
    cache.append(0, new[0], new[0])
    cache.append(0, new[1], new[1])
    with pytest.raises(ValueError) as caught:
        cache.append(0, new[2], new[2])
    assert f"ValueError: {caught.value}" in README


def test_the_networks_own_complaint_is_the_one_in_the_readme():
    network = Network("course")
    with pytest.raises(ValueError) as caught:
        network([5], 6, lambda layer, k, v: (k, v))
    assert f"ValueError: {caught.value}" in WORDS
    with pytest.raises(ValueError) as caught:  # one length for all layers
        network(list(range(6)), 0, lambda layer, k, v: (k.repeat(layer + 1, 1, 1), v.repeat(layer + 1, 1, 1)))
    assert f"ValueError: {caught.value}" in WORDS


def test_the_intensities_of_the_table_of_concepts(lab):
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (1, 8):
            assert lab.arithmetic_intensity(lab.matrices_cost(TINY, batch, dtype)) == 2 * batch / dtype.itemsize
            found = lab.arithmetic_intensity(lab.attention_cost(TINY, batch, 30, dtype))
            assert found == 2 * (TINY.num_attention_heads / TINY.num_key_value_heads) / dtype.itemsize
    config = read_model_config(BUNDLED / "course")
    megabytes = lab.matrices_cost(config, 1, torch.float32).num_bytes / 1e6
    assert f"{megabytes:.0f} MB in float32" in README


# what the lab gives


@pytest.mark.parametrize("shape", [
    Shape(vocab_size=300, hidden_size=48, num_attention_heads=6, tie_word_embeddings=False),
    Shape(attention_bias=True, num_key_value_heads=4)], ids=["untied", "bias"])
def test_the_given_network_gives_the_logits_of_transformers(tmp_path, shape):
    folder = write_random_checkpoint(tmp_path / "checkpoint", shape, seed=1)
    network, tokens = Network(folder), [7, 8, 9, 250, 3, 11]
    logits = network(tokens, 0, lambda layer, k, v: (k, v))
    expected = Oracle(folder).logits(tokens)[-1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    with pytest.raises(ValueError, match="without tokens"):
        network([], 0, lambda layer, k, v: (k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mebibytes", [1, 32, 260])
def test_the_generated_model_is_at_least_four_times_the_cache(lab, dtype, mebibytes):
    shape = machine.shape_beyond(mebibytes << 20, dtype)
    cost = lab.matrices_cost(shape, 1, dtype)
    assert cost.num_bytes >= 4 * (mebibytes << 20)
    fewer = Shape(**(vars(shape) | {"num_hidden_layers": shape.num_hidden_layers - 1}))
    head = shape.hidden_size * shape.vocab_size * dtype.itemsize
    assert lab.matrices_cost(fewer, 1, dtype).num_bytes - head < 4 * (mebibytes << 20), "one layer fewer would be enough"


def test_the_generated_model_is_removed_whatever_happens(tmp_path):
    shape = Shape()
    with contextlib.suppress(KeyboardInterrupt), machine.generated_checkpoint(shape, torch.float32, tmp_path / "place") as folder:
        assert (folder / "model.safetensors").is_file()
        raise KeyboardInterrupt
    assert list((tmp_path / "place").iterdir()) == []


def test_the_generated_model_is_written_in_silence(tmp_path, capfd):
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    with machine.generated_checkpoint(Shape(), torch.float32, tmp_path / "place"):
        assert logging.is_progress_bar_enabled() == shown
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("measured", "ridge", "warns"), [
    (9.0, 14.0, False), (10.5, 1.0, False), (12.0, 14.0, True), (9.0, 0.6, True), (9.0, 2100.0, True)])
def test_a_mismeasured_ceiling_is_named_on_the_error_stream(lab, capsys, measured, ridge, warns):
    lab.warn_of_ceilings(drawing.Curves({1: 10.0, 2: 20.0}, {1: measured, 2: 9.0}, ridge))
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("A ceiling was mismeasured") == warns and bool(said.err) == warns


@pytest.mark.parametrize("threads", ["0", "-2", "many"])
def test_a_count_of_threads_that_makes_no_sense_is_refused(lab, monkeypatch, capsys, threads):
    monkeypatch.setattr("sys.argv", ["starter.py", f"--threads={threads}"])
    with pytest.raises(SystemExit):
        lab.parse_arguments()
    assert f"expected a number from 1 on, not '{threads}'" in capsys.readouterr().err


def test_a_prepared_step_computes_one_token_of_each_sequence(tmp_path):
    folder = write_random_checkpoint(tmp_path / "checkpoint", Shape(vocab_size=2048))
    bench = machine.DecodeBench(folder, torch.float32, context=5, max_batch=8)
    for batch in (1, 8, 3):
        step = bench.prepare(batch)
        for _ in range(6):
            step()
            last = bench.recorder.steps[-1]
            assert [chunk["num_tokens"] for chunk in last["chunks"]] == [1] * batch
        assert 0 <= bench.share_outside_the_network(batch) <= 1


def curves() -> drawing.Curves:
    return drawing.Curves({1: 10.0, 2: 20.0, 4: 30.0, 8: 30.0}, {1: 9.0, 2: 15.0, 4: 18.0, 8: 27.0}, 3.0)


def test_the_picture_is_svg_with_axes_units_and_both_curves(tmp_path):
    drawing.write_svg(curves(), tmp_path / "picture.svg")
    for file in (tmp_path / "picture.svg", LAB.folder / "roofline.svg"):
        root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
        said = " ".join(element.text or "" for element in root.iter())
        for words in (
            "batch size (sequences in a step)",
            "throughput (tokens per second)",
            "ridge: batch",
            "measured",
            "predicted",
        ):
            assert words in said
        assert len([e for e in root.iter() if e.tag.endswith("polyline")]) == 2


def test_the_terminal_shows_every_measured_point_in_its_place(capsys):
    drawing.draw_in_terminal(curves())
    lines = capsys.readouterr().out.splitlines()
    assert "tokens/s" in lines[1] and "ridge, batch 3.0" in lines[1]
    points = sorted(
        (line.index("o", 11 if line[10] == "|" else 0), row) for row, line in enumerate(lines[2:-2]) if "o" in line[11:]
    )
    assert len(points) == 4
    assert [row for _, row in points] == sorted((row for _, row in points), reverse=True), (
        "more sequences, more tokens: higher up"
    )
