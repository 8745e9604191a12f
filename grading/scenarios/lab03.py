"""Lab 03: the network, operator by operator, against its formulas in float64.

How far from the truth may a right answer be? A float32 sum of n products is off by at most n * 2**-24 of
their sizes; n < 300 here, so 2e-5 of the largest number is enough for one operator, and 1e-4 for a
network of a few layers. In bfloat16 the roundings are counted. Attention's keys and values are
kept by the judge, in a `Core` of its own.
"""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grading.checks import Wrong, check, expect, hold, kept, look, ours, shown
from grading.worker.peer import Raised, Remote
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.testing.checkpoints import random_weight

BF16, FLOAT16, FLOAT32 = 2.0**-8, 2.0**-11, 2.0**-24
"""The largest relative errors of one rounding."""
OPERATOR, NETWORK = 2e-5, 1e-4
"""Relative errors in float32."""
HEADS, COLUMNS, LOGITS = ("token", "head", "number"), ("token", "column"), ("request", "token id")
"""What the dimensions of a result count."""


class Noise:
    """Normal random numbers, the same for the same dice."""

    def __init__(self, dice: random.Random) -> None:
        self.generator = torch.Generator().manual_seed(dice.randrange(2**60))

    def __call__(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def tokens(self, length: int, config: ModelConfig) -> Tensor:
        return torch.randint(config.vocab_size, (length,), generator=self.generator)


# Comparing


def near(
    got: Any, truth: Tensor, what: str, allowed: float | Tensor = OPERATOR, dtype: torch.dtype = torch.float32,
    axes: tuple[str, ...] = (),
) -> None:
    """`got` has the shape of `truth`, this dtype, and is near it.

    Args:
        allowed: relative to the largest number, or else a tensor: the absolute error of each number.
        axes: what the dimensions count.
    """
    expect_tensor(got, what, tuple(truth.shape), dtype, axes)
    truth = truth.double()
    limit = allowed if isinstance(allowed, Tensor) else allowed * truth.abs().max()
    excess = torch.nan_to_num((got.double() - truth).abs(), nan=math.inf, posinf=math.inf) - limit
    if excess.max() > 0:
        place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=True)) if axes else str(list(place))
        raise Wrong(f"{what}: {f'at {where} ' if place else ''}expected {truth[place]:.6g}, found {float(got[place]):.6g}")


def expect_tensor(got: Any, what: str, shape: tuple[int, ...], dtype: torch.dtype, axes: tuple[str, ...] = ()) -> None:
    counted = f" [{', '.join(axes)}]" if axes else ""
    expect(isinstance(got, Tensor), f"{what}: expected a tensor, found {shown(got)}")
    expect(tuple(got.shape) == shape, f"{what}: expected the shape {list(shape)}{counted}, found {list(got.shape)}")
    expect(got.dtype == dtype, f"{what}: expected {dtype}, as it came in, found {got.dtype}")


def asked(lab: Remote, call: Callable, names: str, *given: Any) -> Any:
    """`call(*given)`. The first of `given`, tensors of these names, must stay as they are."""
    held = [hold(lab, tensor) for tensor, _ in zip(given, names.split(), strict=False)]
    got = call(*held, *given[len(held) :])
    for name, tensor, there in zip(names.split(), given, held, strict=False):
        now = look(there)
        same = isinstance(now, Tensor) and now.dtype == tensor.dtype and torch.equal(now, tensor)
        expect(same, f"{name} was changed in place; whoever gave it still needs it")
    return got


def strided(lab: Remote, tensor: Tensor, first: int, second: int) -> Remote:
    """The same numbers there, in a memory where these two dimensions are exchanged."""
    return kept(hold(lab, tensor.transpose(first, second).contiguous()).transpose, first, second)


def elsewhere(lab: Remote, call: Callable, *given: Tensor) -> None:
    """`call` with tensors of the device "meta", which has shapes and no numbers: it may not bring others."""
    there = [kept(hold(lab, tensor).to, "meta") for tensor in given]
    try:
        device = kept(call, *there).device.type
    except Raised as error:
        if "RuntimeError" not in error.kinds:
            raise
        if "meta tensor" in error.text:
            return  # it wants to read numbers: slow on a GPU, but not wrong
        expect("device" not in error.text, f"a tensor was made on another device than that of what came in: {error.text}")
        raise
    expect(device == "meta", f"what came in lay on the device meta; what came out lies on {shown(device)}")


# The network by its formulas


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
        return norm(x.to(self.dtype), self.weights[f"{name}.weight"], self.config.rms_norm_eps)

    def product(self, x: Tensor, name: str) -> Tensor:
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
        gate = self.product(x, f"{part}gate_proj")
        return self.product(gate / (1 + torch.exp(-gate)) * self.product(x, f"{part}up_proj"), f"{part}down_proj")

    def layer(self, x: Tensor, positions: Tensor, part: str = "") -> Tensor:
        h = x.to(self.dtype) + self.attend(self.normalised(x, f"{part}input_layernorm"), positions, f"{part}self_attn.")
        return h + self.mlp(self.normalised(h, f"{part}post_attention_layernorm"), f"{part}mlp.")

    def logits_of(self, hidden: Tensor) -> Tensor:
        return self.product(self.normalised(hidden, "model.norm"), "lm_head")

    def logits(self, token_ids: Tensor, first: int = 0) -> Tensor:
        """After every token of one request, [num_tokens, vocab_size]; it begins at the position `first`."""
        x = self.weights["model.embed_tokens.weight"][token_ids]
        for i in range(self.config.num_hidden_layers):
            x = self.layer(x, torch.arange(first, first + len(token_ids)), f"model.layers.{i}.")
        return self.logits_of(x)


# Weights

Sizes = dict[str, tuple[int, ...]]


def attention_sizes(config: ModelConfig, part: str = "") -> Sizes:
    hidden, dim = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * dim, config.num_key_value_heads * dim
    rows = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": hidden}
    sizes = {f"{part}{name}.weight": (count, q if name == "o_proj" else hidden) for name, count in rows.items()}
    if config.attention_bias:
        sizes |= {f"{part}{name}.bias": (count,) for name, count in rows.items()}
    return sizes | {f"{part}{name}.weight": (dim,) for name in ("q_norm", "k_norm")}


