"""A network without weights whose next token tells whether the KV cache is right, and its oracle.

The network writes what it is given into the real attention cache, reads the whole context back
through the block table, and makes the next token of it with integers. A block that is lost, stale,
shared wrongly or another request's therefore changes the output; what the output should be takes a
few lines without cache, scheduler or batch (`continuation`). Nothing depends on the other requests in
the batch, not even in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.interfaces import AttentionBackend, AttentionMetadata
from nano_qwen3_serving.request import Request

LETTERS = b"abcdefghijklmnopqrstuvwxyz "
END = -1  #: in an alphabet: whatever token ends a sequence under the configuration
PRIME = (1 << 61) - 1
NEVER = -100.0  #: the logit of a token outside the alphabet

Pairs = Sequence[Sequence[float]]


class TellTaleModel:
    """Takes the place of a Qwen3 in a real engine.

    The key and the value of a token are both (token + 1, position + 1, 0, …). The *state* after a
    token is a hash of its context as the cache has it; the likeliest next token is
    `alphabet[state % len(alphabet)]`, those after it in the alphabet follow. Whatever else is wrong
    is added to the state: a position that is not the place in the context, a value that is not its
    key, and an attention output that is not the mean of the values (the query is zero). Nothing is
    raised: the engine would try again, each request alone, and perhaps be right then.

    In float32 the mean is exact enough for contexts of some thousand bytes.

    Args:
        config: for the shape of the cache and of the logits.
        attention: writes and reads the cache.
        alphabet: tokens that it generates.
        on_forward: called before each pass with the contexts, one list of tokens for each request;
            a fault to inject is an exception raised there.
        state: another function of a context; see `script`.
    """

    def __init__(
        self,
        config: EngineConfig,
        attention: AttentionBackend,
        alphabet: Sequence[int] = LETTERS,
        on_forward: Callable[[list[list[int]]], object] | None = None,
        state: Callable[[Sequence[int]], int] | None = None,
    ) -> None:
        shape = config.model
        self._key_shape = (shape.num_key_value_heads, shape.head_dim)
        self._query_shape = (shape.num_attention_heads, shape.head_dim)
        self._vocab_size = shape.vocab_size
        self._attention = attention
        self._alphabet = [shape.eos_token_ids[0] if token == END else token for token in alphabet]
        self._on_forward = on_forward
        self._state = state

    def __call__(self, token_ids: Tensor, positions: Tensor, cache: list[Any], metadata: AttentionMetadata) -> Tensor:
        """[num_tokens] → states, int64 [num_tokens]; padding has none."""
        layer_cache = cache[0]
        keys = torch.zeros(len(token_ids), *self._key_shape, device=token_ids.device)
        keys[:, 0, 0], keys[:, 0, 1] = token_ids + 1, positions + 1
        self._attention.write(layer_cache, keys, keys, metadata.slot_mapping)
        query = torch.zeros(len(token_ids), *self._query_shape, device=token_ids.device)
        means = self._attention.forward(query, layer_cache, metadata)[:, 0, :2].tolist()
        cached = [self._context(layer_cache, metadata, i) for i in range(len(metadata.query_lens))]
        contexts = [[int(token) - 1 for token, _ in keys] for keys, _ in cached]
        if self._on_forward is not None:
            self._on_forward(contexts)
        states: list[int] = []
        for context, (kept, values), count in zip(contexts, cached, metadata.query_lens, strict=True):
            wrong = disagreement(kept, values, means[len(states) : len(states) + count])
            states += [a + b for a, b in zip(self._states(context, count), wrong, strict=True)]
        return torch.tensor(states, device=token_ids.device)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """States, [rows] → [rows, vocab_size], numbers that float32 holds exactly."""
        return telltale_logits(hidden, self._alphabet, self._vocab_size)

    def _context(self, layer_cache: Any, metadata: AttentionMetadata, i: int) -> tuple[Pairs, Pairs]:
        """Keys and values of request i: (token + 1, position + 1) each, as found in the cache."""
        table, size = metadata.block_tables[i].tolist(), metadata.block_size
        slots = [table[p // size] * size + p % size for p in range(metadata.seq_lens[i])]
        keys, values = self._attention.read(layer_cache, slots)
        return keys[:, 0, :2].tolist(), values[:, 0, :2].tolist()

    def _states(self, context: list[int], count: int) -> list[int]:
        """The states after the last `count` tokens of a context."""
        if self._state is None:
            return prefix_states(context)[-count:]
        return [self._state(context[:end]) for end in range(len(context) - count + 1, len(context) + 1)]


class TellTaleDrafter:
    """Guesses what `TellTaleModel` says greedily, and is wrong every few tokens; sometimes it has no guess.

    Args:
        alphabet: tokens that the model generates.
    """

    def __init__(self, alphabet: Sequence[int] = LETTERS) -> None:
        self._alphabet = [token for token in alphabet if token != END]

    def propose(self, requests: Sequence[Request], num_drafts: int) -> list[list[int]]:
        """At most `num_drafts` guesses for each request."""
        return [self._guesses(request.token_ids(0, request.num_tokens), num_drafts) for request in requests]

    def _guesses(self, tokens: list[int], num_drafts: int) -> list[int]:
        known, count = len(tokens), (prefix_states(tokens)[-1] // 7) % (num_drafts + 1)
        for _ in range(count):
            state = prefix_states(tokens)[-1]
            wrong = state // 11 % 4 == 0
            tokens.append(self._alphabet[(state + wrong) % len(self._alphabet)])
        return tokens[known:]


def disagreement(keys: Pairs, values: Pairs, means: Pairs) -> list[int]:
    """How much is wrong in the contexts that end at the last `len(means)` tokens; 0 is nothing.

    Args:
        keys, values: of a whole context, as found in the cache.
        means: what attention made of the values, for the last tokens.
    """
    wrong: list[int] = []
    misplaced, sums, first = 0, (0.0, 0.0), len(keys) - len(means)
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        misplaced += key != value or key[1] != i + 1
        sums = sums[0] + value[0], sums[1] + value[1]
        if i >= first:
            off = [abs(round(mean * (i + 1) - total)) for mean, total in zip(means[i - first], sums, strict=True)]
            wrong.append(misplaced + sum(off))
    return wrong


def prefix_states(tokens: Sequence[int]) -> list[int]:
    """The state of `TellTaleModel` after each token."""
    return list(accumulate(tokens, lambda state, token: (state * 1_000_003 + token + 7) % PRIME, initial=0))[1:]


def telltale_logits(states: Tensor, alphabet: Sequence[int], vocab_size: int) -> Tensor:
    """[rows] → [rows, vocab_size]: 4.0 for the likeliest token, a quarter less for each one after it."""
    letters, size = torch.tensor(alphabet, device=states.device), len(alphabet)
    logits = torch.full((len(states), vocab_size), NEVER, device=states.device)
    logits[:, letters] = 4.0 - ((torch.arange(size, device=states.device) - states[:, None]) % size) * 0.25
    return logits


def continuation(prompt: str | Sequence[int], count: int, alphabet: Sequence[int] = LETTERS) -> list[int]:
    """The `count` tokens that `TellTaleModel` generates greedily: the oracle."""
    tokens = list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
    start = len(tokens)
    while len(tokens) < start + count:
        tokens.append(alphabet[prefix_states(tokens)[-1] % len(alphabet)])
    return tokens[start:]


def continued_text(prompt: str, count: int, alphabet: Sequence[int] = LETTERS) -> str:
    """`continuation` as text."""
    return bytes(continuation(prompt, count, alphabet)).decode()


def script(text: str) -> dict[str, Any]:
    """Arguments of `double_components` for a model that answers "…|" with `text` and ends there."""
    answer = text.encode()

    def next_byte(tokens: Sequence[int]) -> int:
        done = len(tokens) - 1 - list(tokens).index(ord("|")) if ord("|") in tokens else 0
        return answer[done] if done < len(answer) else 256

    return {"alphabet": [*range(256), END], "state": next_byte}
