"""Lab 02's own promises: the README's worked example, and the wrong solutions its tests must catch."""

import ast
import asyncio
import copy
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labs.harness import regions
from labs.harness.catalog import find_lab
from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine, EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
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
            f"{o.request_id}: {len(o.outputs[0].token_ids)} token{'s' * (len(o.outputs[0].token_ids) > 1)}{', finished' * o.finished}"
            for o in sorted(outputs, key=lambda o: o.request_id)
        ]
        separator = "; " if any("finished" in stream for stream in streams) else ", "
        rows.append([str(step["step"]), *(positions(chunks.get(n)) for n in "AB"), *(blocks.get(n, "–") for n in "AB"), separator.join(streams)])
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


# Wrong solutions must be caught, right ones that are built differently must pass: see variants/.


def read_variants(name: str) -> dict[str, tuple[int, ast.AST]]:
    """Function name -> (its TODO, the function) from a file in variants/."""
    tree = ast.parse((Path(__file__).parent / "variants" / name).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: (int(re.match(r"todo_(\d+)_", node.name)[1]), node) for node in functions}


WRONG, RIGHT = read_variants("lab02_wrong.py"), read_variants("lab02_right.py")

RUNNER = """
import json, sys, pytest
suite, jobs = sys.argv[1], json.loads(sys.argv[2])
for path, report, select in jobs:
    pytest.main([suite, "-q", "-k", select, "--impl", path, "--lab-json", report, "--plain", "--tb=no", "-p", "no:cacheprovider"])
"""


def variants() -> list[tuple[list[str], str]]:
    """Files to test: (names of what was replaced, source).

    A file holds one wrong solution of each TODO. They do not get into each other's way: where a
    TODO that failed is needed by a later one, our function stands in for it.
    """
    by_todo: dict[int, list[str]] = {}
    for name, (todo, _) in WRONG.items():
        by_todo.setdefault(todo, []).append(name)
    groups = [[name for name in names if name] for names in itertools.zip_longest(*by_todo.values())]
    return [(names, with_functions(WRONG | RIGHT, names)) for names in [*groups, list(RIGHT)]]


def with_functions(functions: dict[str, tuple[int, ast.AST]], names: list[str]) -> str:
    """The solution with the functions `names` in the places of their TODOs'."""
    solution = LAB.solution.read_text(encoding="utf-8")
    tree, places = ast.parse(solution), regions.functions_of(solution)
    for name in names:
        todo, function = functions[name]
        (place,) = places[todo]
        function = copy.deepcopy(function)
        function.name = place
        tree = regions.with_stand_ins(tree, ast.Module([function], []), [place])
    return ast.unparse(tree)


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> dict[str, list[dict]]:
    """Every variant's outcomes; one process runs them all, so that torch is imported once."""
    folder = tmp_path_factory.mktemp("variants")
    jobs, files = [], variants()
    for number, (names, source) in enumerate(files):
        todos = {(WRONG | RIGHT)[name][0] for name in names}
        path, report = folder / f"v{number}.py", folder / f"v{number}.json"
        path.write_text(source, encoding="utf-8")
        jobs.append((str(path), str(report), " or ".join(f"todo_{todo}_" for todo in todos)))
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    env["PYTHONPATH"] = os.pathsep.join([str(PROJECT), str(PROJECT / "reference_engine")])
    run = subprocess.run(
        [sys.executable, "-c", RUNNER, str(LAB.tests), json.dumps(jobs)], cwd=PROJECT, env=env,
        capture_output=True, text=True, timeout=300,
    )
    reports = [Path(report) for _, report, _ in jobs]
    assert all(report.is_file() for report in reports), run.stdout + run.stderr
    outcomes = [json.loads(report.read_text())["02"] for report in reports]
    return {name: found for (names, _), found in zip(files, outcomes, strict=True) for name in names}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_solution_is_caught_by_a_test_of_its_todo(judged, name: str):
    todo = WRONG[name][0]
    own = [outcome for outcome in judged[name] if outcome["todo"] == todo]
    assert own and not all(outcome["passed"] for outcome in own), f"{name!r} passed every test of TODO {todo}"


def test_right_solutions_that_are_built_differently_pass(judged):
    for name in RIGHT:
        assert [outcome["test"] for outcome in judged[name] if not outcome["passed"]] == []
