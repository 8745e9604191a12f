"""The flight recorder: it tells what happened, costs nothing when off, and browsers can show it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.observe.chrome import chrome_trace
from nano_qwen3_serving.observe.trace import Recorder

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def recorded(make_llm: Callable[..., LLM], tmp_path: Path):
    """The example of reference_engine/README.md: requests 0 (A) and 1 (B), block size 4."""
    recorder = Recorder(tmp_path / "steps.jsonl")
    llm = make_llm(block_size=4, num_gpu_blocks_override=9, max_num_batched_tokens=8, max_num_seqs=4, recorder=recorder)
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (4, 16)]
    outputs = llm.generate(["What is a KV cache?", "Count from 1 to 3"], params)
    recorder.close()
    return recorder, outputs, tmp_path / "steps.jsonl"


def test_the_readmes_example_is_what_the_engine_does(recorded):
    recorder, _, _ = recorded
    rows = re.findall(r"^\| (\d+) \| ([\d–]+) \| ([\d–]+) \| ([\d –]+) \| ([\d –]+) \|", README.read_text("utf-8"), re.M)
    assert len(rows) == 6
    for number, *cells in rows:
        step = recorder.steps[int(number)]
        chunks = {c["request"]: c for c in step["chunks"]}
        for request, computed, blocks in (("0", cells[0], cells[2]), ("1", cells[1], cells[3])):
            chunk = chunks.get(request)
            if chunk is None:
                assert computed == "–" and blocks == "–"
                continue
            first, last = chunk["start"], chunk["start"] + chunk["num_tokens"] - 1
            assert computed == (f"{first}–{last}" if last > first else str(first))
            assert blocks == " ".join(map(str, step["block_tables"][request]))


def test_a_line_is_written_for_every_step_and_is_the_record(recorded):
    recorder, _, path = recorded
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == recorder.steps
    assert [s["step"] for s in recorder.steps] == list(range(len(recorder.steps)))


def test_the_sampled_tokens_are_the_outputs(recorded):
    recorder, outputs, _ = recorded
    for i, output in enumerate(outputs):
        sampled = [t for s in recorder.steps for t in s["sampled"].get(str(i), [])]
        assert sampled == output.outputs[0].token_ids


def test_queues_blocks_and_ends_are_told(make_llm):
    recorder = Recorder()
    llm = make_llm(block_size=4, num_gpu_blocks_override=14, max_num_seqs=2, recorder=recorder)
    llm.generate(["Hello"] * 4, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    assert recorder.steps[0]["waiting"] == ["2", "3"] and recorder.steps[0]["running"] == ["0", "1"]
    assert any(s["preempted"] for s in recorder.steps)
    ends = {request: reason for s in recorder.steps for request, reason in s["finished"].items()}
    assert ends == dict.fromkeys("0123", "length")
    assert recorder.steps[-1]["free_blocks"] == 13
    assert recorder.steps[-1]["evictions"] >= 0
    assert all(sum(s["seconds"].values()) >= 0 for s in recorder.steps)


def test_without_a_recorder_nothing_is_gathered(make_llm, monkeypatch: pytest.MonkeyPatch):
    def never(*_):
        raise AssertionError("the recorder worked while it was off")

    monkeypatch.setattr(Recorder, "on_step", never)
    make_llm().generate("Hello", SamplingParams(max_tokens=2))


def test_the_trace_has_a_row_per_request_and_every_step(recorded):
    recorder, _, _ = recorded
    events = json.loads(json.dumps(chrome_trace(recorder.steps)))["traceEvents"]
    names = {e["args"]["name"]: e["tid"] for e in events if e["ph"] == "M"}
    assert names.keys() == {"engine", "request 0", "request 1"}
    engine = [e for e in events if e["ph"] == "X" and e["tid"] == 0]
    assert len(engine) == 3 * len(recorder.steps)
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in engine)
    first = [e for e in events if e["ph"] == "X" and e["tid"] == names["request 0"]]
    assert [e["name"] for e in first] == ["tokens 0–5", "token 6", "token 7", "token 8"]
    assert {e["name"] for e in events if e["ph"] == "C"} == {"requests", "free blocks"}


def test_no_steps_give_an_empty_trace():
    assert [e["ph"] for e in chrome_trace([])["traceEvents"]] == ["M"]
