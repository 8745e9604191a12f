"""Lab 03's one suite. All is compared with its formulas in float64, the network with transformers, too.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3

How far from the truth may a right answer be? In float32 a sum of n products is off by at most n * 2**-24
of their sizes; here n < 300, so 2e-5 of the largest number is enough for one operator, and 1e-4 for a
network of a few layers. In bfloat16 each rounding is off by at most 2**-8 of the number: the tests
that use it count the roundings. Every mistake that a test here looks for is a hundred times larger.
"""

import functools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from labs.harness.catalog import lab_at
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.expecting import kinds_of, shown
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import AttentionMetadata
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.testing.checkpoints import (
    ParameterShapes,
    Shape,
    attention_shapes,
    layer_shapes,
    mlp_shapes,
    parameter_shapes,
    random_weight,
    write_random_checkpoint,
)
from nano_qwen3_serving.testing.oracle import Oracle

BF16, FLOAT16, FLOAT32 = 2.0**-8, 2.0**-11, 2.0**-24
"""The largest relative errors of one rounding."""
OPERATOR, NETWORK = 2e-5, 1e-4
"""Relative errors in float32."""
HEADS, COLUMNS, LOGITS = ("token", "head", "number"), ("token", "column"), ("request", "token id")
"""What the dimensions of a result count."""


@pytest.fixture(autouse=True)
def plain_torch():
    """No gradients, and one thread: these networks are so small that two would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


# Shapes, numbers and weights


class Noise:
    """Normal random numbers, the same for the same rng."""

    def __init__(self, rng: random.Random) -> None:
        self.generator = torch.Generator().manual_seed(rng.randrange(2**60))

    def __call__(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def tokens(self, length: int, config: ModelConfig) -> Tensor:
        """Token ids of the network's vocabulary."""
        return torch.randint(config.vocab_size, (length,), generator=self.generator)


def config_of(rng: random.Random, layers: int = 1, **changes: Any) -> ModelConfig:
    """A small shape; a head's size has nothing to do with hidden_size / num_heads."""
    usual = {
        "vocab_size": rng.randrange(90, 130), "hidden_size": rng.choice([44, 52, 60]), "num_hidden_layers": layers,
        "intermediate_size": rng.randrange(50, 100), "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "rope_theta": rng.choice([500.0, 1e4, 1e6]), "tie_word_embeddings": False,
    }
    return ModelConfig(**{**usual, **changes})


GROUPS = ["group 1", "group 2", "group 4"]
"""Query heads to a KV head."""
every_shape = pytest.mark.parametrize("group", GROUPS)


def shape_of(rng: random.Random, group: str, layers: int = 1) -> ModelConfig:
    """A shape with so many query heads to a KV head."""
    alone = rng.choice([3, 4])
    changes: dict[str, Any] = {
        "group 1": {"num_attention_heads": alone, "num_key_value_heads": alone, "head_dim": rng.choice([8, 10])},
        "group 2": {"head_dim": rng.choice([18, 20, 22]), "attention_bias": True},
        "group 4": {"num_attention_heads": 8, "head_dim": 12, "rms_norm_eps": 0.03},
    }[group]
    return config_of(rng, layers, **changes)


def random_weights(sizes: ParameterShapes, noise: Noise, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """None of them special: they forgive nothing."""
    return {name: random_weight(name, size, noise.generator).to(dtype) for name, size in sizes.items()}


def filled(there, module, weights: dict[str, Tensor]):
    """The module with copies of these weights, as a loader fills it, and without gradients."""
    for name, weight in weights.items():
        there.kept(module.get_parameter, name).data = weight.clone()
    module.requires_grad_(False)
    return module


# Comparing, and asking so that what was given can be looked at


def near(
    result: Any, truth: Tensor, what: str, allowed: float | Tensor = OPERATOR, dtype: torch.dtype = torch.float32,
    axes: tuple[str, ...] = (),
) -> None:
    """`result` has the shape of `truth`, this dtype, and is near it.

    `allowed` is relative to the largest number, or else a tensor: the absolute error of each number.
    """
    assert_tensor(result, what, tuple(truth.shape), dtype, axes)
    truth = truth.double()
    limit = allowed if isinstance(allowed, Tensor) else allowed * truth.abs().max()
    excess = torch.nan_to_num((result.double() - truth).abs(), nan=math.inf, posinf=math.inf) - limit
    if excess.max() > 0:
        place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=True)) if axes else str(list(place))
        where = f"at {where} " if place else ""
        raise AssertionError(f"{what}: {where}expected {truth[place]:.6g}, got {float(result[place]):.6g}")


def assert_tensor(result: Any, what: str, shape: tuple[int, ...], dtype: torch.dtype, axes: tuple[str, ...] = ()) -> None:
    """It is a tensor of this shape and dtype."""
    counted = f" [{', '.join(axes)}]" if axes else ""
    assert isinstance(result, Tensor), f"{what}: expected a tensor, got {shown(result)}"
    assert tuple(result.shape) == shape, f"{what}: expected the shape {list(shape)}{counted}, got {list(result.shape)}"
    assert result.dtype == dtype, f"{what}: expected {dtype}, as it came in, got {result.dtype}"


def asked(there, call: Callable, names: str, *arguments: Any) -> Any:
    """`call(*arguments)`. The first of the arguments, tensors of these names, must stay as they are."""
    held = [there.hold(tensor.clone()) for tensor, _ in zip(arguments, names.split(), strict=False)]
    answer = call(*held, *arguments[len(held) :])
    for name, tensor, copy in zip(names.split(), arguments, held, strict=False):
        now = there.look(copy)
        unchanged = isinstance(now, Tensor) and now.dtype == tensor.dtype and torch.equal(now, tensor)
        assert unchanged, f"{name} was changed in place; whoever gave it still needs it"
    return answer


def strided(there, tensor: Tensor, first: int, second: int):
    """The same numbers where the part is, in a memory where these two dimensions are exchanged."""
    return there.kept(there.hold(tensor.transpose(first, second).contiguous()).transpose, first, second)


def assert_made_beside(there, call: Callable, *arguments: Tensor) -> None:
    """`call` with tensors of the device "meta", which has shapes and no numbers: it may not bring others.

    Where it wants to read numbers, which is slow on a GPU, but not wrong, the other way round: what is made without saying
    where lies on "meta", and the tensors lie where numbers are.
    """
    elsewhere = [there.kept(there.hold(tensor).to, "meta") for tensor in arguments]
    try:
        device = there.kept(call, *elsewhere).device.type
    except Exception as error:
        if "RuntimeError" not in kinds_of(error):
            raise
        if "meta tensor" in str(error):
            assert_lies_where_it_came_in(there, call, *arguments)
            return
        if "device" not in str(error):
            raise
        raise AssertionError(f"a tensor was made on another device than that of what came in: {error}") from error
    assert device == "meta", f"what came in lay on the device meta; what came out lies on {shown(device)}"


def assert_lies_where_it_came_in(there, call: Callable, *arguments: Tensor) -> None:
    """`call`, where every tensor that is made without a device lies on the device "meta": what comes out has numbers."""
    torch_there, held, expected = there.of(torch), [there.hold(tensor) for tensor in arguments], call(*arguments)
    torch_there.set_default_device("meta")
    try:
        result = there.kept(call, *held)
        device = result.device.type
    except Exception as error:
        raise AssertionError(f"a tensor was made on another device than that of what came in: {error}") from error
    finally:
        torch_there.set_default_device(None)
    assert device == "cpu", f"what came in lay on the CPU; what came out lies on {shown(device)}"
    near(there.look(result), expected, "with another default device")


