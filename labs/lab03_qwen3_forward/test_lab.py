"""Lab 03's one suite. Operators are compared with their formulas in float64, the network with transformers.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3

How far from the truth may a right answer be? In float32 a sum of n products is off by at most n * 2**-24
of their sizes; here n < 300, so 2e-5 of the largest number is enough for one operator, and 1e-4 for a
network of a few layers. In bfloat16 each rounding is off by at most 2**-8 of the number: the tests
that use it count the roundings. Every mistake that a test here looks for is a hundred times larger.
"""

import functools
import math
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from labs.harness.catalog import lab_at
from labs.harness.mixed_engine.part import load_seam
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import AttentionMetadata
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.testing.checkpoints import Shape, random_weight, write_random_checkpoint
from nano_qwen3_serving.testing.oracle import Oracle

BF16 = 2.0**-8  # the largest relative error of one rounding
OPERATOR, NETWORK = 2e-5, 1e-4  # relative errors in float32

SHAPES = {
    "group 1": Shape(hidden_size=40, num_attention_heads=3, num_key_value_heads=3, head_dim=8, rope_theta=500.0),
    "group 2": Shape(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=20, attention_bias=True),
    "group 4": Shape(hidden_size=32, num_attention_heads=8, num_key_value_heads=2, head_dim=12, rms_norm_eps=0.03,
                     rope_theta=1e6, tie_word_embeddings=False),
}
"""query heads / KV heads; a head's size has nothing to do with hidden_size / num_heads"""

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture(autouse=True)
def plain_torch():
    """No gradients, and one thread: these networks are so small that two would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def config_of(shape: Shape) -> ModelConfig:
    return ModelConfig(**asdict(shape))


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def filled(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`module` with random weights, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.copy_(random_weight(name, parameter.shape, generator))
    return module.requires_grad_(False)


def in_bfloat16(module: torch.nn.Module) -> torch.nn.Module:
    """`module` with its weights in bfloat16, as the loader would have filled it."""
    for parameter in module.parameters():
        parameter.data = parameter.data.bfloat16()
    return module


HEADS, COLUMNS, LOGITS = ("token", "head", "number"), ("token", "column"), ("request", "token id")
"""What the dimensions of a result count."""


def expect(condition: bool, message: str) -> None:
    """Fails with the message alone: a traceback of this file would say no more."""
    if not condition:
        pytest.fail(message, pytrace=False)


def check(
    got, want: torch.Tensor, what: str, allowed: float | torch.Tensor = OPERATOR, dtype=torch.float32, axes: tuple[str, ...] = (),
) -> None:
    """`got` has the shape of `want`, this dtype, and is near it.

    `allowed` is relative to the largest number, or else a tensor: the absolute error of each number.
    """
    expect(isinstance(got, torch.Tensor), f"{what}: expected a tensor, got {type(got).__name__}")
    counted = f" [{', '.join(axes)}]" if axes else ""
    expect(got.shape == want.shape, f"{what}: expected the shape {list(want.shape)}{counted}, got {list(got.shape)}")
    expect(got.dtype == dtype, f"{what}: expected {dtype}, as it came in, got {got.dtype}")
    limit = allowed if isinstance(allowed, torch.Tensor) else allowed * want.abs().max()
    error = (got.double() - want).abs()
    excess = torch.nan_to_num(error, nan=float("inf")) - limit
    if excess.max() > 0:
        place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=True)) if axes else list(place)
        pytest.fail(f"{what}: at {where} expected {want[place]:.6g}, got {float(got[place]):.6g}", pytrace=False)


def run(function, names: str, *arguments):
    """`function(*arguments)`, which must leave the first of them, of these names, as they are.

    What is compared with the result is computed afterwards, so it has to be the same numbers.
    """
    before = [argument.clone() for argument, _ in zip(arguments, names.split(), strict=False)]
    got = function(*arguments)
    for name, argument, copy in zip(names.split(), arguments, before, strict=False):
        expect(torch.equal(argument, copy), f"{name} was changed in place; whoever gave it still needs it")
    return got


def run_elsewhere(function, *arguments: torch.Tensor) -> None:
    """`function` with tensors of another device, "meta": it knows shapes and dtypes, and has no numbers."""
    problem = ""
    try:
        got = function(*(argument.to("meta") for argument in arguments))
    except RuntimeError as error:
        if "meta tensor" in str(error):
            return  # it wants to read numbers: slow on a GPU, but not wrong
        if "device" not in str(error):
            raise
        home = str(Path(torch.__file__).parent)
        line = [frame.line for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(home)][-1]
        problem = f"a tensor was made on another device than that of what came in: {error}\n    {line}"
    expect(not problem, problem)
    expect(got.device.type == "meta", f"what came in lay on the device meta; what came out lies on {got.device}")


# The truth, in float64 and by the formulas


def norm64(x, weight, eps):
    x = x.double()
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight.double()


def angles64(positions, head_dim, theta):
    """[num_tokens, head_dim / 2]"""
    angles = [[p * theta ** (-2 * i / head_dim) for i in range(head_dim // 2)] for p in positions.tolist()]
    return torch.tensor(angles, dtype=torch.float64)


def turn64(x, positions, theta):
    """Pairs as complex numbers: turning is multiplying."""
    first, second = x.double().chunk(2, dim=-1)
    angles = angles64(positions, x.shape[-1], theta)[:, None]
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def product64(matrix, x):
    out = x.double() @ matrix.weight.double().T
    return out if matrix.bias is None else out + matrix.bias.double()


def heads64(attention, x, positions, config):
    """q, k, v, head by head."""
    dim = config.head_dim

    def cut(matrix, count):
        flat = product64(matrix, x)
        return torch.stack([flat[:, h * dim : (h + 1) * dim] for h in range(count)], dim=1)

    def ready(matrix, count, norm):
        return turn64(norm64(cut(matrix, count), norm.weight, config.rms_norm_eps), positions, config.rope_theta)

    q = ready(attention.q_proj, config.num_attention_heads, attention.q_norm)
    k = ready(attention.k_proj, config.num_key_value_heads, attention.k_norm)
    return q, k, cut(attention.v_proj, config.num_key_value_heads)


def attention64(q, k, v):
    """One query of one head after the other."""
    q, k, v = q.double(), k.double(), v.double()
    out, group, before = torch.empty_like(q), q.shape[1] // k.shape[1], len(k) - len(q)
    for token in range(len(q)):
        seen = before + token + 1
        for head in range(q.shape[1]):
            keys, values = k[:seen, head // group], v[:seen, head // group]
            weights = torch.softmax(keys @ q[token, head] / q.shape[2] ** 0.5, dim=0)
            out[token, head] = weights @ values
    return out


def attend64(attention, x, positions, config):
    """The whole attention layer, over one request from its beginning."""
    return product64(attention.o_proj, attention64(*heads64(attention, x, positions, config)).flatten(1))


def mlp64(mlp, x):
    gate = product64(mlp.gate_proj, x)
    return product64(mlp.down_proj, gate / (1 + torch.exp(-gate)) * product64(mlp.up_proj, x))


# Requests in blocks of 4, as the engine lays them out

BLOCK = 4


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of a request, whose position i lies in block table[i // 4]."""

    start: int
    end: int
    table: tuple[int, ...]


