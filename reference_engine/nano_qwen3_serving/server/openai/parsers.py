"""A model's text, while it comes: what of it is reasoning, what is content, and what calls a tool.

Qwen3 thinks between `<think>` and `</think>`, and calls a tool with JSON between two tags:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

The parser reads one character at a time and keeps what it has not decided on. So it cannot matter how the text was
cut, and no character is read more than a few times. Knows nothing of tokens, of tools that exist, or of HTTP.

What counts as a tag, and what becomes of text that looks like one:

* `<think>` opens a block only where an answer, or what follows a tag, begins. Elsewhere it is text, and so is
  `</think>` where no block is open. A block that is never closed is reasoning to its end.
* Newlines right behind `<think>` and `</think>`, and the one before `</think>`, belong to the tag: the chat template
  writes them. Text before `<tool_call>` keeps its newlines, as in vLLM; white space behind a call is dropped.
* `<tool_call>` also ends reasoning, for models that forget `</think>`, but only if a call really follows.
* A call begins to be handed on when its name is complete and its arguments begin with `{`. If anything before that
  is not as it must be (or the text ends), there was no call: all of it, the tag included, is reasoning or content as it stands.
* From then on the arguments are handed on as they are written, to the brace that closes them, whether they are good JSON or not.
  Tags inside their strings are text. (vLLM looks for `</tool_call>` anywhere, and gives up the call.) A `<` outside
  a string ends a call whose braces were forgotten; a text that ends leaves the arguments unfinished.
* If `"arguments"` come before `"name"`, nothing is handed on before the name, and then they must be good JSON.

No character is lost but tags, the white space around them, and the JSON around name and arguments.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
SPACE = " \t\r\n"  # JSON's
OUTSIDE_STRINGS = frozenset(SPACE + '{}[]:,"+-.0123456789eEtruefalsn')

T = TypeVar("T")
Reading = Generator[None, str, T]
"""Reads characters, one with each `yield`, and returns what they come to."""


@dataclass(frozen=True)
class ReasoningDelta:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """More of what the model says."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A call begins; its arguments follow in `ToolCallArguments` of the same index.

    Attributes:
        index: which of the answer's calls, from 0.
        id: a new one, by which the tool's result will name the call.
        name: the function's, complete.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """More of a call's arguments.

    Attributes:
        index: which of the answer's calls.
        text: a piece of a JSON object, as the model wrote it.
    """

    index: int
    text: str


Delta = ReasoningDelta | ContentDelta | ToolCallStart | ToolCallArguments


@dataclass
class ToolCall:
    """One call of a tool; `arguments` is JSON if the model wrote JSON, and finished it."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class ParsedOutput:
    """A whole answer: what its deltas come to."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


def joined(deltas: Iterable[Delta]) -> ParsedOutput:
    """What the deltas come to, in the order in which the parser gave them."""
    whole = ParsedOutput()
    for delta in deltas:
        match delta:
            case ReasoningDelta(text):
                whole.reasoning += text
            case ContentDelta(text):
                whole.content += text
            case ToolCallStart(_, call_id, name):
                whole.tool_calls.append(ToolCall(call_id, name))
            case ToolCallArguments(index, text):
                whole.tool_calls[index].arguments += text
    return whole


def opens_reasoning(prompt: str) -> bool:
    """Whether a prompt ends inside a `<think>` that its chat template has opened: the answer begins with thoughts then."""
    return prompt.rstrip().endswith(THINK)


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{uuid.uuid4().hex[:24]}"


class OutputParser:
    """Splits the text of one answer, piece by piece.

    Args:
        reasoning: whether `<think>` and `</think>` are tags; they are text if not.
        tools: whether `<tool_call>` is one.
        starts_in_reasoning: whether the prompt ends inside a `<think>`; see `opens_reasoning`.
        new_id: makes the id of a call.

    Attributes:
        num_calls: calls that have begun.
    """

    def __init__(
        self, *, reasoning: bool, tools: bool, starts_in_reasoning: bool = False, new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._knows_reasoning, self._knows_tools, self._new_id = reasoning, tools, new_id
        self.num_calls = 0
        self._deltas: list[Delta] = []
        self._kind: type[Delta] = ContentDelta  # of the pieces that come next in `_deltas`
        self._pieces: list[str] = []
        self._unread: deque[str] = deque()
        self._held = ""  # what may become a tag
        self._call: Reading[None] | None = None  # what reads a call's JSON, while inside one
        self._undecided: list[str] | None = None  # of a call that may be none: all behind its tag
        self._thinking = reasoning and starts_in_reasoning
        self._behind: str | None = "" if reasoning else None  # the last tag, if nothing came since; "" is the beginning

    def add(self, text: str) -> list[Delta]:
        """The next piece of the answer, cut anywhere.

        Returns:
            What is certain now, neighbours of one kind as one delta. May be empty.
        """
        self._unread.extend(text)
        self._read()
        return self._taken()

    def finish(self) -> list[Delta]:
        """The answer is over, complete or not.

        Returns:
            What was held back: it can no longer become a tag or a call.
        """
        while self._undecided is not None:
            self._give_up_call(self._undecided)
            self._read()
        if self._held:
            self._say(self._held)
            self._held = ""
        return self._taken()

    def _read(self) -> None:
        while self._unread:
            char = self._unread.popleft()
            if self._call is None:
                self._read_text(char)
            else:
                self._read_call(self._call, char)

    # -- reasoning and content --

    def _read_text(self, char: str) -> None:
        if self._behind is not None and not self._held and char in (SPACE if self._behind == END_CALL else "\n"):
            return
        if not self._held and char not in "<\n":  # no tag begins with it
            self._say(char)
            return
        self._held += char
        if self._held in self._tags():
            self._meet(self._held)
        while self._held and not any(tag.startswith(self._held) for tag in self._tags()):
            self._say(self._held[0])
            self._held = self._held[1:]

    def _tags(self) -> list[str]:
        """What would not be text here."""
        tags = [CALL] if self._knows_tools else []
        if self._knows_reasoning and self._behind is not None:
            tags += [THINK, END_THINK]
        elif self._thinking:
            tags += [END_THINK, "\n" + END_THINK]
        return [*tags, END_CALL] if self._behind == END_CALL else tags

    def _meet(self, tag: str) -> None:
        self._held = ""
        if tag == CALL:
            self._call, self._undecided = read_call(self._begin_call, self._give_arguments), []
            next(self._call)
            return
        self._behind = tag.strip()
        if tag != END_CALL:
            self._thinking = tag == THINK

    def _say(self, text: str) -> None:
        self._behind = None
        self._give(ReasoningDelta if self._thinking else ContentDelta, text)

    # -- calls --

    def _read_call(self, call: Reading[None], char: str) -> None:
        if self._undecided is not None:
            self._undecided.append(char)
        try:
            call.send(char)
        except StopIteration:
            self._call, self._behind = None, END_CALL
        except NotACallError:
            if self._undecided is not None:
                self._give_up_call(self._undecided)
            else:  # its arguments, or the braces around them, are not closed
                self._call, self._behind = None, END_CALL
                self._unread.appendleft(char)

    def _begin_call(self, name: str) -> None:
        self._undecided, self._thinking = None, False
        self._flush()
        self._deltas.append(ToolCallStart(self.num_calls, self._new_id(), name))
        self.num_calls += 1

    def _give_arguments(self, text: str) -> None:
        self._give(ToolCallArguments, text)

    def _give_up_call(self, behind_tag: list[str]) -> None:
        """The tag was text; what came behind it is read again, as text."""
        self._unread.extendleft(reversed(behind_tag))
        self._call = self._undecided = None
        self._say(CALL)

    # -- deltas --

    def _give(self, kind: type[Delta], text: str) -> None:
        if kind is not self._kind:
            self._flush()
            self._kind = kind
        self._pieces.append(text)

    def _flush(self) -> None:
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        self._deltas.append(
            ToolCallArguments(self.num_calls - 1, text) if self._kind is ToolCallArguments else
            ReasoningDelta(text) if self._kind is ReasoningDelta else ContentDelta(text))

    def _taken(self) -> list[Delta]:
        self._flush()
        taken, self._deltas = self._deltas, []
        return taken


# -- the JSON of a call --


class NotACallError(Exception):
    """The text is not a call's JSON, from the character read last on."""


