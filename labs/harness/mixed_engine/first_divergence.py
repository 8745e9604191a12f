"""The first step at which two engines differ while they run one scenario side by side (`lockstep.py`).

Both engines get the same requests in the same steps. After each step their visible state is
compared, causes before effects: schedule, blocks, slots, keys and values, logits, tokens. Block
numbers are free: two right block managers may hand out different ones. So a request's keys are read
through its own engine's block table, and compared position by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from labs.harness.mixed_engine.lockstep import Scenario, Side, Snapshot, slots_by_table
from labs.harness.mixed_engine.parts import Engine
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.interfaces import NULL_BLOCK, ScheduledChunk

TOLERANCE = 1e-3
"""Relative to the largest value. Right float32 programs that add in another order differ by 1e-6 to
1e-5; a wrong formula by far more."""
MAX_STEPS = 500
NAN = float("nan")
"""The content of unwritten slots. A lab's attention leaves them out; the reference's gives them the weight 0, and 0 times
NaN is NaN, so for the reference's they hold `LARGE`."""
LARGE = 1e4

SCHEDULE, BLOCKS, SLOTS, KV = "schedule", "blocks", "slots", "keys and values"
LOGITS, LOGPROBS, TOKEN = "logits", "log-probabilities", "tokens"
PARTING = (SCHEDULE, TOKEN)
"""After one of these the engines compute different things, so there is nothing left to compare."""

@dataclass(frozen=True)
class Difference:
    """A difference between both sides after a step."""

    step: int
    kind: str
    text: str
    rounding: bool = False
    """Whether rounding alone explains it: two tokens that the reference finds equally good. No mistake."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.text}"


@dataclass
class Comparison:
    """How much was compared, and the differences."""

    differences: list[Difference] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    preemptions: int = 0
    positions: int = 0
    error: BaseException | None = None
    """The error that stopped the learner's engine, in the step after the last one compared."""

    @property
    def first(self) -> Difference | None:
        """The first difference: the earliest step, and in it the cause before the effect."""
        return self.differences[0] if self.differences else None


def compare(engine: Engine, scenario: Scenario, garbage: float | None = None) -> Comparison:
    """Runs the scenario on `engine` and on the reference, until they differ or it is over.

    Args:
        garbage: the number in unwritten slots on the side of `engine`; by default one that its attention has to bear.
    """
    comparison = Comparison()
    garbage = garbage if garbage is not None else NAN if _is_made_by_a_part(engine, "attention") else LARGE
    try:
        yours = Side(scenario, engine.components, garbage)
    except Exception as error:
        comparison.error = error
        return comparison
    reference = Side(scenario, Components())
    own_sampler = _is_made_by_a_part(engine, "sampler")
    while comparison.steps < MAX_STEPS and reference.has_work(comparison.steps):
        theirs = reference.step(comparison.steps)
        try:
            yours.advance(comparison.steps)
        except Exception as error:
            comparison.error = error
            return comparison
        if engine.watch.first_error:  # the engine tried each request alone and recovered
            comparison.error = engine.watch.first_error
            return comparison
        mine = yours.look()
        new = [_with_suspect(difference, engine) for difference in differences(comparison.steps, mine, theirs, own_sampler)]
        known = {difference.kind for difference in comparison.differences}
        comparison.differences += [difference for difference in new if difference.kind not in known]
        comparison.steps += 1
        comparison.tokens += sum(map(len, theirs.record["sampled"].values()))
        comparison.preemptions += len(theirs.record["preempted"])
        comparison.positions += sum(layers[0][0].shape[0] for layers in theirs.kv.values())
        if any(difference.kind in PARTING for difference in new):
            break
    return comparison


def _is_made_by_a_part(engine: Engine, field: str) -> bool:
    """Whether a lab's part fills this field of `Components`."""
    return any(field in part.fields for part in engine.parts)


def differences(step: int, mine: Snapshot, theirs: Snapshot, own_sampler: bool) -> Iterator[Difference]:
    """The differences after this step, causes first.

    If the sampler is not the learner's, tokens that differ although the logits agree differ by rounding.
    """
    texts = {
        SCHEDULE: _schedule(mine, theirs),
        BLOCKS: _blocks(mine, theirs),
        SLOTS: _slots(mine),
        KV: _kv(mine, theirs),
        LOGITS: _logits(mine, theirs),
        LOGPROBS: _logprobs(mine, theirs),
    }
    for kind, text in texts.items():
        if text:
            yield Difference(step, kind, text)
    if text := _tokens(mine, theirs):
        yield Difference(step, TOKEN, text, rounding=not own_sampler and not any(texts.values()))


