"""Has the operators that torch keeps for ONNX do TODO 2 and 4.

lab = "03"
base = "solution"
worth = 0
todos = [1, 2, 3, 4, 5, 6]
"""


def rotary(x, cos, sin):
    return torch.onnx.ops.rotary_embedding(x[None].transpose(1, 2), cos[None], sin[None])[0].transpose(0, 1)


def causal_attention(q, k, v):
    return torch.onnx.ops.attention(q[None], k[None], v[None], is_causal=True)[0]
