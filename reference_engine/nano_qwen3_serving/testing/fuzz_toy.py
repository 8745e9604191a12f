"""A model whose tokens are an exact function of what lies in the KV cache, and what it should say.

`ToyModel` writes token ids and positions as keys and values into the real attention cache, reads
the whole prefix back through the block table, and hashes it with integers. A wrong slot, a block
of somebody else or a lost write therefore changes the next token, and equality is bitwise: no
floating-point sum depends on who else is in the batch. `ToyOracle` computes the same tokens, text
and reasons from a request alone, in plain Python, without a cache, a scheduler or a batch.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.config import EngineConfig, ModelConfig
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import AttentionBackend, AttentionMetadata, SamplingRow
from nano_qwen3_serving.outputs import Logprob
from nano_qwen3_serving.sampling_params import SamplingParams

EOS = 0
#: every token's bytes: an end, letters, a space, and two characters that are split over tokens
BYTES = [b"<eos>", *(bytes([b]) for b in b"abcdefghijklmnopqrstuvwxyz "),
         b"\xc3", b"\xa9", b"\xe2", b"\x9c", b"\x93", *(bytes([b]) for b in b"ABCDEFGH")]
TOY_MODEL = ModelConfig(
    vocab_size=len(BYTES), hidden_size=1, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1,
    num_key_value_heads=1, head_dim=4, max_position_embeddings=64, eos_token_ids=(EOS,))
PRIME = (1 << 61) - 1


class ToyTokenizer:
    """One token per byte of a small alphabet."""

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`."""
        return [BYTES.index(bytes([b])) for b in text.encode()]

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text."""
        return BYTES[token_id]

    def is_special(self, token_id: int) -> bool:
        """Whether it is the end of sequence."""
        return token_id == EOS

    def token_text(self, token_id: int) -> str:
        """The token for people."""
        return BYTES[token_id].decode(errors="replace")


class ToyModel:
    """Hashes the prefix that it finds in the cache.

    Its first key and value number is the token id + 1, the second the position + 1. Attending with
    a query of zeros gives the mean of the values, and so, times their count, a sum of integers: a
    wrong mask changes it.
    """

    def __init__(self, attention: AttentionBackend) -> None:
        self.attention = attention

    def __call__(self, token_ids: Tensor, positions: Tensor, cache: list[Any], metadata: AttentionMetadata) -> Tensor:
        """The hash of each token's prefix: [num_tokens] int64."""
        (layer_cache,) = cache
        kv = torch.zeros(len(token_ids), 1, 4)
        kv[:, 0, 0], kv[:, 0, 1] = token_ids + 1, positions + 1
        self.attention.write(layer_cache, kv, kv, metadata.slot_mapping)
        means = self.attention.forward(torch.zeros_like(kv), layer_cache, metadata)[:, 0, 0].tolist()
        hidden: list[int] = []
        for i, (count, end) in enumerate(zip(metadata.query_lens, metadata.seq_lens, strict=True)):
            table, size = metadata.block_tables[i].tolist(), metadata.block_size
            keys, values = self.attention.read(layer_cache, [table[p // size] * size + p % size for p in range(end)])
            numbers = (keys[:, 0, :2] + values[:, 0, :2]).long().tolist()  # twice each, if both were written
            hashes = prefix_hashes([(token / 2 - 1, position / 2 - 1) for token, position in numbers])
            for p in range(end - count, end):
                hidden.append(with_sum(hashes[p], round(means[len(hidden)] * (p + 1))))
        return torch.tensor(hidden)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[rows] → [rows, vocab_size]"""
        return toy_logits(hidden)


def prefix_hashes(tokens: Sequence[tuple[float, float]]) -> list[int]:
    """A hash after each (token, position)."""
    hashes, h = [], 0
    for token, position in tokens:
        h = (h * 1_000_003 + int(token * 4096) + int(position * 2) + 7) % PRIME
        hashes.append(h)
    return hashes


def with_sum(prefix_hash: int, values: int) -> int:
    """The hash with the sum that attention gave mixed in."""
    return (prefix_hash * 7919 + values) % PRIME


def toy_logits(hidden: Tensor) -> Tensor:
    """Numbers in [0, 8) that float32 holds exactly, all different in a row: [rows, vocab_size]."""
    tokens = torch.arange(TOY_MODEL.vocab_size)
    x = hidden[:, None] * 0x2545F4914F6CDD1D + tokens * 0x1B873593CC9E2D51
    x = (x ^ x >> 29) * 0x3C79AC492BA7B653
    return (((x >> 30 & 0x1FFFF) << 6) | tokens).float() / (1 << 20)


@dataclass(frozen=True)
class Expected:
    """One completion as it must be."""

    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: str | int | None
    logprobs: list[dict[int, Logprob]] | None


class ToyOracle:
    """What the toy model says to one request that is alone in the world."""

    def __init__(self, config: EngineConfig) -> None:
        self.tokenizer = ToyTokenizer()
        self.max_model_len = config.scheduler.max_model_len
        self.sampler = Sampler(config.max_logprobs)

    def expected(self, prompt: list[int], params: SamplingParams) -> list[Expected]:
        """All n completions."""
        return [self._completion(prompt, params, i) for i in range(params.n)]

    def _completion(self, prompt: list[int], params: SamplingParams, index: int) -> Expected:
        most = min(params.max_tokens or self.max_model_len, self.max_model_len - len(prompt))
        tokens: list[int] = []
        logprobs: list[Any] = []
        while True:
            token, logprob = self._next(prompt, tokens, params, index)
            tokens.append(token)
            logprobs.append(logprob)
            ended = self._ended(tokens, params, most)
            if ended is not None:
                text, reason, stop = ended
                return Expected(tokens, text, reason, stop, None if params.logprobs is None else logprobs)

    def _next(self, prompt: list[int], tokens: list[int], params: SamplingParams, index: int) -> tuple[int, Any]:
        everything = prompt + tokens
        hashes = prefix_hashes([(t, p) for p, t in enumerate(everything)])
        logits = toy_logits(torch.tensor([with_sum(hashes[-1], sum(t + 1 for t in everything))]))
        row = SamplingRow(
            params, prompt, tokens, (params.seed or 0) + index, index,
            frozenset() if params.ignore_eos else frozenset((EOS,)), self._bad_words(params))
        (token,), (logprob,) = self.sampler.sample(logits, [row])
        return token, logprob

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        return [self.tokenizer.encode(w) for word in params.bad_words or () for w in (word, " " + word)]

    def _ended(self, tokens: list[int], params: SamplingParams, most: int) -> tuple[str, str, str | int | None] | None:
        """(text, finish reason, stop reason) if the last token ends it."""
        last, enough = tokens[-1], len(tokens) >= params.min_tokens
        is_eos = enough and last == EOS and not params.ignore_eos
        is_stop = enough and last in (params.stop_token_ids or ())
        shown = tokens[:-1] if (is_eos or is_stop) and not params.include_stop_str_in_output else tokens
        found = find_stop(self.tokenizer, shown, params) if len(shown) == len(tokens) else None
        if found is not None:
            return *found[:1], "stop", found[1]
        text = text_of(self.tokenizer, shown, params)
        if is_eos or is_stop:
            return text, "stop", None if is_eos else last
        return (text, "length", None) if len(tokens) >= most else None


def text_of(tokenizer: Any, tokens: Sequence[int], params: SamplingParams, final: bool = True) -> str:
    """The tokens' text; not `final`, an incomplete character at the end is left out."""
    if not params.detokenize:
        return ""
    pieces = [tokenizer.token_bytes(t) for t in tokens
              if not (params.skip_special_tokens and tokenizer.is_special(t))]
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(b"".join(pieces), final)


def find_stop(tokenizer: Any, tokens: Sequence[int], params: SamplingParams) -> tuple[str, str] | None:
    """(text, stop string) if the last token completed one, and enough tokens came before."""
    if len(tokens) <= params.min_tokens or not params.detokenize:
        return None
    before = len(text_of(tokenizer, tokens[:-1], params, final=False))
    text = text_of(tokenizer, tokens, params, final=False)
    ends = [(end, -len(stop), stop) for stop in params.stop_strings for end in range(before + 1, len(text) + 1)
            if text[:end].endswith(stop)]
    if not ends:
        return None
    end, _, stop = min(ends)
    return text[: end if params.include_stop_str_in_output else end - len(stop)], stop
