"""Stand-ins that make tests of an engine exact and fast: time, interleaving, text, the network.

The engine around them is the real one: they are given to it as a clock, a step gate and
`Components`. `TellTaleModel` is worth a look: its next token depends on every key that it finds
through the block table, so a block that is lost, stale, shared wrongly or somebody else's changes
the output, and what the output should be is one line of arithmetic (`continuation`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.interfaces import AttentionBackend, AttentionMetadata
from nano_qwen3_serving.observe.trace import Recorder

LETTERS = b"abcdefghijklmnopqrstuvwxyz "
MODULUS = 100_003
END = -1  # in an alphabet: whatever token ends a sequence under the configuration
PATIENCE = 30.0  # seconds until a test that waits for a thread gives up


class ManualClock:
    """Engine time that passes only when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass."""
        self.now += seconds


class StepGate:
    """Stops the step thread before every step until a test lets it go on.

    Args:
        is_open: let every step through from the beginning.
    """

    def __init__(self, is_open: bool = False) -> None:
        self._changed = threading.Condition()
        self._open = is_open
        self._allowed = 0
        self.arrived = 0  # steps that came to the gate
        self.passed = 0  # steps that went through

    def __call__(self) -> None:
        with self._changed:
            self.arrived += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._open or self._allowed, PATIENCE):
                raise TimeoutError("nobody opened the step gate")
            self._allowed -= not self._open
            self.passed += 1

    def allow(self, steps: int = 1) -> None:
        """Lets that many more steps through."""
        with self._changed:
            self._allowed += steps
            self._changed.notify_all()

    def open(self) -> None:
        """Lets every step through from now on."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    async def at_step(self, number: int) -> None:
        """Lets `number` steps through, counted from the first, and waits until one more stands at the gate."""
        self.allow(max(number - self.passed, 0))
        await asyncio.to_thread(self._wait_arrived, number + 1)

    def _wait_arrived(self, count: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.arrived >= count, PATIENCE):
                raise TimeoutError(f"step {count} never came to the gate")


