"""The parts an engine is made of, as Protocols, and what passes between them.

Anything with these methods can take a part's place: the reference's class, a lab's solution, a
learner's. Parts are chosen in `components.py`. Everything a method needs is in its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from nano_qwen3_serving.outputs import FinishReason, Logprob
from nano_qwen3_serving.request import Grammar, Request
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.token_counts import TokenCounts

NULL_BLOCK = 0  #: never given to a request; padding rows write there


@dataclass(frozen=True)
class ScheduledChunk:
    """Tokens of one request to be computed in this step. Frozen: nothing of it is read from the request later.

        token_ids    k k k k | d d        known tokens, then drafts: guesses at the tokens that follow
                     start   known_end  end

    Attributes:
        request: whose tokens they are.
        start: position of the first.
        token_ids: the tokens, at least one of them known.
        block_table: covers them all, perhaps more: token i lives in slot
            `block_table[i // block_size] * block_size + i % block_size`. To be read, never changed.
        samples: whether the request's last known token is among them, so that a new one follows.
        num_drafts: how many of the tokens are guesses. Only a chunk that samples has any.
    """

    request: Request
    start: int
    token_ids: list[int]
    block_table: Sequence[int]
    samples: bool
    num_drafts: int = 0

    @classmethod
    def of(
        cls, request: Request, start: int, num_tokens: int, block_table: Sequence[int], drafts: Sequence[int] = ()
    ) -> ScheduledChunk:
        """`num_tokens` of the tokens that the request knows, from position `start` on, and then `drafts`."""
        end = start + num_tokens
        return cls(
            request, start, [*request.token_ids(start, end), *drafts], block_table, end == request.num_tokens, len(drafts))

    @property
    def num_tokens(self) -> int:
        """Tokens computed for the request, drafts included."""
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """The first position after the chunk, and how many keys its last token attends to."""
        return self.start + len(self.token_ids)

    @property
    def known_end(self) -> int:
        """The first position after its known tokens."""
        return self.end - self.num_drafts


@dataclass(frozen=True)
class ScheduledBatch:
    """What one step computes.

    Attributes:
        chunks: at most one for each request.
        preempted: requests that lost their blocks to make room.
        block_copies: (source, target) of blocks whose content is copied before anything is computed.
    """

    chunks: list[ScheduledChunk]
    preempted: list[Request] = field(default_factory=list)
    block_copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in the step."""
        return sum(chunk.num_tokens for chunk in self.chunks)


@dataclass
class SampledTokens:
    """What a step sampled, by request id.

    Attributes:
        token_ids: for every chunk that samples, one token, or with drafts up to `num_drafts + 1`: the accepted ones
            and the one after them.
        logprobs: of these tokens, for requests that asked.
        prompt_logprobs: of the prompt's tokens that follow those of the chunk, for requests that asked.
        errors: of requests that failed in the step and have no tokens.
    """

    token_ids: dict[str, list[int]]
    logprobs: dict[str, list[dict[int, Logprob]]] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[dict[int, Logprob]]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestUpdate:
    """New tokens of one request; its `finish_reason` is set if they finished it."""

    request: Request
    new_token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass(frozen=True)
class StoppedRequest:
    """A request that ended for a reason the scheduler cannot see, such as a stop string.

    Attributes:
        num_output_tokens: how many of its output's tokens belong to it; None is all of them.
    """

    request_id: str
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    num_output_tokens: int | None = None


