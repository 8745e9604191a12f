"""The judge's end: a submission touches nothing that was not handed out, and forges no end of a check."""

import builtins
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grading.judge.checks import Wrong, ours
from grading.sandbox.worker.peer import Peer, Raised, Remote, kept
from grading.sandbox.worker.wire import LENGTHS, Ended, Garbled
from nano_qwen3_serving import SamplingParams

pytestmark = pytest.mark.slow


class Submission:
    """What lives at the worker's end."""

    def raises(self, name: str) -> None:
        kind = getattr(builtins, name, None) or type(name, (Exception,), {})
        special = {"UnicodeDecodeError": ("utf-8", b"", 0, 1, "why"), "UnicodeEncodeError": ("utf-8", "", 0, 1, "why"),
                   "UnicodeTranslateError": ("", 0, 1, "why"), "ExceptionGroup": ("why", [ValueError("why")]),
                   "BaseExceptionGroup": ("why", [KeyboardInterrupt()])}
        raise kind(*special.get(name, ("why",)))

    def calls(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    def asks(self, thing: Any, name: str) -> Any:
        """As somebody who has read how the wire works."""
        return thing._peer.ask("get", thing._number, name)

    def asks_further(self, thing: Any, name: str, further: str) -> Any:
        return self.asks(self.asks(thing, name), further)

    def calls_method(self, thing: Any, argument: Any) -> Any:
        return thing.add(argument)

    def sets(self, thing: Any, name: str) -> None:
        setattr(thing, name, 1)

    def swallows(self, function: Any) -> str:
        try:
            function()
        except BaseException as error:
            return f"caught {type(error).__name__}"
        return "nothing came"

    def chooses(self, given: Any) -> str:
        return "what was handed out" if given or None else "its own"

    def gives_back(self, value: Any) -> Any:
        return value

    def an_object(self) -> object:
        return Submission()


@contextmanager
def pair(root: Any = None) -> Iterator[Peer]:
    """The judge's peer; the worker's serves in a thread."""
    mine, theirs = socket.socketpair()
    worker = Peer(theirs, root=Submission() if root is None else root, trusting=True)
    thread = threading.Thread(target=worker.serve, daemon=True)
    thread.start()
    try:
        yield Peer(mine)
    finally:
        mine.close()
        thread.join(5)
        theirs.close()


def answering(*frames: bytes) -> Peer:
    """The judge's peer, to which a stranger has written these bytes and hung up."""
    mine, theirs = socket.socketpair()
    theirs.sendall(b"".join(frames))
    theirs.shutdown(socket.SHUT_WR)
    judge = Peer(mine)
    judge.stranger = theirs  # still open: it only never reads
    return judge


def message(**facts: Any) -> bytes:
    text = json.dumps(facts).encode()
    return LENGTHS.pack(len(text), 0) + text


# what the judge hands out


class Ledger:
    """An object of the judge's."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.secret = "expected values"
        self.other = object()

    def add(self, entry: str) -> int:
        self.entries.append(entry)
        return len(self.entries)


def test_what_is_handed_out_can_be_used_and_every_use_is_seen():
    ledger = Ledger()
    with pair() as judge:
        assert judge.root.calls(ours(ledger.add), "a") == 1
        assert judge.root.calls_method(ours(ledger, "add"), "b") == 2
    assert ledger.entries == ["a", "b"]


@pytest.mark.parametrize("name", ["secret", "entries", "__class__", "__dict__", "__init__", "add.__globals__", "inner", "names"])
def test_a_name_that_was_not_handed_out_ends_the_check(name: str):
    with pair() as judge, pytest.raises(Garbled, match="not handed out"):
        judge.root.asks(ours(Ledger(), "add"), name)


def test_nothing_of_the_judges_can_be_set():
    ledger = Ledger()
    with pair() as judge, pytest.raises(Garbled, match="asked to set 'secret'"):
        judge.root.sets(ours(ledger, "secret"), "secret")
    assert ledger.secret == "expected values"


def test_an_object_that_a_handed_out_attribute_leads_to_is_not_handed_out_itself():
    with pair() as judge, pytest.raises(Garbled, match="asked to get '__class__'"):
        judge.root.asks_further(ours(Ledger(), "other"), "other", "__class__")


def test_of_a_handed_out_method_only_the_call_is_handed_out():
    for name in ("__self__", "__func__", "__globals__"):
        with pair() as judge, pytest.raises(Garbled, match="not handed out"):
            judge.root.asks_further(ours(Ledger(), "add"), "add", name)


@pytest.mark.parametrize("number", [1, 2, 99, -1, 10**30, True, None, "0", 0.0, [0]])
@pytest.mark.parametrize("what", ["get", "set", "call", "keep", "len", "run"])
def test_numbers_that_were_never_handed_out_lead_nowhere(number: Any, what: str):
    asked = {"do": what, "on": number, "name": "add", "values": {"dict": [["arguments", [1]], ["named", {"dict": []}]]}}
    with pytest.raises(Garbled):
        _ = answering(message(**asked)).root.anything


def test_number_0_of_the_judge_is_nothing():
    assert answering(message(answer=True, values={"yours": 0})).root.anything is None
    with pytest.raises(Garbled, match="not handed out"):
        _ = answering(message(do="get", on=0, name="__class__", values=None)).root.anything


@pytest.mark.parametrize("node", [{"make": "os:system", "of": {"dict": [["command", "true"]]}},
                                  {"make": "builtins:eval", "of": {"dict": []}}])
def test_the_judge_makes_nothing_that_it_is_told_to_make(node: dict):
    with pytest.raises(Garbled):
        _ = answering(message(answer=True, values=node)).root.anything


def test_a_handed_out_object_that_comes_back_is_the_judges_own_again():
    ledger = Ledger()
    with pair() as judge:
        assert judge.root.gives_back(ours(ledger, "add")) is ledger


def test_a_dataclass_of_the_package_is_made_anew_there():
    with pair() as judge:
        made = judge.root.gives_back(SamplingParams(temperature=0.25, max_tokens=3))
        assert isinstance(made, Remote) and (made.temperature, made.max_tokens) == (0.25, 3)


# what comes from the submission


def test_the_judges_verdict_cannot_be_caught_where_the_submission_calls_it():
    def judge_it() -> None:
        raise Wrong("block 3 was given back twice")

    with pair() as judge, pytest.raises(Wrong, match="given back twice"):
        judge.root.swallows(ours(judge_it))


def test_an_error_of_the_judges_own_function_reaches_the_submission():
    def refuses() -> None:
        raise KeyError("no such request")

    with pair() as judge:
        assert judge.root.swallows(ours(refuses)) == "caught Raised"


BUILTINS = sorted(name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException))


@pytest.mark.parametrize("name", [*BUILTINS, "OutOfBlocks", ""])
def test_every_exception_arrives_as_raised_with_its_name(name: str):
    with pair() as judge, pytest.raises(Raised) as caught:
        judge.root.raises(name)
    assert caught.value.kinds[0] == {"EnvironmentError": "OSError", "IOError": "OSError"}.get(name, name)


@pytest.mark.parametrize("name",
                         ["KeyError", "IndexError", "ValueError", "TypeError", "RuntimeError", "OSError", "NotImplementedError"])
def test_the_builtin_class_catches_it_too(name: str):
    with pair() as judge, pytest.raises(getattr(builtins, name)):
        judge.root.raises(name)


@pytest.mark.parametrize("name", ["StopIteration", "StopAsyncIteration", "GeneratorExit"])
def test_no_exception_ends_a_loop_of_the_judges(name: str):
    with pair() as judge:
        asked = map(judge.root.raises, [name] * 3)
        with pytest.raises(Raised):
            list(asked)


def test_an_object_is_neither_true_nor_false_nor_equal_to_anything():
    with pair() as judge:
        thing = judge.root.an_object()
        with pytest.raises(TypeError, match="neither true nor false"):
            bool(thing)
        assert thing != 1 and (thing == judge.root.an_object()) is False


def test_what_the_judge_hands_out_is_true_there_as_it_is_in_practice():
    with pair() as judge:
        for handed_out in (ours(len), ours(Ledger(), "add")):
            assert judge.root.calls(judge.root.chooses, handed_out) == "what was handed out"


class Unsendable:
    __class__ = list


def nested() -> list:
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize("make", [Unsendable, lambda: "x" * (5 << 20), lambda: [0] * 3_000_000, nested])
def test_what_cannot_be_sent_is_an_error_of_the_call_and_not_the_end(make: Any):
    with pair(root=make) as judge:
        for _ in range(2):
            with pytest.raises(Raised, match="it cannot be sent"):
                judge.root()


replies = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=5),
              st.sampled_from(["get", "call", "keep", "len", "set", "KeyError"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([
            "do", "on", "name", "values", "answer", "raise", "kinds", "text", "line", "object", "kind", "looks", "yours", "make",
            "of", "tuple", "dict", "named", "arguments"]), inner, max_size=5)),
    max_leaves=12)


@settings(max_examples=400, deadline=None)
@given(st.lists(replies, min_size=1, max_size=3))
def test_whatever_is_answered_is_a_value_an_error_of_the_submission_or_the_end(answers: list):
    """Also where an object of the judge's has been handed out."""
    judge = answering(*(message(**one) if isinstance(one, dict)
                        else LENGTHS.pack(len(json.dumps(one)), 0) + json.dumps(one).encode() for one in answers))
    try:
        judge.ask("call", 0, "", [ours(Ledger(), "add")])
    except (Garbled, Ended, Raised):
        pass


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_garbled_or_the_end(data: bytes):
    with pytest.raises((Garbled, Ended)):
        _ = answering(data).root.anything


def test_a_tensor_that_is_held_there_is_changed_there():
    with pair() as judge:
        tensor = kept(judge.root.gives_back, torch.zeros(3))
        tensor.add_(2)
        assert judge.root.gives_back(tensor).tolist() == [2, 2, 2]
