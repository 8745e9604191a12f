"""The engine's own sampler under this lab's names, for `pytest test_lab.py --impl reference`.

The engine does greedy tokens, temperature and filters inside larger functions, so TODOs 1 to 3 have no
part of their own there.
"""

from collections.abc import Sequence

from torch import Tensor

from nano_qwen3_serving.execution import logprobs
from nano_qwen3_serving.execution.sampler import Sampler, apply_processors, draw
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.outputs import Logprob

__all__ = ["Sampler", "apply_penalties", "draw", "logprobs_of"]


def apply_penalties(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Bias and penalties in float32; the engine's function applies masks, too, of which the rows have none."""
    return apply_processors(logits.float(), rows)


def logprobs_of(logits: Tensor, token_id: int, count: int) -> dict[int, Logprob]:
    """The engine's."""
    return logprobs.logprobs_of(logits, token_id, count)