def mlp_sizes(config: ModelConfig, part: str = "") -> Sizes:
    up, down = (config.intermediate_size, config.hidden_size), (config.hidden_size, config.intermediate_size)
    return {f"{part}gate_proj.weight": up, f"{part}up_proj.weight": up, f"{part}down_proj.weight": down}


def layer_sizes(config: ModelConfig, part: str = "") -> Sizes:
    norms = {f"{part}{name}.weight": (config.hidden_size,) for name in ("input_layernorm", "post_attention_layernorm")}
    return attention_sizes(config, f"{part}self_attn.") | mlp_sizes(config, f"{part}mlp.") | norms


def network_sizes(config: ModelConfig) -> Sizes:
    vocabulary = (config.vocab_size, config.hidden_size)
    sizes: Sizes = {"model.embed_tokens.weight": vocabulary, "lm_head.weight": vocabulary}
    sizes["model.norm.weight"] = (config.hidden_size,)
    for i in range(config.num_hidden_layers):
        sizes |= layer_sizes(config, f"model.layers.{i}.")
    return sizes


def random_weights(sizes: Sizes, noise: Noise) -> dict[str, Tensor]:
    """None of them special: they forgive nothing."""
    return {name: random_weight(name, torch.empty(size), noise.generator) for name, size in sizes.items()}


def in_bfloat16(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.bfloat16() for name, weight in weights.items()}


def filled(module: Remote, weights: dict[str, Tensor]) -> Remote:
    """The module with these weights, as a loader fills it, and without gradients."""
    for name, weight in weights.items():
        kept(module.get_parameter, name).data = weight
    module.requires_grad_(False)
    return module


def config_of(dice: random.Random, layers: int = 1, **facts: Any) -> ModelConfig:
    """A small shape; head_dim * heads is not hidden_size."""
    usual = {
        "vocab_size": dice.randrange(90, 130), "hidden_size": dice.choice([44, 52, 60]), "num_hidden_layers": layers,
        "intermediate_size": dice.randrange(50, 100), "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "rope_theta": dice.choice([500.0, 1e4, 1e6]), "tie_word_embeddings": False,
    }
    return ModelConfig(**{**usual, **facts})


def shapes(dice: random.Random, layers: int = 1) -> list[ModelConfig]:
    """One, two and four query heads to a KV head."""
    alone = dice.choice([3, 4])
    return [
        config_of(dice, layers, num_attention_heads=alone, num_key_value_heads=alone, head_dim=dice.choice([8, 10])),
        config_of(dice, layers, head_dim=dice.choice([18, 20, 22]), attention_bias=True),
        config_of(dice, layers, num_attention_heads=8, head_dim=12, rms_norm_eps=0.03),
    ]


# Requests in blocks of 4, as the engine lays them out

