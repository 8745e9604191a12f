"""The terminal: what people type, and one line instead of a traceback when something is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nano_qwen3_serving import LLM, cli
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError
from nano_qwen3_serving.observe.terminal import is_terminal, prepare_streams
from nano_qwen3_serving.observe.trace import Recorder

pytestmark = pytest.mark.slow

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


def test_chat_counts_what_the_last_answer_cost_and_forgets_on_request():
    output = run("chat", "--max-tokens", "8", input="/stats\nWhat is a KV cache?\nAnd paged attention?\n/stats\n/reset\n/stats\n")
    before, after, forgotten = output.split("The conversation has ")[1:]
    assert "Nothing has been answered yet" in output and before.startswith("0 tokens")
    cost = re.search(r"Last answer: 8 tokens, the first after [\d.]+ s, then [\d.]+ tokens/s; (\d+) of (\d+) prompt", before)
    tokenizer = LLM("course").get_tokenizer()
    asked = len(tokenizer.encode(tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is a KV cache?"}], add_generation_prompt=True)))
    cached, prompt = int(cost[1]), int(cost[2])
    assert prompt > asked + 8, "the second prompt has the first answer"
    assert cached == asked // 16 * 16 and prompt < int(after.split()[0]) < prompt + 20
    assert "The conversation is forgotten" in output and forgotten.startswith("0 tokens")


def test_chat_names_its_commands_and_sends_what_begins_with_two_slashes():
    output = run("chat", "--max-tokens", "3", input="/help\n/quit now\n//stats\n/stats\n")
    assert output.count("/reset") == 2 and "no command /quit; there are /stats, /reset, /help" in output
    assert "double its slash: //quit now" in output
    assert output.count("Model:") == 1 and output.count("The conversation has") == 1
    assert "You: /stats" in run("chat", "/stats", "--max-tokens", "3"), "on the command line it is a question"


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


@pytest.mark.proof
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


# --- any terminal, any text


def command(*arguments: str | bytes, encoding: str = "utf-8", given: str = "", module: str = "nano_qwen3_serving"):
    """A real process: (exit status, its output and its errors as bytes of `encoding`)."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], input=given.encode(encoding), capture_output=True, timeout=240,
        env=os.environ | {"PYTHONIOENCODING": encoding})
    return done.returncode, done.stdout, done.stderr


QUESTIONS = ["What does [/INST] mean?", "In a[bold] and b[red], what is in brackets?", "what is x[/b]? :smile:"]


def test_what_people_write_is_shown_as_they_wrote_it():
    output = run("chat", *QUESTIONS, "--max-tokens", "3")
    for question in QUESTIONS:
        assert f"You: {question}" in output
    assert "[/INST] :smile: a[red]" in run("generate", "[/INST] :smile: a[red]", "--max-tokens", "1")


def test_a_long_answer_is_not_broken_into_lines():
    result = runner.invoke(cli.app, ["generate", "word " * 60, "--max-tokens", "1"], env={"COLUMNS": "40"})
    assert "word " * 59 in result.output


def test_a_thousand_empty_lines_are_a_thousand_empty_lines():
    output = run("chat", "--max-tokens", "4", input="\n" * 1500 + "Hello!\n")
    assert output.count("Model:") == 1


def test_a_conversation_longer_than_the_context_goes_on_without_its_beginning():
    long = "Tell me about a KV cache. " * 100
    output = run("chat", "--max-tokens", "4", input=f"{long}\n" * 4 + "What is a KV cache?\n")
    assert "its beginning is forgotten" in output and output.count("Model:") == 5


def test_a_question_that_cannot_be_answered_does_not_end_the_conversation():
    output = run("chat", "--max-tokens", "12", input="word " * 3000 + "\nWhat is a KV cache?\n")
    assert output.count("error:") == 1 and "max_model_len" in output and "A KV cache stores" in output


@pytest.mark.proof
@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii"])
def test_every_text_is_written_in_every_encoding(encoding: str):
    status, output, errors = command("generate", "你好 😀 é…", "--max-tokens", "3", encoding="utf-8")
    assert status == 0 and "你好 😀 é…".encode() in output
    status, output, errors = command("chat", encoding=encoding, given="What is a KV cache?\n")
    assert (status, errors) == (0, b"") and b"KV cache stores" in output
    for module, arguments in (("nano_qwen3_serving", ["generate", "你好 😀 – é…", "--max-tokens", "3"]),
                              ("labs", ["hint", "06", "1", "--all"]), ("labs", ["list"]), ("grading", ["--help"])):
        status, output, errors = command(*arguments, encoding=encoding, module=module)
        assert status == 0, errors.decode(encoding)
        assert output.decode(encoding)
        if module == "nano_qwen3_serving":
            said = output.decode(encoding)
            assert {"ascii": "- e...", "cp1252": "– é…", "cp932": " e…"}[encoding] in said and "\\U0001f600" in said


def test_an_argument_that_is_no_text_is_one_line_on_standard_error():
    status, output, errors = command("generate", b"Gr\xfc\xdfe")
    assert (status, output) == (1, b"")
    assert errors.startswith(b"error: prompt has half of a surrogate pair") and errors.count(b"\n") == 1


class Log:
    """What many services put in place of sys.stderr."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Log(), closed()], ids=["none", "a log", "closed"])
def test_an_engine_needs_no_standard_streams(stream, monkeypatch: pytest.MonkeyPatch, make_llm):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    prepare_streams()
    output = make_llm().generate("Hello", cli.SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    assert len(output[0].outputs[0].token_ids) == 3
    assert not is_terminal(sys.stderr)


@pytest.mark.parametrize(("text", "expected"), [
    ("a → b", "a -> b"), ("1 – 2 … “x”", '1 - 2 ... "x"'), ("Grüße, Ångström", "Gru\\xdfe, Angstrom"), ("│ ─ ✓", "| - +"),
    ("你", "\\u4f60"), ("ﬁ", "fi"), ("plain", "plain"),
])  # fmt: skip
def test_what_an_encoding_lacks_is_written_plainly(text: str, expected: str):
    prepare_streams()
    assert text.encode("ascii", "readable").decode() == expected
