"""Lab 03, TODO 5: SwiGLU and the decoder layer."""

import math
import random
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import check
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab03.compare import BF16, COLUMNS, NETWORK, asked, expect_tensor, near
from grading.scenarios.lab03.core import Chunk, Core, Step, tables
from grading.scenarios.lab03.network import (
    Network,
    Noise,
    config_of,
    filled,
    in_bfloat16,
    random_weights,
    shapes,
)
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.testing.checkpoints import layer_shapes, mlp_shapes

LAYER = "TODO 5: SwiGLU and the decoder layer"


@check(todo=5, points=2, section=LAYER, concept="two gates by hand")
def swiglu_by_hand(lab: Remote, rng: random.Random) -> None:
    config = config_of(rng, hidden_size=4, intermediate_size=2)
    matrices = {  # gate: the numbers 0 and 1 of x; up: the numbers 2 and 3
        "gate_proj.weight": torch.eye(4)[:2], "up_proj.weight": torch.eye(4)[2:],
        "down_proj.weight": torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1]])}
    gates, ups = [0, rng.choice([-3, -2, -1, 1, 2, 3, 4])], [rng.randrange(1, 9), rng.randrange(1, 9)]
    got = asked(lab, filled(lab.MLP(config), matrices), "x", torch.tensor([[*gates, *ups]], dtype=torch.float32))
    down = gates[1] / (1 + math.exp(-gates[1])) * ups[1]  # silu(0) is 0
    near(got, torch.tensor([[0.0, down, 0.0, down]]), f"gate {gates}, up {ups}", axes=COLUMNS)
    for dtype, large in ((torch.float32, 1000.0), (torch.bfloat16, 100.0), (torch.float16, 20.0)):
        mlp = filled(lab.MLP(config), {name: matrix.to(dtype) for name, matrix in matrices.items()})
        down = large * ups[1]
        near(mlp(torch.tensor([[-large, large, *ups]], dtype=dtype)), torch.tensor([[0.0, down, 0.0, down]]),
             f"{dtype}, gate {-large:g} {large:g}, up {ups}: silu shuts the first and lets the second through; its exp is inf",
             BF16, dtype, axes=COLUMNS)


@check(todo=5, points=3, section=LAYER, concept="the feed-forward network")
def swiglu_follows_the_formula(lab: Remote, rng: random.Random) -> None:
    config, noise = config_of(rng), Noise(rng)
    weights = random_weights(mlp_shapes(config), noise)
    mlp, truth = filled(lab.MLP(config), weights), Network(config, weights)
    for scale, count in ((1, 1), (1, 5), (rng.uniform(20, 60), 3)):
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
def a_layer_adds_attention_then_the_mlp(lab: Remote, rng: random.Random) -> None:
    for config in shapes(rng):
        noise, count = Noise(rng), rng.randrange(5, 9)
        weights = random_weights(layer_shapes(config), noise)
        layer, core, cache = decoder_layer(lab, config, weights)
        x, step = 3 * noise(count, config.hidden_size), Step([Chunk(0, count, *tables(rng, count))])
        got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
        right = Network(config, weights).layer(x, step.positions)
        near(got, right, "h = x + attention(norm(x)), then h + mlp(norm(h))", NETWORK, axes=COLUMNS)


@check(todo=5, points=2, section=LAYER, concept="a layer that has nothing to add", hidden=True)
def what_comes_in_passes_a_layer_that_has_nothing_to_add(lab: Remote, rng: random.Random) -> None:
    config, noise = config_of(rng), Noise(rng)
    weights = random_weights(layer_shapes(config), noise)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        weights[name].zero_()
    layer, core, cache = decoder_layer(lab, config, weights)
    x, step = rng.uniform(3, 9) * noise(3, config.hidden_size), Step([Chunk(0, 3, *tables(rng, 3))])
    got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
    near(got, x, "x, when attention and MLP both give zeros", axes=COLUMNS)


@check(todo=5, points=2, section=LAYER, concept="a layer of several requests", hidden=True)
def a_layer_computes_several_requests_at_once(lab: Remote, rng: random.Random) -> None:
    config, noise = config_of(rng, attention_bias=True), Noise(rng)
    weights = random_weights(layer_shapes(config), noise)
    layer, core, cache = decoder_layer(lab, config, weights)
    lengths = [rng.randrange(3, 9), rng.randrange(3, 9)]
    texts, places = [noise(length, config.hidden_size) for length in lengths], tables(rng, *lengths)
    right, cut = [Network(config, weights).layer(text, torch.arange(len(text))) for text in texts], lengths[0] - 1
    for chunks in ([(0, 0, cut)], [(0, cut, cut + 1), (1, 0, lengths[1])]):
        step = Step([Chunk(start, end, places[one]) for one, start, end in chunks])
        x = torch.cat([texts[one][start:end] for one, start, end in chunks])
        got = core.during(step, layer, x, step.positions, cache, step.metadata(lab))
        truth = torch.cat([right[one][start:end] for one, start, end in chunks])
        near(got, truth, f"a step of {step.query_lens} tokens of its requests", NETWORK, axes=COLUMNS)
