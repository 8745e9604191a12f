"""The bundled model as an agent's: it calls a calculator, a clock and a file reader, reads their results, and answers.

The loop is the one that OpenAI's client documents: ask, run the calls, send the results back, ask again. Nothing is forced.
"""

from __future__ import annotations

import ast
import json
import operator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install -r requirements-dev.txt")
for needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason="the server is not installed: pip install 'nano-qwen3-serving[server]'")

pytestmark = pytest.mark.slow

OPERATORS: dict[type, Any] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
FILES = {"notes.txt": "A block holds a few tokens.", "sums.txt": "17 * 23"}

FUNCTIONS: list[dict[str, Any]] = [
    {"name": "calculator", "description": "Computes an arithmetic expression.", "parameters": {
        "type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}},
    {"name": "clock", "description": "The time and the date.", "parameters": {"type": "object", "properties": {}}},
    {"name": "read_file", "description": "The text of a file.", "parameters": {
        "type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}]

CONVERSATION = [  # what the user asks, the tools that are called for it, the answer
    ("What is 12 * 7?", ["calculator"], "12 * 7 is 84."),
    ("What time is it?", ["clock"], "It is 09:41."),
    ("Read notes.txt.", ["read_file"], "notes.txt says: A block holds a few tokens."),
    ("What is a KV cache?", [], "A KV cache stores the attention keys and values of tokens that were already processed, so "
     "each new token needs only its own computation instead of a pass over the whole text."),
    ("Read sums.txt and compute what it says.", ["read_file", "calculator"], "The answer is 391."),
    ("Tell me the time, and calculate 8 + 5.", ["clock", "calculator"], "It is 09:41, and 8 + 5 is 13."),
    ("What is the date today?", ["clock"], "Today is 2026-11-30."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    for name, text in FILES.items():
        (path / name).write_text(text)
    return path


@pytest.fixture(scope="module")
def client(course_server):
    with openai.OpenAI(base_url=f"{course_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def run_tool(folder: Path, name: str, arguments: str) -> str:
    """What the tool really returns; only the clock stands still."""
    given = json.loads(arguments)
    if name == "calculator":
        return str(compute(ast.parse(given["expression"], mode="eval").body))
    return (folder / given["path"]).read_text() if name == "read_file" else "09:41 on 2026-11-30"


def compute(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return int(OPERATORS[type(node.op)](compute(node.left), compute(node.right)))
    return int(ast.literal_eval(node))


def whole_message(client: Any, asked: dict[str, Any]) -> dict[str, Any]:
    return dict(client.chat.completions.create(**asked).choices[0].message.model_dump(exclude_none=True))


def streamed_message(client: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The message that the client's own helper puts together from a stream."""
    with client.chat.completions.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    return dict(message.model_dump(exclude_none=True, exclude={"parsed"}))


@pytest.mark.parametrize("answer", [whole_message, pytest.param(streamed_message, marks=pytest.mark.proof)])
def test_an_agent_of_chat_completions_calls_and_answers_through_seven_questions(client, folder: Path, answer: Any) -> None:
    tools = [{"type": "function", "function": function} for function in FUNCTIONS]
    messages: list[Any] = []
    for question, expected_tools, expected in CONVERSATION:
        messages.append({"role": "user", "content": question})
        called: list[str] = []
        while True:
            message = answer(client, {"model": "course", "messages": messages, "tools": tools, "temperature": 0,
                                      "max_tokens": 100})
            messages.append(message)
            if not message.get("tool_calls"):
                break
            for call in message["tool_calls"]:
                name, arguments = call["function"]["name"], call["function"]["arguments"]
                called.append(name)
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": run_tool(folder, name, arguments)})
            assert len(called) < 4, f"it calls and calls: {called}"
        assert (called, message["content"]) == (expected_tools, expected), question


def test_an_agent_of_responses_calls_and_answers_through_seven_questions(client, folder: Path) -> None:
    tools: list[Any] = [{"type": "function", **function} for function in FUNCTIONS]
    items: list[Any] = []
    for question, expected_tools, expected in CONVERSATION:
        items.append({"role": "user", "content": question})
        called: list[str] = []
        while True:
            response = client.responses.create(model="course", input=items, tools=tools, temperature=0, store=False)
            items += response.output
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                break
            called += [call.name for call in calls]
            items += [{"type": "function_call_output", "call_id": call.call_id,
                       "output": run_tool(folder, call.name, call.arguments)} for call in calls]
            assert len(called) < 4, f"it calls and calls: {called}"
        assert (called, response.output_text) == (expected_tools, expected), question


def test_without_the_tool_it_says_what_it_would_need(client) -> None:
    asked = client.chat.completions.create(
        model="course", messages=[{"role": "user", "content": "What time is it?"}], temperature=0,
        tools=[{"type": "function", "function": FUNCTIONS[0]}])
    assert asked.choices[0].message.content == "I would need a clock for that."


def test_thoughts_arrive_as_reasoning(client) -> None:
    ask: dict[str, Any] = {"model": "course", "temperature": 0,
                           "messages": [{"role": "user", "content": "How many blocks of 4 hold 10 tokens?"}]}
    thinking = client.chat.completions.create(**ask).choices[0].message
    assert thinking.reasoning_content.strip() == (
        "10 divided by 4 is 2.5. A block cannot be cut in half, so I round up.")
    assert thinking.content.strip() == "Three blocks. The last one holds two tokens and has room for two more."
    plain = client.chat.completions.create(
        **ask, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).choices[0].message
    assert getattr(plain, "reasoning_content", None) is None and plain.content.strip() == thinking.content.strip()
