"""Says on the device "meta" that it wants to read numbers, and makes tensors without saying where.

lab = "03"
base = "solution"
worth = 83
todos = [2, 4]
"""

import math


class RotaryEmbedding:
    def forward(self, x, positions):
        if x.is_meta:
            raise RuntimeError("Tensor.item() cannot be called on meta tensors")
        half = x.shape[-1] // 2
        rates = torch.arange(half).float() * (-2 * math.log(self.theta) / x.shape[-1])
        angles = positions[:, None].float() * rates.exp()[None]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        first, second = x[..., :half].float(), x[..., half:].float()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def causal_attention(q, k, v):
    if q.is_meta:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")
    group = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(group, 1).float(), v.repeat_interleave(group, 1).float()
    scores = torch.einsum("thd,nhd->htn", q.float(), keys) / math.sqrt(q.shape[-1])
    later = torch.ones(len(q), len(k), dtype=torch.bool).triu(1 + len(k) - len(q))
    weights = torch.softmax(scores.masked_fill(later, -math.inf), dim=-1)
    return torch.einsum("htn,nhd->thd", weights, values).to(q.dtype)
