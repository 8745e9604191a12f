"""Causal attention of a long chunk as plain matrix products, a group of queries at a time.

On CPU torch's flash attention multiplies bfloat16 at the rate of float32. Batched products run at the
processor's bfloat16 rate, several times faster, and a group of queries needs no key after its last
query. Scores are rounded to bfloat16 before the softmax, as in transformers' eager attention; sums
are in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

QUERIES = 256  # in a group: scores of one group stay in the cache
SHORTEST = 64  # queries for which this is faster than flash attention

CausalSoftmax = Callable[[Tensor, int], Tensor]


def pays_off(q: Tensor) -> bool:
    """Whether this is the faster way for q, [num_queries, num_heads, head_dim]."""
    return q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[0] >= SHORTEST


def causal_softmax(scores: Tensor, num_queries: int) -> Tensor:
    """The softmax of each row over the keys that its query may see; 0 for those that come after it.

    Args:
        scores: [num_kv_heads, heads of each * num_queries, num_keys], the last queries of a sequence in order
            for each head. It may be overwritten.
        num_queries: of each head.
    """
    num_kv_heads, _, num_keys = scores.shape
    future = torch.ones(num_queries, num_queries, dtype=torch.bool).triu(1)
    by_head = scores.view(num_kv_heads, -1, num_queries, num_keys)
    by_head[..., num_keys - num_queries :].masked_fill_(future, float("-inf"))
    return torch.softmax(scores, dim=-1)


def blockwise_attention(
    q: Tensor, keys: Tensor, values: Tensor, scale: float,
    softmax: CausalSoftmax = causal_softmax,
) -> Tensor:
    """The last queries of a sequence attend to its keys up to themselves.

    Args:
        q: [num_queries, num_heads, head_dim].
        keys, values: [num_kv_heads, num_keys, head_dim], num_keys >= num_queries.
        scale: of the scores.
        softmax: does what `causal_softmax` does.

    Returns:
        [num_queries, num_heads, head_dim]
    """
    num_queries, num_heads, dim = q.shape
    num_kv_heads, num_keys, _ = keys.shape
    first = num_keys - num_queries  # position of the first query
    heads = (q * scale).transpose(0, 1).reshape(num_kv_heads, -1, num_queries, dim)
    out = torch.empty_like(heads)
    for start in range(0, num_queries, QUERIES):
        stop = min(start + QUERIES, num_queries)
        group = heads[:, :, start:stop].reshape(num_kv_heads, -1, dim)  # the query heads of a KV head, stacked
        scores = torch.bmm(group, keys[:, : first + stop].transpose(1, 2))
        weights = softmax(scores, stop - start)
        out[:, :, start:stop] = torch.bmm(weights, values[:, : first + stop]).view(num_kv_heads, -1, stop - start, dim)
    return out.view(num_heads, num_queries, dim).transpose(0, 1)
