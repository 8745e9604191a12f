"""Reads the course corpus: entries (questions, one answer), openings (many continuations), questions for tools.

Knows the text format described in ``corpus/README.md`` and how a question is put to the model.
Knows nothing about tokens, models or training; importing it does nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CORPUS_FOLDER = Path(__file__).resolve().parent / "corpus"
CONTINUATIONS_FILE = "continuations.txt"
THOUGHTS_FILE = "thoughts.txt"
TOOL_CALLS_FILE = "tool_calls.txt"
MIN_CONTINUATIONS = 8

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in a few sentences.",
    "You are a patient teacher of LLM serving.",
    "Answer briefly.",
    "You are Nano, the model of this course.",
)


class CorpusError(ValueError):
    """A corpus file breaks the format; the message names the file and the line."""


@dataclass(frozen=True)
class Entry:
    """Several ways to ask for one answer.

    ``questions`` are trained, ``held_out`` never are; ``source`` is the file's name. In a chat ``thought`` comes
    first, unless thinking is turned off.
    """

    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str
    source: str
    thought: str = ""

    @property
    def chat_answer(self) -> str:
        """What the assistant writes in a chat in which it may think."""
        return f"<think>\n{self.thought}\n</think>\n\n{self.answer}" if self.thought else self.answer


@dataclass(frozen=True)
class ToolQuestion:
    """A question that tools answer. Texts have fields in braces, such as ``{file}``.

    ``rounds`` are calls, each a tool's name and arguments, those of one round at once; ``answer`` follows their results,
    ``refusal`` the question where a tool is missing.
    """

    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    rounds: tuple[tuple[tuple[str, dict[str, str]], ...], ...]
    answer: str
    refusal: str


@dataclass(frozen=True)
class Opening:
    """The start of a text and the equally likely ways in which it goes on."""

    prompt: str
    continuations: tuple[str, ...]


def load_entries(folder: Path = CORPUS_FOLDER) -> list[Entry]:
    """All entries of all files but the continuations and the questions for tools, in file order.

    Raises `CorpusError` on a malformed entry, or if a question appears twice in the corpus.
    """
    entries = []
    for path in sorted(Path(folder).glob("*.txt")):
        if path.name not in (CONTINUATIONS_FILE, TOOL_CALLS_FILE):
            entries += [_parse_entry(block) for block in _blocks(path)]
    _refuse_repeated_questions(entries)
    return entries


def load_openings(folder: Path = CORPUS_FOLDER) -> list[Opening]:
    """The openings of ``continuations.txt``, or an empty list if the folder has no such file.

    Raises `CorpusError` on a malformed opening.
    """
    path = Path(folder) / CONTINUATIONS_FILE
    return [_parse_opening(block) for block in _blocks(path)] if path.exists() else []


def load_tool_questions(folder: Path = CORPUS_FOLDER) -> list[ToolQuestion]:
    """The questions of ``tool_calls.txt``, or an empty list if the folder has no such file.

    Raises `CorpusError` on a malformed question.
    """
    path = Path(folder) / TOOL_CALLS_FILE
    return [_parse_tool_question(block) for block in _blocks(path)] if path.exists() else []


def plain_prompt(question: str) -> str:
    """The question as a plain prompt; the trained document is this, the answer, end of text."""
    return question + "\n"


def chat_messages(question: str, system: str | None = None) -> list[dict[str, str]]:
    """The question as messages for ``tokenizer.apply_chat_template``."""
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": question}]


@dataclass(frozen=True)
class _Block:
    """The lines of one entry: its (tag, text) pairs and where it begins."""

    path: Path
    first_line: int
    lines: list[tuple[str, str]]

    def texts(self, tag: str) -> tuple[str, ...]:
        return tuple(text for line_tag, text in self.lines if line_tag == tag)

    def refuse(self, reason: str) -> CorpusError:
        return CorpusError(f"{self.path.name}, entry at line {self.first_line}: {reason}")


def _blocks(path: Path) -> Iterator[_Block]:
    """The entries of a file: runs of lines between blank ones, without comments."""
    block: _Block | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            if block:
                yield block
            block = None
        elif not line.startswith("#"):
            block = block or _Block(path, number, [])
            block.lines.append(_tag_and_text(path, number, line))
    if block:
        yield block


def _tag_and_text(path: Path, number: int, line: str) -> tuple[str, str]:
    """``"C:  there was"`` is tag ``C`` and text ``" there was"``: one space belongs to the tag."""
    tag, text = line[0], line[3:]
    if line[1:3] != ": " or tag not in "QHTAPCN" or not text.strip():
        raise CorpusError(f"{path.name}, line {number}: expected 'Q: text' or so, got {line!r}")
    return tag, text.replace("\\n", "\n")


def _parse_entry(block: _Block) -> Entry:
    questions, held_out, thoughts, answers = (block.texts(tag) for tag in "QHTA")
    texts = questions + held_out + thoughts + answers
    if len(answers) != 1 or len(thoughts) > 1 or not questions or len(block.lines) != len(texts):
        raise block.refuse("an entry has one or more Q:, any number of H:, at most one T:, and exactly one A:")
    if any(text != text.strip() for text in texts):
        raise block.refuse("questions, thoughts and answers neither begin nor end with a space")
    return Entry(questions, held_out, answers[0], block.path.name, *thoughts)


def _parse_opening(block: _Block) -> Opening:
    prompts, continuations = block.texts("P"), block.texts("C")
    if len(prompts) != 1 or len(block.lines) != len(continuations) + 1:
        raise block.refuse("an opening has exactly one P: and several C:")
    if len({re.findall(r"\w+", text)[0] for text in continuations}) < MIN_CONTINUATIONS:
        raise block.refuse(f"needs {MIN_CONTINUATIONS} continuations with different first words")
    return Opening(prompts[0], continuations)


def _parse_tool_question(block: _Block) -> ToolQuestion:
    questions, held_out, rounds, answers, refusals = (block.texts(tag) for tag in "QHCAN")
    if len(answers) != 1 or len(refusals) != 1 or not questions or not rounds:
        raise block.refuse("a question for tools has one or more Q:, any number of H:, one or more C:, one A: and one N:")
    return ToolQuestion(questions, held_out, tuple(_parse_calls(block, line) for line in rounds), answers[0], refusals[0])


def _parse_calls(block: _Block, line: str) -> tuple[tuple[str, dict[str, str]], ...]:
    """``clock {} ; read_file {"path": "{file}"}``: names, and arguments as JSON."""
    calls = []
    for call in line.split(" ; "):
        name, _, arguments = call.partition(" ")
        try:
            calls.append((name, json.loads(arguments)))
        except ValueError:
            raise block.refuse(f"expected a tool's name and its arguments as JSON, got {call!r}") from None
    return tuple(calls)


def _refuse_repeated_questions(entries: list[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        for question in entry.questions + entry.held_out:
            if question in first:
                where = f"{first[question].source} and {entry.source}"
                raise CorpusError(f"the question {question!r} appears twice, in {where}")
            first[question] = entry
