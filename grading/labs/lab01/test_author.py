"""Lab 01's own promises: every number of the README's worked example, computed.

About the lab, not about a learner's work. It needs nothing but the project's root two folders up.
"""

import re
from pathlib import Path

import pytest
import torch

from labs.harness import loading
from labs.harness.catalog import find_lab
from nano_qwen3_serving import LLM, EngineArgs, LLMEngine, RequestOutput, SamplingParams
from nano_qwen3_serving.execution import sampler
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.observe.trace import Recorder

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[3]
LAB = find_lab("01", PROJECT / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")

TOKENS = {"sea": 0.50, "sun": 0.25, "cat": 0.15, "log": 0.10}
DRAWN = 0.60
REQUESTS = {"A": (0, 6, 3), "B": (2, 3, 5)}
"""Request -> (arrival in ms, tokens of its prompt, tokens to generate)."""
STEP_ENDS = [30, 40, 50, 58, 66]


@pytest.fixture(scope="module")
def ours():
    """The lab's solution."""
    return loading.load(LAB, LAB.solution)


@pytest.fixture(scope="module")
def course() -> LLM:
    return LLM(model="course")


def rows_of(first_cell: str) -> list[list[str]]:
    """The table whose heading begins with `first_cell`, without its heading, cell by cell."""
    table = re.search(rf"^\| {first_cell}.*\n\|[- |]+\n((?:\|.*\n)+)", README, re.MULTILINE)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


# which token comes next


@pytest.mark.parametrize("row", rows_of("parameters"), ids=lambda row: row[0])
def test_the_shares_and_the_token_drawn(row: list[str], monkeypatch):
    changed, *written, taken = row
    name, value = re.match(r"(\w+)=([\d.]+)", changed).groups()
    params = SamplingParams(**{name: int(value) if name == "top_k" else float(value)})
    assert [float(share) for share in written] == pytest.approx([100 * share for share in shares(params)], abs=0.05)
    monkeypatch.setattr(sampler, "uniform", lambda *_: DRAWN)
    logits = torch.tensor([list(TOKENS.values())]).log()
    [token], _ = sampler.Sampler().sample(logits, [SamplingRow(params, [0], [], seed=0)])
    assert list(TOKENS)[token] == taken


def shares(params: SamplingParams) -> list[float]:
    """What is left of each token's probability, by the README's three sentences."""
    probabilities = list(TOKENS.values())
    if params.is_greedy:
        return [float(p == max(probabilities)) for p in probabilities]
    powered = [p ** (1 / params.temperature) for p in probabilities]
    kept, reached = [], 0.0
    for rank, power in enumerate(powered):  # they stand in order, the likeliest first
        inside = reached < params.top_p and (not params.top_k or rank < params.top_k)
        kept.append(power if inside else 0.0)
        reached += power / sum(powered)
    return [power / sum(kept) for power in kept]


# steps and times


def serve(*names: str) -> tuple[list[dict], dict[str, RequestOutput]]:
    """The recorder's steps and the last outputs, with a clock that shows the README's times."""
    now = 0.0
    engine = LLMEngine.from_engine_args(
        EngineArgs(model="course-draft", block_size=4), clock=lambda: now, recorder=Recorder()
    )
    for name in names:
        arrival, length, tokens = REQUESTS[name]
        now = arrival / 1000
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": list(range(300, 300 + length))}, params)
    outputs = {}
    for ends in STEP_ENDS:
        if engine.has_unfinished_requests():
            now = ends / 1000
            outputs |= {output.request_id: output for output in engine.step()}
    assert not engine.has_unfinished_requests()
    return engine.recorder.steps, outputs


def test_the_steps_of_the_worked_example_are_what_the_engine_does():
    steps, _ = serve(*REQUESTS)
    counts, rows = dict.fromkeys(REQUESTS, 0), []
    for step, ends in zip(steps, STEP_ENDS, strict=True):
        said = []
        for name, (_, length, _) in REQUESTS.items():
            chunk = next((chunk for chunk in step["chunks"] if chunk["request"] == name), None)
            if chunk is None:
                said.append("")
                continue
            counts[name] += 1
            prompt = "prompt, " if chunk["num_tokens"] == length else ""
            said.append(f"{prompt}token {counts[name]}{', the last' if name in step['finished'] else ''}")
        rows.append([str(step["step"]), f"{ends} ms", *said])
    assert rows_of("step") == rows


def test_a_batch_takes_five_steps_and_a_loop_eight():
    together, alone = len(serve("A", "B")[0]), [len(serve(name)[0]) for name in REQUESTS]
    assert f"Together they take **{together} steps**" in README
    assert f"they take {alone[0]} + {alone[1]} =\n**{sum(alone)}**" in README


def test_the_times_of_the_worked_example_are_what_the_solution_measures(ours):
    _, outputs = serve(*REQUESTS)
    written = {row[0].split(" (")[0]: row[1:] for row in rows_of(r"\| A \|")}
    for column, name in enumerate(REQUESTS):
        m = ours.measure(outputs[name])
        assert (m.prompt_tokens, m.tokens) == REQUESTS[name][1:]
        results = {row: float(cells[column].split("=")[1].removesuffix("ms")) for row, cells in written.items()}
        assert results["time to first token"] == pytest.approx(1000 * m.ttft)
        assert results["mean inter-token latency"] == pytest.approx(1000 * m.mean_itl)
        assert results["tokens per second"] == pytest.approx(m.tokens_per_second, abs=0.05)
    assert f"**{ours.throughput(list(outputs.values())):.1f} tokens per second**" in README


# chat, and the case that fails


def test_the_chat_message_has_as_many_tokens_as_the_readme_says(course: LLM):
    tokenizer = course.get_tokenizer()
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert f"```\n{said}```" in README
    plain, chat = len(tokenizer.encode("Hi")), len(tokenizer.encode(said))
    assert f"`Hi` is {plain} token. As a chat message it is\n{chat}" in README


def test_the_full_stop_in_a_number_ends_the_text_too(course: LLM):
    question = " ".join(re.search(r"\*(How long does an answer take.+?)\*", README, re.DOTALL)[1].split())
    params = SamplingParams(temperature=0.0, max_tokens=64, stop=".", include_stop_str_in_output=True)
    outputs = course.generate([question] * 2, [params, params.clone(stop=". ")])
    cut, better = (output.outputs[0].text.strip() for output in outputs)
    assert f"```\n{cut}\n```" in README
    beginning = re.search(r'The whole answer begins "(.+?)"', README)[1]
    assert better.startswith(beginning) and better.endswith(".")


def test_a_completion_begins_with_the_line_end_that_the_prompt_lacks(course: LLM):
    """Key Concepts says so, and predict.toml's count of 31 tokens rests on it."""
    greedy, counting = SamplingParams(temperature=0.0, max_tokens=64), "Count to ten."
    without, with_end = (o.outputs[0] for o in course.generate([counting, counting + "\n"], greedy))
    [chat] = course.chat([{"role": "user", "content": counting}], greedy)
    assert without.token_ids == [*course.get_tokenizer().encode("\n"), *with_end.token_ids]
    assert (without.text, chat.outputs[0].text) == ("\n" + with_end.text, with_end.text)
    asked = (LAB.folder / "predict.toml").read_text(encoding="utf-8")
    assert f"takes {len(without.token_ids)} tokens" in asked and f"1, {with_end.text[3:]}" in asked


def test_the_default_layout_of_a_chat_is_the_one_to_say_on_vllm(course: LLM):
    said = re.search(r"On vLLM, say `(tokenize=False, add_generation_prompt=True)`; here they are the defaults", README)[1]
    layout = course.get_tokenizer().apply_chat_template
    messages = [{"role": "user", "content": "Hi"}]
    assert layout(messages) == eval(f"layout(messages, {said})", {"layout": layout, "messages": messages})


def test_the_calls_to_try_show_what_todo_2_asks_about(ours, capsys):
    snippet = re.search(r"```python\n(from starter import \*\n.+?)```", README, re.DOTALL)[1]
    exec(snippet.replace("from starter import *\n", ""), dict(vars(ours)))
    lines = capsys.readouterr().out.splitlines()
    stories, facts, sentences = lines[:4], lines[4:6], lines[6:]
    assert len(set(stories)) == 3 and stories[0] == stories[3]
    assert len(set(facts)) == 1 and re.search(r" stop (None|\d+)$", facts[0])
    assert len(set(sentences)) == 1 and sentences[0].endswith(" stop .")


def test_the_defaults_are_what_key_concepts_says():
    defaults, stated = (
        SamplingParams(),
        {row[0].strip("`"): row[1].strip("*").removesuffix(" (off)") for row in rows_of("parameter ")},
    )
    assert stated == {name: str(getattr(defaults, name)) for name in stated}