@dataclass(frozen=True)
class TextDelta:
    """Text that is safe to show, and the stop string if one was found.

    Attributes:
        num_tokens: how many of the tokens given belong to the text, the one that completed the stop string being the
            last; None is all of them.
    """

    text: str
    stop_reason: str | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class AttentionMetadata:
    """Where the tokens of a flat batch stand. Requests that compute one token come first.

    A request that only fills a batch up computes one token, has one key, and a table of null blocks; what comes out
    for it is finite and means nothing.

    Attributes:
        query_lens: tokens computed for each request.
        seq_lens: keys its last token attends to: computed before, and now.
        block_tables: [num_requests, max_blocks], padded with the null block.
        slot_mapping: [num_tokens], where each token's key and value go.
        num_decodes: how many requests, from the first, compute exactly one token.
        block_size: tokens in a block.
    """

    query_lens: list[int]
    seq_lens: list[int]
    block_tables: Tensor
    slot_mapping: Tensor
    num_decodes: int
    block_size: int

    @cached_property
    def decode_lens(self) -> Tensor:
        """[num_decodes] int64: keys of each decoding request."""
        return torch.tensor(self.seq_lens[: self.num_decodes], dtype=torch.long, device=self.block_tables.device)

    @cached_property
    def decode_mask(self) -> Tensor:
        """[num_decodes, 1, 1, max_len] bool: True where a decoding request has a key."""
        positions = torch.arange(self.decode_blocks * self.block_size, device=self.block_tables.device)
        return (positions[None, :] < self.decode_lens[:, None])[:, None, None, :]

    @cached_property
    def decode_blocks(self) -> int:
        """Blocks of the longest decoding request."""
        return -(-max(self.seq_lens[: self.num_decodes]) // self.block_size)


@dataclass(frozen=True)
class SamplingRow:
    """One row of logits: whose it is and where its draw stands.

    Each draw is a function of (seed, sample_index, position) alone. `position` is that of the token to be sampled, by
    default the one after the output. `token_counts` saves a sampler counting the output's tokens anew in every step.
    """

    params: SamplingParams
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    seed: int
    sample_index: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    bad_words_token_ids: Sequence[Sequence[int]] = ()
    grammar: Grammar | None = None
    position: int = -1
    token_counts: TokenCounts | None = None

    def __post_init__(self) -> None:
        if self.position < 0:
            object.__setattr__(self, "position", len(self.prompt_token_ids) + len(self.output_token_ids))


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer; a byte-level vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`; special tokens written in it are recognised, none are added."""

    def encode_literally(self, text: str) -> list[int]:
        """Tokens that spell `text`, byte for byte; special tokens written in it are plain text."""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text, as UTF-8 bytes: perhaps a part of a character, and nothing for an unknown id."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is one such as `<|im_end|>`, left out of the text by default."""

    def token_text(self, token_id: int) -> str:
        """The token as text, for people: incomplete UTF-8 becomes U+FFFD."""


class BlockManager(Protocol):
    """Who owns which block of the KV cache."""

    block_size: int
    enable_prefix_caching: bool  #: whether anything can ever be found in the cache

    @property
    def num_free_blocks(self) -> int:
        """Blocks that an allocation could get, those included whose content is cached and held by nobody."""

    def find_cached_prefix(self, request_id: str, token_ids: Sequence[int], salt: str = "") -> int:
        """How many of a waiting request's leading tokens are cached for this salt: whole blocks, and never the last token.

        It may be asked in every step until the request is allocated or freed, so what was hashed once can be kept.
        """

    def allocate(
        self, request_id: str, num_tokens: int, cached_prefix: Sequence[int] = (), salt: str = ""
    ) -> bool:
        """Makes the request's block table cover `num_tokens` tokens in all: the missing blocks, or none.

        A first allocation may begin with `cached_prefix`, the tokens that `find_cached_prefix` counted:
        their blocks are shared. Returns whether there were enough blocks; if not, nothing has changed.
        """

    def block_table(self, request_id: str) -> Sequence[int]:
        """The request's block table, in the order of its tokens. Raises KeyError for an unknown id.

        It may be the manager's own: the engine only reads it, and what it has read stays true while the request runs.
        """

    def commit(self, request_id: str, token_ids: Sequence[int], start: int = 0) -> None:
        """Says that the request's tokens up to the last of `token_ids` are in the KV cache and can be shared.

        `token_ids` are those from `start` on, the beginning of a block; the ones before were committed already.
        """

    def fork(self, parent_id: str, child_id: str, num_tokens: int) -> list[tuple[int, int]] | None:
        """Gives a new request the parent's first `num_tokens` tokens, which are computed: full blocks are shared.

        Returns the copies (source, target) that are due before the child's next step: of the last block, if it is not
        full. None if there was no block for that; then nothing has changed.
        """

    def free(self, request_id: str) -> None:
        """Gives the request's blocks back. An unknown id is a no-op: an abort may come late, or twice."""

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached content; refused (False) while any request holds blocks."""

    def check_integrity(self) -> None:
        """Raises AssertionError unless every block is in exactly one state and all counts are right."""


class Scheduler(Protocol):
    """Who runs in the next step. `waiting` and `running` are there to be looked at."""

    waiting: list[Request]
    running: list[Request]

    def add(self, request: Request) -> None:
        """Takes a new request in. It waits until a step has room for it."""

    def abort(self, request_id: str) -> None:
        """Ends a request wherever it is, and frees its blocks. An unknown id is a no-op."""

    def schedule(self) -> ScheduledBatch:
        """Picks the chunks of the next step, within the budgets, and has block tables cover them.

        May preempt running requests: they give their blocks back and wait, to be computed anew.
        """

    def update(self, batch: ScheduledBatch, result: SampledTokens) -> list[RequestUpdate]:
        """Takes in what the step of `batch` computed: tokens grow, and requests that are done finish.

        Returns an update for each request that got tokens; one that ended meanwhile gets none.
        """

    def finish(self, stopped: Sequence[StoppedRequest]) -> None:
        """Ends requests for reasons that only others can see. Unknown ids are no-ops."""


class AttentionBackend(Protocol):
    """The KV tensors and who can read them how. A layer's cache is the backend's own business."""

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block in all layers, keys and values."""

    def make_cache(self, num_blocks: int) -> list[Any]:
        """One cache per layer, of `num_blocks` blocks."""

    def slots(self, block_table: Sequence[int], positions: range) -> list[int]:
        """Where the keys and values of a request's `positions` are: one slot each."""

    def write(self, layer_cache: Any, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Puts k and v, [num_tokens, num_kv_heads, head_dim], into `slots`, [num_tokens] int64."""

    def forward(self, q: Tensor, layer_cache: Any, metadata: AttentionMetadata) -> Tensor:
        """Causal attention of each token to its own request's tokens up to itself.

        `q` and the result are [num_tokens, num_heads, head_dim]; keys and values of these tokens are
        written already. Rows after the last request's are padding: what comes out for them means nothing.
        """

    def copy_blocks(self, cache: list[Any], pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (source, target), in every layer."""

    def read(self, layer_cache: Any, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values in `slots`, each [len(slots), num_kv_heads, head_dim]."""


class Model(Protocol):
    """Token ids to hidden states to logits; flat tensors, no batch dimension."""

    def __call__(
        self, token_ids: Tensor, positions: Tensor, cache: list[Any], metadata: AttentionMetadata
    ) -> Tensor:
        """Hidden states, [num_tokens, hidden_size], of a flat batch.

        Writes the batch's keys and values into `cache`, a layer at a time, before it attends. `token_ids`
        and `positions` are [num_tokens] int64, in the order of `metadata`.
        """

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[num_rows, hidden_size] → [num_rows, vocab_size], only for the rows whose logits are wanted."""


class Sampler(Protocol):
    """Logits to tokens: a pure function of logits and rows."""

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        """One token for each row of `logits`, [num_rows, vocab_size], which are not changed.

        Returns the tokens, and for each row its log-probabilities if it asked for them: those of the
        raw logits, before penalties and temperature.
        """


class Verifier(Protocol):
    """Logits to tokens where some of the tokens were guessed and computed already."""

    def verify(
        self, logits: Tensor, rows: Sequence[SamplingRow], drafts: Sequence[Sequence[int]]
    ) -> tuple[list[list[int]], list[list[dict[int, Logprob]] | None]]:
        """The tokens that follow each row's output: the drafts accepted, and one more.

        Args:
            logits: [sum(len(d) + 1 for d in drafts), vocab_size], not changed. Those of a row lie together: after its
                last known token, then after each of its drafts.
            rows: one for each request.
            drafts: guesses at its next tokens, perhaps none.

        Returns:
            For each row its 1 to len(drafts) + 1 tokens, and their log-probabilities if it asked for them.
        """


class Drafter(Protocol):
    """Guesses at tokens that requests will generate, cheaper than the model would compute them."""

    def propose(self, requests: Sequence[Request], num_drafts: int) -> list[list[int]]:
        """For each request at most `num_drafts` tokens that may follow those it knows; none where there is no good guess."""


class Detokenizer(Protocol):
    """Tokens of one request to text, a piece at a time."""

    def add(self, token_ids: Sequence[int]) -> TextDelta:
        """Takes the next tokens; returns the text that is safe to show now, up to a stop string if one is complete."""

    def finish(self) -> TextDelta:
        """No more tokens come: the text that was kept back."""
