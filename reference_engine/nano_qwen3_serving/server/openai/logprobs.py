"""Log-probabilities in the two shapes that OpenAI has for them.

Knows tokens and their text. The first entry of each dict is the chosen token's, as the engine gives them.
"""

from __future__ import annotations

from typing import Any

from nano_qwen3_serving.interfaces import Tokenizer
from nano_qwen3_serving.outputs import Logprob

SMALLEST = -9999.0  # JSON has no infinity


def finite(logprob: float) -> float:
    """As vLLM writes it."""
    return max(logprob, SMALLEST)


def completion_logprobs(
    token_ids: list[int], logprobs: list[dict[int, Logprob] | None], tokenizer: Tokenizer, text_offset: int,
) -> dict[str, Any]:
    """Those of a completion, or of a piece of it that begins `text_offset` characters into the text.

    A position without log-probabilities is the first token of a prompt.
    """
    tokens, offsets = [tokenizer.token_text(token_id) for token_id in token_ids], []
    for token in tokens:
        offsets.append(text_offset)
        text_offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [each and finite(each[i].logprob) for i, each in zip(token_ids, logprobs, strict=True)],
        "top_logprobs": [each and by_text(each, tokenizer) for each in logprobs],
        "text_offset": offsets,
    }


def by_text(logprobs: dict[int, Logprob], tokenizer: Tokenizer) -> dict[str, float]:
    """Log-probabilities by text. Of several tokens with the same text, such as parts of characters, the likeliest counts."""
    result: dict[str, float] = {}
    for token_id, each in logprobs.items():
        text = tokenizer.token_text(token_id)
        result[text] = max(finite(each.logprob), result.get(text, SMALLEST))
    return result


def chat_logprobs(
    token_ids: list[int], logprobs: list[dict[int, Logprob]], tokenizer: Tokenizer, count: int,
) -> dict[str, Any]:
    """Those of an answer, or of a piece of it, with the `count` likeliest at each place."""
    return {"content": [
        {**chat_entry(token_id, each[token_id], tokenizer),
         "top_logprobs": [chat_entry(i, best, tokenizer) for i, best in sorted(each.items(), key=rank)[:count]]}
        for token_id, each in zip(token_ids, logprobs, strict=True)
    ], "refusal": None}


def rank(entry: tuple[int, Logprob]) -> int:
    """The place of a token among all."""
    return entry[1].rank or 0


def chat_entry(token_id: int, logprob: Logprob, tokenizer: Tokenizer) -> dict[str, Any]:
    """One token's."""
    return {"token": tokenizer.token_text(token_id), "logprob": finite(logprob.logprob),
            "bytes": list(tokenizer.token_bytes(token_id))}