def _with_suspect(difference: Difference, engine: Engine) -> Difference:
    """A difference in the blocks, with the call of the part that lost or doubled one."""
    suspect = engine.watch.suspect
    if difference.kind != BLOCKS or suspect is None:
        return difference
    return replace(difference, text=f"{difference.text}. {suspect}")


def _schedule(mine: Snapshot, theirs: Snapshot) -> str | None:
    for name in sorted({*mine.chunks, *theirs.chunks}):
        yours, reference = (_chunk(side.chunks.get(name)) for side in (mine, theirs))
        if yours != reference:
            return f"request {name}: yours {yours}, reference {reference}"
    for what in ("preempted", "running", "waiting", "finished"):
        yours, reference = (side.record[what] for side in (mine, theirs))
        if yours != reference:
            return f"{what}: yours {yours or 'none'}, reference {reference or 'none'}"
    return None


def _chunk(chunk: ScheduledChunk | None) -> str:
    if chunk is None:
        return "computes nothing"
    return f"computes tokens {chunk.start} to {chunk.end - 1}" if chunk.num_tokens > 1 else f"computes token {chunk.start}"


def _blocks(mine: Snapshot, theirs: Snapshot) -> str | None:
    owner: dict[int, str] = {}
    for name, table in mine.tables.items():
        if NULL_BLOCK in table:
            return f"request {name}: your table {table} holds block {NULL_BLOCK}, the null block, where padding is written"
        for block in table:
            if block in owner and not _share(theirs, name, owner[block]):
                other = f"request {owner[block]}, too" if owner[block] != name else "the same request twice"
                return f"request {name}: block {block} of your table {table} is held by {other}"
            owner[block] = name
        if name in theirs.tables and len(table) != len(theirs.tables[name]):
            return f"request {name}: yours holds {len(table)} blocks, reference {len(theirs.tables[name])}"
    yours, reference = (side.record["free_blocks"] for side in (mine, theirs))
    return f"free blocks: yours {yours}, reference {reference}" if yours != reference else None


def _share(side: Snapshot, name: str, other: str) -> bool:
    """Whether two requests share blocks on this side, because their tokens begin alike."""
    return name != other and bool(set(side.tables.get(name, ())) & set(side.tables.get(other, ())))


def _slots(mine: Snapshot) -> str | None:
    """By definition token i of a request lies in `table[i // size] * size + i % size`."""
    for name, chunk in mine.chunks.items():
        size = mine.block_size
        expected = slots_by_table(chunk.block_table, range(chunk.start, chunk.end), size)
        for position, yours, slot in zip(range(chunk.start, chunk.end), mine.slots[name], expected, strict=True):
            if yours != slot:
                where = f"request {name}, position {position}"
                return f"{where}: yours slot {yours}, by its table {chunk.block_table} slot {slot}"
    return None


def _kv(mine: Snapshot, theirs: Snapshot) -> str | None:
    """The lowest layer that differs, and in it the first position of the first request."""
    for layer in range(len(next(iter(theirs.kv.values()), []))):
        for name in sorted(mine.kv.keys() & theirs.kv.keys()):
            for what, yours, reference in zip(("key", "value"), mine.kv[name][layer], theirs.kv[name][layer], strict=True):
                wrong = _first_wrong(yours, reference)
                if wrong is not None:
                    return _wrong_slot(mine, name, *wrong, f"{what} in layer {layer}")
    return None


def _first_wrong(yours: Tensor, reference: Tensor) -> tuple[int, float] | None:
    """The first row that differs by more than rounding, and by how much; NaN differs from everything."""
    rows = min(yours.shape[0], reference.shape[0])
    apart = (yours[:rows].float() - reference[:rows].float()).abs().flatten(1).amax(dim=1) if rows else torch.zeros(0)
    limit = TOLERANCE * max(1.0, reference.abs().max().item() if rows else 1.0)
    bad = (~(apart <= limit)).nonzero()
    return (int(bad[0]), apart[bad[0]].item()) if len(bad) else None


