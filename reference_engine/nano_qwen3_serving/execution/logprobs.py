"""Log-probabilities of tokens, from raw logits."""

from __future__ import annotations

import torch
from torch import Tensor

from nano_qwen3_serving.outputs import Logprob


def logprobs_of(logits: Tensor, token_id: int, count: int) -> dict[int, Logprob]:
    """Log-probabilities of `token_id`, first, and of the `count` likeliest (-1: all), in float32; logits [vocab_size].

    A rank is 1 plus the number of tokens with a larger logit: log_softmax may round different logits to one number.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    result = {token_id: Logprob(float(logprobs[token_id]), int((logits > logits[token_id]).sum()) + 1)}
    values, ids = torch.topk(logits, len(logits) if count == -1 else min(count, len(logits)))
    ranks: dict[float, int] = {}  # of each logit, the first of its places
    for place, (value, best) in enumerate(zip(values.tolist(), ids.tolist(), strict=True), start=1):
        result.setdefault(best, Logprob(float(logprobs[best]), ranks.setdefault(value, place)))
    return result
