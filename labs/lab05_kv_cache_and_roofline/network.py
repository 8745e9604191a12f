"""Given: a real network on one page, whose attention asks you which keys and values to look at.

Knows Qwen3 (Lab 03's subject, in functions) and a checkpoint's weights; knows nothing of caches. Once
per layer it hands out the new tokens' keys and values, and attends to whatever it gets back.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.model.checkpoint import find_checkpoint, open_tensors, read_model_config
from nano_qwen3_serving.text.tokenizer import Tokenizer

Append = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""append(layer, k, v): keys and values of the tokens of this call in, those to attend to out."""


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes in `count` threads meanwhile. Small products are fastest in one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Network:
    """Qwen3 with the weights of a checkpoint, on the CPU, for one sequence.

    Args:
        model: "course", "course-draft" or a checkpoint's folder.
        dtype: of weights and computation.

    Attributes:
        config: the shape: `vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`,
            `num_attention_heads`, `num_key_value_heads`, `head_dim` and some more.
        dtype: as given.
        tokenizer: has `encode(text)` and `decode(token_ids)`.
    """

    def __init__(self, model: str | Path = "course", dtype: torch.dtype = torch.float32) -> None:
        folder = find_checkpoint(str(model))
        tensors = open_tensors(folder)
        self.config, self.dtype = read_model_config(folder), dtype
        if self.config.rope_scaling is not None:
            raise ModelLoadError(f"{folder} stretches its rotary angles (YaRN), which this network does not compute; "
                                 "give a checkpoint without YaRN")
        self.tokenizer = Tokenizer.from_folder(folder)
        self._weights = {name: tensors.load(name).to(dtype) for name in tensors}
        self._weights.setdefault("lm_head.weight", self._weights["model.embed_tokens.weight"])  # tied

    def matrices(self) -> list[Tensor]:
        """Every matrix that a token is multiplied by, [outputs, inputs] each: of all layers, and the head."""
        return [w for name, w in self._weights.items() if w.dim() == 2 and name != "model.embed_tokens.weight"]

    @torch.no_grad()
    def __call__(self, token_ids: Sequence[int], start: int, append: Append) -> Tensor:
        """Compute `token_ids`, which stand at positions start, start + 1, ..., in one pass.

        `append(layer, k, v)` is called once per layer, layers in order, with k and v of these tokens,
        [len(token_ids), num_key_value_heads, head_dim]. It returns the keys and the values of positions
        0 to the last of these tokens, [start + len(token_ids), num_key_value_heads, head_dim] each.

        Returns:
            The logits after the last of the tokens, [vocab_size].

        Raises:
            ValueError: there are no tokens, or `append` returned another shape.
        """
        if not len(token_ids):
            raise ValueError("the network was called without tokens; it computes at least one")
        positions = torch.arange(start, start + len(token_ids))
        h = F.embedding(torch.tensor(list(token_ids)), self._weights["model.embed_tokens.weight"])
        for layer in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            h = h + self._attention(prefix, self._norm(h, prefix + "input_layernorm"), positions, layer, append)
            h = h + self._mlp(prefix + "mlp.", self._norm(h, prefix + "post_attention_layernorm"))
        return self._times(self._norm(h[-1:], "model.norm"), "lm_head")[0]

    def _times(self, x: Tensor, name: str) -> Tensor:
        """x [n, inputs] times a matrix → [n, outputs]"""
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _mlp(self, prefix: str, x: Tensor) -> Tensor:
        gated = F.silu(self._times(x, prefix + "gate_proj")) * self._times(x, prefix + "up_proj")
        return self._times(gated, prefix + "down_proj")

    def _attention(self, prefix: str, x: Tensor, positions: Tensor, layer: int, append: Append) -> Tensor:
        """x [n, hidden] → [n, hidden]"""
        prefix, dim = prefix + "self_attn.", self.config.head_dim
        q, k, v = (self._times(x, f"{prefix}{name}_proj").view(len(x), -1, dim) for name in "qkv")
        q = rotate(self._norm(q, prefix + "q_norm"), positions, self.config.rope_theta)
        k = rotate(self._norm(k, prefix + "k_norm"), positions, self.config.rope_theta)
        keys, values = append(layer, k, v)
        expected = [int(positions[-1]) + 1, self.config.num_key_value_heads, dim]
        for name, tensor in (("keys", keys), ("values", values)):
            if list(tensor.shape) != expected:
                raise ValueError(
                    f"layer {layer}: append returned {name} of shape {list(tensor.shape)}; this call computes "
                    f"positions {int(positions[0])} to {int(positions[-1])}, so attention needs {expected}")
        return self._times(causal_attention(q, keys, values).flatten(1), prefix + "o_proj")


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """The rotary embedding of x [n, heads, head_dim] at `positions` [n]."""
    half = x.shape[-1] // 2
    angles = positions[:, None].float() / theta ** (torch.arange(half).float() / half)
    cos, sin = (table(torch.cat([angles, angles], dim=-1))[:, None, :].to(x.dtype) for table in (torch.cos, torch.sin))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def causal_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Each of the last n of m tokens attends to all tokens up to itself.

    q [n, num_heads, head_dim]; keys, values [m, num_kv_heads, head_dim] → [n, num_heads, head_dim].
    The query heads that share a KV head are folded into one matrix, so that nothing is repeated.
    """
    (n, heads, dim), (m, kv_heads, _) = q.shape, keys.shape
    group = heads // kv_heads
    folded = q.reshape(n, kv_heads, group, dim).permute(1, 2, 0, 3).reshape(kv_heads, group * n, dim)
    scores = (folded @ keys.permute(1, 2, 0)).view(kv_heads, group, n, m) * dim**-0.5
    visible = torch.arange(m)[None, :] <= torch.arange(m - n, m)[:, None]  # [n, m]
    weights = scores.float().masked_fill(~visible, float("-inf")).softmax(-1).to(values.dtype)
    out = weights.view(kv_heads, group * n, m) @ values.transpose(0, 1)  # [kv_heads, group * n, dim]
    return out.view(kv_heads, group, n, dim).permute(2, 0, 1, 3).reshape(n, heads, dim)