# Qwen3 by its formulas. Written for being right at a glance: nothing is fused


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm, at least in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / torch.sqrt((wide * wide).mean(dim=-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(x.dtype)


def angles_of(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """[num_tokens, head_dim / 2], float64"""
    rows = [[place * theta ** (-2 * i / head_dim) for i in range(head_dim // 2)] for place in positions.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def turn(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Pairs as complex numbers: turning is multiplying."""
    first, second = x.double().chunk(2, dim=-1)
    angles = angles_of(positions, x.shape[-1], theta)[:, None]
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64, one query after the other."""
    group, before = q.shape[1] // k.shape[1], len(k) - len(q)
    keys, values = (tensor.double()[:, [head // group for head in range(q.shape[1])]] for tensor in (k, v))
    out = torch.empty(q.shape, dtype=torch.float64)
    for token, query in enumerate(q.double()):
        seen = before + token + 1
        scores = (keys[:seen] * query).sum(dim=-1) / q.shape[2] ** 0.5  # [seen, heads]
        out[token] = (torch.softmax(scores, dim=0)[:, :, None] * values[:seen]).sum(dim=0)
    return out.to(q.dtype)


class Network:
    """Qwen3, or a part of it, with these weights, computed in one dtype.

    Args:
        weights: name → tensor, named from the part on: `q_proj.weight` of an attention layer.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.config, self.dtype = config, dtype
        self.weights = {name: weight.to(dtype) for name, weight in weights.items()}

    def normalised(self, x: Tensor, name: str) -> Tensor:
        """x through the norm of this name."""
        return norm(x.to(self.dtype), self.weights[f"{name}.weight"], self.config.rms_norm_eps)

    def product(self, x: Tensor, name: str) -> Tensor:
        """x times the matrix of this name, plus its bias if it has one."""
        out = x.to(self.dtype) @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def cut(self, x: Tensor, name: str, count: int) -> Tensor:
        """A product, head by head."""
        flat, dim = self.product(x, name), self.config.head_dim
        return torch.stack([flat[:, head * dim : (head + 1) * dim] for head in range(count)], dim=1)

    def heads(self, x: Tensor, positions: Tensor, part: str = "") -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v"""
        theta, count, kv_count = self.config.rope_theta, self.config.num_attention_heads, self.config.num_key_value_heads
        q = turn(self.normalised(self.cut(x, f"{part}q_proj", count), f"{part}q_norm"), positions, theta)
        k = turn(self.normalised(self.cut(x, f"{part}k_proj", kv_count), f"{part}k_norm"), positions, theta)
        return q, k, self.cut(x, f"{part}v_proj", kv_count)

    def attend(self, x: Tensor, positions: Tensor, part: str = "") -> Tensor:
        """The attention layer, over one request from its beginning."""
        return self.product(attention(*self.heads(x, positions, part)).flatten(1), f"{part}o_proj")

    def mlp(self, x: Tensor, part: str = "") -> Tensor:
        """The feed-forward network: SwiGLU."""
        gate = self.product(x, f"{part}gate_proj")
        return self.product(gate / (1 + torch.exp(-gate)) * self.product(x, f"{part}up_proj"), f"{part}down_proj")

    def layer(self, x: Tensor, positions: Tensor, part: str = "") -> Tensor:
        """A decoder layer, over one request from its beginning."""
        h = x.to(self.dtype) + self.attend(self.normalised(x, f"{part}input_layernorm"), positions, f"{part}self_attn.")
        return h + self.mlp(self.normalised(h, f"{part}post_attention_layernorm"), f"{part}mlp.")

    def logits_of(self, hidden: Tensor) -> Tensor:
        """The final norm, then the head."""
        return self.product(self.normalised(hidden, "model.norm"), "lm_head")

    def logits(self, token_ids: Tensor, first: int = 0) -> Tensor:
        """After every token of one request, [num_tokens, vocab_size]; it begins at the position `first`."""
        x = self.weights["model.embed_tokens.weight"][token_ids]
        for i in range(self.config.num_hidden_layers):
            x = self.layer(x, torch.arange(first, first + len(token_ids)), f"model.layers.{i}.")
        return self.logits_of(x)


# Requests in blocks of 4, as the engine lays them out, and attention over them

BLOCK = 4


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of a request, whose position i lies in block table[i // 4]."""

    start: int
    end: int
    table: Sequence[int]

    def slots(self, positions: Iterable[int]) -> list[int]:
        """Where these positions of the request lie."""
        return [self.table[i // BLOCK] * BLOCK + i % BLOCK for i in positions]


def tables(rng: random.Random, *lengths: int) -> list[list[int]]:
    """Blocks for requests of these lengths, in no order."""
    blocks = rng.sample(range(1, 40), sum(-(-length // BLOCK) for length in lengths))
    return [[blocks.pop() for _ in range(-(-length // BLOCK))] for length in lengths]


class Step:
    """What is computed at once: chunks of requests, those of one token first, then rows of padding, in block 0.

    Args:
        first: position of each request's first token.
    """

    def __init__(self, chunks: list[Chunk], padding: int = 0, first: int = 0) -> None:
        self.chunks, self.padding = chunks, padding
        self.query_lens, self.seq_lens = [c.end - c.start for c in chunks], [c.end for c in chunks]
        self.positions = torch.tensor([first + i for c in chunks for i in range(c.start, c.end)] + [0] * padding)
        self.slots = [slot for c in chunks for slot in c.slots(range(c.start, c.end))] + [0] * padding
        self.rows = [sum(self.query_lens[: i + 1]) - 1 for i in range(len(chunks))]

    def tokens(self, texts: Iterable[Tensor]) -> Tensor:
        """[num_tokens]; padding is token 0."""
        parts = [text[chunk.start : chunk.end] for text, chunk in zip(texts, self.chunks, strict=True)]
        return torch.cat([*parts, torch.zeros(self.padding, dtype=torch.long)])

    def metadata(self, there):
        """The engine's own object for it."""
        longest = max(len(c.table) for c in self.chunks)
        return there.of(AttentionMetadata)(
            query_lens=list(self.query_lens), seq_lens=list(self.seq_lens), slot_mapping=torch.tensor(self.slots),
            block_tables=torch.tensor([[*c.table, *[0] * (longest - len(c.table))] for c in self.chunks]),
            num_decodes=sum(count == 1 for count in self.query_lens), block_size=BLOCK)


class LayerCache:
    """One layer's keys and values, by slot."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}

    def read(self, slots: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of these slots, [num_slots, num_kv_heads, head_dim] each."""
        keys, values = zip(*(self.rows[slot] for slot in slots), strict=True)
        return torch.stack(keys), torch.stack(values)


class Core:
    """Attention over blocks, by its formula: notes who calls what, and looks at what it is given.

    Args:
        attend: what attends, one request at a time: `attention`, or the lab's.
        head_by_head: how what it returns lies in memory, as the result of `causal_attention` often does; else token by token.
    """

    def __init__(
        self, there, config: ModelConfig, attend: Callable = attention, dtype: torch.dtype = torch.float32,
        head_by_head: bool = False,
    ) -> None:
        self.there, self.config, self.attend, self.dtype, self.head_by_head = there, config, attend, dtype, head_by_head
        self.caches = [LayerCache() for _ in range(config.num_hidden_layers)]
        self.calls: list[str] = []
        self.step: Step  # set while one is computed
        self.problem: Exception | None = None

    def lent(self) -> tuple[Any, list]:
        """The core and the layers' caches as the lab's part gets them."""
        return self.there.lend(self, "write", "forward"), [self.there.lend(cache) for cache in self.caches]

    def during(self, step: Step, call: Callable, *arguments: Any) -> Any:
        """`call(*arguments)`, which computes this step. Raises what was wrong with the use of the core."""
        self.step, self.calls, answer = step, [], None
        try:
            answer = call(*arguments)
        except Exception as error:
            if self.problem is None and "view size is not compatible" in str(error):
                raise AssertionError("what a core returns may lie in memory in any order; view() refuses, reshape() and "
                                     f"flatten() copy: {error}") from error
            if self.problem is None:
                raise
        if self.problem is not None:
            raise self.problem
        return answer

    def write(self, layer_cache: Any, k: Any, v: Any, slots: Any) -> None:
        """What the part calls; see `_write`."""
        self._noting(self._write, layer_cache, k, v, slots)

    def forward(self, q: Any, layer_cache: Any, metadata: Any) -> Any:
        """What the part calls; see `_forward`."""
        out = self._noting(self._forward, q, layer_cache, metadata)
        return strided(self.there, out, 0, 1) if self.head_by_head else out

    def _noting(self, do: Callable, *arguments: Any) -> Any:
        """What goes wrong in here reaches the test, whatever the part makes of it."""
        try:
            return do(*arguments)
        except Exception as error:
            self.problem = self.problem or error
            raise

    def _write(self, layer_cache: Any, k: Any, v: Any, slots: Any) -> None:
        self.calls.append("write")
        assert isinstance(layer_cache, LayerCache), f"core.write got {shown(layer_cache)} instead of the layer's cache"
        numbers = slots.tolist() if isinstance(slots, Tensor) else slots
        expected = self.step.slots
        assert numbers == expected, f"core.write got the slots {shown(numbers)}; metadata.slot_mapping is {shown(expected)}"
        for name, tensor in (("k", k), ("v", v)):
            size = (len(self.step.slots), self.config.num_key_value_heads, self.config.head_dim)
            assert_tensor(tensor, f"{name} that core.write got", size, self.dtype, HEADS)
        layer_cache.rows |= dict(zip(self.step.slots, zip(k.clone(), v.clone(), strict=True), strict=True))

    def _forward(self, q: Any, layer_cache: Any, metadata: Any) -> Tensor:
        self.calls.append("forward")
        assert isinstance(layer_cache, LayerCache), f"core.forward got {shown(layer_cache)} instead of the layer's cache"
        whole = getattr(metadata, "seq_lens", None) == self.step.seq_lens
        assert whole, f"core.forward got {shown(metadata)} instead of the metadata"
        size = (len(self.step.slots), self.config.num_attention_heads, self.config.head_dim)
        assert_tensor(q, "q that core.forward got", size, self.dtype, HEADS)
        written = set(self.step.slots) <= set(layer_cache.rows)
        assert written, "core.forward was called before core.write: a token sees its own key, too"
        out, start = torch.zeros_like(q), 0
        for chunk in self.step.chunks:
            count = chunk.end - chunk.start
            attended = self.attend(q[start : start + count], *layer_cache.read(chunk.slots(range(chunk.end))))
            assert_tensor(attended, "attention", (count, *q.shape[1:]), self.dtype, HEADS)
            out[start : start + count] = attended
            start += count
        return out


# TODO 1: RMSNorm


OF_FIVE = ([2, 4, 4, 8], [1, 1, 7, 7], [1, 5, 5, 7], [1, 3, 3, 9], [5, 5, 5, 5])
"""Rows whose root mean square is 5."""


def row_of_five(rng: random.Random) -> list[int]:
    """Four whole numbers whose root mean square is 5."""
    row = [number * rng.choice([1, 1, -1]) for number in rng.choice(OF_FIVE)]
    return rng.sample(row, 4)


def norm_of(lab, there, weight: Tensor, eps: float = 1e-6):
    """The lab's RMSNorm with this weight."""
    return filled(there, lab.RMSNorm(len(weight), eps), {"weight": weight})


@pytest.mark.todo(1, points=2)
def test_todo_1_a_row_whose_root_mean_square_is_5_is_divided_by_5(lab, rng, there):
    x = torch.tensor([[2.0, 4.0, 4.0, 8.0], [0.0, 0.0, 0.0, 0.0], [-20.0, 40.0, -40.0, 80.0]])
    expected = torch.tensor([[0.4, 0.8, 0.8, 0.8], [0.0, 0.0, 0.0, 0.0], [-0.4, 0.8, -0.8, 0.8]])
    result = asked(there, norm_of(lab, there, torch.tensor([1.0, 1.0, 1.0, 0.5])), "x", x)
    near(result, expected, "RMSNorm with the weight 1 1 1 0.5", axes=("row", "column"))
    times = rng.randrange(2, 20)
    rows = [row_of_five(rng), [times * number for number in row_of_five(rng)]]
    weight = torch.tensor([rng.choice([0.5, 1.0, 1.5, -2.0]) for _ in range(4)])
    expected = torch.tensor(rows) / torch.tensor([[5.0], [5.0 * times]]) * weight
    result = norm_of(lab, there, weight)(torch.tensor(rows, dtype=torch.float32))
    near(result, expected, f"RMSNorm of {rows} with the weight {weight.tolist()}", axes=("row", "column"))


@pytest.mark.todo(1, points=4)
@pytest.mark.parametrize("leading", [(1,), (5,), (3, 4), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("scale", ["large rows", "rows as small as eps"])
def test_todo_1_every_row_follows_the_formula(lab, rng, there, leading, scale):
    noise, size = Noise(rng), (*leading, rng.randrange(7, 65))
    for eps in (1e-6, 0.03, rng.uniform(1e-4, 1e-2)) if scale == "rows as small as eps" else (1e-6,):
        x = (rng.uniform(1, 30) if scale == "large rows" else eps**0.5 * rng.uniform(0.5, 2)) * noise(*size)
        weight = 1 + 0.5 * noise(size[-1])
        module, expected = norm_of(lab, there, weight, eps), norm(x.double(), weight, eps)
        what = f"{scale}, x / sqrt(mean(x²) + {eps}) * weight, each row of {list(size)} by itself"
        near(asked(there, module, "x", x), expected, what)
        near(module(strided(there, x, 0, 1)), expected, f"{what}, not contiguous")


@pytest.mark.todo(1, points=4)
def test_todo_1_the_root_is_computed_in_float32_whatever_comes_in(lab, rng, there):
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # 300 * 300 is more than float16 can hold, 65504
    result = norm_of(lab, there, torch.ones(4, dtype=torch.float16))(x)
    near(result, torch.ones(1, 4), "a row of 300s in float16, divided by its root mean square", 1e-3, torch.float16)
    noise = Noise(rng)
    large = torch.tensor([[rng.choice([1, -1]) * rng.uniform(290, 4000) for _ in range(12)] for _ in range(3)]).half()
    for x, what in ((large, "float16, too small for the squares"), (noise(512, rng.randrange(48, 80)).bfloat16(), "bfloat16")):
        weight = (1 + 0.5 * noise(x.shape[-1])).to(x.dtype)
        expected = norm(x.double(), weight, 1e-6)
        # two roundings are allowed, of x / rms and of its product with the weight; ours has one, at the end
        allowed = 2.02 * (BF16 if x.dtype == torch.bfloat16 else FLOAT16) * expected.abs()
        near(asked(there, norm_of(lab, there, weight), "x", x), expected, f"{what}, the root in float32", allowed, x.dtype)


# TODO 2: rotary embedding


def angles_off(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """How far angles in float32 may be off, [num_tokens, 1, head_dim]: the power multiplies a rounding by log(theta)."""
    off = (8 + 4 * math.log(theta)) * FLOAT32 * angles_of(positions, head_dim, theta) + 1e-6
    return off.repeat(1, 2)[:, None]


def of_both(x: Tensor) -> Tensor:
    """|a| + |b| of each number's pair: an angle that is off by d moves it by at most d times that."""
    first, second = x.double().abs().chunk(2, dim=-1)
    return (first + second).repeat(1, 1, 2)


@pytest.mark.todo(2, points=2)
def test_todo_2_at_position_3_the_pairs_turn_by_3_and_by_three_tenths(lab, rng, there):
    x = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.0]]])
    rotary = lab.RotaryEmbedding(4, theta=100.0)
    expected = torch.tensor([[[-0.98999, 0.95534, 0.14112, 0.29552]], [[1.0, 1.0, 0.0, 0.0]]])  # cos 3, cos 0.3, sin 3, sin 0.3
    result = asked(there, rotary, "x positions", x, torch.tensor([3, 0]))
    near(result, expected, "head_dim 4, theta 100: 1 1 0 0 at the positions 3 and 0", axes=HEADS)
    places = rng.sample([rng.randrange(1, 10), 10], 2)
    expected = torch.tensor([[[math.cos(p), math.cos(p / 10), math.sin(p), math.sin(p / 10)]] for p in places])
    result = rotary(x, torch.tensor(places))
    near(result, expected, f"head_dim 4, theta 100: 1 1 0 0 at the positions {places}", axes=HEADS)


@pytest.mark.todo(2, points=4)
@pytest.mark.parametrize("theta", [100.0, 1e4, 1e6, "any"], ids=str)
@pytest.mark.parametrize("head_dim, heads", [(2, 1), ("any", 3), (128, 2)], ids=str)
def test_todo_2_every_pair_turns_by_its_own_angle(lab, rng, there, head_dim, heads, theta):
    theta = rng.uniform(1e3, 1e5) if theta == "any" else theta
    head_dim = 2 * rng.randrange(3, 12) if head_dim == "any" else head_dim
    far = rng.sample(range(100, 40_000), 4)
    rotary, noise, in_no_order = lab.RotaryEmbedding(head_dim, theta), Noise(rng), [*far, far[0], 0, 1, 1, 39_999]
    for places in (list(range(6)), rng.sample(in_no_order, len(in_no_order))):
        x, positions = noise(len(places), heads, head_dim), torch.tensor(places)
        expected, allowed = turn(x.double(), positions, theta), angles_off(positions, head_dim, theta) * of_both(x)
        what = f"positions {places}, head_dim {head_dim}, theta {theta:g}"
        near(asked(there, rotary, "x positions", x, positions), expected, what, allowed, axes=HEADS)
        near(rotary(strided(there, x, 1, 2), positions), expected, f"{what}, not contiguous", allowed, axes=HEADS)


@pytest.mark.todo(2, points=1)
def test_todo_2_angles_are_made_on_the_device_of_x(lab, rng, there):
    assert_made_beside(there, lab.RotaryEmbedding(8, theta=100.0), Noise(rng)(3, 2, 8), torch.arange(3))


@pytest.mark.todo(2, points=2)
def test_todo_2_the_score_of_a_query_and_a_key_depends_on_their_distance_alone(lab, rng):
    noise, theta, apart = Noise(rng), rng.uniform(1e3, 1e5), rng.randrange(1, 9)
    q, k, rotary = noise(1, 1, 16), noise(1, 1, 16), lab.RotaryEmbedding(16, theta)
    for distance in (apart, -apart, 0):
        expected = (turn(q.double(), torch.tensor([distance]), theta) * k.double()).sum()
        for shift in (10, rng.randrange(20, 60), rng.randrange(500, 1000)):
            places = [shift + distance], [shift]
            turned = [rotary(x, torch.tensor(place)) for x, place in zip((q, k), places, strict=True)]
            for x in turned:
                assert_tensor(x, "a turned head", (1, 1, 16), torch.float32, HEADS)
            off = sum(angles_off(torch.tensor(place), 16, theta) for place in places)
            score, allowed = (turned[0].double() * turned[1].double()).sum().float(), (off * of_both(q) * of_both(k)).sum()
            near(score, expected, f"the score of a query at position {shift + distance} and a key at {shift}", allowed)


@pytest.mark.todo(2, points=3)
def test_todo_2_angles_are_exact_in_bfloat16_too(lab, rng, there):
    theta = rng.uniform(5e3, 5e4)
    # bfloat16 knows 256, 1000 and 4096, but none of these
    places = torch.tensor([0, 257, 2 * rng.randrange(300, 900) + 1, 4097, 2 * rng.randrange(2100, 2500) + 1])
    x = Noise(rng)(len(places), 3, 32).bfloat16()
    result = asked(there, lab.RotaryEmbedding(32, theta), "x positions", x, places)
    # three roundings at most: of cos and sin, of the products, of the sum (ours has one); angles in float32
    allowed = (3.05 * BF16 + angles_off(places, 32, theta)) * of_both(x)
    what = f"bfloat16 heads at the positions {places.tolist()}, angles in float32"
    near(result, turn(x.double(), places, theta), what, allowed, torch.bfloat16, axes=HEADS)


@pytest.mark.todo(2, points=2)
def test_todo_2_a_call_knows_nothing_of_those_before_it(lab, rng, there):
    theta, noise = rng.uniform(5e3, 5e4), Noise(rng)
    rotary, x, last = lab.RotaryEmbedding(32, theta), noise(4, 3, 32), rng.randrange(3, 40)
    rotary(x.bfloat16(), torch.arange(4))
    firsts = [0, 1, 2], rng.sample(range(50), 3), rng.sample(range(2000), 3), [rng.randrange(2000)] * 3
    steps = [torch.tensor([*first, last]) for first in firsts]  # as many tokens each time, and the same last one
    for places in steps:
        what = f"float32, positions {places.tolist()}, after a call in bfloat16 and other positions"
        allowed = angles_off(places, 32, theta) * of_both(x)
        near(rotary(x, places), turn(x.double(), places, theta), what, allowed, axes=HEADS)
    held = there.hold(torch.zeros(4, dtype=torch.long))  # engines keep one tensor for all steps, and write the positions into it
    for places in steps:
        there.kept(held.copy_, places)
        what = f"the same tensor in each call, which holds the positions {places.tolist()} now"
        allowed = angles_off(places, 32, theta) * of_both(x)
        near(rotary(x, held), turn(x.double(), places, theta), what, allowed, axes=HEADS)


# TODO 3: heads


def attention_layer(lab, rng: random.Random, there, config: ModelConfig, dtype: torch.dtype = torch.float32):
    """A layer without a core, the same by its formulas, and noise."""
    noise = Noise(rng)
    weights = random_weights(attention_shapes(config), noise, dtype)
    return filled(there, lab.Attention(config, 0, None), weights), Network(config, weights), noise


def three(answer: Any) -> tuple[Any, Any, Any]:
    """q, k and v; there must be three."""
    assert isinstance(answer, tuple | list) and len(answer) == 3, f"heads() returned {shown(answer)}; expected q, k and v"
    return tuple(answer)


@pytest.mark.todo(3, points=6)
@every_shape
def test_todo_3_q_k_and_v_follow_the_formula_head_by_head(lab, rng, there, group):
    config = shape_of(rng, group)
    layer, truth, noise = attention_layer(lab, rng, there, config)
    x, far = noise(7, config.hidden_size), rng.randrange(50, 150)
    positions = torch.tensor([0, 1, 2, far, far + 1, 3, 3])
    heads = three(asked(there, layer.heads, "x positions", x, positions))
    of = f"{config.num_attention_heads} heads, {config.num_key_value_heads} KV heads, positions {positions.tolist()}"
    for name, result, expected in zip("qkv", heads, truth.heads(x, positions), strict=True):
        near(result, expected, f"{name}, {of}", NETWORK, axes=HEADS)


@pytest.mark.todo(3, points=2)
def test_todo_3_each_head_is_normalised_by_itself(lab, rng, there):
    config = config_of(rng, hidden_size=8, num_attention_heads=2, num_key_value_heads=2, head_dim=4)
    weights = {f"{name}_proj.weight": torch.eye(8) for name in "qkv"}  # each is x itself
    weights |= {"q_norm.weight": torch.ones(4), "k_norm.weight": torch.full((4,), 2.0)}
    layer = filled(there, lab.Attention(config, 0, None), weights)
    for row, constant in (([2, 4, 4, 8], 6), (row_of_five(rng), rng.randrange(2, 9))):
        q, k, _ = three(layer.heads(torch.tensor([[*row, *[constant] * 4]], dtype=torch.float32), torch.tensor([0])))
        expected = torch.tensor([[[number / 5 for number in row], [1.0] * 4]])
        what = f"at position 0, the heads {row} and {[constant] * 4}, normalised"
        near(q, expected, f"q: {what}", axes=HEADS)
        near(k, 2 * expected, f"k: {what}, with a weight of 2", axes=HEADS)


@pytest.mark.todo(3, points=2)
def test_todo_3_values_are_projected_and_nothing_else(lab, rng, there):
    for group in GROUPS:
        config = shape_of(rng, group)
        layer, truth, noise = attention_layer(lab, rng, there, config)
        x, positions = noise(3, config.hidden_size), torch.tensor([rng.randrange(5, 50) for _ in range(3)])
        for rows, where, what in ((x, positions, "v"), (2 * x, 0 * positions, "v of 2x, at position 0")):
            expected = truth.cut(rows, "v_proj", config.num_key_value_heads)
            near(three(layer.heads(rows, where))[2], expected, f"{what}, neither normalised nor turned", NETWORK, axes=HEADS)


@pytest.mark.todo(3, points=2)
def test_todo_3_a_token_has_the_same_heads_alone_and_in_any_company(lab, rng, there):
    config = shape_of(rng, rng.choice(GROUPS))
    layer, truth, noise = attention_layer(lab, rng, there, config)
    x, positions = noise(5, config.hidden_size), torch.tensor([rng.randrange(60) for _ in range(5)])
    together = truth.heads(x, positions)
    for rows in ([0], [1], [2], [3], [4], rng.sample(range(5), 3)):
        for name, result, expected in zip("qkv", three(layer.heads(x[rows], positions[rows])), together, strict=True):
            near(result, expected[rows], f"{name} of the rows {rows} of 5", NETWORK, axes=HEADS)


@pytest.mark.todo(3, points=2)
def test_todo_3_bfloat16_stays_bfloat16(lab, rng, there):
    config = config_of(rng, head_dim=20, attention_bias=True)
    layer, truth, noise = attention_layer(lab, rng, there, config, torch.bfloat16)
    x, positions = noise(4, config.hidden_size).bfloat16(), torch.arange(4)
    # roundings: of the projection; of its norm twice; of the turn three times. Each is 2**-8 of a number
    # that is at most as large as the head's pair, so of sqrt(2) times the largest; the norm's scale one more
    for name, result, expected in zip("qkv", three(layer.heads(x, positions)), truth.heads(x, positions), strict=True):
        near(result, expected, f"{name} in bfloat16", 7 * 1.42 * BF16, torch.bfloat16, axes=HEADS)


# TODO 4: attention


def queries(
    noise: Noise, num_queries: int, num_keys: int, num_heads: int, num_kv_heads: int, head_dim: int, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v"""
    sizes = ((num_queries, num_heads), (num_keys, num_kv_heads), (num_keys, num_kv_heads))
    q, k, v = (noise(*size, head_dim) for size in sizes)
    return scale * q, scale * k, v


@pytest.mark.todo(4, points=2)
def test_todo_4_three_tokens_by_hand(lab, rng, there):
    count = rng.randrange(3, 6)
    drawn = [rng.randrange(1, 6) for _ in range(count)], [rng.randrange(1, 13) for _ in range(count)]
    for weights, numbers in (([1, 2, 3], [6, 12, 24]), drawn):
        q, k = torch.tensor([2.0, 0.0, 0.0, 0.0]).repeat(len(weights), 1, 1), torch.zeros(len(weights), 1, 4)
        k[:, 0, 0] = torch.tensor(weights, dtype=torch.float32).log()  # scores: the logarithms of the weights
        shares, values = torch.tensor(weights, dtype=torch.float64), torch.tensor(numbers, dtype=torch.float64)
        # of 1, 2, 3 and 6, 12, 24: 6; (6 + 2*12) / 3 = 10; (6 + 2*12 + 3*24) / 6 = 17
        expected = ((shares * values).cumsum(0) / shares.cumsum(0)).view(-1, 1, 1).repeat(1, 1, 4)
        result = asked(there, lab.causal_attention, "q k v", q, k, values.float().view(-1, 1, 1).repeat(1, 1, 4))
        near(result, expected, f"weights {weights}, as far as each token sees, over the values {numbers}", axes=HEADS)


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("num_heads, num_kv_heads, head_dim", [(3, 3, 8), (4, 2, "any"), (8, 2, 12), (4, 1, 2)], ids=str)
def test_todo_4_attention_follows_the_formula_at_every_length(lab, rng, there, num_heads, num_kv_heads, head_dim):
    noise, head_dim = Noise(rng), 2 * rng.randrange(6, 12) if head_dim == "any" else head_dim
    for length in (1, 2, 3, rng.randrange(4, 8), 15, 16, 17):
        q, k, v = queries(noise, length, length, num_heads, num_kv_heads, head_dim)
        result = asked(there, lab.causal_attention, "q k v", q, k, v)
        near(result, attention(q.double(), k, v), f"{length} tokens, {num_heads} heads, {num_kv_heads} KV heads", axes=HEADS)
    fused = noise(6, num_heads + 2 * num_kv_heads, head_dim)  # views of one tensor, as a fused projection gives them
    parts = fused.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    held, starts = there.hold(fused.clone()), (0, num_heads, num_heads + num_kv_heads)
    views = [there.kept(held.narrow, 1, start, part.shape[1]) for start, part in zip(starts, parts, strict=True)]
    expected = attention(*(part.double() for part in parts))
    near(lab.causal_attention(*views), expected, "q, k and v that are views of one tensor", axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_what_attention_makes_lies_on_the_device_of_q(lab, rng, there):
    assert_made_beside(there, lab.causal_attention, *queries(Noise(rng), 2, 5, 4, 2, 8))


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize(
    "num_queries, num_keys",
    [(1, 4), (1, 9), (2, 9), (4, 8), (8, 9), *((2, keys) for keys in (15, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257))], ids=str)
def test_todo_4_queries_are_those_of_the_last_tokens(lab, rng, there, num_queries, num_keys):
    q, k, v = queries(Noise(rng), num_queries, num_keys, 4, 2, 8)
    what = f"{num_queries} queries of {num_keys} tokens: the first of them sees {num_keys - num_queries + 1} keys"
    near(asked(there, lab.causal_attention, "q k v", q, k, v), attention(q.double(), k, v), what, axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_no_token_sees_the_future(lab, rng, there):
    q, k, v = queries(Noise(rng), 6, 6, 4, 2, 8)
    known = rng.randrange(2, 5)
    before = asked(there, lab.causal_attention, "q k v", q, k, v)
    near(before[:1], v[:1].repeat_interleave(2, dim=1), "token 0 sees itself alone, so its output is its value", axes=HEADS)
    k[known:], v[known:] = 100.0, -1000.0
    after = lab.causal_attention(q, k, v)
    what = f"the outputs of the first {known} tokens, after later keys and values were changed"
    near(after[:known], before[:known], what, axes=HEADS)


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("num_heads, num_kv_heads", [(2, 2), (4, 2), (8, 2), (6, 3), (5, 1)], ids=str)
def test_todo_4_neighbouring_query_heads_share_a_kv_head(lab, rng, num_heads, num_kv_heads):
    q, k, _ = queries(Noise(rng), 3, 3, num_heads, num_kv_heads, 4)
    numbers = rng.sample(range(1, 20), num_kv_heads)
    v = torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1).repeat(3, 1, 4)  # each KV head holds one number
    expected = [numbers[head // (num_heads // num_kv_heads)] for head in range(num_heads)]
    result = lab.causal_attention(q, k, v)
    assert_tensor(result, f"{num_heads} heads, {num_kv_heads} KV heads", tuple(q.shape), torch.float32, HEADS)
    read = [round(number, 3) for number in result[2, :, 0].tolist()]
    assert read == expected, (
        f"the KV heads hold {numbers}, so query heads 0 to {num_heads - 1} should read {expected}; they read {read}")


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize(
    "size, dtype", [(1e3, torch.float32), (1e5, torch.float32), (1e12, torch.float32), (2.0**16, torch.float16),
                    (2.0**40, torch.bfloat16)], ids=str)
def test_todo_4_the_future_has_no_weight_however_low_the_scores_are(lab, rng, there, size, dtype):
    count, score = rng.randrange(4, 8), size * rng.uniform(1, 2)
    numbers = torch.tensor([float(rng.randrange(1, 50)) for _ in range(count)])
    q, k = torch.full((count, 2, 4), score**0.5, dtype=dtype), torch.full((count, 1, 4), -(score**0.5), dtype=dtype)
    expected = numbers.double().cumsum(0) / torch.arange(1, count + 1)  # all scores are the same: the mean of what is seen
    result = asked(there, lab.causal_attention, "q k v", q, k, numbers.view(-1, 1, 1).repeat(1, 1, 4).to(dtype))
    what = (f"{dtype}, all scores are {-2 * score:g}, so a mask that is a number, such as -10000 or the smallest one of "
            f"{dtype}, lets the future in")
    allowed = OPERATOR if dtype == torch.float32 else 3 * BF16
    near(result, expected.view(-1, 1, 1).repeat(1, 2, 4), what, allowed, dtype, axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_a_query_sees_its_first_key_however_far_back(lab, rng, there):
    count, value = rng.randrange(5000, 7000), float(rng.randrange(2, 20))
    q, k, v = torch.zeros(1, 2, 4), torch.zeros(count, 1, 4), torch.zeros(count, 1, 4)
    q[..., 0], k[0, 0, 0], v[0] = 40.0, 2.0, value  # the first key scores 40, all others 0
    result = asked(there, lab.causal_attention, "q k v", q, k, v)
    near(result, torch.full((1, 2, 4), value), f"{count} keys, and only the first one scores: its value is {value}", axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_scores_of_a_thousand(lab, rng, there):
    q, k, v = queries(Noise(rng), 5, 5, 4, 2, 8, scale=30.0)
    q, k = q.sign() * (q.abs() + 20), k.sign() * (k.abs() + 20)  # none small, so that some score is of a thousand
    k[0] = q[-1, ::2]  # and this one is for certain
    # a score is a sum of products, off by a few roundings of their sizes; a weight is off by twice as much of itself
    off = 2 * (8 + 4) * FLOAT32 * float((q.abs().amax((0, 1)) * k.abs().amax((0, 1))).sum()) / 8**0.5
    allowed = ((math.expm1(off) + OPERATOR) * v.double().abs().max()).expand(q.shape)
    result = asked(there, lab.causal_attention, "q k v", q, k, v)
    near(result, attention(q.double(), k, v), "scores of a thousand, whose exp is no float32", allowed, axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_scores_and_weights_of_bfloat16_are_computed_in_float32(lab, rng, there):
    # One key scores 0 and the others about -8.03, which would be -8.0 in bfloat16, and their weights larger by 0.03.
    others, more = rng.randrange(35, 50), rng.uniform(0.052, 0.06)
    q, k, v = torch.ones(1, 2, 4), torch.zeros(others + 1, 1, 4), torch.ones(others + 1, 1, 4)
    k[:others, 0, 0], k[:others, 0, 1], v[others] = -16.0, -more, 0.0
    assert_as_near_as_can_be(lab, there, q, k, v, f"one key scores 0, {others} score -{8 + more / 2:.3f}")
    q, k, v = queries(Noise(rng), 40, 300, 4, 2, 20, scale=3.0)  # the root of 20 is no power of 2: it rounds a q in bfloat16
    assert_as_near_as_can_be(lab, there, q, k, v, "scores up to 40, over 300 keys")


def assert_as_near_as_can_be(lab, there, q: Tensor, k: Tensor, v: Tensor, what: str) -> None:
    """Attention of bfloat16 whose scores and weights were not rounded.

    Three roundings are allowed: of the weights, of their product with v, of the result (ours has the last).
    Each is 2**-8 of numbers that add up to weights @ |v|. A float32 score is off by less than 1e-3.
    """
    q, k, v = (tensor.bfloat16() for tensor in (q, k, v))
    allowed = (3.05 * BF16 + 1e-3) * attention(q.double(), k, v.abs())
    result, what = asked(there, lab.causal_attention, "q k v", q, k, v), f"bfloat16, {what} (scores and weights in float32)"
    near(result, attention(q.double(), k, v), what, allowed, torch.bfloat16, axes=HEADS)


@pytest.mark.todo(4, points=2)
@every_shape
def test_todo_4_the_layer_writes_then_attends_through_the_core_it_was_given(lab, rng, there, group):
    config, noise, count = shape_of(rng, group), Noise(rng), rng.randrange(5, 8)
    core, weights = Core(there, config, head_by_head=True), random_weights(attention_shapes(config), noise)
    lent, (cache,) = core.lent()
    layer, truth = filled(there, lab.Attention(config, 0, lent), weights), Network(config, weights)
    x, step = noise(count, config.hidden_size), Step([Chunk(0, count, *tables(rng, count))])
    result = core.during(step, asked, there, layer, "x positions", x, step.positions, cache, step.metadata(there))
    assert core.calls == ["write", "forward"], f"expected one write, then one forward of the core; it saw {core.calls}"
    for name, written, expected in zip("kv", core.caches[0].read(step.slots), truth.heads(x, step.positions)[1:], strict=True):
        near(written, expected, f"{name} in the slots {step.slots}", NETWORK, axes=HEADS)
    near(result, truth.attend(x, step.positions), f"{count} tokens in the slots {step.slots}", NETWORK, axes=COLUMNS)


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("sizes", ["at once", "in two", "the last one alone", "one by one"])
def test_todo_4_a_request_computed_in_chunks_gives_what_it_gives_at_once(lab, rng, there, sizes):
    config, noise, length = shape_of(rng, rng.choice(GROUPS[1:])), Noise(rng), rng.randrange(7, 12)
    weights, x = random_weights(attention_shapes(config), noise), noise(length, config.hidden_size)
    expected = Network(config, weights).attend(x, torch.arange(length))
    edges = {"at once": [length], "in two": [rng.randrange(2, length - 1), length], "the last one alone": [length - 1, length],
             "one by one": [*range(1, length + 1)]}[sizes]
    core, (table,) = Core(there, config, attend=lab.causal_attention), tables(rng, length)
    lent, (cache,) = core.lent()
    layer = filled(there, lab.Attention(config, 0, lent), weights)
    for start, end in zip([0, *edges], edges, strict=False):
        step = Step([Chunk(start, end, table)])
        result = core.during(step, layer, x[start:end], step.positions, cache, step.metadata(there))
        what = f"the tokens {start} to {end - 1} of {length}, in chunks that end before {edges}"
        near(result, expected[start:end], what, NETWORK, axes=COLUMNS)


# TODO 5: SwiGLU and the layer


@pytest.mark.todo(5, points=2)
def test_todo_5_swiglu_by_hand(lab, rng, there):
    config = config_of(rng, hidden_size=4, intermediate_size=2)
    matrices = {  # gate: the numbers 0 and 1 of x; up: the numbers 2 and 3
        "gate_proj.weight": torch.eye(4)[:2], "up_proj.weight": torch.eye(4)[2:],
        "down_proj.weight": torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1]])}
    mlp, drawn = filled(there, lab.MLP(config), matrices), [rng.choice([-3, -1, 1, 4]), rng.randrange(1, 9), rng.randrange(1, 9)]
    for gate, *ups in ([2, 3, 5], drawn):
        result = asked(there, mlp, "x", torch.tensor([[0, gate, *ups]], dtype=torch.float32))
        down = gate / (1 + math.exp(-gate)) * ups[1]  # silu(0) * 3 = 0; silu(2) * 5 = 2 * 0.880797 * 5
        near(result, torch.tensor([[0.0, down, 0.0, down]]), f"gate 0 {gate}, up {ups}", axes=COLUMNS)
    for dtype, large in ((torch.float32, 1000.0), (torch.bfloat16, 100.0), (torch.float16, 20.0)):
        mlp = filled(there, lab.MLP(config), {name: matrix.to(dtype) for name, matrix in matrices.items()})
        what = f"{dtype}, gate {-large:g} {large:g}, up 3 5: silu shuts the first and lets the second through; its exp is inf"
        result = mlp(torch.tensor([[-large, large, 3.0, 5.0]], dtype=dtype))
        near(result, torch.tensor([[0.0, 5 * large, 0.0, 5 * large]]), what, 1e-3, dtype, axes=COLUMNS)


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_todo_5_swiglu_follows_the_formula(lab, rng, there, num_tokens):
    config, noise = config_of(rng), Noise(rng)
    weights = random_weights(mlp_shapes(config), noise)
    mlp, truth = filled(there, lab.MLP(config), weights), Network(config, weights)
    for scale in (1, rng.uniform(20, 60)):
        x = scale * noise(num_tokens, config.hidden_size)
        what = f"down(silu(gate(x)) * up(x)) of {num_tokens} tokens"
        near(asked(there, mlp, "x", x), truth.mlp(x), what, NETWORK, axes=COLUMNS)
    rounded = filled(there, lab.MLP(config), {name: weight.bfloat16() for name, weight in weights.items()})
    result = rounded(noise(num_tokens, config.hidden_size).bfloat16())
    assert_tensor(result, "the MLP in bfloat16", (num_tokens, config.hidden_size), torch.bfloat16, COLUMNS)


def decoder_layer(lab, there, config: ModelConfig, weights: dict[str, Tensor]) -> tuple[Any, Core, Any]:
    """A layer with these weights, its core, and its cache."""
    core = Core(there, config)
    lent, (cache,) = core.lent()
    return filled(there, lab.DecoderLayer(config, 0, lent), weights), core, cache


@pytest.mark.todo(5, points=5)
@every_shape
def test_todo_5_a_layer_adds_attention_then_the_mlp(lab, rng, there, group):
    config, noise, lengths = shape_of(rng, group), Noise(rng), [rng.randrange(3, 9), rng.randrange(3, 9)]
    weights = random_weights(layer_shapes(config), noise)
    layer, core, cache = decoder_layer(lab, there, config, weights)
    texts, places = [3 * noise(length, config.hidden_size) for length in lengths], tables(rng, *lengths)
    expected, cut = [Network(config, weights).layer(text, torch.arange(len(text))) for text in texts], lengths[0] - 1
    for chunks in ([(0, 0, cut)], [(0, cut, cut + 1), (1, 0, lengths[1])]):  # all but a request's last token; that, and another
        step = Step([Chunk(start, end, places[which]) for which, start, end in chunks])
        x = torch.cat([texts[which][start:end] for which, start, end in chunks])
        result = core.during(step, asked, there, layer, "x positions", x, step.positions, cache, step.metadata(there))
        near(result, torch.cat([expected[which][start:end] for which, start, end in chunks]),
             f"a step of {step.query_lens} tokens of its requests: h = x + attention(norm(x)), then h + mlp(norm(h))", NETWORK,
             axes=COLUMNS)


@pytest.mark.todo(5, points=2)
def test_todo_5_what_comes_in_passes_a_layer_that_has_nothing_to_add(lab, rng, there):
    config, noise = config_of(rng), Noise(rng)
    weights = random_weights(layer_shapes(config), noise)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        weights[name].zero_()
    layer, core, cache = decoder_layer(lab, there, config, weights)
    x, step = rng.uniform(3, 9) * noise(3, config.hidden_size), Step([Chunk(0, 3, *tables(rng, 3))])
    result = core.during(step, asked, there, layer, "x positions", x, step.positions, cache, step.metadata(there))
    near(result, x, "x, when attention and MLP both give zeros", axes=COLUMNS)


# TODO 6: logits


class Model:
    """The lab's network, the same by its formulas, and the core between them.

    Args:
        dtype: of the weights.
        attend: see `Core`.
    """

    def __init__(
        self, lab, there, config: ModelConfig, noise: Noise, attend: Callable = attention, dtype: torch.dtype = torch.float32,
    ) -> None:
        self.there, self.core = there, Core(there, config, attend, dtype)
        sizes = parameter_shapes(config) | {"lm_head.weight": (config.vocab_size, config.hidden_size)}
        self.weights = random_weights(sizes, noise, dtype)
        self.truth = Network(config, self.weights)
        lent, self.cache = self.core.lent()
        self.network = filled(there, lab.Qwen3ForCausalLM(config, lent), self.weights)

    def last_logits(self, step: Step, texts: Iterable[Tensor]) -> Any:
        """What it says of a step; what it was given must stay as it is."""
        metadata = step.metadata(self.there)
        logits = self.core.during(step, asked, self.there, self.network.last_logits, "token_ids positions", step.tokens(texts),
                                  step.positions, self.cache, metadata)
        lens = metadata.query_lens
        assert lens == step.query_lens, f"metadata.query_lens was changed in place, {step.query_lens} to {shown(lens)}"
        return logits

    def hidden(self, step: Step, texts: Iterable[Tensor]) -> Any:
        """What the engine asks it for."""
        metadata = step.metadata(self.there)
        return self.core.during(step, self.network, step.tokens(texts), step.positions, self.cache, metadata)


@pytest.mark.todo(6, points=3)
def test_todo_6_rows_are_normalised_then_given_to_the_head(lab, rng, there):
    noise = Noise(rng)
    for config in (config_of(rng), config_of(rng, rms_norm_eps=0.03)):
        model, count = Model(lab, there, config, noise), rng.randrange(3, 7)
        hidden = rng.uniform(2, 5) * noise(count, config.hidden_size)
        expected, axes = model.truth.logits_of(hidden), ("row", "token id")
        logits = asked(there, model.network.compute_logits, "hidden", hidden)
        near(logits, expected, "lm_head(norm(hidden))", NETWORK, axes=axes)
        row = rng.randrange(count)
        near(model.network.compute_logits(hidden[[row]]), expected[[row]], f"row {row} by itself", NETWORK, axes=axes)


@pytest.mark.todo(6, points=3)
@pytest.mark.parametrize("padding", [0, 3])
def test_todo_6_logits_follow_the_last_token_of_each_request(lab, rng, there, padding):
    config, noise = config_of(rng, layers=2), Noise(rng)
    model, lengths = Model(lab, there, config, noise), [1, rng.randrange(7, 12), rng.randrange(3, 6), *[2] * rng.randrange(7, 12)]
    texts, places, cut = [noise.tokens(length, config) for length in lengths], tables(rng, *lengths), rng.randrange(2, 5)
    model.last_logits(Step([Chunk(0, cut, places[1])]), [texts[1]])
    starts = [0, cut, *[0] * (len(lengths) - 2)]
    step = Step([Chunk(*chunk) for chunk in zip(starts, lengths, places, strict=True)], padding)
    assert_last(model, step, texts)
    # as many requests and tokens, and others are the last rows
    others = [noise.tokens(length, config) for length in (1, *reversed(step.query_lens[1:]))]
    places = tables(rng, *map(len, others))
    assert_last(model, Step([Chunk(0, len(text), table) for text, table in zip(others, places, strict=True)], padding), others)


def assert_last(model: Model, step: Step, texts: list[Tensor]) -> None:
    """The logits are those after each of these texts, which end with this step."""
    expected = torch.stack([model.truth.logits(text)[-1] for text in texts])
    what = f"query_lens {step.query_lens}, {step.padding} rows of padding: the logits of the rows {step.rows}"
    near(model.last_logits(step, texts), expected, what, NETWORK, axes=LOGITS)


@pytest.mark.todo(6, points=2)
def test_todo_6_only_the_rows_that_are_returned_pass_the_head(lab, rng, there):
    config, noise, count = config_of(rng, vocab_size=rng.choice([1009, 1013, 1019])), Noise(rng), rng.randrange(20, 40)
    model, log = Model(lab, there, config, noise), there.operators()
    step, text = Step([Chunk(0, count, *tables(rng, count))]), noise.tokens(count, config)
    logits = model.core.during(step, log.watch, model.network.last_logits, step.tokens([text]), step.positions, model.cache,
                               step.metadata(there))
    assert_tensor(logits, "logits of one request", (1, config.vocab_size), torch.float32, LOGITS)
    rows = rows_of_logits(log.events, config)
    assert rows == 1, f"{rows} rows of logits were computed for one request of {count} tokens; one is needed"


def rows_of_logits(events: Iterable[Any], config: ModelConfig) -> int:
    """The most rows of one number for each token id that an operator made: more than were needed, or none."""
    weight = config.vocab_size * config.hidden_size
    made = [piece for event in events for piece in event.made if piece.floating and config.vocab_size in piece.shape
            and piece.memory not in {operand.memory for operand in event.given}]
    return max((math.prod(piece.shape) // config.vocab_size for piece in made if math.prod(piece.shape) != weight), default=0)


SHAPES = {
    "group 1": Shape(hidden_size=40, num_attention_heads=3, num_key_value_heads=3, head_dim=8, rope_theta=500.0),
    "group 2": Shape(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=20, attention_bias=True),
    "group 4": Shape(hidden_size=32, num_attention_heads=8, num_key_value_heads=2, head_dim=12, rms_norm_eps=0.03,
                     rope_theta=1e6, tie_word_embeddings=False),
}
"""Of checkpoints that transformers loads."""


@pytest.fixture(scope="module")
def oracles(tmp_path_factory):
    """`oracles(shape)`: transformers on random weights of that shape, and the folder of the checkpoint."""

    @functools.cache
    def make(shape: Shape):
        folder = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), shape)
        return Oracle(folder), folder

    return make


def some_tokens(length: int, seed: int = 0) -> Tensor:
    return torch.randint(512, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.practice  # transformers is not there where labs are graded
@pytest.mark.todo(6, points=4)
@every_shape
def test_todo_6_the_network_equals_transformers(lab, group, oracles):
    shape = SHAPES[group]
    (oracle, _), core, config = oracles(shape), lab.DenseCore(), ModelConfig(**asdict(shape))
    network = lab.Qwen3ForCausalLM(config, core)
    network.load_state_dict(oracle.network.state_dict())
    network.requires_grad_(False)
    for length, first in ((1, 0), (2, 0), (17, 0), (40, 300)):
        tokens, positions = some_tokens(length), torch.arange(first, first + length)
        logits = network.last_logits(tokens, positions, core.make_cache(config, length), lab.one_request(0, length))
        expected = oracle.network(tokens[None], position_ids=positions[None]).logits[0, -1:].double()
        near(logits, expected, f"logits after {length} tokens, positions from {first}", NETWORK, axes=LOGITS)


@pytest.mark.todo(6, points=2)
def test_todo_6_bfloat16_is_as_near_as_it_can_be(lab, rng, there):
    config, noise = config_of(rng, layers=2, head_dim=20, attention_bias=True), Noise(rng)
    model = Model(lab, there, config, noise, attend=lab.causal_attention, dtype=torch.bfloat16)
    rounded, results, theirs, truth = Network(config, model.weights, torch.bfloat16), [], [], []
    for length in (1, 4, 7, 10, 13, 16):
        text = noise.tokens(length, config)
        results.append(model.last_logits(Step([Chunk(0, length, *tables(rng, length))]), [text]))
        assert_tensor(results[-1], "logits in bfloat16", (1, config.vocab_size), torch.bfloat16, LOGITS)
        theirs.append(rounded.logits(text)[-1:])
        truth.append(model.truth.logits(text)[-1:])
    # Two right programs round in different places, so neither is nearer. The ratio of their errors was seen between
    # 0.7 and 1.4, its logarithm spread by 0.15: three times as much is seven times that spread.
    error, usual = (float((torch.cat(logits).double() - torch.cat(truth)).square().mean().sqrt()) for logits in (results, theirs))
    assert error <= 3 * usual, f"root mean square error of the logits {error:.4f}; in bfloat16 {usual:.4f} is usual"


class DenseOverBlocks(TorchPagedAttention):
    """The engine's cache, read by the lab's causal_attention, one request at a time."""

    def __init__(self, lab, config):
        super().__init__(config.model, config.cache.block_size, config.dtype, config.device)
        self.lab = lab

    def forward(self, q, layer_cache, metadata):
        out, start = torch.zeros_like(q), 0
        for table, count, length in zip(metadata.block_tables.tolist(), metadata.query_lens, metadata.seq_lens, strict=True):
            keys, values = self.read(layer_cache, self.slots(table, range(length)))
            out[start : start + count] = self.lab.causal_attention(q[start : start + count], keys, values)
            start += count
        return out


class RecordingSampler(Sampler):
    """Keeps every row of logits under the tokens it follows."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def sample(self, logits, rows):
        self.rows |= {(*r.prompt_token_ids, *r.output_token_ids): row.clone() for r, row in zip(rows, logits, strict=True)}
        return super().sample(logits, rows)


def engine_with(lab, model: str, dense: bool, sampler: Sampler) -> LLM:
    """The engine with the lab's network: blocks of 4, chunks of 7, a pool so small that requests must wait."""
    seam = load_seam(lab_at(Path(__file__).parent))
    parts = Components().using(model=functools.partial(seam.model, lab), sampler=lambda config: sampler)
    if dense:
        parts = parts.using(attention=lambda config: DenseOverBlocks(lab, config))
    return LLM(
        model, device="cpu", dtype="float32", components=parts, block_size=BLOCK, num_gpu_blocks_override=24,
        max_num_batched_tokens=24, long_prefill_token_threshold=7, check_invariants=True,
    )


@pytest.mark.practice  # the engine keeps the network, which is the learner's, in its own process
@pytest.mark.todo(6, points=3)
@pytest.mark.parametrize("dense", [False, True], ids=["paged attention", "your attention over the engine's blocks"])
@pytest.mark.parametrize("model", ["course", "random weights"])
def test_todo_6_the_engine_with_your_network_equals_transformers(lab, model, dense, oracles):
    lab.Qwen3ForCausalLM(ModelConfig(**asdict(Shape())), None).compute_logits(torch.zeros(1, 64))  # is it written?
    oracle, folder = oracles(SHAPES["group 2"]) if model == "random weights" else (course_oracle(), BUNDLED / "course")
    sampler = RecordingSampler()
    llm = engine_with(lab, str(folder), dense, sampler)
    prompts = [some_tokens(length, seed=length).tolist() for length in (3, 4, 5, 17, 32)]
    if model == "course":
        prompts[3:] = map(llm.get_tokenizer().encode, ["What is a KV cache?\n", "Explain async programming in Python"])
    params = SamplingParams(temperature=0.0, max_tokens=6)
    outputs = [o.outputs[0].token_ids for o in llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)]
    for prompt, output in zip(prompts, outputs, strict=True):
        sequence = [*prompt, *output]
        logits = torch.stack([sampler.rows[tuple(sequence[:n])] for n in range(len(prompt), len(sequence))])
        expected = oracle.logits(sequence[:-1])[len(prompt) - 1 :].double()
        near(logits, expected, f"logits in the engine, prompt of {len(prompt)} tokens", NETWORK, axes=("new token", "token id"))
    oracle.compare(prompts, oracle.greedy(prompts, 6), outputs)


@functools.cache
def course_oracle() -> Oracle:
    return Oracle(BUNDLED / "course")


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
