"""Sampling parameters at random, as plain JSON, and back.

Knows `SamplingParams`; the tokens that it names are bytes, and so tokens of any vocabulary.
"""

from __future__ import annotations

import random
from typing import Any

from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from nano_qwen3_serving.testing.byte_tokenizer import END_OF_TEXT
from nano_qwen3_serving.testing.telltale import LETTERS

#: what the toy model generates: letters, characters that are split over tokens, an end
ALPHABET = [*LETTERS, *"é✓".encode(), *b"ABCDEFGH", END_OF_TEXT]
NO_TOKEN = {"allowed_token_ids": [END_OF_TEXT], "min_tokens": 1, "ignore_eos": True, "stop_token_ids": [END_OF_TEXT]}
NO_TOKEN_OF_THE_GRAMMAR = {"allowed_token_ids": [ord("a")], "structured_outputs": {"choice": ["b"]}}


def make_params(rng: random.Random, seed: int) -> dict[str, Any]:
    """Keyword arguments of `SamplingParams`."""
    drawn = rng.random() < 0.5
    p: dict[str, Any] = {
        "seed": seed, "temperature": rng.choice([0.3, 0.8, 1.0, 1.5]) if drawn else 0.0,
        "n": rng.choice([1, 1, 1, 2, 3]) if drawn else 1,
        "max_tokens": rng.choice([1, 3, 7, 12, 25, None]), "output_kind": rng.randint(0, 2)}
    if drawn:
        p |= rng.choice([{}, {}, {"top_k": rng.randint(1, 9)}, {"top_p": rng.choice([0.2, 0.7, 0.95])},
                         {"min_p": 0.3}, {"top_k": 5, "top_p": 0.5}])
    for chance, more in rare_params(rng):
        if rng.random() < chance:
            p |= more
    if rng.random() < 0.2:
        p["min_tokens"] = rng.randint(0, p["max_tokens"] or 4)
    if "stop" not in p and rng.random() < 0.1:
        p["detokenize"] = False
    if rng.random() < 0.15:
        p.pop("ignore_eos", None)  # a grammar's end is the end
        p["structured_outputs"] = make_grammar(rng)
    if rng.random() < 0.02:
        p.pop("structured_outputs", None)
        p |= NO_TOKEN if p.get("ignore_eos") else NO_TOKEN_OF_THE_GRAMMAR
    return p


def rare_params(rng: random.Random) -> list[tuple[float, dict[str, Any]]]:
    """(how often, what) for parameters that most requests leave out."""
    return [
        (0.25, {"stop": rng.choice([["a"], ["bc", "q"], ["e", "xyzab"]])}),
        (0.2, {"stop_token_ids": [ord(letter(rng))]}),
        (0.3, {"ignore_eos": True}),
        (0.15, {"logprobs": rng.randint(0, 3)}),
        (0.1, {"repetition_penalty": 1.3}),
        (0.1, {"presence_penalty": 0.5, "frequency_penalty": 0.7}),
        (0.1, {"logit_bias": [[rng.choice([END_OF_TEXT, ord(letter(rng))]), rng.choice([-50.0, 3.0])]]}),
        (0.08, {"allowed_token_ids": sorted(rng.sample(ALPHABET, 6))}),
        (0.08, {"bad_words": ["a", "bc"]}),
        (0.15, {"include_stop_str_in_output": True}),
        (0.1, {"skip_special_tokens": False}),
    ]


def make_grammar(rng: random.Random) -> dict[str, Any]:
    """Keyword arguments of `StructuredOutputsParams`: now and then words, mostly a long row of classes."""
    if rng.random() < 0.2:
        return {"choice": ["yes", "no", "yesterday", "perhaps not"][: rng.randint(1, 4)]}
    classes = ("[" + "".join(sorted(rng.sample(LETTERS.decode(), rng.choice([1, 3, 9])))) + "]"
               for _ in range(rng.randint(2, 5)))
    return {"regex": f"({''.join(classes)})*"}


def letter(rng: random.Random) -> str:
    """One of a to z."""
    return chr(rng.randint(ord("a"), ord("z")))


def params_of(raw: dict[str, Any]) -> SamplingParams:
    """The parameters that an operation's dict stands for."""
    raw = dict(raw)
    if "logit_bias" in raw:
        raw["logit_bias"] = {int(token): bias for token, bias in raw["logit_bias"]}
    if "structured_outputs" in raw:
        raw["structured_outputs"] = StructuredOutputsParams(**raw["structured_outputs"])
    raw["output_kind"] = RequestOutputKind(raw["output_kind"])
    return SamplingParams(**raw)
