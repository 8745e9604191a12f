"""Log-probabilities of tokens, from raw logits."""

from __future__ import annotations

import torch
from torch import Tensor

from nano_qwen3_serving.outputs import Logprob


def logprobs_of(logits: Tensor, token_id: int, count: int) -> dict[int, Logprob]:
    """Log-probabilities of `token_id`, first, and of the `count` likeliest (-1: all); logits [vocab_size]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    rank = int((logprobs > logprobs[token_id]).sum()) + 1
    result = {token_id: Logprob(float(logprobs[token_id]), rank)}
    values, ids = torch.topk(logprobs, len(logprobs) if count == -1 else min(count, len(logprobs)))
    for i, (value, best) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
        result.setdefault(best, Logprob(value, i + 1))
    return result