def lay_out(chunks: list[Chunk], padding: int = 0) -> tuple[torch.Tensor, AttentionMetadata]:
    """Positions and metadata of a flat batch; chunks of one token come first. Padding goes to block 0."""
    places = [i for c in chunks for i in range(c.start, c.end)] + [0] * padding
    slots = [c.table[i // BLOCK] * BLOCK + i % BLOCK for c in chunks for i in range(c.start, c.end)] + [0] * padding
    longest = max(len(c.table) for c in chunks)
    return torch.tensor(places), AttentionMetadata(
        query_lens=[c.end - c.start for c in chunks], seq_lens=[c.end for c in chunks],
        block_tables=torch.tensor([[*c.table, *[0] * (longest - len(c.table))] for c in chunks]),
        slot_mapping=torch.tensor(slots), num_decodes=sum(c.end - c.start == 1 for c in chunks), block_size=BLOCK,
    )


class WatchedCore(TorchPagedAttention):
    """The engine's attention; notes who calls what. What it returns may lie in memory head by head instead of token by token."""

    def __init__(self, config: ModelConfig, head_by_head: bool = False):
        super().__init__(config, BLOCK, torch.float32, torch.device("cpu"))
        self.calls, self.head_by_head = [], head_by_head

    def write(self, layer_cache, k, v, slots):
        self.calls.append("write")
        super().write(layer_cache, k, v, slots)

    def forward(self, q, layer_cache, metadata):
        self.calls.append("forward")
        out = super().forward(q, layer_cache, metadata)
        return out.transpose(0, 1).contiguous().transpose(0, 1) if self.head_by_head else out


# TODO 1: RMSNorm


def norm_of(lab, weight, eps=1e-6):
    norm = lab.RMSNorm(len(weight), eps)
    norm.weight.data = torch.as_tensor(weight)
    return norm


@pytest.mark.todo(1, points=2)
def test_todo_1_a_row_whose_root_mean_square_is_5_is_divided_by_5(lab):
    x = torch.tensor([[2.0, 4.0, 4.0, 8.0], [0.0, 0.0, 0.0, 0.0], [-20.0, 40.0, -40.0, 80.0]])
    want = torch.tensor([[0.4, 0.8, 0.8, 0.8], [0.0, 0.0, 0.0, 0.0], [-0.4, 0.8, -0.8, 0.8]])
    check(run(norm_of(lab, [1.0, 1.0, 1.0, 0.5]), "x", x), want, "RMSNorm with the weight 1 1 1 0.5", axes=("row", "column"))


@pytest.mark.todo(1, points=4)
@pytest.mark.parametrize("size", [(1, 8), (5, 64), (3, 4, 20), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["large rows", "rows as small as eps"])
def test_todo_1_every_row_follows_the_formula(lab, size, scale):
    x, weight = scale * noise(*size), 1 + 0.5 * noise(size[-1], seed=1)
    for eps in (1e-6, 0.03):
        what = f"x / sqrt(mean(x²) + {eps}) * weight, each row of {size} by itself"
        check(run(norm_of(lab, weight, eps), "x", x), norm64(x, weight, eps), what)
    turned = x.transpose(0, 1) if len(size) > 2 else x.T.contiguous().T  # the same numbers, not contiguous
    check(norm_of(lab, weight)(turned), norm64(turned, weight, 1e-6), "an input that is not contiguous")


@pytest.mark.todo(1, points=4)
def test_todo_1_the_root_is_computed_in_float32_whatever_comes_in(lab):
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # 300 * 300 is more than float16 can hold, 65504
    got = norm_of(lab, torch.ones(4, dtype=torch.float16))(x)
    check(got, torch.ones(1, 4), "a row of 300s in float16, divided by its root mean square", 1e-3, torch.float16)
    x, weight = noise(512, 64).bfloat16(), (1 + 0.5 * noise(64, seed=1)).bfloat16()
    want = norm64(x, weight, 1e-6)
    # two roundings are allowed, of x / rms and of its product with the weight; ours has one, at the end
    check(norm_of(lab, weight)(x), want, "bfloat16, the root in float32", 2.02 * BF16 * want.abs(), torch.bfloat16)


# TODO 2: rotary embedding


@pytest.mark.todo(2, points=2)
def test_todo_2_at_position_3_the_pairs_turn_by_3_and_by_three_tenths(lab):
    x = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.0]]])
    got = run(lab.RotaryEmbedding(4, theta=100.0), "x positions", x, torch.tensor([3, 0]))
    want = torch.tensor([[[-0.98999, 0.95534, 0.14112, 0.29552]], [[1.0, 1.0, 0.0, 0.0]]])  # cos 3, cos 0.3, sin 3, sin 0.3
    check(got, want, "head_dim 4, theta 100: 1 1 0 0 at the positions 3 and 0", axes=HEADS)