def read_call(begin: Callable[[str], None], give: Callable[[str], None]) -> Reading[None]:
    """Reads a call's JSON, from before its first brace to its last.

    Args:
        begin: called once with the function's name.
        give: called then with pieces of the arguments.

    Raises:
        NotACallError: it is none, or, if it has begun, breaks off.
    """
    yield from expect("{")
    key = yield from read_key()
    if key == "name":
        name = yield from read_name()
        yield from expect(",")
        if (yield from read_key()) != "arguments":
            raise NotACallError
        yield from expect("{")
        begin(name)
        yield from read_object(give)
    elif key == "arguments":
        yield from expect("{")
        arguments = yield from read_whole_object()
        yield from expect(",")
        if (yield from read_key()) != "name":
            raise NotACallError
        begin((yield from read_name()))
        give(arguments)
    else:
        raise NotACallError
    yield from expect("}")


def expect(wanted: str) -> Reading[None]:
    """Reads white space, and then the character that is wanted."""
    char = yield
    while char in SPACE:
        char = yield
    if char != wanted:
        raise NotACallError


def read_key() -> Reading[str]:
    """Reads a string and the colon behind it."""
    key = yield from read_string()
    yield from expect(":")
    return key


def read_name() -> Reading[str]:
    """Reads a string that is not empty."""
    name = yield from read_string()
    if not name:
        raise NotACallError
    return name


def read_string() -> Reading[str]:
    """Reads a string of JSON."""
    yield from expect('"')
    written, escaped, char = ['"'], False, ""
    while char != '"' or escaped:
        escaped = char == "\\" and not escaped
        char = yield
        if char < " ":
            raise NotACallError
        written.append(char)
    try:
        text = json.loads("".join(written))
        text.encode()
    except ValueError:  # no such escape, or half of a surrogate pair
        raise NotACallError from None
    return text


def read_object(give: Callable[[str], None], *, good: bool = False) -> Reading[None]:
    """Reads an object from behind its first brace to its last, and hands on both and all between them.

    With `good`, nothing may stand outside strings that never does in JSON. So a call that is read in vain ends where a
    tag inside one of its strings begins another: at that one's first letter. No text is read again and again.
    """
    give("{")
    depth, in_string, escaped = 1, False, False
    while depth:
        char = yield
        if in_string:
            in_string = char != '"' or escaped
            escaped = char == "\\" and not escaped
        elif char == "<" or (good and char not in OUTSIDE_STRINGS):  # a "<" is the tag that ends the call, too early
            raise NotACallError
        else:
            in_string = char == '"'
            depth += (char in "{[") - (char in "}]")
        give(char)


def read_whole_object() -> Reading[str]:
    """Reads the rest of an object that must be good JSON, and returns all of it as written."""
    pieces: list[str] = []
    yield from read_object(pieces.append, good=True)
    try:
        json.loads("".join(pieces))
    except (ValueError, RecursionError):
        raise NotACallError from None
    return "".join(pieces)
