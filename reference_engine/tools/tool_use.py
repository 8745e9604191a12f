"""Draws conversations in which the assistant calls tools: a calculator, a clock, a file reader.

Knows the questions of ``corpus/tool_calls.txt`` and what the three tools return; knows nothing about tokens or models.
Numbers, times, file names and the tools' descriptions are drawn anew each time, so that the model has to read them.
"""

from __future__ import annotations

import ast
import json
import operator
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corpus import Entry, ToolQuestion

Message = dict[str, Any]

TOOLS = ("calculator", "clock", "read_file")
OTHER_TOOLS = {"get_weather": "city", "search": "query", "send_mail": "address", "translate": "text", "list_files": "folder"}
PARAMETERS = {"calculator": "expression", "clock": None, "read_file": "path", **OTHER_TOOLS}
DESCRIPTIONS = {
    "calculator": ("Computes an arithmetic expression.", "A calculator.", "Evaluate an expression such as 2 * 3."),
    "clock": ("The time and the date.", "Tells the current time.", "A clock."),
    "read_file": ("The text of a file.", "Reads a file.", "Read a text file and return its content."),
}
SHARE_WITH_TOOL = 0.85  # of the three, in a conversation
SHARE_WITHOUT_ANY = 0.1
SHARE_OF_OTHER_QUESTIONS = 0.25
LONGEST_CONVERSATION = 7  # questions
SYSTEM_SHARE = 0.4

FILE_NAMES = ("notes", "todo", "story", "letter", "plan", "diary", "list", "recipe", "poem", "readme", "log", "report",
              "names", "ideas", "book", "page", "draft", "memo", "sums", "numbers", "task", "data", "answer", "question")
ENDINGS = (".txt", ".txt", ".md", ".log")
OPERATORS: Mapping[type, Any] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


@dataclass(frozen=True)
class Session:
    """A conversation in OpenAI's messages, and the tools that it begins with, perhaps none."""

    tools: list[dict[str, Any]]
    messages: list[Message]


def compute(expression: str) -> int:
    """The value of whole numbers joined by + - * and brackets."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return int(OPERATORS[type(node.op)](value(node.left), value(node.right)))
        return int(ast.literal_eval(node))

    return value(ast.parse(expression, mode="eval").body)


class ToolUse:
    """Draws sessions; equal seeds give equal ones.

    Args:
        questions: those of ``tool_calls.txt``.
        others: entries that are asked in between, and whose short sentences stand in files.
        seed: of every draw.
        held_out: ask in the phrasings that are never trained.
    """

    def __init__(self, questions: Sequence[ToolQuestion], others: Sequence[Entry], seed: int, held_out: bool = False) -> None:
        self._questions = [(text, q) for q in questions for text in (q.held_out if held_out else q.questions)]
        self._others = [entry for entry in others if not entry.thought]
        self._sentences = [e.answer for e in others if len(e.answer) < 60 and "\n" not in e.answer]
        self._random = random.Random(seed)

    def session(self) -> Session:
        """One conversation of a few questions, most of which need a tool."""
        rng = self._random
        known = [name for name in TOOLS if rng.random() < SHARE_WITH_TOOL]
        if rng.random() < SHARE_WITHOUT_ANY:
            known = []
        messages: list[Message] = []
        if rng.random() < SYSTEM_SHARE:
            messages.append({"role": "system", "content": rng.choice(["You are a helpful assistant.", "You are an agent.",
                                                                      "Answer briefly.", "You can use tools."])})
        for _ in range(rng.randint(1, LONGEST_CONVERSATION)):
            if rng.random() < SHARE_OF_OTHER_QUESTIONS:
                entry = rng.choice(self._others)
                messages += [_user(rng.choice(entry.questions)), {"role": "assistant", "content": entry.answer}]
            else:
                messages += self._asked(*rng.choice(self._questions), known)
        return Session(self.tools(known) if known else [], messages)

    def tools(self, known: Sequence[str] = TOOLS) -> list[dict[str, Any]]:
        """Descriptions of these tools and perhaps of others, in any order."""
        names = [*known, *self._random.sample(list(OTHER_TOOLS), self._random.choice([0, 0, 1, 2]))]
        return [self._description(name) for name in self._random.sample(names, len(names))]

    def _asked(self, text: str, question: ToolQuestion, known: Sequence[str]) -> list[Message]:
        """A question, its calls with their results, and the answer; without the tools that it needs, a refusal."""
        facts = self._facts()
        asked = [_user(text.format(**facts))]
        if any(name not in known for calls in question.rounds for name, _ in calls):
            return [*asked, {"role": "assistant", "content": question.refusal}]
        for calls in question.rounds:
            filled = [(name, {key: value.format(**facts) for key, value in given.items()}) for name, given in calls]
            ids = [f"call_{self._random.randrange(10**6)}" for _ in filled]
            asked.append({"role": "assistant", "content": "", "tool_calls": [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
                for call_id, (name, given) in zip(ids, filled, strict=True)]})
            for call_id, (name, given) in zip(ids, filled, strict=True):
                facts["result"] = result_of(name, given, facts)
                asked.append({"role": "tool", "tool_call_id": call_id, "content": facts["result"]})
        return [*asked, {"role": "assistant", "content": question.answer.format(**facts)}]

    def _facts(self) -> dict[str, str]:
        """What may stand between braces."""
        rng = self._random
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        content = rng.choice(self._sentences)
        return {
            "a": str(a), "b": str(b), "expression": self._expression(),
            "time": f"{rng.randrange(24):02}:{rng.randrange(60):02}",
            "date": f"{rng.randint(2020, 2035)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
            "file": self._file(), "sum_file": self._file(), "content": content,
        }

    def _expression(self) -> str:
        rng = self._random
        first = rng.randint(1, rng.choice([9, 99, 999]))
        second = rng.randint(1, rng.choice([9, 99, 999]))
        sign = rng.choice("+-*")
        if sign == "-":
            first, second = max(first, second), min(first, second)
        return f"{first} {sign} {second}"

    def _file(self) -> str:
        rng = self._random
        return rng.choice(FILE_NAMES) + rng.choice(["", "", "", str(rng.randint(1, 99))]) + rng.choice(ENDINGS)

    def _description(self, name: str) -> dict[str, Any]:
        """A tool as a client describes it: in one of several wordings, with more or fewer of JSON schema's keys."""
        rng = self._random
        parameter = PARAMETERS[name]
        properties: dict[str, Any] = {}
        if parameter:
            properties[parameter] = {"type": "string"}
            if rng.random() < 0.3:
                properties[parameter] = {"title": parameter.capitalize(), "type": "string"}
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        if parameter or rng.random() < 0.5:
            schema["required"] = [parameter] if parameter else []
        if rng.random() < 0.4:
            schema["additionalProperties"] = False
        function: dict[str, Any] = {"name": name, "parameters": schema}
        if rng.random() < 0.9:
            described = rng.choice(DESCRIPTIONS.get(name, (f"The tool {name}.",)))
            function = {"name": name, "description": described, "parameters": schema}
        if rng.random() < 0.2:
            function["strict"] = True
        return {"type": "function", "function": function}


def result_of(name: str, given: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """What a tool returns."""
    if name == "calculator":
        return str(compute(given["expression"]))
    if name == "clock":
        return f"{facts['time']} on {facts['date']}"
    return facts["expression"] if given["path"] == facts["sum_file"] else facts["content"]


def written_answer(message: Message) -> str:
    """An assistant's message as the chat template writes it, between its marks."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return message["content"] + "\n".join(
        f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}\n</tool_call>' for call in calls)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