@pytest.mark.todo(2, points=4)
@pytest.mark.parametrize("theta", [100.0, 1e4, 1e6], ids=str)
@pytest.mark.parametrize(("head_dim", "heads"), [(2, 1), (10, 3), (128, 2)], ids=str)
def test_todo_2_every_pair_turns_by_its_own_angle(lab, head_dim, heads, theta):
    positions = torch.tensor([0, 1, 2, 700, 31, 31, 40_000, 5])  # far, repeated, in no order
    x = noise(len(positions), heads, head_dim)
    # float32 angles are off by a few times 2**-24 of themselves; the power of theta multiplies that by log(theta)
    angles = angles64(positions, head_dim, theta)
    off = (4 + torch.log(torch.tensor(theta))) * 2.0**-23 * angles + 1e-6
    allowed = (off.repeat(1, 2)[:, None] * x.abs().max() * 2).expand_as(x)
    rotary = lab.RotaryEmbedding(head_dim, theta)
    got = run(rotary, "x positions", x, positions)
    check(got, turn64(x, positions, theta), f"positions {positions.tolist()}, theta {theta}", allowed, axes=HEADS)
    skipped = noise(len(positions), heads, 2 * head_dim)[:, :, ::2]  # not contiguous
    got = rotary(skipped, positions)
    check(got, turn64(skipped, positions, theta), "an input that is not contiguous", allowed * 2, axes=HEADS)


@pytest.mark.todo(2, points=1)
def test_todo_2_angles_are_made_on_the_device_of_x(lab):
    run_elsewhere(lab.RotaryEmbedding(8, theta=100.0), noise(3, 2, 8), torch.arange(3))


@pytest.mark.todo(2, points=2)
def test_todo_2_the_score_of_a_query_and_a_key_depends_on_their_distance_alone(lab):
    rotary = lab.RotaryEmbedding(16, theta=10_000.0)
    q, k = noise(1, 1, 16), noise(1, 1, 16, seed=1)

    def score(query_position, key_position):
        return float((rotary(q, torch.tensor([query_position])) * rotary(k, torch.tensor([key_position]))).sum())

    want = score(7, 3)
    for shift in (1, 50, 900):
        got = score(7 + shift, 3 + shift)
        expect(abs(got - want) <= 1e-2, f"positions 7 and 3 score {want:.4f}, {7 + shift} and {3 + shift} {got:.4f}")
    expect(abs(score(3, 7) - want) > 1e-2, "whether the key is 4 before or 4 after the query makes no difference")
    expect(abs(score(8, 3) - want) > 1e-2, "the distance makes no difference: are the positions used?")


@pytest.mark.todo(2, points=3)
def test_todo_2_angles_are_exact_in_bfloat16_too(lab):
    positions = torch.tensor([0, 257, 1001, 4097])  # bfloat16 knows 256, 1000 and 4096, but none of these three
    x = noise(4, 3, 32).bfloat16()
    got = lab.RotaryEmbedding(32, theta=10_000.0)(x, positions)
    first, second = x.double().abs().chunk(2, dim=-1)
    # three roundings at most: of cos and sin, of the products, of the sum (ours has one); angles in float32
    allowed = ((3.05 * BF16 + 1e-3) * (first + second)).repeat(1, 1, 2)
    check(got, turn64(x, positions, 10_000.0), "bfloat16 heads, angles in float32", allowed, torch.bfloat16, axes=HEADS)


