"""The terminal: what people type, and one line instead of a traceback when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nano_qwen3_serving import cli
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError
from nano_qwen3_serving.observe.trace import Recorder

runner = CliRunner()


def run(*arguments: str, **kwargs):
    result = runner.invoke(cli.app, list(arguments), catch_exceptions=False, **kwargs)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_generate_completes_each_prompt():
    output = run("generate", "Explain async programming in Python", "What is a KV cache?")
    assert "Async programming in Python allows" in output and "A KV cache stores" in output


def test_chat_answers_each_question_given():
    output = run("chat", "What is a KV cache?", "What is paged attention?", "--max-tokens", "12")
    assert output.count("You:") == output.count("Model:") == 2 and "A KV cache stores" in output


def test_chat_asks_until_the_end_of_input_and_remembers():
    output = run("chat", "--max-tokens", "8", input="What is a KV cache?\n\nHello!\n")
    assert output.count("Model:") == 2 and "Hello!" in output


def test_verify_compares_with_transformers_and_writes_one_json(tmp_path: Path):
    output = run("verify", "course", "--device", "cpu", "--out", str(tmp_path / "v.json"))
    report = json.loads((tmp_path / "v.json").read_text("utf-8"))
    assert report["passed"] and "DIFFERS" not in output
    forms = {c["form"] for c in report["comparisons"]}
    assert forms == {"plain", "chat, thinking", "chat, no thinking"}
    assert all(c["logits_relative_error"] < 1e-4 for c in report["comparisons"])
    assert report["speed"].keys() == {"tokens_per_second_batch_1", "tokens_per_second_batch_8"}
    assert report["peak_memory_bytes"] > 0 and report["versions"]["torch"]
    assert [p.name for p in tmp_path.iterdir()] == ["v.json"], "a temporary file was left"


def test_verify_notices_an_engine_that_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nano_qwen3_serving.model.layers import RMSNorm

    right = RMSNorm.forward
    monkeypatch.setattr(RMSNorm, "forward", lambda self, x: right(self, x) * 1.01)
    result = runner.invoke(cli.app, ["verify", "course", "--device", "cpu", "--out", str(tmp_path / "v.json")])
    assert result.exit_code == 1 and "DIFFERS" in result.output
    assert json.loads((tmp_path / "v.json").read_text("utf-8"))["passed"] is False


def test_bench_prints_numbers_or_one_json_object():
    assert "output tokens per second" in run("bench", "--workload", "quick", "--repeats", "1")
    report = json.loads(run("bench", "--workload", "quick", "--repeats", "2", "--json"))
    assert report["workload"]["requests"] == 4 and len(report["runs"]) == 2
    assert report["median"]["output_tokens_per_second"] > 0
    assert {"commit", "versions", "platform"} <= report["host"].keys() and report["seed"] == 0


def test_bench_names_the_workloads_there_are():
    with pytest.raises(InvalidParametersError, match="no workload 'nosuch'; there are decode-1"):
        run("bench", "--workload", "nosuch")


def test_trace_turns_records_into_what_a_browser_shows(tmp_path: Path, make_llm):
    recorder = Recorder(tmp_path / "steps.jsonl")
    make_llm(recorder=recorder).generate("Hello", cli.SamplingParams(max_tokens=3, ignore_eos=True))
    recorder.close()
    assert "3 steps" in run("trace", str(tmp_path / "steps.jsonl"), str(tmp_path / "trace.json"))
    assert json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]


def test_fuzz_runs_and_counts():
    assert "Nothing went wrong" in run("fuzz", "--requests", "10", "--seed", "3")


@pytest.mark.parametrize("arguments", [["generate", "x", "--model", "nosuch"], ["generate", ""],
                                       ["chat", "x", "--device", "abacus"]])
def test_a_mistake_is_one_line_on_standard_error(arguments, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("sys.argv", ["nano_qwen3_serving", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_the_errors_behind_those_lines_are_ours():
    with pytest.raises(ModelLoadError, match="nosuch"):
        run("generate", "x", "--model", "nosuch")