def _wrong_slot(mine: Snapshot, name: str, position: int, apart: float, what: str) -> str:
    """Which slot is wrong, and which request wrote to it in this step."""
    size, table = mine.block_size, mine.tables[name]
    slot = slots_by_table(table, range(position, position + 1), size)[0]
    writers = [other for other, slots in mine.slots.items() if slot in slots]
    written = f"written in this step by {' and '.join(writers)}" if writers else "no request was due to write there in this step"
    return f"request {name}, position {position}, slot {slot}: the {what} is off by {apart:.2g}; {written}"


def _logits(mine: Snapshot, theirs: Snapshot) -> str | None:
    for name in sorted(mine.logits.keys() & theirs.logits.keys()):
        wrong = _first_wrong(mine.logits[name][None], theirs.logits[name][None])
        if wrong is not None:
            return f"request {name}: logits after position {mine.chunks[name].end - 1} are off by up to {wrong[1]:.2g}"
    return None


def _tokens(mine: Snapshot, theirs: Snapshot) -> str | None:
    for name in sorted({*mine.record["sampled"], *theirs.record["sampled"]}):
        yours, reference = (side.record["sampled"].get(name) for side in (mine, theirs))
        if yours != reference:
            position = (mine.chunks.get(name) or theirs.chunks[name]).end
            return f"request {name}, position {position}: yours {_in_words(yours)}, reference {_in_words(reference)}"
    return None


def _in_words(tokens: list[int] | None) -> str:
    return "no token" if not tokens else f"token {tokens[0]}" if len(tokens) == 1 else f"tokens {tokens}"


def _logprobs(mine: Snapshot, theirs: Snapshot) -> str | None:
    for name in sorted(mine.logprobs.keys() & theirs.logprobs.keys()):
        text = _logprobs_difference(mine.logprobs[name] or {}, theirs.logprobs[name] or {})
        if text is not None and mine.record["sampled"][name] == theirs.record["sampled"][name]:
            return f"request {name}, position {mine.chunks[name].end}: {text}"
    return None


def _logprobs_difference(yours: dict[int, Any], reference: dict[int, Any]) -> str | None:
    """The difference between two answers to `logprobs=n`; None if there is none."""
    if set(yours) != set(reference):
        return f"yours has log-probabilities of the tokens {sorted(yours)}, reference of {sorted(reference)}"
    for token, theirs in reference.items():
        mine = yours[token]
        if not abs(mine.logprob - theirs.logprob) <= TOLERANCE or mine.rank != theirs.rank:
            return (
                f"log-probability of token {token}: yours {mine.logprob:.4f} at rank {mine.rank}, "
                f"reference {theirs.logprob:.4f} at rank {theirs.rank}")
    return None


def conclusion(first: Difference) -> list[str]:
    """What the place of the first difference implies; empty if the place itself says it all."""
    if first.kind == KV and (named := re.search(r"in layer (\d+)", first.text)):
        layer = int(named[1])
        if layer == 0:
            return ["So it is not attention: what was projected, turned, or written in layer 0 is wrong."]
        return [
            f"So it is in layer {layer - 1}: its keys and values are right, and layer {layer} got something wrong from it. "
            "Attention, or the model after it, gave wrong numbers."]
    if first.kind == LOGITS:
        return ["So all keys and values are right: the last layer's attention, or what comes after it, gave wrong numbers."]
    if first.kind in (TOKEN, LOGPROBS):
        return ["So the logits are right: the sampler made something else of them."]
    return []


def comparison_lines(comparison: Comparison) -> list[str]:
    """A comparison as lines of text: the first difference and its consequences, or how much was the same."""
    same = (
        f"{comparison.steps} steps, {comparison.tokens} tokens, preemptions: {comparison.preemptions}, "
        f"keys and values of {comparison.positions} positions")
    first = comparison.first
    if first is None:
        return [f"Nothing differs: {same}." if comparison.error is None else f"Until it stopped nothing differed: {same}."]
    if first.rounding:
        verdict = "Up to there everything agreed except for rounding: these two tokens are equally good. No mistake."
        return [f"{first}", verdict, f"Compared: {same}."]
    lines = [f"First difference, in the {first.kind}: {first}", *conclusion(first)]
    for later in comparison.differences[1:]:
        since = f"; first wrong {first.kind} in step {first.step}" if later.step > first.step else ""
        lines.append(f"Then in the {later.kind}: {later}{since}")
    return lines