@pytest.mark.todo(2, points=2)
def test_todo_2_a_call_knows_nothing_of_those_before_it(lab):
    rotary, x = lab.RotaryEmbedding(32, theta=10_000.0), noise(4, 3, 32)
    rotary(x.bfloat16(), torch.tensor([0, 1, 2, 3]))
    held = torch.zeros(4, dtype=torch.long)  # engines keep one tensor for all steps, and write the positions into it
    for positions in ([0, 1, 2, 3], [5, 6, 7, 8], [0, 9, 700, 3], [2000, 1, 1, 3]):  # as many tokens, the last one equal, ...
        got = rotary(x, held.copy_(torch.tensor(positions)))
        off = (4 + torch.log(torch.tensor(1e4))) * 2.0**-23 * angles64(torch.tensor(positions), 32, 1e4) + 1e-6
        allowed = (off.repeat(1, 2)[:, None] * x.abs().max() * 2).expand_as(x)
        what = f"float32, positions {positions}, after a call in bfloat16 and other positions"
        check(got, turn64(x, torch.tensor(positions), 10_000.0), what, allowed, axes=HEADS)


# TODO 3: heads


@pytest.mark.todo(3, points=6)
@every_shape
def test_todo_3_q_k_and_v_follow_the_formula_head_by_head(lab, shape):
    config = config_of(shape)
    attention = filled(lab.Attention(config, 0, None))
    x, positions = noise(7, config.hidden_size), torch.tensor([0, 1, 2, 90, 91, 3, 3])
    got = run(attention.heads, "x positions", x, positions)
    for name, mine, truth in zip("qkv", got, heads64(attention, x, positions, config), strict=True):
        check(mine, truth, name, NETWORK, axes=HEADS)


@pytest.mark.todo(3, points=2)
def test_todo_3_each_head_is_normalised_by_itself(lab):
    config = config_of(Shape(hidden_size=8, num_attention_heads=2, num_key_value_heads=1, head_dim=4))
    attention = filled(lab.Attention(config, 0, None))
    attention.q_proj.weight.data = torch.eye(8)  # q before anything else is x itself
    attention.q_norm.weight.data = torch.ones(4)
    q, _, _ = attention.heads(torch.tensor([[2.0, 4.0, 4.0, 8.0, 6.0, 6.0, 6.0, 6.0]]), torch.tensor([0]))
    expected = torch.tensor([[[0.4, 0.8, 0.8, 1.6], [1.0, 1.0, 1.0, 1.0]]])
    check(q, expected, "the heads 2 4 4 8 and 6 6 6 6, normalised", axes=HEADS)


@pytest.mark.todo(3, points=2)
def test_todo_3_values_are_projected_and_nothing_else(lab):
    config = config_of(SHAPES["group 2"])
    attention = filled(lab.Attention(config, 0, None))
    x = noise(3, config.hidden_size)
    _, _, v = attention.heads(x, torch.tensor([5, 6, 7]))
    check(v, product64(attention.v_proj, x).view(3, 2, config.head_dim), "v, neither normalised nor turned", NETWORK, axes=HEADS)
    _, _, doubled = attention.heads(2 * x, torch.tensor([0, 0, 0]))
    bias = attention.v_proj.bias.double().view(2, config.head_dim)
    check(doubled, 2 * (v.double() - bias) + bias, "v of 2x at other positions", NETWORK, axes=HEADS)


@pytest.mark.todo(3, points=2)
def test_todo_3_a_token_has_the_same_heads_alone_and_in_any_company(lab):
    config = config_of(SHAPES["group 4"])
    attention = filled(lab.Attention(config, 0, None))
    x, positions = noise(5, config.hidden_size), torch.tensor([9, 2, 44, 0, 2])
    together = attention.heads(x, positions)
    for row in range(5):
        alone = attention.heads(x[row : row + 1], positions[row : row + 1])
        for name, one, many in zip("qkv", alone, together, strict=True):
            check(one, many[row : row + 1].double(), f"{name} of row {row} by itself", NETWORK, axes=HEADS)


@pytest.mark.todo(3, points=2)
def test_todo_3_bfloat16_stays_bfloat16(lab):
    config = config_of(SHAPES["group 2"])
    attention = in_bfloat16(filled(lab.Attention(config, 0, None)))
    x = noise(4, config.hidden_size).bfloat16()
    positions = torch.tensor([0, 1, 2, 3])
    truths = heads64(attention, x, positions, config)
    # roundings: of the projection; of its norm twice; of the turn three times. Each is 2**-8 of a number
    # that is at most as large as the head's pair, so of sqrt(2) times the largest; the norm's scale one more
    for name, got, truth in zip("qkv", attention.heads(x, positions), truths, strict=True):
        check(got, truth, f"{name} in bfloat16", 7 * 1.42 * BF16, torch.bfloat16, axes=HEADS)


# TODO 4: attention


def attention_inputs(num_queries, num_keys, num_heads, num_kv_heads, head_dim, scale=1.0):
    q = noise(num_queries, num_heads, head_dim) * scale
    return q, noise(num_keys, num_kv_heads, head_dim, seed=1) * scale, noise(num_keys, num_kv_heads, head_dim, seed=2)


