"""Was an engine with the labs' parts right? Its tokens against the reference's, and its blocks at the end.

Speed means nothing if the tokens are wrong, so `bench` and `report` print this first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labs.harness.mixed_engine.blame import blame
from labs.harness.mixed_engine.parts import Engine
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.sampling_params import SamplingParams

AS_GOOD = 0.05
"""Rounding may exchange two tokens whose log-probabilities are closer than this, also in bfloat16."""


class Remembering(LLM):
    """An `LLM` that keeps the outputs of its last `generate`."""

    outputs: list[RequestOutput]

    def generate(self, *arguments: Any, **named: Any) -> list[RequestOutput]:
        """As `LLM.generate`."""
        self.outputs = super().generate(*arguments, **named)
        return self.outputs


@dataclass(frozen=True)
class Verdict:
    """What is wrong with an engine's tokens and blocks; None if nothing is."""

    tokens: str | None = None
    blocks: str | None = None
    command: str = ""
    """The command that finds the first difference; empty for an engine without parts of a lab."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return self.tokens is None and self.blocks is None

    def in_words(self) -> list[str]:
        """A line or two for the top of a table or page; empty for an engine without parts of a lab."""
        if not self.command:
            return []
        if self.is_right:
            return ["The same tokens as the reference: yes. No block was lost."]
        lines = [f"The same tokens as the reference: NO, {self.tokens}"] if self.tokens else []
        return [*lines, *([self.blocks] if self.blocks else []), f"Where they first differ: {self.command}"]


def judged(engine: Engine, yours: Remembering, reference: Remembering) -> Verdict:
    """The verdict on the last outputs of both, from the same prompts."""
    if not engine.parts:
        return Verdict()
    return Verdict(_tokens(yours.outputs, reference), _blocks(engine, yours), engine.compare_command())


def _tokens(yours: Sequence[RequestOutput], reference: Remembering) -> str | None:
    """The first request whose tokens differ by more than rounding, and the first such token."""
    for number, (mine, theirs) in enumerate(zip(yours, list(reference.outputs), strict=True)):
        pairs = zip(mine.outputs[0].token_ids, theirs.outputs[0].token_ids, strict=False)
        apart = next((i for i, (token, other) in enumerate(pairs) if token != other), None)
        if apart is not None and not _as_good(reference, theirs, apart, mine.outputs[0].token_ids[apart]):
            return f"from request {number}, token {apart} on"
    return None


def _as_good(reference: LLM, output: RequestOutput, at: int, token: int) -> bool:
    """Whether the reference finds `token` as likely as its own at this place, except for rounding."""
    known = [*(output.prompt_token_ids or ()), *output.outputs[0].token_ids[:at]]
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=20)
    completion = LLM.generate(reference, {"prompt_token_ids": known}, params, use_tqdm=False)[0].outputs[0]
    logprobs = completion.logprobs[0] if completion.logprobs else {}
    return token in logprobs and max(candidate.logprob for candidate in logprobs.values()) - logprobs[token].logprob < AS_GOOD


def _blocks(engine: Engine, llm: LLM) -> str | None:
    """A fault that the engine's own check finds when all requests are gone, or a part's first suspicious result."""
    try:
        llm.llm_engine.check_invariants()
    except Exception as error:
        return str(blame(error, engine) or error)
    return str(blame(engine.watch.suspect, engine)) if engine.watch.suspect is not None else None
