"""A scheduled batch → flat tensors → logits → tokens.

Knows tensors and positions; knows nothing of queues or text. Chunks of all requests lie one after
the other in one row of tokens, those of one token first:

    requests        A (decodes)   B (decodes)   C (chunk of 3)
    token_ids       a7            b4            c0 c1 c2
    positions       7             4             0  1  2
    slot_mapping    where each one's key and value go
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.execution.block_tables import BlockTables
from nano_qwen3_serving.execution.logprobs import logprobs_of
from nano_qwen3_serving.interfaces import (
    AttentionBackend,
    AttentionMetadata,
    Model,
    SampledTokens,
    SamplingRow,
    ScheduledBatch,
    ScheduledChunk,
    Verifier,
)
from nano_qwen3_serving.outputs import Logprob

LOGPROB_ROWS = 64


@dataclass(frozen=True)
class ModelInputs:
    """A batch as tensors; `chunks` in the order in which they lie there."""

    chunks: list[ScheduledChunk]
    token_ids: Tensor  # [num_tokens]
    positions: Tensor  # [num_tokens]
    metadata: AttentionMetadata
    sampling_rows: list[int]  # rows of the tokens after which one is sampled, the drafts of a request after its last known token


class ModelRunner:
    """Runs the network over batches; owns the KV cache's tensors.

    Args:
        model: the network.
        attention: the backend that made it and reads the cache.
        verifier: chooses tokens, and says which drafts stand.
        num_blocks: blocks of the cache.
        block_size: tokens in a block.
        device: of everything.
        row_multiple: rows of every product are padded to a multiple of this; 1 is no padding.
        num_threads: torch's threads while a batch runs; None leaves them alone.
    """

    def __init__(
        self,
        model: Model,
        attention: AttentionBackend,
        verifier: Verifier,
        num_blocks: int,
        block_size: int,
        device: torch.device,
        row_multiple: int = 1,
        num_threads: int | None = None,
    ) -> None:
        self.model = model
        self.attention = attention
        self.verifier = verifier
        self.block_size = block_size
        self.device = device
        self.row_multiple = row_multiple
        self.num_threads = num_threads
        self._block_tables = BlockTables(device)
        self.kv_cache: list[Any] = attention.make_cache(num_blocks)

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> SampledTokens:
        """Computes the batch's chunks and samples a token for each that reaches its request's end.

        Doing the same batch twice gives the same: a chunk writes its own slots only, and draws
        depend on nothing else. So a failed step can be tried again.
        """
        with torch_threads(self.num_threads):
            if batch.block_copies:
                self.attention.copy_blocks(self.kv_cache, batch.block_copies)
            return self._execute(self.lay_out(batch))

    def _execute(self, inputs: ModelInputs) -> SampledTokens:
        hidden = self.model(inputs.token_ids, inputs.positions, self.kv_cache, inputs.metadata)
        result = SampledTokens({}, prompt_logprobs=self._prompt_logprobs(hidden, inputs))
        sampling = [c for c in inputs.chunks if c.samples]
        if not sampling:
            return result
        rows = inputs.sampling_rows + [0] * self._padding(len(inputs.sampling_rows))
        logits = self.model.compute_logits(hidden[rows])[: len(inputs.sampling_rows)]
        try:
            tokens, logprobs = self.verifier.verify(
                logits, [sampling_row(c) for c in sampling], [c.token_ids[c.num_tokens - c.num_drafts :] for c in sampling])
        except Exception:
            self._check_finite(logits, inputs.chunks, hidden.dtype)  # perhaps that is what it stumbled over
            raise
        ids = [c.request.request_id for c in sampling]
        result.token_ids = dict(zip(ids, tokens, strict=True))
        result.logprobs = {i: lp for i, lp in zip(ids, logprobs, strict=True) if lp is not None}
        self._check_finite(logits[rows_of(tokens, sampling), list(chain(*tokens))], inputs.chunks, hidden.dtype)
        return result

    def lay_out(self, batch: ScheduledBatch) -> ModelInputs:
        """The batch as flat tensors, requests that compute one token first."""
        chunks = sorted(batch.chunks, key=lambda c: c.num_tokens > 1)
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampling_rows: list[int] = []
        for chunk in chunks:
            token_ids += chunk.token_ids
            positions += range(chunk.start, chunk.end)
            slots += self.attention.slots(chunk.block_table, range(chunk.start, chunk.end))
            if chunk.samples:
                sampling_rows += range(len(token_ids) - 1 - chunk.num_drafts, len(token_ids))
        padding = [0] * self._padding(len(token_ids))  # token 0 at position 0, into the null block
        metadata = AttentionMetadata(
            query_lens=[c.num_tokens for c in chunks],
            seq_lens=[c.end for c in chunks],
            block_tables=self._block_tables.stack(chunks),
            slot_mapping=self._tensor(slots + padding),
            num_decodes=sum(c.num_tokens == 1 for c in chunks),
            block_size=self.block_size,
        )
        return ModelInputs(
            chunks, self._tensor(token_ids + padding), self._tensor(positions + padding), metadata, sampling_rows)

    def _prompt_logprobs(self, hidden: Tensor, inputs: ModelInputs) -> dict[str, list[dict[int, Logprob]]]:
        """For the requests that ask: log-probabilities of the prompt's tokens after those of the chunk.

        A few rows at a time, so that no [prompt, vocabulary] matrix exists.
        """
        result: dict[str, list[dict[int, Logprob]]] = {}
        row = 0
        for chunk in inputs.chunks:
            request, wanted = chunk.request, chunk.request.params.prompt_logprobs
            if wanted is not None:
                following = request.prompt_token_ids[chunk.start + 1 : chunk.end + 1]
                each = result.setdefault(request.request_id, [])
                for start in range(0, len(following), LOGPROB_ROWS):
                    tokens = following[start : start + LOGPROB_ROWS]
                    logits = self.model.compute_logits(hidden[row + start : row + start + LOGPROB_ROWS]).float()
                    each += [logprobs_of(logits[i], token, wanted) for i, token in enumerate(tokens)]
                    chosen = torch.tensor([lp[t].logprob for lp, t in zip(each[start:], tokens, strict=True)])
                    self._check_finite(chosen, inputs.chunks, hidden.dtype)
            row += chunk.num_tokens
        return result

    def _check_finite(self, chosen: Tensor, chunks: list[ScheduledChunk], dtype: torch.dtype) -> None:
        """Raises FloatingPointError unless the numbers by which tokens were chosen are finite.

        Those of the chosen tokens are enough, so that no pass over the vocabulary is added: a hidden state that overflowed
        makes every logit of its row NaN, a single logit that did is the largest, and `draw` refuses it. The engine
        then computes each request alone. What lies behind the requests' last tokens is cleaned before: it is masked,
        but zero times the NaN that another request left there is NaN.
        """
        if chosen.isfinite().all():
            return
        slots = list(range(self.block_size))  # of the null block, and behind the last token of each request
        for chunk in chunks:
            slots += self.attention.slots(chunk.block_table, range(chunk.end, len(chunk.block_table) * self.block_size))
        for layer_cache in self.kv_cache:
            k, v = (torch.zeros_like(old) for old in self.attention.read(layer_cache, slots))
            self.attention.write(layer_cache, k, v, self._tensor(slots))
        raise FloatingPointError(not_finite(dtype))

    def _padding(self, rows: int) -> int:
        """Rows missing to a multiple of `row_multiple`."""
        return -rows % self.row_multiple

    def _tensor(self, numbers: list[Any]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Has torch use `count` threads on this one; None changes nothing. Takes less than a microsecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of(tokens: Sequence[Sequence[int]], chunks: Sequence[ScheduledChunk]) -> list[int]:
    """Where in the logits each of the tokens was chosen: a chunk has a row for each draft, and one more."""
    rows: list[int] = []
    first = 0
    for chosen, chunk in zip(tokens, chunks, strict=True):
        rows += range(first, first + len(chosen))
        first += chunk.num_drafts + 1
    return rows


def sampling_row(chunk: ScheduledChunk) -> SamplingRow:
    """What the sampler needs to know of a chunk's request."""
    request = chunk.request
    return SamplingRow(
        request.params,
        request.prompt_token_ids,
        request.output_token_ids,
        request.seed,
        request.sample_index,
        request.eos_token_ids,
        request.bad_words_token_ids,
        request.grammar,
        chunk.known_end,
        request.token_counts if request.params.has_penalties else None,
    )


def not_finite(dtype: torch.dtype) -> str:
    """What a request fails with whose numbers overflowed, and what to try."""
    name = str(dtype).removeprefix("torch.")
    wider = {torch.float16: "dtype='bfloat16' or 'float32'", torch.bfloat16: "dtype='float32'"}.get(dtype)
    way_out = (f"the model's numbers do not fit into {name}, try {wider}" if wider else
               "float32 holds all that a sound model computes, so compare its weights with what was published: "
               "python -m nano_qwen3_serving verify MODEL")
    return f"its logits are NaN or infinite in {name}: {way_out}"
