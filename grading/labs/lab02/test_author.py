"""Lab 02's own promises: every number of the README's worked example, computed, and what it says fails."""

import asyncio
import itertools
import re
from pathlib import Path

import pytest

from labs.harness.catalog import find_lab
from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine, EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[3]
LAB = find_lab("02", PROJECT / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")

EXAMPLE = {"A": (6, 3), "B": (3, 4)}
"""Request -> (tokens of its prompt, tokens to generate)."""


def serve(*names: str) -> tuple[list[dict], list[list]]:
    """The recorder's steps and the outputs of each, for the example's requests, blocks of 4."""
    engine = LLMEngine.from_engine_args(EngineArgs(model="course-draft", block_size=4), recorder=Recorder())
    for name in names:
        length, tokens = EXAMPLE[name]
        prompt = {"prompt_token_ids": list(itertools.islice(itertools.count(300 + ord(name)), length))}
        engine.add_request(name, prompt, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True))
    shown = []
    while engine.has_unfinished_requests():
        shown.append(engine.step())
    return engine.recorder.steps, shown


def test_the_table_of_the_worked_example_is_what_the_engine_does():
    steps, shown = serve("A", "B")
    rows = []
    for step, outputs in zip(steps, shown, strict=True):
        chunks = {chunk["request"]: chunk for chunk in step["chunks"]}
        blocks = {name: str(len(table)) for name, table in step["block_tables"].items()}
        streams = [
            f"{o.request_id}: {n} token{'s' * (n > 1)}{', finished' * o.finished}"
            for o in sorted(outputs, key=lambda o: o.request_id)
            for n in [len(o.outputs[0].token_ids)]
        ]
        separator = "; " if any("finished" in stream for stream in streams) else ", "
        rows.append(
            [
                str(step["step"]),
                *(positions(chunks.get(n)) for n in "AB"),
                *(blocks.get(n, "–") for n in "AB"),
                separator.join(streams),
            ]
        )
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| \d .*$", README, re.MULTILINE)]
    assert written == rows


def positions(chunk: dict | None) -> str:
    """`0–5`, `6`, or a dash for nothing."""
    if chunk is None:
        return "–"
    first, last = chunk["start"], chunk["start"] + chunk["num_tokens"] - 1
    return str(first) if first == last else f"{first}–{last}"


def test_the_sums_of_the_worked_example():
    together, alone = len(serve("A", "B")[0]), [len(serve(name)[0]) for name in "AB"]
    assert f"take **{together} steps**" in README
    assert f"they take {alone[0]} + {alone[1]} = **{sum(alone)}**" in README
    computed = sum(chunk["num_tokens"] for step in serve("A")[0] for chunk in step["chunks"])
    assert f"6 + 3 − 1 = {computed} computed tokens fill {-(-computed // 4)} blocks exactly" in README


async def test_the_case_that_fails_fails_with_the_words_of_the_readme():
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course-draft"))
    try:
        with pytest.raises(TypeError) as caught:
            await engine.generate("Hi", SamplingParams(), "req-a")
    finally:
        engine.shutdown()
    assert f"TypeError: {caught.value}" in README


async def test_two_requests_under_one_id_are_served_and_one_abort_ends_both():
    """What the README says under "Managing requests"."""
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course-draft"))
    long, short = (SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (400, 3))

    async def serve_as_req_1(params, started=None):
        async for output in engine.generate("Hi", params, "req-1"):
            if started:
                started.set()
        return output.outputs[0].finish_reason

    try:
        assert await asyncio.gather(*(serve_as_req_1(short) for _ in "ab")) == ["length", "length"]
        events = [asyncio.Event(), asyncio.Event()]
        both = [asyncio.create_task(serve_as_req_1(long, event)) for event in events]
        for event in events:
            await event.wait()
        await engine.abort("req-1")
        assert await asyncio.gather(*both) == ["abort", "abort"]
    finally:
        engine.shutdown()