class ByteTokenizer:
    """One token per UTF-8 byte; 256 is a special token, `<|end|>`."""

    chat_template = None

    def __init__(self, on_encode: Callable[[str], object] | None = None) -> None:
        self._on_encode = on_encode

    def __len__(self) -> int:
        return 257

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`."""
        if self._on_encode is not None:
            self._on_encode(text)
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of bytes; there is nothing to show of a special token."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The byte."""
        return bytes([token_id]) if token_id < 256 else b""

    def is_special(self, token_id: int) -> bool:
        """Whether it is no byte."""
        return token_id >= 256

    def token_text(self, token_id: int) -> str:
        """The byte as text, for people."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **switches: Any) -> str:
        """The contents, a line each."""
        return "".join(m["content"] + "\n" for m in messages)


class TellTaleModel:
    """A network without weights whose output tells whether the KV cache is right.

    Each token's key holds its id and position. The state after a position is the sum of
    (token + 1) * (position + 1) over all keys up to it, read back through the block table, and
    stirred; the likeliest next token is `alphabet[state % len(alphabet)]`, those after it follow.

    Args:
        config: for the shape of the cache and of the logits.
        attention: writes and reads the cache.
        alphabet: tokens that it generates.
        state: another function of a context instead of that sum; see `script`.
        on_forward: called before each pass with the contexts, one list of tokens for each request;
            a fault to inject is an exception raised there.
    """

    def __init__(
        self,
        config: EngineConfig,
        attention: AttentionBackend,
        alphabet: Sequence[int] = LETTERS,
        on_forward: Callable[[list[list[int]]], object] | None = None,
        state: Callable[[Sequence[int]], int] | None = None,
    ) -> None:
        self._state = state or telltale_state
        self._shape = (config.model.num_key_value_heads, config.model.head_dim)
        self._vocab_size = config.model.vocab_size
        self._attention = attention
        self._alphabet = [config.model.eos_token_ids[0] if token == END else token for token in alphabet]
        self._on_forward = on_forward

    def __call__(self, token_ids: Tensor, positions: Tensor, cache: list[Any], metadata: AttentionMetadata) -> Tensor:
        """[num_tokens] → states, [num_tokens, 1]"""
        keys = torch.zeros(len(token_ids), *self._shape)
        keys[:, 0, 0], keys[:, 0, 1] = token_ids, positions
        self._attention.write(cache[0], keys, keys, metadata.slot_mapping)
        contexts = [self._context(cache, metadata, i) for i in range(len(metadata.query_lens))]
        if self._on_forward is not None:
            self._on_forward(contexts)
        states: list[int] = []
        for context, count in zip(contexts, metadata.query_lens, strict=True):
            states += [self._state(context[:end]) for end in range(len(context) - count + 1, len(context) + 1)]
        return torch.tensor(states)[:, None]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[rows, 1] → [rows, vocab_size]: exact in any batch."""
        logits = torch.full((len(hidden), self._vocab_size), -100.0)
        letters, size = torch.tensor(self._alphabet), len(self._alphabet)
        logits[:, letters] = 4.0 - ((torch.arange(size)[None] - hidden) % size) * 0.25
        return logits

    def _context(self, cache: list[Any], metadata: AttentionMetadata, i: int) -> list[int]:
        """The tokens of request i as the cache has them."""
        slots = self._attention.slots(metadata.block_tables[i].tolist(), range(metadata.seq_lens[i]))
        keys, values = self._attention.read(cache[0], slots)
        assert torch.equal(keys, values), "keys and values are of different tokens"
        found = keys[:, 0, 1].long().tolist()
        assert found == list(range(len(found))), f"request {i} finds positions {found} in its blocks"
        return keys[:, 0, 0].long().tolist()


def telltale_state(tokens: Sequence[int]) -> int:
    """What `TellTaleModel` makes of a context."""
    total = sum((token + 1) * (i + 1) for i, token in enumerate(tokens)) % MODULUS
    return total * 40_503 % MODULUS >> 3


def continuation(prompt: str | Sequence[int], count: int, alphabet: Sequence[int] = LETTERS) -> list[int]:
    """The `count` tokens that `TellTaleModel` generates greedily: the oracle."""
    tokens = list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
    start = len(tokens)
    while len(tokens) < start + count:
        tokens.append(alphabet[telltale_state(tokens) % len(alphabet)])
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


def double_components(
    alphabet: Sequence[int] = LETTERS,
    on_forward: Callable[[list[list[int]]], object] | None = None,
    on_encode: Callable[[str], object] | None = None,
    state: Callable[[Sequence[int]], int] | None = None,
    **parts: Any,
) -> Components:
    """The reference's parts around a `TellTaleModel` and a `ByteTokenizer`."""
    return Components(
        model=lambda config, attention: TellTaleModel(config, attention, alphabet, on_forward, state),
        tokenizer=lambda config: ByteTokenizer(on_encode),
    ).using(**parts)


@asynccontextmanager
async def serving(
    components: Components | None = None, gate: StepGate | None = None, *, worker_count: int = 2,
    clock: Callable[[], float] = time.monotonic, recorder: Recorder | None = None, **engine_args: Any,
) -> AsyncIterator[AsyncLLMEngine]:
    """An asynchronous engine for one test; when the test is over nothing of it may be left.

    Args:
        components: those of `double_components()` by default.
        engine_args: as for `AsyncEngineArgs`; small and checked after every step by default.
    """
    args = {"model": "course", "num_gpu_blocks_override": 33, "block_size": 4, "check_invariants": True} | engine_args
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(**args), components=components or double_components(), gate=gate, clock=clock,
        recorder=recorder, worker_count=worker_count)
    before = asyncio.all_tasks()
    try:
        async with asyncio.timeout(PATIENCE):
            yield engine
            if gate is not None:
                gate.open()
            await assert_nothing_left(engine)
    finally:
        if gate is not None:
            gate.open()
        await asyncio.to_thread(engine.shutdown)
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert not left, f"tasks are left: {left}"
    assert not engine._steps._thread.is_alive(), "the step thread is left"


async def assert_nothing_left(engine: AsyncLLMEngine) -> None:
    """Waits until an engine is idle: no request, no place in the queue and no block may be held."""
    assert await asyncio.to_thread(engine._steps.wait_idle, PATIENCE), "the engine never became idle"
    if engine.errored:
        return
    inner = engine.engine
    assert not inner.has_unfinished_requests()
    assert not inner.scheduler.running and not inner.scheduler.waiting
    assert len(engine.waiting_room) == 0
    inner.block_manager.check_integrity()
    free, usable = inner.block_manager.num_free_blocks, inner.config.cache.num_blocks - 1
    assert free == usable, f"{usable - free} blocks are lost"