@pytest.mark.todo(4, points=2)
def test_todo_4_three_tokens_by_hand(lab):
    q = torch.tensor([2.0, 0.0, 0.0, 0.0]).repeat(3, 1, 1)
    k = torch.zeros(3, 1, 4)
    k[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0]).log()  # scores: the logarithms of 1, 2, 3
    v = torch.tensor([6.0, 12.0, 24.0]).view(3, 1, 1).repeat(1, 1, 4)
    got = run(lab.causal_attention, "q k v", q, k, v)
    want = torch.tensor([6.0, 10.0, 17.0]).view(3, 1, 1).repeat(1, 1, 4)  # 6; (6 + 2*12) / 3; (6 + 2*12 + 3*24) / 6
    check(got, want, "weights 1; 1 2; 1 2 3 over the values 6 12 24", axes=HEADS)


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(3, 3, 8), (4, 2, 20), (8, 2, 12), (4, 1, 2)], ids=str)
def test_todo_4_attention_follows_the_formula_at_every_length(lab, num_heads, num_kv_heads, head_dim):
    for length in (1, 2, 3, 4, 5, 15, 16, 17):
        q, k, v = attention_inputs(length, length, num_heads, num_kv_heads, head_dim)
        got = run(lab.causal_attention, "q k v", q, k, v)
        check(got, attention64(q, k, v), f"{length} tokens, {num_heads} heads, {num_kv_heads} KV heads", axes=HEADS)
    fused = noise(6, num_heads + 2 * num_kv_heads, head_dim)  # views of one tensor, as a fused projection gives them
    q, k, v = fused.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    got = run(lab.causal_attention, "q k v", q, k, v)
    check(got, attention64(q, k, v), "inputs that are not contiguous", axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_what_attention_makes_lies_on_the_device_of_q(lab):
    run_elsewhere(lab.causal_attention, *attention_inputs(2, 5, 4, 2, 8))


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize(
    ("num_queries", "num_keys"),
    [(1, 4), (1, 9), (2, 9), (4, 8), (8, 9), *((2, keys) for keys in (31, 32, 33, 63, 64, 65, 127, 128, 129, 257))], ids=str)
def test_todo_4_queries_are_those_of_the_last_tokens(lab, num_queries, num_keys):
    q, k, v = attention_inputs(num_queries, num_keys, 4, 2, 8)
    what = f"{num_queries} queries of {num_keys} tokens: the first of them sees {num_keys - num_queries + 1} keys"
    check(run(lab.causal_attention, "q k v", q, k, v), attention64(q, k, v), what, axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_no_token_sees_the_future(lab):
    q, k, v = attention_inputs(6, 6, 4, 2, 8)
    before = run(lab.causal_attention, "q k v", q, k, v)
    k[4:], v[4:] = 100.0, -1000.0
    after = lab.causal_attention(q, k, v)
    what = "the outputs of tokens 0 to 3, after keys and values 4 and 5 were changed"
    check(after[:4], before[:4].double(), what, axes=HEADS)
    what = "token 0 sees itself alone, so its output is its value"
    check(before[:1], v[:1].double().repeat_interleave(2, dim=1), what, axes=HEADS)


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (4, 2), (8, 2), (6, 3), (5, 1)], ids=str)
def test_todo_4_neighbouring_query_heads_share_a_kv_head(lab, num_heads, num_kv_heads):
    q, k, _ = attention_inputs(3, 3, num_heads, num_kv_heads, 4)
    v = torch.arange(num_kv_heads).view(1, -1, 1).expand(3, -1, 4).float()  # KV head g holds the number g
    got = lab.causal_attention(q, k, v)
    expect(got.shape == q.shape, f"expected the shape of q, {list(q.shape)}, got {list(got.shape)}")
    read = [round(float(value)) for value in got[2, :, 0]]
    want = [head // (num_heads // num_kv_heads) for head in range(num_heads)]
    expect(read == want, f"query heads 0 to {num_heads - 1} should read the KV heads {want}; they read {read}")


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize(
    ("size", "dtype"), [(1e3, torch.float32), (1e5, torch.float32), (1e12, torch.float32), (2.0**16, torch.float16),
                        (2.0**40, torch.bfloat16)], ids=str)
def test_todo_4_the_future_has_no_weight_however_low_the_scores_are(lab, size, dtype):
    q = torch.full((4, 2, 4), size**0.5, dtype=dtype)
    k = torch.full((4, 1, 4), -(size**0.5), dtype=dtype)  # every score is -2 * size: the keys seen share the weight equally
    v = torch.tensor([6.0, 12.0, 24.0, 48.0], dtype=dtype).view(4, 1, 1).repeat(1, 1, 4)
    got = run(lab.causal_attention, "q k v", q, k, v)
    want = torch.tensor([6.0, 9.0, 14.0, 22.5]).view(4, 1, 1).repeat(1, 2, 4)  # the means of the first one, two, three, four
    allowed = OPERATOR if dtype == torch.float32 else 3 * BF16
    what = (f"{dtype}, all scores are {-2 * size:g}, so a mask that is a number, such as -10000 or the smallest one of "
            f"{dtype}, lets the future in")
    check(got, want, what, allowed, dtype, axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_a_query_sees_its_first_key_however_far_back(lab):
    q, k, v = torch.zeros(1, 2, 4), torch.zeros(6000, 1, 4), torch.zeros(6000, 1, 4)
    q[..., 0], k[0, 0, 0], v[0] = 40.0, 2.0, 7.0  # the first key scores 40, all others 0
    got = run(lab.causal_attention, "q k v", q, k, v)
    check(got, torch.full((1, 2, 4), 7.0), "6000 keys, and only the first one scores: its value is 7", axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_scores_of_a_thousand(lab):
    q, k, v = attention_inputs(5, 5, 4, 2, 8, scale=30.0)
    got = run(lab.causal_attention, "q k v", q, k, v)
    check(got, attention64(q, k, v), "scores of a thousand, whose exp is no float32", 1e-3, axes=HEADS)


@pytest.mark.todo(4, points=1)
def test_todo_4_scores_and_weights_of_bfloat16_are_computed_in_float32(lab):
    # One key scores 0 and forty score -8.03, which would be -8.0 in bfloat16, and their weights larger by 0.03.
    q, k, v = torch.full((1, 1, 4), 1.0), torch.zeros(41, 1, 4), torch.ones(41, 1, 4)
    k[:40, 0, 0], k[:40, 0, 1], v[40] = -16.0, -0.06, 0.0
    check_bfloat16(lab, q, k, v, "one key scores 0, forty score -8.03")
    q, k, v = attention_inputs(40, 300, 4, 2, 20)  # the root of 20 is no power of 2: a q that is scaled too early is rounded
    check_bfloat16(lab, 3 * q, 3 * k, v, "scores up to 40, over 300 keys")


def check_bfloat16(lab, q, k, v, what: str) -> None:
    """Attention of bfloat16 is as near as it can be whose scores and weights were not rounded.

    Three roundings are allowed: of the weights, of their product with v, of the result (ours has the last).
    Each is 2**-8 of numbers that add up to weights @ |v|. A float32 score is off by less than 1e-3.
    """
    q, k, v = (t.bfloat16() for t in (q, k, v))
    allowed = (3.05 * BF16 + 1e-3) * attention64(q, k, v.abs())
    got = run(lab.causal_attention, "q k v", q, k, v)
    check(got, attention64(q, k, v), f"bfloat16, {what} (scores and weights in float32)", allowed, torch.bfloat16, axes=HEADS)


@pytest.mark.todo(4, points=2)
@every_shape
def test_todo_4_the_layer_writes_then_attends_through_the_core_it_was_given(lab, shape):
    config = config_of(shape)
    core = WatchedCore(config, head_by_head=True)  # causal_attention's own result often is
    attention = filled(lab.Attention(config, 0, core))
    cache = core.make_cache(8)[0]
    x = noise(6, config.hidden_size)
    positions, metadata = lay_out([Chunk(0, 6, (5, 2))])
    got = run(in_any_memory, "x positions", x, positions, attention, cache, metadata)
    expect(core.calls == ["write", "forward"], f"expected one write, then one forward of the core; it saw {core.calls}")
    _, k, v = heads64(attention, x, positions, config)
    for name, written, truth in zip("kv", core.read(cache, metadata.slot_mapping.tolist()), (k, v), strict=True):
        check(written, truth, f"{name} in the slots {metadata.slot_mapping.tolist()}", NETWORK, axes=HEADS)
    check(got, attend64(attention, x, positions, config), "6 tokens in the blocks 5 and 2", NETWORK, axes=COLUMNS)


def in_any_memory(x, positions, attention, cache, metadata):
    """The attention layer, whose core gives numbers that do not lie in order."""
    problem = ""
    try:
        return attention(x, positions, cache, metadata)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        problem = f"what a core returns may lie in memory in any order; view() refuses, reshape() and flatten() copy: {error}"
    pytest.fail(problem, pytrace=False)


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("sizes", [(7,), (3, 4), (4, 3), (1,) * 7, (6, 1)], ids=str)
def test_todo_4_a_request_computed_in_chunks_gives_what_it_gives_at_once(lab, sizes):
    config = config_of(SHAPES["group 2"])
    core = lab.DenseCore()
    attention = filled(lab.Attention(config, 0, core))
    cache, x, parts, start = core.make_cache(config, 7)[0], noise(7, config.hidden_size), [], 0
    for size in sizes:
        end = start + size
        parts.append(attention(x[start:end], torch.arange(start, end), cache, lab.one_request(start, end)))
        start = end
    want = attend64(attention, x, torch.arange(7), config)
    check(torch.cat(parts), want, f"7 tokens with the dense core, in chunks of {sizes}", NETWORK, axes=COLUMNS)


# TODO 5: SwiGLU and the layer


@pytest.mark.todo(5, points=2)
def test_todo_5_swiglu_by_hand(lab):
    mlp = filled(lab.MLP(config_of(Shape(hidden_size=4, intermediate_size=2))))
    mlp.gate_proj.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])  # gate: the numbers 0 and 1 of x
    mlp.up_proj.weight.data = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]])  # up: the numbers 2 and 3
    mlp.down_proj.weight.data = torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1]])
    got = mlp(torch.tensor([[0.0, 2.0, 3.0, 5.0]]))
    want = torch.tensor([[0.0, 8.80797, 0.0, 8.80797]])  # silu(0) * 3 = 0; silu(2) * 5 = 2 * 0.880797 * 5
    check(got, want, "gate 0 2, up 3 5", axes=COLUMNS)
    for dtype, large in ((torch.float32, 1000.0), (torch.bfloat16, 100.0), (torch.float16, 20.0)):
        mlp = mlp.to(dtype)
        got = mlp(torch.tensor([[-large, large, 3.0, 5.0]], dtype=dtype))
        want = torch.tensor([[0.0, 5 * large, 0.0, 5 * large]])
        what = f"{dtype}, gate {-large:g} {large:g}, up 3 5: silu shuts the first and lets the second through; its exp is inf"
        check(got, want, what, 1e-3, dtype, axes=COLUMNS)


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_todo_5_swiglu_follows_the_formula(lab, num_tokens):
    config = config_of(Shape(hidden_size=24, intermediate_size=70))
    mlp = filled(lab.MLP(config))
    x = noise(num_tokens, 24)
    check(run(mlp, "x", x), mlp64(mlp, x), "down(silu(gate(x)) * up(x))", NETWORK, axes=COLUMNS)
    expect(in_bfloat16(mlp)(x.bfloat16()).dtype == torch.bfloat16, "bfloat16 came in, another dtype came out")


