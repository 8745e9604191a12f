"""How the engine uses this lab's part. The lab never needs to know of this file.

Grammars, allowed tokens, bad words and min_tokens forbid tokens before a sampler sees the logits. They
are the engine's, whichever sampler it has, so they are applied here.
"""

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.execution.masks import apply_masks, has_masks
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.outputs import Logprob


def sampler(lab: ModuleType, config: EngineConfig) -> "MaskedSampler":
    """`Components.sampler`: the lab's `Sampler` behind the engine's masks."""
    return MaskedSampler(lab)


class MaskedSampler:
    """The lab's `Sampler`, given logits in which forbidden tokens are -inf.

    Log-probabilities are of the raw logits, without masks: for a row with masks the lab's
    `logprobs_of` is asked again, with those.
    """

    def __init__(self, lab: ModuleType) -> None:
        self.lab = lab
        self.sampler = lab.Sampler()

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        """One token per row of `logits` [num_rows, vocab_size], and the log-probabilities asked for."""
        tokens, logprobs = self.sampler.sample(apply_masks(logits, rows), rows)
        for i, row in enumerate(rows):
            if logprobs[i] is not None and has_masks(row):
                logprobs[i] = self.lab.logprobs_of(logits[i], tokens[i], row.params.logprobs)
        return tokens, logprobs
