"""The check at a seam: does a part keep the promises of the engine's interface?

A part that returns None instead of a bool makes correct code of the engine fail later.
So each part is wrapped in a `Guarded`, which passes every call on and checks types, shapes and
ranges of the results. It changes nothing and copies no tensor. The promises are those of
`nano_qwen3_serving/interfaces.py`.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from labs.harness.mixed_engine.part import Part
from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.interfaces import (
    AttentionMetadata,
    RequestUpdate,
    SampledTokens,
    SamplingRow,
    ScheduledBatch,
    ScheduledChunk,
    StoppedRequest,
    TextDelta,
)

Check = Callable[[Any], str | None]
"""An attribute's value → what is wrong with it, or None."""


class BrokenPromise(Exception):
    """A part returned something that the engine cannot use, or lacks a method.

    Attributes:
        part: the part.
        method: of the engine's interface, such as "allocate".
        owner: name of the class that has the method.
    """

    def __init__(self, part: Part, method: str, owner: str, message: str):
        super().__init__(f"Lab {part.lab.id}, {method}: {message}")
        self.part = part
        self.method = method
        self.owner = owner


@dataclass(frozen=True)
class Call:
    """A call into a part, and what it returned."""

    part: Part
    method: str
    owner: str
    result: Any = None


class Watch:
    """Remembers the last call into any part, and into the part of each field of `Components`.

    A failure right after a call is probably caused by that call.
    """

    def __init__(self) -> None:
        self.last: Call | None = None
        self.last_of: dict[str, Call] = {}
        self.first_error: Exception | None = None
        """The first error of a part. The engine may have recovered by trying each request alone."""
        self.suspect: BrokenPromise | None = None
        """The first impossible result of a part at which the engine does not stop: a lost block, a NaN."""
        self.seconds: Counter[str] = Counter()
        """Field → seconds spent in its part; calls that it makes into other parts count as theirs."""
        self._inside: list[float] = []

    def note(self, field: str, call: Call) -> None:
        """A call is about to be made, or has returned."""
        self.last = self.last_of[field] = call

    @contextmanager
    def timing(self, field: str) -> Iterator[None]:
        """Counts the time of a call; the calls into other parts within it are subtracted."""
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[field] += spent - self._inside.pop()  # type: ignore[assignment]  # a count may be a fraction
            if self._inside:
                self._inside[-1] += spent


class Guarded:
    """A part behind its checks; attributes without a check go straight to the part."""

    def __init__(self, inner: Any, checks: Any, part: Part, field: str, watch: Watch) -> None:
        self._inner, self._checks, self._part, self._field, self._watch = inner, checks, part, field, watch
        for name, member in inspect.getmembers_static(type(checks)):
            if not name.startswith("_") and inspect.isfunction(member):
                self.__dict__[name] = self._checked(name, getattr(checks, name))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        check = self._checks._attributes.get(name)
        if check is not None:
            self._judge(name, value, check(value))
        return value

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__dict__["call"](*arguments, **named)

    def _checked(self, name: str, check: Callable[..., str | None]) -> Callable[..., Any]:
        method = self._inner if name == "call" else getattr(self._inner, name, None)
        if method is None:
            raise BrokenPromise(
                self._part, name, type(self._inner).__name__,
                f"{type(self._inner).__name__} has no method {name}, and the engine calls it")

        def call(*arguments: Any, **named: Any) -> Any:
            self._watch.note(self._field, Call(self._part, name, type(self._inner).__name__))
            try:
                with self._watch.timing(self._field):
                    result = method(*arguments, **named)
                self._judge(name, result, check(result, *arguments, **named))
            except Exception as error:
                self._watch.first_error = self._watch.first_error or error
                raise
            return result

        return call

    def _judge(self, name: str, result: Any, wrong: str | None) -> None:
        owner = type(self._inner).__name__
        self._watch.note(self._field, Call(self._part, name, owner, result))
        if wrong is not None:
            raise BrokenPromise(self._part, name, owner, wrong)
        if self._watch.suspect is None and self._checks.suspicion is not None:
            self._watch.suspect = BrokenPromise(self._part, name, owner, self._checks.suspicion)


