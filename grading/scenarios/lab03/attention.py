"""Lab 03, TODO 4: grouped causal attention, at once and in chunks."""

import math
import random
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import check, expect, hold, kept
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab03.compare import (
    BF16,
    COLUMNS,
    FLOAT32,
    HEADS,
    NETWORK,
    OPERATOR,
    asked,
    elsewhere,
    expect_tensor,
    near,
    strided,
)
from grading.scenarios.lab03.core import Chunk, Core, Step, tables
from grading.scenarios.lab03.network import Network, Noise, attention, filled, random_weights, shapes
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.testing.checkpoints import attention_shapes

ATTENTION = "TODO 4: Grouped causal attention"


def queries(
    noise: Noise, num_queries: int, num_keys: int, num_heads: int, num_kv_heads: int, head_dim: int, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v"""
    sizes = ((num_queries, num_heads), (num_keys, num_kv_heads), (num_keys, num_kv_heads))
    q, k, v = (noise(*size, head_dim) for size in sizes)
    return scale * q, scale * k, v


@check(todo=4, points=2, section=ATTENTION, concept="weights by hand")
def a_few_tokens_by_hand(lab: Remote, rng: random.Random) -> None:
    count = rng.randrange(3, 6)
    weights, numbers = [rng.randrange(1, 6) for _ in range(count)], [rng.randrange(1, 13) for _ in range(count)]
    q, k = torch.tensor([2.0, 0.0, 0.0, 0.0]).repeat(count, 1, 1), torch.zeros(count, 1, 4)
    k[:, 0, 0] = torch.tensor(weights, dtype=torch.float32).log()  # scores: the logarithms of the weights
    v = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1).repeat(1, 1, 4)
    shares, heavy = torch.tensor(weights, dtype=torch.float64), torch.tensor(numbers, dtype=torch.float64)
    right = (shares * heavy).cumsum(0) / shares.cumsum(0)
    got = asked(lab, lab.causal_attention, "q k v", q, k, v)
    near(got, right.view(-1, 1, 1).repeat(1, 1, 4), f"scores: the logarithms of {weights}; values {numbers}", axes=HEADS)


@check(todo=4, points=2, section=ATTENTION, concept="the formula at every length")
def attention_follows_the_formula_at_every_length(lab: Remote, rng: random.Random) -> None:
    noise = Noise(rng)
    for heads, kv_heads, dim in ((3, 3, 8), (4, 2, 2 * rng.randrange(6, 12)), (8, 2, 12), (4, 1, 2)):
        for length in (1, 2, 3, rng.randrange(4, 8), rng.randrange(14, 20)):
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
def what_attention_makes_lies_on_the_device_of_q(lab: Remote, rng: random.Random) -> None:
    elsewhere(lab, lab.causal_attention, *queries(Noise(rng), 2, 5, 4, 2, 8))


@check(todo=4, points=2, section=ATTENTION, concept="whose queries they are")
def queries_are_those_of_the_last_tokens(lab: Remote, rng: random.Random) -> None:
    noise, keys = Noise(rng), rng.randrange(7, 14)
    blocks = [(2, size + more) for size in (16, 32, 64, 128) for more in (-1, 0, 1)]
    for num_queries, num_keys in ((1, 4), (1, keys), (2, keys), (keys // 2, keys), (keys - 1, keys), *blocks):
        q, k, v = queries(noise, num_queries, num_keys, 4, 2, 8)
        what = f"{num_queries} queries of {num_keys} tokens: the first of them sees {num_keys - num_queries + 1} keys"
        near(asked(lab, lab.causal_attention, "q k v", q, k, v), attention(q.double(), k, v), what, axes=HEADS)


@check(todo=4, points=2, section=ATTENTION, concept="which KV head a query head reads")
def neighbouring_query_heads_share_a_kv_head(lab: Remote, rng: random.Random) -> None:
    noise = Noise(rng)
    for heads, kv_heads in ((2, 2), (4, 2), (8, 2), (6, 3), (rng.randrange(3, 7), 1)):
        q, k, _ = queries(noise, 3, 3, heads, kv_heads, 4)
        numbers = rng.sample(range(1, 20), kv_heads)
        v = torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1).expand(3, -1, 4)  # each KV head holds one number
        right = [numbers[head // (heads // kv_heads)] for head in range(heads)]
        got = lab.causal_attention(q, k, v)
        expect_tensor(got, f"{heads} heads, {kv_heads} KV heads", tuple(q.shape), torch.float32, HEADS)
        read = [round(number, 3) for number in got[2, :, 0].tolist()]
        expect(read == right, f"the KV heads hold {numbers}; the {heads} query heads should read {right}, they read {read}")


@check(todo=4, points=2, section=ATTENTION, concept="the layer and its core")
def the_layer_writes_then_attends_through_the_core_it_was_given(lab: Remote, rng: random.Random) -> None:
    for config in shapes(rng):
        noise, core, count = Noise(rng), HeadByHead(lab, config), rng.randrange(5, 8)
        weights = random_weights(attention_shapes(config), noise)
        given, (cache,) = core.exported()
        layer, truth = filled(lab.Attention(config, 0, given), weights), Network(config, weights)
        x, step = noise(count, config.hidden_size), Step([Chunk(0, count, *tables(rng, count))])
        got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
        expect(core.calls == ["write", "forward"], f"expected one write, then one forward of the core; it saw {core.calls}")
        for name, mine, right in zip("kv", core.caches[0].read(step.slots), truth.heads(x, step.positions)[1:], strict=True):
            near(mine, right, f"{name} in the slots {step.slots}", NETWORK, axes=HEADS)
        near(got, truth.attend(x, step.positions), f"{count} tokens in the slots {step.slots}", NETWORK, axes=COLUMNS)


class HeadByHead(Core):
    """What this core returns does not lie in memory token by token: there is a view of it, and no other can be made."""

    def __init__(self, lab: Remote, config: ModelConfig) -> None:
        super().__init__(config)
        self._lab = lab

    def forward(self, q: Any, layer_cache: Any, metadata: Any) -> Any:
        return strided(self._lab, super().forward(q, layer_cache, metadata), 0, 1)


@check(todo=4, points=1, section=ATTENTION, concept="who sees whom", hidden=True)
def no_token_sees_the_future(lab: Remote, rng: random.Random) -> None:
    q, k, v = queries(Noise(rng), 6, 6, 4, 2, 8)
    known = rng.randrange(2, 5)
    before = lab.causal_attention(q, k, v)
    near(before[:1], v[:1].repeat_interleave(2, dim=1), "token 0 sees itself alone, so its output is its value", axes=HEADS)
    k[known:], v[known:] = 100.0, -1000.0
    after = lab.causal_attention(q, k, v)
    what = f"the outputs of the first {known} tokens, after later keys and values were changed"
    near(after[:known], before[:known], what, axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="the future, when scores are low", hidden=True)
def the_future_has_no_weight_however_low_the_scores_are(lab: Remote, rng: random.Random) -> None:
    sizes = [(size, torch.float32) for size in (1e3, 1e5, 1e12)] + [(2.0**16, torch.float16), (2.0**40, torch.bfloat16)]
    for size, dtype in sizes:
        count = rng.randrange(4, 8)
        score, numbers = size * rng.uniform(1, 2), torch.tensor([float(rng.randrange(1, 50)) for _ in range(count)])
        q, k = torch.full((count, 2, 4), score**0.5, dtype=dtype), torch.full((count, 1, 4), -(score**0.5), dtype=dtype)
        right = numbers.double().cumsum(0) / torch.arange(1, count + 1)  # every score is the same: the mean of what is seen
        got = asked(lab, lab.causal_attention, "q k v", q, k, numbers.view(-1, 1, 1).repeat(1, 1, 4).to(dtype))
        near(got, right.view(-1, 1, 1).repeat(1, 2, 4),
             f"{dtype}, all scores are {-2 * score:g}, so a mask that is a number, such as -10000 or the smallest one of "
             f"{dtype}, lets the future in", OPERATOR if dtype == torch.float32 else 3 * BF16, dtype, axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="how far back a query sees", hidden=True)
def a_query_sees_its_first_key_however_far_back(lab: Remote, rng: random.Random) -> None:
    count, value = rng.randrange(5000, 7000), float(rng.randrange(2, 20))
    q, k, v = torch.zeros(1, 2, 4), torch.zeros(count, 1, 4), torch.zeros(count, 1, 4)
    q[..., 0], k[0, 0, 0], v[0] = 40.0, 2.0, value  # the first key scores 40, all others 0
    got = asked(lab, lab.causal_attention, "q k v", q, k, v)
    near(got, torch.full((1, 2, 4), value), f"{count} keys, and only the first one scores: its value is {value}", axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="large scores", hidden=True)
def scores_of_a_thousand(lab: Remote, rng: random.Random) -> None:
    q, k, v = queries(Noise(rng), 5, 5, 4, 2, 8, scale=30.0)
    q, k = q.sign() * (q.abs() + 20), k.sign() * (k.abs() + 20)  # none small, so that some score is of a thousand
    k[0] = q[-1, ::2]  # and this one is for certain
    # a score is a sum of products, off by a few roundings of their sizes; a weight is off by twice as much of itself
    off = 2 * (8 + 4) * FLOAT32 * float((q.abs().amax((0, 1)) * k.abs().amax((0, 1))).sum()) / 8**0.5
    allowed = ((math.expm1(off) + OPERATOR) * v.double().abs().max()).expand(q.shape)
    got, what = lab.causal_attention(q, k, v), "scores of a thousand, whose exp is no float32"
    near(got, attention(q.double(), k, v), what, allowed, axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="what is computed in float32", hidden=True)
def scores_and_weights_of_bfloat16_are_computed_in_float32(lab: Remote, rng: random.Random) -> None:
    # One key scores 0 and the others about -8.03, which would be -8.0 in bfloat16, and their weights larger by 0.03.
    others, more = rng.randrange(35, 50), rng.uniform(0.052, 0.06)
    q, k, v = torch.ones(1, 2, 4), torch.zeros(others + 1, 1, 4), torch.ones(others + 1, 1, 4)
    k[:others, 0, 0], k[:others, 0, 1], v[others] = -16.0, -more, 0.0
    expect_as_near_as_can_be(lab, q, k, v, f"one key scores 0, {others} score -{8 + more / 2:.3f}")
    q, k, v = queries(Noise(rng), 40, 300, 4, 2, 20, scale=3.0)  # the root of 20 is no power of 2: it rounds a q in bfloat16
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
def a_request_computed_in_chunks_gives_what_it_gives_at_once(lab: Remote, rng: random.Random) -> None:
    config = rng.choice(shapes(rng)[1:])
    noise, length = Noise(rng), rng.randrange(7, 12)
    weights, x = random_weights(attention_shapes(config), noise), noise(length, config.hidden_size)
    right = Network(config, weights).attend(x, torch.arange(length))
    cut, last = rng.randrange(2, length - 1), length - 1
    for edges in ([length], [cut, length], [last, length], [*range(1, length + 1)]):
        core, (table,) = Core(config, attend=lab.causal_attention), tables(rng, length)
        given, (cache,) = core.exported()
        layer = filled(lab.Attention(config, 0, given), weights)
        for start, end in zip([0, *edges], edges, strict=False):
            step = Step([Chunk(start, end, table)])
            got = core.during(step, layer, x[start:end], step.positions, cache, step.metadata(lab))
            what = f"the tokens {start} to {end - 1}, in chunks that end before {edges}"
            near(got, right[start:end], what, NETWORK, axes=COLUMNS)