BLOCK = 4


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of a request, whose position i lies in block table[i // 4]."""

    start: int
    end: int
    table: list[int]

    def slots(self, positions: Iterable[int]) -> list[int]:
        return [self.table[i // BLOCK] * BLOCK + i % BLOCK for i in positions]


def tables(dice: random.Random, *lengths: int) -> list[list[int]]:
    """Blocks for requests of these lengths, in no order."""
    blocks = dice.sample(range(1, 40), sum(-(-length // BLOCK) for length in lengths))
    return [[blocks.pop() for _ in range(-(-length // BLOCK))] for length in lengths]


class Step:
    """What is computed at once: chunks of requests, those of one token first, then rows of padding, in block 0.

    Args:
        first: position of each request's first token.
    """

    def __init__(self, chunks: list[Chunk], padding: int = 0, first: int = 0) -> None:
        self.chunks = chunks
        self.query_lens, self.seq_lens = [c.end - c.start for c in chunks], [c.end for c in chunks]
        self.positions = torch.tensor([first + i for c in chunks for i in range(c.start, c.end)] + [0] * padding)
        self.slots = [slot for c in chunks for slot in c.slots(range(c.start, c.end))] + [0] * padding
        self.rows = [sum(self.query_lens[: i + 1]) - 1 for i in range(len(chunks))]
        self.padding = padding

    def tokens(self, texts: Iterable[Tensor]) -> Tensor:
        """[num_tokens]; padding is token 0."""
        parts = [text[chunk.start : chunk.end] for text, chunk in zip(texts, self.chunks, strict=True)]
        return torch.cat([*parts, torch.zeros(self.padding, dtype=torch.long)])

    def metadata(self, lab: Remote) -> Remote:
        longest = max(len(c.table) for c in self.chunks)
        return lab._peer.root.package("nano_qwen3_serving.interfaces").AttentionMetadata(
            query_lens=self.query_lens, seq_lens=self.seq_lens, slot_mapping=torch.tensor(self.slots),
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
    """Attention over blocks, kept by the judge: notes who calls what, and what it was given.

    Args:
        attend: what attends, one request at a time: `attention`, or the submission's.
    """

    def __init__(self, config: ModelConfig, attend: Callable = attention, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.attend, self.dtype = config, attend, dtype
        self.caches = [LayerCache() for _ in range(config.num_hidden_layers)]
        self.calls: list[str] = []
        self.step: Step | None = None
        self.problem: Exception | None = None

    def exported(self) -> tuple[Any, list]:
        """The core and the layers' caches as a submission gets them."""
        return ours(self, "write", "forward"), [ours(cache) for cache in self.caches]

    def during(self, step: Step, call: Callable, *arguments: Any) -> Any:
        """`call(*arguments)`, which computes this step. Raises what was wrong with the use of the core."""
        self.step, self.calls = step, []
        try:
            answer = call(*arguments)
        except Raised:
            if self.problem is None:
                raise
        if self.problem is not None:
            raise self.problem from None
        return answer

    def write(self, layer_cache: Any, k: Any, v: Any, slots: Any) -> None:
        self._noting(self._write, layer_cache, k, v, slots)

    def forward(self, q: Any, layer_cache: Any, metadata: Any) -> Tensor:
        return self._noting(self._forward, q, layer_cache, metadata)

    def _noting(self, do: Callable, *arguments: Any) -> Any:
        """What goes wrong in here reaches the judge, whatever the submission makes of it."""
        try:
            return do(*arguments)
        except Exception as error:
            self.problem = self.problem or error
            raise

    def _write(self, layer_cache: Any, k: Any, v: Any, slots: Any) -> None:
        self.calls.append("write")
        expect(isinstance(layer_cache, LayerCache), f"core.write got {shown(layer_cache)} instead of the layer's cache")
        found = slots.tolist() if isinstance(slots, Tensor) else slots
        right = self.step.slots
        expect(found == right, f"core.write got the slots {shown(found)}; metadata.slot_mapping is {shown(right)}")
        for name, tensor in (("k", k), ("v", v)):
            size = (len(self.step.slots), self.config.num_key_value_heads, self.config.head_dim)
            expect_tensor(tensor, f"{name} that core.write got", size, self.dtype, HEADS)
        layer_cache.rows |= dict(zip(self.step.slots, zip(k, v, strict=True), strict=True))

    def _forward(self, q: Any, layer_cache: Any, metadata: Any) -> Tensor:
        self.calls.append("forward")
        expect(isinstance(layer_cache, LayerCache), f"core.forward got {shown(layer_cache)} instead of the layer's cache")
        same = getattr(metadata, "seq_lens", None) == self.step.seq_lens
        expect(same, f"core.forward got {shown(metadata)} instead of the metadata")
        size = (len(self.step.slots), self.config.num_attention_heads, self.config.head_dim)
        expect_tensor(q, "q that core.forward got", size, self.dtype, HEADS)
        written = set(self.step.slots) <= set(layer_cache.rows)
        expect(written, "core.forward was called before core.write: a token sees its own key, too")
        out, start = torch.zeros_like(q), 0
        for chunk in self.step.chunks:
            count = chunk.end - chunk.start
            found = self.attend(q[start : start + count], *layer_cache.read(chunk.slots(range(chunk.end))))
            expect_tensor(found, "attention", (count, *q.shape[1:]), self.dtype, HEADS)
            out[start : start + count] = found
            start += count
        return out


# TODO 1

NORM = "TODO 1: RMSNorm in float32"
OF_FIVE = ([2, 4, 4, 8], [1, 1, 7, 7], [1, 5, 5, 7], [1, 3, 3, 9], [5, 5, 5, 5])
"""Rows whose root mean square is 5."""


def norm_of(lab: Remote, weight: Tensor, eps: float = 1e-6) -> Remote:
    return filled(lab.RMSNorm(len(weight), eps), {"weight": weight})


def row_of_five(dice: random.Random) -> list[int]:
    row = [number * dice.choice([1, 1, -1]) for number in dice.choice(OF_FIVE)]
    return dice.sample(row, 4)


@check(todo=1, points=2, section=NORM, concept="a row and its root mean square")
def a_row_whose_root_mean_square_is_5_is_divided_by_5(lab, dice):
    times = dice.randrange(2, 20)
    rows = [row_of_five(dice), [0, 0, 0, 0], [times * number for number in row_of_five(dice)]]
    weight = torch.tensor([dice.choice([0.5, 1.0, 1.5, -2.0]) for _ in range(4)])
    x = torch.tensor(rows, dtype=torch.float32)
    truth = x / torch.tensor([[5.0], [1.0], [5.0 * times]]) * weight
    got = asked(lab, norm_of(lab, weight), "x", x)
    near(got, truth, f"RMSNorm of {rows} with the weight {weight.tolist()}", axes=("row", "column"))


@check(todo=1, points=2, section=NORM, concept="every row by itself")
def every_row_follows_the_formula(lab, dice):
    noise = Noise(dice)
    for leading in ((1,), (5,), (3, 4), (2, 3, 5)):
        size = (*leading, dice.randrange(7, 65))
        x, weight = dice.uniform(1, 30) * noise(*size), 1 + 0.5 * noise(size[-1])
        what, module = f"x / sqrt(mean(x²) + eps) * weight, each row of {list(size)} by itself", norm_of(lab, weight)
        near(asked(lab, module, "x", x), norm(x.double(), weight, 1e-6), what)
        near(module(strided(lab, x, 0, 1)), norm(x.double(), weight, 1e-6), f"{what}, not contiguous")


@check(todo=1, points=3, section=NORM, concept="what is computed in float32")
def the_root_is_computed_in_float32_when_bfloat16_comes_in(lab, dice):
    noise = Noise(dice)
    size = dice.randrange(48, 80)
    x, weight = noise(512, size).bfloat16(), (1 + 0.5 * noise(size)).bfloat16()
    truth = norm(x.double(), weight, 1e-6)
    # two roundings are allowed, of x / rms and of its product with the weight
    got = asked(lab, norm_of(lab, weight), "x", x)
    near(got, truth, "bfloat16, the root in float32", 2.02 * BF16 * truth.abs(), torch.bfloat16)


@check(todo=1, points=2, section=NORM, concept="what eps is added to", hidden=True)
def eps_counts_in_rows_that_are_as_small(lab, dice):
    noise = Noise(dice)
    for eps in (1e-6, 0.03, dice.uniform(1e-4, 1e-2)):
        x, weight = eps**0.5 * dice.uniform(0.5, 2) * noise(6, 24), 1 + 0.5 * noise(24)
        near(norm_of(lab, weight, eps)(x), norm(x.double(), weight, eps), f"rows about as small as the root of eps, {eps}")


@check(todo=1, points=1, section=NORM, concept="numbers whose square float16 cannot hold", hidden=True)
def float16_can_hold_the_row_and_not_its_square(lab, dice):
    x = torch.tensor([[dice.choice([1, -1]) * dice.uniform(290, 4000) for _ in range(12)] for _ in range(3)]).half()
    weight = torch.tensor([dice.uniform(0.5, 2) for _ in range(12)]).half()
    truth = norm(x.double(), weight, 1e-6)
    near(norm_of(lab, weight)(x), truth, "float16, the root in float32", 2.02 * FLOAT16 * truth.abs(), torch.float16)


# TODO 2

ROTARY = "TODO 2: Rotary embedding"


def angles_off(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """How far angles in float32 may be off, [num_tokens, 1, head_dim]: the power multiplies a rounding by log(theta)."""
    off = (8 + 4 * math.log(theta)) * FLOAT32 * angles_of(positions, head_dim, theta) + 1e-6
    return off.repeat(1, 2)[:, None]


def of_both(x: Tensor) -> Tensor:
    """|a| + |b| of each number's pair: an angle that is off by d moves it by at most d times that."""
    first, second = x.double().abs().chunk(2, dim=-1)
    return (first + second).repeat(1, 1, 2)


def expect_turned(lab: Remote, noise: Noise, positions: list[int], heads: int, head_dim: int, theta: float) -> None:
    rotary, places = lab.RotaryEmbedding(head_dim, theta), torch.tensor(positions)
    x = noise(len(positions), heads, head_dim)
    truth, allowed = turn(x.double(), places, theta), angles_off(places, head_dim, theta) * of_both(x)
    what = f"positions {positions}, head_dim {head_dim}, theta {theta:g}"
    near(asked(lab, rotary, "x positions", x, places), truth, what, allowed, axes=HEADS)
    near(rotary(strided(lab, x, 1, 2), hold(lab, places)), truth, f"{what}, not contiguous", allowed, axes=HEADS)


@check(todo=2, points=2, section=ROTARY, concept="a pair and its angle")
def four_numbers_are_two_pairs_that_turn_by_their_angles(lab, dice):
    place = dice.randrange(1, 10)
    row, places = [1.0, 1.0, 0.0, 0.0], dice.sample([place, 0, 10], 3)
    got = asked(lab, lab.RotaryEmbedding(4, theta=100.0), "x positions", torch.tensor([[row]] * 3), torch.tensor(places))
    truth = torch.tensor([[[math.cos(p), math.cos(p / 10), math.sin(p), math.sin(p / 10)]] for p in places])
    near(got, truth, f"head_dim 4, theta 100: 1 1 0 0 at the positions {places}", axes=HEADS)


@check(todo=2, points=4, section=ROTARY, concept="every pair's own angle")
def every_pair_turns_by_its_own_angle(lab, dice):
    noise = Noise(dice)
    for head_dim, heads in ((2, 1), (2 * dice.randrange(3, 12), 3), (128, 2)):
        for theta in (100.0, 1e6, dice.uniform(1e3, 1e5)):
            expect_turned(lab, noise, [*range(6), dice.randrange(20, 60)], heads, head_dim, theta)


@check(todo=2, points=1, section=ROTARY, concept="the device of what is made")
def angles_are_made_on_the_device_of_x(lab, dice):
    elsewhere(lab, lab.RotaryEmbedding(8, theta=100.0), Noise(dice)(3, 2, 8), torch.arange(3))


@check(todo=2, points=3, section=ROTARY, concept="what is computed in float32")
def angles_are_computed_in_float32_when_bfloat16_comes_in(lab, dice):
    theta = dice.uniform(5e3, 5e4)
    places = torch.tensor([0, 257, 2 * dice.randrange(300, 900) + 1, 4097, 2 * dice.randrange(2100, 2500) + 1])
    x = Noise(dice)(len(places), 3, 32).bfloat16()
    got = asked(lab, lab.RotaryEmbedding(32, theta), "x positions", x, places)
    # three roundings at most: of cos and sin, of the products, of the sum
    allowed = (3.05 * BF16 + angles_off(places, 32, theta)) * of_both(x)
    what = f"bfloat16 heads at the positions {places.tolist()}, angles in float32"
    near(got, turn(x.double(), places, theta), what, allowed, torch.bfloat16, axes=HEADS)


@check(todo=2, points=2, section=ROTARY, concept="any positions in any order", hidden=True)
def positions_come_in_any_order_repeat_and_may_be_far(lab, dice):
    far = dice.sample(range(100, 40_000), 5)
    places = [*far, far[0], 0, 1, 1, dice.randrange(30_000, 40_000)]
    for theta in (1e4, 1e6):
        expect_turned(lab, Noise(dice), dice.sample(places, len(places)), 2, 2 * dice.randrange(3, 20), theta)


@check(todo=2, points=2, section=ROTARY, concept="what a score depends on", hidden=True)
def the_score_of_a_query_and_a_key_depends_on_their_distance_alone(lab, dice):
    noise, theta, apart = Noise(dice), dice.uniform(1e3, 1e5), dice.randrange(1, 9)
    q, k, rotary = noise(1, 1, 16), noise(1, 1, 16), lab.RotaryEmbedding(16, theta)
    for distance in (apart, -apart, 0):
        truth = (turn(q.double(), torch.tensor([distance]), theta) * k.double()).sum()
        for shift in (10, dice.randrange(20, 60), dice.randrange(500, 1000)):
            places = [shift + distance], [shift]
            turned = [rotary(x, torch.tensor(place)).double() for x, place in zip((q, k), places, strict=True)]
            off = sum(angles_off(torch.tensor(place), 16, theta) for place in places)
            score, allowed = (turned[0] * turned[1]).sum().float(), (off * of_both(q) * of_both(k)).sum()
            near(score, truth, f"the score of a query and a key at {places}", allowed)


# TODO 3

OF_HEADS = "TODO 3: Heads of queries, keys and values"


def attention_layer(
    lab: Remote, dice: random.Random, config: ModelConfig, dtype: torch.dtype = torch.float32
) -> tuple[Remote, Network, Noise]:
    """A layer without a core, and the same by its formulas."""
    noise = Noise(dice)
    weights = {name: weight.to(dtype) for name, weight in random_weights(attention_sizes(config), noise).items()}
    return filled(lab.Attention(config, 0, None), weights), Network(config, weights), noise


def three(got: Any) -> tuple[Any, Any, Any]:
    expect(isinstance(got, tuple | list) and len(got) == 3, f"heads() returned {shown(got)}; expected q, k and v")
    return tuple(got)


@check(todo=3, points=4, section=OF_HEADS, concept="projected, cut, normalised, turned")
def q_and_k_follow_the_formula_head_by_head(lab, dice):
    for config in shapes(dice):
        layer, truth, noise = attention_layer(lab, dice, config)
        x, far = noise(7, config.hidden_size), dice.randrange(50, 150)
        places = torch.tensor([0, 1, 2, far, far + 1, 3, 3])
        got = three(asked(lab, layer.heads, "x positions", x, places))
        of = f"{config.num_attention_heads} heads, {config.num_key_value_heads} KV heads, positions {places.tolist()}"
        for name, mine, right in zip("qk", got, truth.heads(x, places), strict=False):
            near(mine, right, f"{name}, {of}", NETWORK, axes=HEADS)


@check(todo=3, points=2, section=OF_HEADS, concept="what is normalised together")
def each_head_is_normalised_by_itself(lab, dice):
    config = config_of(dice, hidden_size=8, num_attention_heads=2, num_key_value_heads=2, head_dim=4)
    weights = {f"{name}_proj.weight": torch.eye(8) for name in "qkv"}  # each is x itself
    weights |= {"q_norm.weight": torch.ones(4), "k_norm.weight": torch.full((4,), 2.0)}
    layer = filled(lab.Attention(config, 0, None), weights)
    constant, row = dice.randrange(2, 9), row_of_five(dice)
    q, k, _ = three(layer.heads(torch.tensor([[*row, *[constant] * 4]], dtype=torch.float32), torch.tensor([0])))
    truth = torch.tensor([[[number / 5 for number in row], [1.0] * 4]])
    what = f"at position 0, the heads {row} and {[constant] * 4}, normalised"
    near(q, truth, f"q: {what}", axes=HEADS)
    near(k, 2 * truth, f"k: {what}, with a weight of 2", axes=HEADS)


@check(todo=3, points=3, section=OF_HEADS, concept="what happens to v")
def values_are_projected_and_nothing_else(lab, dice):
    for config in shapes(dice):
        layer, truth, noise = attention_layer(lab, dice, config)
        x, places = noise(3, config.hidden_size), torch.tensor([dice.randrange(5, 50) for _ in range(3)])
        for given, where, what in ((x, places, "v"), (2 * x, 0 * places, "v of 2x, at position 0")):
            right = truth.cut(given, "v_proj", config.num_key_value_heads)
            near(three(layer.heads(given, where))[2], right, f"{what}, projected and cut into heads", NETWORK, axes=HEADS)


@check(todo=3, points=2, section=OF_HEADS, concept="a token alone and in company", hidden=True)
def a_token_has_the_same_heads_alone_and_in_any_company(lab, dice):
    config = dice.choice(shapes(dice))
    layer, truth, noise = attention_layer(lab, dice, config)
    x, places = noise(5, config.hidden_size), torch.tensor([dice.randrange(60) for _ in range(5)])
    right = truth.heads(x, places)
    for rows in ([0], [1], [4], dice.sample(range(5), 3)):
        for name, mine, want in zip("qkv", three(layer.heads(x[rows], places[rows])), right, strict=True):
            near(mine, want[rows], f"{name} of the rows {rows} of 5", NETWORK, axes=HEADS)


@check(todo=3, points=3, section=OF_HEADS, concept="the dtype of what came in", hidden=True)
def bfloat16_stays_bfloat16(lab, dice):
    config = config_of(dice, head_dim=20, attention_bias=True)
    layer, truth, noise = attention_layer(lab, dice, config, torch.bfloat16)
    x, places = noise(4, config.hidden_size).bfloat16(), torch.arange(4)
    # roundings: of the projection, of its norm twice, of the turn three times, and one more of the norm's scale. Each is
    # 2**-8 of a number that is at most as large as the head's pair, so of sqrt(2) times the largest
    for name, mine, right in zip("qkv", three(layer.heads(x, places)), truth.heads(x, places), strict=True):
        near(mine, right, f"{name} in bfloat16", 7 * 1.42 * BF16, torch.bfloat16, axes=HEADS)


# TODO 4

ATTENTION = "TODO 4: Grouped causal attention"


def queries(
    noise: Noise, num_queries: int, num_keys: int, num_heads: int, num_kv_heads: int, head_dim: int, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v"""
    sizes = ((num_queries, num_heads), (num_keys, num_kv_heads), (num_keys, num_kv_heads))
    q, k, v = (noise(*size, head_dim) for size in sizes)
    return scale * q, scale * k, v


@check(todo=4, points=2, section=ATTENTION, concept="weights by hand")
def a_few_tokens_by_hand(lab, dice):
    count = dice.randrange(3, 6)
    weights, numbers = [dice.randrange(1, 6) for _ in range(count)], [dice.randrange(1, 13) for _ in range(count)]
    q, k = torch.tensor([2.0, 0.0, 0.0, 0.0]).repeat(count, 1, 1), torch.zeros(count, 1, 4)
    k[:, 0, 0] = torch.tensor(weights, dtype=torch.float32).log()  # scores: the logarithms of the weights
    v = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1).repeat(1, 1, 4)
    shares, heavy = torch.tensor(weights, dtype=torch.float64), torch.tensor(numbers, dtype=torch.float64)
    right = (shares * heavy).cumsum(0) / shares.cumsum(0)
    got = asked(lab, lab.causal_attention, "q k v", q, k, v)
    near(got, right.view(-1, 1, 1).repeat(1, 1, 4), f"scores: the logarithms of {weights}; values {numbers}", axes=HEADS)


@check(todo=4, points=3, section=ATTENTION, concept="the formula at every length")
def attention_follows_the_formula_at_every_length(lab, dice):
    noise = Noise(dice)
    for heads, kv_heads, dim in ((3, 3, 8), (4, 2, 2 * dice.randrange(6, 12)), (8, 2, 12), (4, 1, 2)):
        for length in (1, 2, 3, dice.randrange(4, 8), dice.randrange(14, 20)):
            q, k, v = queries(noise, length, length, heads, kv_heads, dim)
            got = asked(lab, lab.causal_attention, "q k v", q, k, v)
            near(got, attention(q.double(), k, v), f"{length} tokens, {heads} heads, {kv_heads} KV heads", axes=HEADS)
        fused = noise(6, heads + 2 * kv_heads, dim)
        parts = fused.split([heads, kv_heads, kv_heads], dim=1)
        there, starts = hold(lab, fused), (0, heads, heads + kv_heads)
        views = [kept(there.narrow, 1, start, part.shape[1]) for start, part in zip(starts, parts, strict=True)]
        right = attention(*(part.double() for part in parts))
        near(lab.causal_attention(*views), right, "q, k and v that are views of one tensor", axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="the device of what is made")
def what_attention_makes_lies_on_the_device_of_q(lab, dice):
    elsewhere(lab, lab.causal_attention, *queries(Noise(dice), 2, 5, 4, 2, 8))


@check(todo=4, points=2, section=ATTENTION, concept="whose queries they are")
def queries_are_those_of_the_last_tokens(lab, dice):
    noise, keys = Noise(dice), dice.randrange(7, 14)
    for num_queries, num_keys in ((1, 4), (1, keys), (2, keys), (keys // 2, keys), (keys - 1, keys)):
        q, k, v = queries(noise, num_queries, num_keys, 4, 2, 8)
        what = f"{num_queries} queries of {num_keys} tokens: the first of them sees {num_keys - num_queries + 1} keys"
        near(asked(lab, lab.causal_attention, "q k v", q, k, v), attention(q.double(), k, v), what, axes=HEADS)


@check(todo=4, points=2, section=ATTENTION, concept="which KV head a query head reads")
def neighbouring_query_heads_share_a_kv_head(lab, dice):
    noise = Noise(dice)
    for heads, kv_heads in ((2, 2), (4, 2), (8, 2), (6, 3), (dice.randrange(3, 7), 1)):
        q, k, _ = queries(noise, 3, 3, heads, kv_heads, 4)
        numbers = dice.sample(range(1, 20), kv_heads)
        v = torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1).expand(3, -1, 4)  # each KV head holds one number
        right = [numbers[head // (heads // kv_heads)] for head in range(heads)]
        got = lab.causal_attention(q, k, v)
        expect_tensor(got, f"{heads} heads, {kv_heads} KV heads", tuple(q.shape), torch.float32, HEADS)
        read = [round(number, 3) for number in got[2, :, 0].tolist()]
        expect(read == right, f"the KV heads hold {numbers}; the {heads} query heads should read {right}, they read {read}")


@check(todo=4, points=3, section=ATTENTION, concept="the layer and its core")
def the_layer_writes_then_attends_through_the_core_it_was_given(lab, dice):
    for config in shapes(dice):
        noise, core, count = Noise(dice), Core(config), dice.randrange(5, 8)
        weights = random_weights(attention_sizes(config), noise)
        given, (cache,) = core.exported()
        layer, truth = filled(lab.Attention(config, 0, given), weights), Network(config, weights)
        x, step = noise(count, config.hidden_size), Step([Chunk(0, count, *tables(dice, count))])
        got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
        expect(core.calls == ["write", "forward"], f"expected one write, then one forward of the core; it saw {core.calls}")
        for name, mine, right in zip("kv", core.caches[0].read(step.slots), truth.heads(x, step.positions)[1:], strict=True):
            near(mine, right, f"{name} in the slots {step.slots}", NETWORK, axes=HEADS)
        near(got, truth.attend(x, step.positions), f"{count} tokens in the slots {step.slots}", NETWORK, axes=COLUMNS)


@check(todo=4, points=1, section=ATTENTION, concept="who sees whom", hidden=True)
def no_token_sees_the_future(lab, dice):
    q, k, v = queries(Noise(dice), 6, 6, 4, 2, 8)
    known = dice.randrange(2, 5)
    before = lab.causal_attention(q, k, v)
    near(before[:1], v[:1].repeat_interleave(2, dim=1), "token 0 sees itself alone, so its output is its value", axes=HEADS)
    k[known:], v[known:] = 100.0, -1000.0
    after = lab.causal_attention(q, k, v)
    what = f"the outputs of the first {known} tokens, after later keys and values were changed"
    near(after[:known], before[:known], what, axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="large scores", hidden=True)
def scores_of_a_thousand(lab, dice):
    q, k, v = queries(Noise(dice), 5, 5, 4, 2, 8, scale=30.0)
    q, k = q.sign() * (q.abs() + 20), k.sign() * (k.abs() + 20)  # none small, so that some score is of a thousand
    k[0] = q[-1, ::2]  # and this one is for certain
    # a score is a sum of products, off by a few roundings of their sizes; a weight is off by twice as much of itself
    off = 2 * (8 + 4) * FLOAT32 * float((q.abs().amax((0, 1)) * k.abs().amax((0, 1))).sum()) / 8**0.5
    allowed = ((math.expm1(off) + OPERATOR) * v.double().abs().max()).expand(q.shape)
    got, what = lab.causal_attention(q, k, v), "scores of a thousand, whose exp is no float32"
    near(got, attention(q.double(), k, v), what, allowed, axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="what is computed in float32", hidden=True)
def scores_and_weights_of_bfloat16_are_computed_in_float32(lab, dice):
    # One key scores 0 and the others about -8.03, which would be -8.0 in bfloat16, and their weights larger by 0.03.
    others, more = dice.randrange(35, 50), dice.uniform(0.052, 0.06)
    q, k, v = torch.ones(1, 2, 4), torch.zeros(others + 1, 1, 4), torch.ones(others + 1, 1, 4)
    k[:others, 0, 0], k[:others, 0, 1], v[others] = -16.0, -more, 0.0
    expect_as_near_as_can_be(lab, q, k, v, f"one key scores 0, {others} score -{8 + more / 2:.3f}")
    q, k, v = queries(Noise(dice), 40, 300, 4, 2, 16, scale=3.0)
    expect_as_near_as_can_be(lab, q, k, v, "scores up to 40, over 300 keys")


def expect_as_near_as_can_be(lab: Remote, q: Tensor, k: Tensor, v: Tensor, what: str) -> None:
    """Attention of bfloat16 whose scores and weights were not rounded.

    Three roundings are allowed: of the weights, of their product with v, of the result. Each is 2**-8 of
    numbers that add up to weights @ |v|. A float32 score is off by less than 1e-3.
    """
    q, k, v = (tensor.bfloat16() for tensor in (q, k, v))
    allowed = (3.05 * BF16 + 1e-3) * attention(q.double(), k, v.abs())
    got, what = asked(lab, lab.causal_attention, "q k v", q, k, v), f"bfloat16, {what} (scores and weights in float32)"
    near(got, attention(q.double(), k, v), what, allowed, torch.bfloat16, axes=HEADS)


@check(todo=4, points=2, section=ATTENTION, concept="a request in chunks", hidden=True)
def a_request_computed_in_chunks_gives_what_it_gives_at_once(lab, dice):
    config = dice.choice(shapes(dice)[1:])
    noise, length = Noise(dice), dice.randrange(7, 12)
    weights, x = random_weights(attention_sizes(config), noise), noise(length, config.hidden_size)
    right = Network(config, weights).attend(x, torch.arange(length))
    cut, last = dice.randrange(2, length - 1), length - 1
    for edges in ([length], [cut, length], [last, length], [*range(1, length + 1)]):
        core, (table,) = Core(config, attend=lab.causal_attention), tables(dice, length)
        given, (cache,) = core.exported()
        layer = filled(lab.Attention(config, 0, given), weights)
        for start, end in zip([0, *edges], edges, strict=False):
            step = Step([Chunk(start, end, table)])
            got = core.during(step, layer, x[start:end], step.positions, cache, step.metadata(lab))
            what = f"the tokens {start} to {end - 1}, in chunks that end before {edges}"
            near(got, right[start:end], what, NETWORK, axes=COLUMNS)


# TODO 5

LAYER = "TODO 5: SwiGLU and the decoder layer"


@check(todo=5, points=2, section=LAYER, concept="two gates by hand")
def swiglu_by_hand(lab, dice):
    config = config_of(dice, hidden_size=4, intermediate_size=2)
    matrices = {  # gate: the numbers 0 and 1 of x; up: the numbers 2 and 3
        "gate_proj.weight": torch.eye(4)[:2], "up_proj.weight": torch.eye(4)[2:],
        "down_proj.weight": torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1]])}
    gates, ups = [0, dice.choice([-3, -2, -1, 1, 2, 3, 4])], [dice.randrange(1, 9), dice.randrange(1, 9)]
    got = asked(lab, filled(lab.MLP(config), matrices), "x", torch.tensor([[*gates, *ups]], dtype=torch.float32))
    down = gates[1] / (1 + math.exp(-gates[1])) * ups[1]  # silu(0) is 0
    near(got, torch.tensor([[0.0, down, 0.0, down]]), f"gate {gates}, up {ups}", axes=COLUMNS)


@check(todo=5, points=3, section=LAYER, concept="the feed-forward network")
def swiglu_follows_the_formula(lab, dice):
    config, noise = config_of(dice), Noise(dice)
    weights = random_weights(mlp_sizes(config), noise)
    mlp, truth = filled(lab.MLP(config), weights), Network(config, weights)
    for scale, count in ((1, 1), (1, 5), (dice.uniform(20, 60), 3)):
        x = scale * noise(count, config.hidden_size)
        near(asked(lab, mlp, "x", x), truth.mlp(x), f"down(silu(gate(x)) * up(x)) of {count} tokens", NETWORK, axes=COLUMNS)
    got = filled(lab.MLP(config), in_bfloat16(weights))(noise(2, config.hidden_size).bfloat16())
    expect_tensor(got, "the MLP in bfloat16", (2, config.hidden_size), torch.bfloat16, COLUMNS)


def decoder_layer(lab: Remote, config: ModelConfig, weights: dict[str, Tensor]) -> tuple[Remote, Core, Any]:
    """A layer with these weights, its core, and its cache."""
    core = Core(config)
    given, (cache,) = core.exported()
    return filled(lab.DecoderLayer(config, 0, given), weights), core, cache


@check(todo=5, points=3, section=LAYER, concept="what is added to what")
def a_layer_adds_attention_then_the_mlp(lab, dice):
    for config in shapes(dice):
        noise, count = Noise(dice), dice.randrange(5, 9)
        weights = random_weights(layer_sizes(config), noise)
        layer, core, cache = decoder_layer(lab, config, weights)
        x, step = 3 * noise(count, config.hidden_size), Step([Chunk(0, count, *tables(dice, count))])
        got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
        right = Network(config, weights).layer(x, step.positions)
        near(got, right, "h = x + attention(norm(x)), then h + mlp(norm(h))", NETWORK, axes=COLUMNS)


@check(todo=5, points=2, section=LAYER, concept="a layer that has nothing to add", hidden=True)
def what_comes_in_passes_a_layer_that_has_nothing_to_add(lab, dice):
    config, noise = config_of(dice), Noise(dice)
    weights = random_weights(layer_sizes(config), noise)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        weights[name].zero_()
    layer, core, cache = decoder_layer(lab, config, weights)
    x, step = dice.uniform(3, 9) * noise(3, config.hidden_size), Step([Chunk(0, 3, *tables(dice, 3))])
    got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
    near(got, x, "x, when attention and MLP both give zeros", axes=COLUMNS)


@check(todo=5, points=2, section=LAYER, concept="a layer of several requests", hidden=True)
def a_layer_computes_several_requests_at_once(lab, dice):
    config, noise = config_of(dice, attention_bias=True), Noise(dice)
    weights = random_weights(layer_sizes(config), noise)
    layer, core, cache = decoder_layer(lab, config, weights)
    lengths = [dice.randrange(3, 9), dice.randrange(3, 9)]
    texts, places, start = [noise(length, config.hidden_size) for length in lengths], tables(dice, *lengths), 0
    right, cut = [Network(config, weights).layer(text, torch.arange(len(text))) for text in texts], lengths[0] - 1
    for chunks in ([(0, 0, cut)], [(0, cut, cut + 1), (1, 0, lengths[1])]):
        step = Step([Chunk(start, end, places[one]) for one, start, end in chunks])
        x = torch.cat([texts[one][start:end] for one, start, end in chunks])
        got = core.during(step, layer, x, step.positions, cache, step.metadata(lab))
        truth = torch.cat([right[one][start:end] for one, start, end in chunks])
        near(got, truth, f"a step of {step.query_lens} tokens of its requests", NETWORK, axes=COLUMNS)


# TODO 6

OF_LOGITS = "TODO 6: Logits of the last position"


class Model:
    """A submission's network, the same by its formulas, and the core between them.

    Args:
        dtype: of the weights.
        attend: see `Core`.
    """

    def __init__(
        self, lab: Remote, config: ModelConfig, noise: Noise, attend: Callable = attention,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.lab, self.core = lab, Core(config, attend, dtype)
        self.weights = {name: weight.to(dtype) for name, weight in random_weights(network_sizes(config), noise).items()}
        self.truth = Network(config, self.weights)
        given, self.cache = self.core.exported()
        self.network = filled(lab.Qwen3ForCausalLM(config, given), self.weights)

    def last_logits(self, step: Step, texts: Iterable[Tensor]) -> Any:
        """What it says of a step; what it was given must stay as it is."""
        metadata = step.metadata(self.lab)
        got = self.core.during(step, asked, self.lab, self.network.last_logits, "token_ids positions",
                               step.tokens(texts), step.positions, self.cache, metadata)
        lens = metadata.query_lens
        expect(lens == step.query_lens, f"metadata.query_lens was changed in place, {step.query_lens} to {shown(lens)}")
        return got

    def hidden(self, step: Step, texts: Iterable[Tensor]) -> Any:
        """What the engine asks it for."""
        return self.core.during(step, self.network, step.tokens(texts), step.positions, self.cache, step.metadata(self.lab))


@check(todo=6, points=3, section=OF_LOGITS, concept="from rows to logits")
def rows_are_normalised_then_given_to_the_head(lab, dice):
    noise = Noise(dice)
    for config in (config_of(dice), config_of(dice, rms_norm_eps=0.03)):
        model, count = Model(lab, config, noise), dice.randrange(3, 7)
        hidden = dice.uniform(2, 5) * noise(count, config.hidden_size)
        right, axes = model.truth.logits_of(hidden), ("row", "token id")
        near(asked(lab, model.network.compute_logits, "hidden", hidden), right, "lm_head(norm(hidden))", NETWORK, axes=axes)
        row = dice.randrange(count)
        near(model.network.compute_logits(hidden[[row]]), right[[row]], f"row {row} by itself", NETWORK, axes=axes)


@check(todo=6, points=3, section=OF_LOGITS, concept="whose row is whose")
def logits_follow_the_last_token_of_each_request(lab, dice):
    config, noise = config_of(dice, layers=2), Noise(dice)
    for padding in (0, dice.randrange(1, 5)):
        model, lengths = Model(lab, config, noise), [1, dice.randrange(7, 12), dice.randrange(3, 6)]
        texts, places = [noise.tokens(length, config) for length in lengths], tables(dice, *lengths)
        cut = dice.randrange(2, 5)
        model.last_logits(Step([Chunk(0, cut, places[1])]), [texts[1]])
        step = Step([Chunk(*one) for one in zip((0, cut, 0), lengths, places, strict=True)], padding)
        got = model.last_logits(step, texts)
        right = torch.stack([model.truth.logits(text)[-1] for text in texts])
        what = f"query_lens {step.query_lens}, {padding} rows of padding: the logits of the rows {step.rows}"
        near(got, right, what, NETWORK, axes=LOGITS)


@check(todo=6, points=2, section=OF_LOGITS, concept="how many rows the head computes")
def only_the_rows_that_are_returned_pass_the_head(lab, dice):
    config, noise, count = config_of(dice), Noise(dice), dice.randrange(20, 40)
    model, rows = Model(lab, config, noise), []
    watch = ours(lambda module, inputs, output: rows.append(output.numel() // config.vocab_size))
    model.network.lm_head.register_forward_hook(watch)
    got = model.last_logits(Step([Chunk(0, count, *tables(dice, count))]), [noise.tokens(count, config)])
    expect_tensor(got, "logits of one request", (1, config.vocab_size), torch.float32, LOGITS)
    expect(sum(rows) <= 1, f"the head computed {sum(rows)} rows of logits for one request of {count} tokens; one was needed")


@check(todo=6, points=4, section=OF_LOGITS, concept="the whole network")
def the_network_gives_the_logits_of_the_formulas(lab, dice):
    for config in shapes(dice, layers=3):
        noise = Noise(dice)
        model = Model(lab, config, noise, attend=lab.causal_attention)
        for length, first in ((1, 0), (dice.randrange(12, 20), 0), (dice.randrange(3, 10), dice.randrange(40, 100))):
            text, step = noise.tokens(length, config), Step([Chunk(0, length, *tables(dice, length))], first=first)
            right, what = model.truth.logits(text, first)[-1:], f"logits after {length} tokens, positions from {first}"
            near(model.last_logits(step, [text]), right, what, NETWORK, axes=LOGITS)


@check(todo=6, points=2, section=OF_LOGITS, concept="the network in bfloat16", hidden=True)
def bfloat16_is_as_near_as_it_can_be(lab, dice):
    config, noise = config_of(dice, layers=2, head_dim=20, attention_bias=True), Noise(dice)
    model = Model(lab, config, noise, attend=lab.causal_attention, dtype=torch.bfloat16)
    rounded, got, theirs, truth = Network(config, model.weights, torch.bfloat16), [], [], []
    for length in (1, 4, 7, 10, 13, 16):
        text = noise.tokens(length, config)
        got.append(model.last_logits(Step([Chunk(0, length, *tables(dice, length))]), [text]))
        expect_tensor(got[-1], "logits in bfloat16", (1, config.vocab_size), torch.bfloat16, LOGITS)
        theirs.append(rounded.logits(text)[-1:])
        truth.append(model.truth.logits(text)[-1:])
    # Two right programs round in different places, so neither is nearer. The ratio of their errors was seen between
    # 0.7 and 1.4, its logarithm spread by 0.15: five times as much is ten times that spread.
    error, usual = (float((torch.cat(one).double() - torch.cat(truth)).square().mean().sqrt()) for one in (got, theirs))
    expect(error <= 5 * usual, f"root mean square error of the logits {error:.4f}; in bfloat16 {usual:.4f} is usual")


@check(todo=6, points=3, section=OF_LOGITS, concept="the network in an engine", hidden=True)
def chunks_of_many_requests_give_what_each_gives_alone(lab, dice):
    config, noise = dice.choice(shapes(dice, layers=2)), Noise(dice)
    model, lengths = Model(lab, config, noise), [dice.randrange(1, 13) for _ in range(4)]
    texts, places, done = [noise.tokens(length, config) for length in lengths], tables(dice, *lengths), [0] * 4
    right = [model.truth.logits(text) for text in texts]
    while waiting := [one for one in range(4) if done[one] < lengths[one]]:
        chosen = dice.sample(waiting, dice.randint(1, len(waiting)))
        plan = [(one, min(lengths[one], done[one] + dice.choice([1, 1, 3, 5]))) for one in chosen]
        plan.sort(key=lambda one: one[1] - done[one[0]] > 1)  # those of one token first
        step = Step([Chunk(done[one], end, places[one]) for one, end in plan], padding=dice.randrange(4))
        hidden = model.hidden(step, [texts[one] for one, _ in plan])
        expect_tensor(hidden, "hidden states", (len(step.slots), config.hidden_size), torch.float32, COLUMNS)
        truth = torch.stack([right[one][end - 1] for one, end in plan])
        got = model.network.compute_logits(hidden[step.rows])
        near(got, truth, f"a step of {step.query_lens} tokens of its requests", NETWORK, axes=LOGITS)
        for one, end in plan:
            done[one] = end
