"""Incremental text: joined pieces are the whole, no broken characters, stop strings held back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_qwen3_serving import SamplingParams
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.text.detokenizer import IncrementalDetokenizer, make_detokenizer
from nano_qwen3_serving.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(BUNDLED / "course")
BROKEN = "\ufffd"
token_ids = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40)
texts = st.text(max_size=40)


class Letters:
    """A tokenizer whose token 97 is the letter a: what happens can be followed by eye."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def is_special(self, token_id: int) -> bool:
        return token_id == 256

    def token_text(self, token_id: int) -> str:
        return chr(token_id)


def run(detokenizer: IncrementalDetokenizer, tokens: list[int]) -> tuple[list[str], str | None]:
    """Feeds one token at a time: the deltas, and the stop string."""
    deltas = []
    for token in tokens:
        delta = detokenizer.add([token])
        deltas.append(delta.text)
        if delta.stop_reason is not None:
            return deltas, delta.stop_reason
    return [*deltas, detokenizer.finish().text], None


def letters(text: str, stop: list[str], **kwargs: object) -> tuple[list[str], str | None]:
    return run(IncrementalDetokenizer(Letters(), stop, **kwargs), list(text.encode()))  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(token_ids, st.booleans())
def test_joined_deltas_equal_the_decoded_whole(tokens: list[int], skip: bool) -> None:
    deltas, _ = run(IncrementalDetokenizer(TOKENIZER, skip_special_tokens=skip), tokens)
    assert "".join(deltas) == TOKENIZER.decode(tokens, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(token_ids, st.lists(st.integers(1, 5), min_size=1))
def test_tokens_may_come_several_at_a_time(tokens: list[int], sizes: list[int]) -> None:
    detokenizer, text, rest = IncrementalDetokenizer(TOKENIZER, ["no such text"]), "", list(tokens)
    for size in sizes * len(tokens):
        text += detokenizer.add(rest[:size]).text
        rest = rest[size:]
    assert text + detokenizer.finish().text == TOKENIZER.decode(tokens)


@settings(max_examples=200, deadline=None)
@given(texts.filter(lambda text: BROKEN not in text))
def test_valid_text_never_shows_a_replacement_character(text: str) -> None:
    deltas, _ = run(IncrementalDetokenizer(TOKENIZER), TOKENIZER.encode(text))
    assert not any(BROKEN in delta for delta in deltas)


def test_a_character_is_shown_when_its_last_byte_came() -> None:
    deltas, _ = letters("a🙂b", [])
    assert deltas == ["a", "", "", "", "🙂", "b", ""]


def test_an_incomplete_character_is_replaced_only_at_the_end() -> None:
    deltas, _ = run(IncrementalDetokenizer(Letters()), list("é🙂".encode())[:-1])
    assert deltas == ["", "é", "", "", "", BROKEN]


def test_special_tokens_add_no_text_and_do_not_split_a_character() -> None:
    first, second = "é".encode()
    deltas, _ = run(IncrementalDetokenizer(Letters()), [first, 256, second])
    assert deltas == ["", "", "é", ""]


def test_the_course_tokenizers_special_tokens_are_left_out_unless_asked_for() -> None:
    tokens = TOKENIZER.encode("Hi<|im_end|><think>")
    assert "".join(run(IncrementalDetokenizer(TOKENIZER), tokens)[0]) == "Hi<think>"
    assert "".join(run(IncrementalDetokenizer(TOKENIZER, skip_special_tokens=False), tokens)[0]) == "Hi<|im_end|><think>"


@pytest.mark.parametrize("text", ["xxEND", "ENDxx", "xENDx", "EENDx", "ENENDx", "xEND END"])
def test_text_ends_before_a_stop_string_that_is_spread_over_tokens(text: str) -> None:
    deltas, stop = letters(text, ["END"])
    assert (("".join(deltas)), stop) == (text[: text.index("END")], "END")


def test_the_stop_string_is_kept_when_asked_for() -> None:
    deltas, stop = letters("xxENDyy", ["END"], include_stop=True)
    assert ("".join(deltas), stop) == ("xxEND", "END")


def test_nothing_after_the_stop_string_is_shown_when_one_token_brings_both() -> None:
    ids = TOKENIZER.encode("the cache holds")
    for include, want in ((False, "the ca"), (True, "the cach")):
        detokenizer = IncrementalDetokenizer(TOKENIZER, ["ch"], include_stop=include)
        delta = detokenizer.add(ids)
        assert (delta.text, delta.stop_reason, detokenizer.finish().text) == (want, "ch", "")


def test_at_most_one_character_less_than_the_longest_stop_string_is_held_back() -> None:
    detokenizer = IncrementalDetokenizer(Letters(), ["END", "LONGER"])
    shown = ""
    for count, token in enumerate(b"EN LONGE and so on", start=1):
        shown += detokenizer.add([token]).text
        assert count - len(shown) <= len("LONGER") - 1
    assert shown + detokenizer.finish().text == "EN LONGE and so on"


@pytest.mark.parametrize(("text", "stop", "want"), [
    ("abc", ["b", "abc"], ("a", "b")),  # complete first
    ("abc", ["bc", "abc"], ("", "abc")),  # complete at once: the longer one
    ("aab", ["ab", "b"], ("a", "ab")),
])
def test_of_several_stop_strings_the_one_complete_first_counts(text: str, stop: list[str], want: tuple[str, str]) -> None:
    deltas, found = letters(text, stop)
    assert ("".join(deltas), found) == want


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=25), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
       st.integers(0, 6), st.booleans())
def test_stops_are_found_as_in_the_whole_text(text: str, stop: list[str], min_tokens: int, include: bool) -> None:
    """One letter is one token: the first end of a stop string after min_tokens letters counts."""
    ends = [(e, -len(s), s) for s in stop for e in range(max(len(s), min_tokens + 1), len(text) + 1) if text[:e].endswith(s)]
    deltas, found = letters(text, stop, min_tokens=min_tokens, include_stop=include)
    if not ends:
        assert ("".join(deltas), found) == (text, None)
    else:
        end, _, first = min(ends)
        assert ("".join(deltas), found) == (text[: end if include else end - len(first)], first)


def test_stop_strings_before_min_tokens_do_not_count_even_while_still_held_back() -> None:
    deltas, found = letters("abcd", ["a", "never this"], min_tokens=2)
    assert ("".join(deltas), found) == ("abcd", None)


def test_make_detokenizer_takes_everything_from_the_sampling_parameters() -> None:
    params = SamplingParams(stop=["e", "stop"], include_stop_str_in_output=True, skip_special_tokens=False, min_tokens=3)
    tokens = TOKENIZER.encode("<|im_end|>") + [t for c in "eeee" for t in TOKENIZER.encode(c)]
    deltas, stop = run(make_detokenizer(TOKENIZER, params), tokens)
    assert ("".join(deltas), stop) == ("<|im_end|>eee", "e")