@pytest.mark.todo(5, points=5)
@every_shape
def test_todo_5_a_layer_adds_attention_then_the_mlp(lab, shape):
    config = config_of(shape)
    core = WatchedCore(config)
    layer = filled(lab.DecoderLayer(config, 0, core))
    x = 3 * noise(6, config.hidden_size)
    positions, metadata = lay_out([Chunk(0, 6, (1, 2))])
    got = run(layer, "x positions", x, positions, core.make_cache(4)[0], metadata)
    eps = config.rms_norm_eps
    h = x.double() + attend64(layer.self_attn, norm64(x, layer.input_layernorm.weight, eps), positions, config)
    want = h + mlp64(layer.mlp, norm64(h, layer.post_attention_layernorm.weight, eps))
    check(got, want, "h = x + attention(norm(x)), then h + mlp(norm(h))", NETWORK, axes=COLUMNS)


@pytest.mark.todo(5, points=2)
def test_todo_5_what_comes_in_passes_a_layer_that_has_nothing_to_add(lab):
    config = config_of(SHAPES["group 1"])
    core = WatchedCore(config)
    layer = filled(lab.DecoderLayer(config, 0, core))
    layer.self_attn.o_proj.weight.data.zero_()
    layer.mlp.down_proj.weight.data.zero_()
    x = 5 * noise(3, config.hidden_size)
    positions, metadata = lay_out([Chunk(0, 3, (1,))])
    got = run(layer, "x positions", x, positions, core.make_cache(2)[0], metadata)
    check(got, x.double(), "x, when attention and MLP both give zeros", axes=COLUMNS)