def guarded(inner: Any, part: Part, field: str, watch: Watch, first: Any) -> Any:
    """`inner` behind the checks of the field it fills; `first` is the first argument of its factory."""
    return Guarded(inner, CHECKS[field](inner, first), part, field, watch) if field in CHECKS else inner


class Checks:
    """The base of all fields' checks."""

    suspicion: str | None = None
    """The first impossible result at which the engine does not stop, in words."""
    _attributes: dict[str, Check]

    def _suspect(self, text: str) -> None:
        self.suspicion = self.suspicion or text

    def _look_for_nan(self, result: Tensor, what: str) -> None:
        if self.suspicion is None and not all_finite(result):
            row = int((~result.isfinite().flatten(1).all(dim=1)).nonzero()[0])
            self._suspect(f"returned NaN or infinity, first in {what} {row} of {result.shape[0]}, and got only finite numbers")


class BlockManagerChecks(Checks):
    """Checks that tables name blocks of the pool and cover the requested tokens, and that no request is refused needlessly.

    A ledger of each request's blocks shows which call lost a block, or gave it to two requests.
    """

    def __init__(self, inner: Any, config: EngineConfig) -> None:
        self._inner, self._num_blocks = inner, config.cache.num_blocks
        self._held: dict[str, list[int]] = {}
        self._steps = 0
        self._attributes = {"num_free_blocks": self._free_blocks, "block_size": self._block_size}
        self._size = config.cache.block_size

    def _free_blocks(self, value: Any) -> str | None:
        if whole(value) and 0 <= value < self._num_blocks:
            return None
        return f"must be a whole number from 0 to {self._num_blocks - 1} (block 0 is never free), is {shown(value)}"

    def _block_size(self, value: Any) -> str | None:
        return None if value == self._size else f"must be {self._size}, is {shown(value)}"

    def allocate(
        self, result: Any, request_id: str, num_tokens: int, cached_prefix: Sequence[int] = (), salt: str = ""
    ) -> str | None:
        if not isinstance(result, bool):
            return f"must return True or False, returned {shown(result)}"
        needed = -(-num_tokens // self._size)
        before = self._held.get(request_id, [])
        if result:
            table = self._inner.block_table(request_id)
            if (wrong := self.block_table(table, request_id)) is not None:
                return f"returned True, and then block_table {wrong}"
            if len(table) < needed:
                return f"returned True for {num_tokens} tokens of {request_id}: {needed} blocks, but its table is {table}"
            if not cached_prefix:
                self._look_for_other_owners(request_id, [block for block in table if block not in before])
            self._held[request_id] = list(table)
            self._count(f"{request_id} got the blocks {table}")
            return None
        missing, free = needed - len(before), self._inner.num_free_blocks
        if not cached_prefix and whole(free) and missing <= free:
            return f"returned False: {request_id} needs {max(missing, 0)} more blocks, and {free} are free"
        return None

    def block_table(self, result: Any, request_id: str) -> str | None:
        if not isinstance(result, list) or not all(map(whole, result)):
            return f"must return a list of block numbers, returned {shown(result)}"
        if strange := [block for block in result if not 0 < block < self._num_blocks]:
            return f"of {request_id} is {result}: block {strange[0]} is not one of 1 to {self._num_blocks - 1}"
        return None

    def free(self, result: Any, request_id: str) -> None:
        table = self._held.pop(request_id, None)
        if table is not None:
            self._count(f"{request_id} was freed, which held the blocks {table}")

    def _look_for_other_owners(self, request_id: str, blocks: Sequence[int]) -> None:
        for other, table in self._held.items():
            if other != request_id and (shared := [block for block in blocks if block in table]):
                self._suspect(f"{request_id} got block {shared[0]}, which is in the table of {other}, too{self._when()}")

    def _count(self, happened: str) -> None:
        """Checks that all blocks that no request holds are free."""
        held = {block for table in self._held.values() for block in table}
        expected, free = self._num_blocks - 1 - len(held), self._inner.num_free_blocks
        if free != expected:
            self._suspect(f"{happened}: {expected} blocks should be free then, and num_free_blocks says {free}{self._when()}")

    def _when(self) -> str:
        return f" (step {self._steps})" if self._steps else ""

    def find_cached_prefix(self, result: Any, request_id: str, token_ids: Sequence[int], salt: str = "") -> str | None:
        if whole(result) and result % self._size == 0 and 0 <= result < max(len(token_ids), 1):
            return None
        return f"must return a multiple of {self._size} below {len(token_ids)} tokens, returned {shown(result)}"

    def commit(self, result: Any, request_id: str, token_ids: Sequence[int], start: int = 0) -> None: ...

    def check_integrity(self, result: Any) -> None:
        self._steps += 1  # called once a step, if at all

    def reset_prefix_cache(self, result: Any) -> str | None:
        return None if isinstance(result, bool) else f"must return True or False, returned {shown(result)}"


class SamplerChecks(Checks):
    """Checks for one token of the vocabulary per row, and log-probabilities for the rows that want them."""

    def __init__(self, inner: Any, config: EngineConfig) -> None:
        self._attributes: dict[str, Check] = {}

    def sample(self, result: Any, logits: Tensor, rows: Sequence[SamplingRow]) -> str | None:
        if not (isinstance(result, tuple) and len(result) == 2):
            return f"must return two lists, tokens and log-probabilities; returned {shown(result)}"
        tokens, logprobs = result
        if not isinstance(tokens, list) or not all(map(whole, tokens)) or len(tokens) != len(rows):
            return f"must return tokens as a list of ints, one for each row ({len(rows)} now); returned {shown(tokens)}"
        if strange := [token for token in tokens if not 0 <= token < logits.shape[-1]]:
            return f"returned token {strange[0]}; the vocabulary has {logits.shape[-1]}"
        if not isinstance(logprobs, list) or len(logprobs) != len(rows):
            kind = f"log-probabilities or None for each row ({len(rows)} now)"
            return f"must return a list with {kind}; returned {shown(logprobs)}"
        for i, (row, token, answer) in enumerate(zip(rows, tokens, logprobs, strict=True)):
            if (row.params.logprobs is not None) != isinstance(answer, dict):
                asked = f"asked for {row.params.logprobs}" if row.params.logprobs is not None else "asked for none"
                return f"row {i} {asked} log-probabilities and got {shown(answer)}"
            if answer is not None and token not in answer:
                return f"the log-probabilities of row {i} lack its own token, {token}; they have {shown(list(answer))}"
        return None


class AttentionChecks(Checks):
    """Checks that slots lie in the cache and that outputs have the query's shape."""

    def __init__(self, inner: Any, config: EngineConfig) -> None:
        self._layers, self._model = config.model.num_hidden_layers, config.model
        self._slots = config.cache.num_blocks * config.cache.block_size
        self._attributes = {
            "bytes_per_block": lambda value: None if whole(value) and value > 0
            else f"must be a number of bytes, is {shown(value)}"}

    def make_cache(self, result: Any, num_blocks: int) -> str | None:
        if isinstance(result, list) and len(result) == self._layers:
            return None
        return f"must return a list of {self._layers} caches, one a layer; returned {shown(result)}"

    def slots(self, result: Any, block_table: Sequence[int], positions: range) -> str | None:
        if not isinstance(result, list) or not all(map(whole, result)) or len(result) != len(positions):
            return f"must return a list of {len(positions)} slots, one a position; returned {shown(result)}"
        if strange := [slot for slot in result if not 0 <= slot < self._slots]:
            return f"returned slot {strange[0]} for the table {list(block_table)}; the cache has {self._slots} slots"
        return None

    def write(self, result: Any, layer_cache: Any, k: Tensor, v: Tensor, slots: Tensor) -> None: ...

    def forward(self, result: Any, q: Tensor, layer_cache: Any, metadata: AttentionMetadata) -> str | None:
        if (wrong := tensor_like(result, tuple(q.shape), q.dtype)) is None and all_finite(q):
            self._look_for_nan(result, "row")
        return wrong

    def copy_blocks(self, result: Any, cache: list[Any], pairs: Sequence[tuple[int, int]]) -> None: ...

    def read(self, result: Any, layer_cache: Any, slots: Sequence[int]) -> str | None:
        shape = (len(slots), self._model.num_key_value_heads, self._model.head_dim)
        if not isinstance(result, tuple | list) or len(result) != 2:
            return f"must return keys and values, returned {shown(result)}"
        return tensor_like(result[0], shape) or tensor_like(result[1], shape)


class ModelChecks(Checks):
    """Checks for hidden states per token and logits per row."""

    def __init__(self, inner: Any, config: EngineConfig) -> None:
        self._attributes: dict[str, Check] = {}
        self._hidden, self._vocabulary = config.model.hidden_size, config.model.vocab_size

    def call(self, result: Any, token_ids: Tensor, positions: Tensor, cache: Any, metadata: Any) -> str | None:
        """Checks a call of the network itself: hidden states of every token."""
        if (wrong := tensor_like(result, (token_ids.shape[0], self._hidden))) is None:
            self._look_for_nan(result, "token")
        return wrong

    def compute_logits(self, result: Any, hidden: Tensor) -> str | None:
        if (wrong := tensor_like(result, (hidden.shape[0], self._vocabulary))) is None and all_finite(hidden):
            self._look_for_nan(result, "row")
        return wrong


class SchedulerChecks(Checks):
    """Checks that batches and updates are made of the engine's own types."""

    def __init__(self, inner: Any, config: EngineConfig) -> None:
        self._attributes = dict.fromkeys(("waiting", "running"), self._queue)

    def _queue(self, value: Any) -> str | None:
        return None if isinstance(value, list) else f"must be a list of requests, is {shown(value)}"

    def add(self, result: Any, request: Any) -> None: ...

    def abort(self, result: Any, request_id: str) -> None: ...

    def schedule(self, result: Any) -> str | None:
        if not isinstance(result, ScheduledBatch):
            return f"must return a ScheduledBatch, returned {shown(result)}"
        strange = [chunk for chunk in result.chunks if not isinstance(chunk, ScheduledChunk)]
        return f"must return a batch of ScheduledChunk, has {shown(strange[0])}" if strange else None

    def update(self, result: Any, batch: ScheduledBatch, sampled: SampledTokens) -> str | None:
        if isinstance(result, list) and all(isinstance(update, RequestUpdate) for update in result):
            return None
        return f"must return a list of RequestUpdate, returned {shown(result)}"

    def finish(self, result: Any, stopped: Sequence[StoppedRequest]) -> None: ...


class DetokenizerChecks(Checks):
    """Pieces of text."""

    def __init__(self, inner: Any, tokenizer: Any) -> None:
        self._attributes: dict[str, Check] = {}

    def add(self, result: Any, token_ids: Sequence[int]) -> str | None:
        return self.finish(result)

    def finish(self, result: Any) -> str | None:
        if isinstance(result, TextDelta) and isinstance(result.text, str):
            return None
        return f"must return a TextDelta, returned {shown(result)}"


CHECKS = {
    "block_manager": BlockManagerChecks,
    "sampler": SamplerChecks,
    "attention": AttentionChecks,
    "model": ModelChecks,
    "scheduler": SchedulerChecks,
    "detokenizer": DetokenizerChecks,
}


def whole(value: Any) -> bool:
    """Whether the value is an int and not a bool."""
    return type(value) is int


def all_finite(value: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite."""
    return bool(value.isfinite().all())


def tensor_like(value: Any, shape: tuple[int, ...], dtype: Any = None) -> str | None:
    """What is wrong with a result that should be a tensor of this shape."""
    if not isinstance(value, Tensor):
        return f"must return a tensor of shape {list(shape)}, returned {shown(value)}"
    if tuple(value.shape) != shape:
        return f"must return shape {list(shape)}, returned {list(value.shape)}"
    if dtype is not None and value.dtype != dtype:
        return f"must return {dtype}, as it was given; returned {value.dtype}"
    return None


def shown(value: Any) -> str:
    """A value in one line: tensors by shape, long values cut."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