# TODO 6: logits


@pytest.fixture(scope="module")
def oracles(tmp_path_factory):
    """`oracles(shape)`: transformers on random weights of that shape, and the folder of the checkpoint."""

    @functools.cache
    def make(shape: Shape):
        folder = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), shape)
        return Oracle(folder), folder

    return make


def same_weights(lab, shape: Shape, oracle: Oracle, core):
    """The lab's network with the oracle's weights."""
    network = lab.Qwen3ForCausalLM(config_of(shape), core)
    network.load_state_dict(oracle.network.state_dict())
    return network.requires_grad_(False)


def some_tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(512, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.todo(6, points=3)
def test_todo_6_rows_are_normalised_then_given_to_the_head(lab):
    config = config_of(SHAPES["group 4"])
    network = filled(lab.Qwen3ForCausalLM(config, None))
    hidden = 3 * noise(5, config.hidden_size)
    want = product64(network.lm_head, norm64(hidden, network.model.norm.weight, config.rms_norm_eps))
    axes = ("row", "token id")
    check(run(network.compute_logits, "hidden", hidden), want, "lm_head(norm(hidden))", NETWORK, axes=axes)
    check(network.compute_logits(hidden[[3]]), want[[3]], "row 3 by itself", NETWORK, axes=axes)


@pytest.mark.todo(6, points=3)
@pytest.mark.parametrize("padding", [0, 3])
def test_todo_6_logits_follow_the_last_token_of_each_request(lab, padding):
    config = config_of(Shape(num_key_value_heads=1))
    core = WatchedCore(config)
    network = filled(lab.Qwen3ForCausalLM(config, core))
    cache, a = core.make_cache(16), some_tokens(9)

    def step(tokens, chunks, padding=0):
        positions, metadata = lay_out(chunks, padding)
        arguments = torch.cat([tokens, torch.zeros(padding, dtype=torch.long)]), positions, cache, metadata
        counts = list(metadata.query_lens)
        rows = [sum(counts[: i + 1]) - 1 for i in range(len(chunks))]
        got = run(network.last_logits, "token_ids positions", *arguments)
        expect(metadata.query_lens == counts, f"metadata.query_lens was changed in place, {counts} to {metadata.query_lens}")
        truth = product64(network.lm_head, norm64(network(*arguments)[rows], network.model.norm.weight, 1e-6))
        what = f"query_lens {counts}, {padding} rows of padding: the logits of the rows {rows}"
        check(got, truth, what, NETWORK, axes=LOGITS)

    ten = [Chunk(0, 1 + i % 3, (5 + i,)) for i in range(10)]
    step(some_tokens(sum(c.end for c in ten), seed=3), sorted(ten, key=lambda c: c.end > 1), padding)
    step(a[:3], [Chunk(0, 3, (1, 2, 4))])
    others = torch.cat([some_tokens(1, seed=2), a[3:], some_tokens(3, seed=1)])
    step(others, [Chunk(0, 1, (7,)), Chunk(3, 9, (1, 2, 4)), Chunk(0, 3, (3,))], padding)
    step(some_tokens(10, seed=4), [Chunk(0, 1, (8,)), Chunk(0, 3, (9,)), Chunk(0, 6, (10, 11))], padding)  # as many of both


@pytest.mark.todo(6, points=2)
def test_todo_6_only_the_rows_that_are_returned_pass_the_head(lab):
    config = config_of(Shape(num_hidden_layers=1))
    core = lab.DenseCore()
    network = filled(lab.Qwen3ForCausalLM(config, core))
    with Products() as products:
        got = network.last_logits(some_tokens(30), torch.arange(30), core.make_cache(config, 30), lab.one_request(0, 30))
    expect(isinstance(got, torch.Tensor) and got.shape == (1, 512),
           f"one request, 512 tokens in the vocabulary: expected the shape [1, 512], got {list(getattr(got, 'shape', []))}")
    rows = products.numbers(512) // 512
    expect(rows <= 1, f"{rows} rows of logits were computed for one request of 30 tokens; one was needed")


class Products(TorchDispatchMode):
    """Notes what matrix products give, whoever calls them and by which name."""

    NAMES = ("mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "dot", "linear", "einsum")

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.NAMES:
            self.shapes.append(tuple(out.shape))
        return out

    def numbers(self, columns: int) -> int:
        """Of all products with a dimension of this size."""
        return sum(math.prod(shape) for shape in self.shapes if columns in shape)


@pytest.mark.todo(6, points=4)
@every_shape
def test_todo_6_the_network_equals_transformers(lab, shape, oracles):
    oracle, _ = oracles(shape)
    core = lab.DenseCore()
    network = same_weights(lab, shape, oracle, core)
    for length, first in ((1, 0), (2, 0), (17, 0), (40, 300)):
        tokens, positions = some_tokens(length), torch.arange(first, first + length)
        cache = core.make_cache(config_of(shape), length)
        got = network.last_logits(tokens, positions, cache, lab.one_request(0, length))
        want = oracle.network(tokens[None], position_ids=positions[None]).logits[0, -1:].double()
        check(got, want, f"logits after {length} tokens, positions from {first}", NETWORK, axes=LOGITS)


@pytest.mark.todo(6, points=2)
def test_todo_6_bfloat16_is_as_near_as_transformers_in_bfloat16(lab, oracles):
    shape = SHAPES["group 2"]
    oracle, folder = oracles(shape)
    core, config = lab.DenseCore(), config_of(shape)
    network = in_bfloat16(same_weights(lab, shape, oracle, core))
    rounded = Oracle(folder, torch.bfloat16)
    got, theirs, truth = [], [], []
    for length in (1, 5, 9, 16, 25, 33):
        tokens = some_tokens(length, seed=length)
        cache = core.make_cache(config, length, torch.bfloat16)
        got.append(network.last_logits(tokens, torch.arange(length), cache, lab.one_request(0, length))[0])
        theirs.append(rounded.logits(tokens.tolist())[-1].double())
        truth.append(oracle.logits(tokens.tolist())[-1].double())
    got, theirs, truth = torch.stack(got), torch.stack(theirs), torch.stack(truth)
    # Two right programs round in different places, so neither is nearer; over 6 * 512 logits the root mean
    # square of their errors differs little. Twice that of transformers leaves room for one that rounds more.
    expect(got.dtype == torch.bfloat16, f"expected logits in torch.bfloat16, got {got.dtype}")
    error, usual = ((t.double() - truth).square().mean().sqrt() for t in (got, theirs))
    expect(error <= 2 * usual, f"root mean square error of the logits {error:.4f}; transformers' own in bfloat16 is {usual:.4f}")


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


@pytest.mark.todo(6, points=3)
@pytest.mark.parametrize("dense", [False, True], ids=["paged attention", "your attention over the engine's blocks"])
@pytest.mark.parametrize("model", ["course", "random weights"])
def test_todo_6_the_engine_with_your_network_equals_transformers(lab, model, dense, oracles):
    lab.Qwen3ForCausalLM(config_of(Shape()), None).compute_logits(noise(1, 64))  # is it written?
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
        got = torch.stack([sampler.rows[tuple(sequence[:n])] for n in range(len(prompt), len(sequence))])
        want = oracle.logits(sequence[:-1])[len(prompt) - 1 :].double()
        check(got, want, f"logits in the engine, prompt of {len(prompt)} tokens", NETWORK, axes=("new token", "token id"))
    oracle.compare(prompts, oracle.greedy(prompts, 6), outputs)


@functools.cache
def course_oracle() -> Oracle:
    return Oracle(BUNDLED / "course")


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
