"""Lab 03's own promises: every number of the README's worked example, computed by the solution and the engine."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from labs.harness import loading, regions
from labs.harness.catalog import find_lab
from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import AttentionMetadata

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[3]
LAB = find_lab("03", PROJECT / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")
FLAT = " ".join(README.split())
"""The README without its line breaks."""

A, B, PADDING = 6, 3, 3
"""Tokens of the example's requests, and rows behind them."""


def module(name: str) -> ModuleType:
    """A file of the lab's folder as a module."""
    return loading.run_file(LAB.folder / f"{name}.py", f"lab03_own_{name}")


@pytest.fixture(scope="module")
def lab():
    return loading.load(LAB, LAB.solution)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def rows() -> dict[int, tuple[str, str]]:
    """TODO -> what goes in and what comes out, of the example's table."""
    found = re.findall(r"^\| (\d) \| (.+) \| (.+) \|$", README, re.MULTILINE)
    assert [todo for todo, _, _ in found] == list("123456")
    return {int(todo): (before, after) for todo, before, after in found}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])", text)]


def small_config(**changes) -> ModelConfig:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64}  # fmt: skip
    return ModelConfig(**sizes | changes)


def test_1_the_norm(lab, rows):
    x, weight = numbers(rows[1][0])[:4], numbers(rows[1][0])[4:]
    norm = lab.RMSNorm(4, 1e-6)
    norm.weight.data = torch.tensor(weight)
    assert norm(torch.tensor(x)).tolist() == pytest.approx(numbers(rows[1][1]), abs=1e-4)
    squares = [round(number**2) for number in x]
    assert (
        f"The squares are {squares[0]}, {squares[1]}, {squares[2]} and {squares[3]}, their mean is {sum(squares) // 4}" in README
    )
    assert f"the root of that is {round((sum(squares) / 4) ** 0.5)}" in README


def test_2_the_turn(lab, rows):
    *x, position, theta = numbers(rows[2][0])
    turned = lab.RotaryEmbedding(4, theta)(torch.tensor([[x]]), torch.tensor([int(position)]))
    assert turned.flatten().tolist() == pytest.approx(numbers(rows[2][1]), abs=0.005)
    frequencies = [theta ** (-2 * i / 4) for i in range(2)]
    assert f"100 ** 0 = {frequencies[0]:.0f} and 100 ** (-2/4) = {frequencies[1]:.1f}" in README
    angles = position * torch.tensor(frequencies)
    assert f"turn by {float(angles[0]):.0f} and by {float(angles[1]):.1f}" in README
    assert f"(cos 3, sin 3) = ({angles[0].cos():.2f}, {angles[0].sin():.2f})" in README
    assert f"turned by 0.3 it is ({angles[1].cos():.2f}, {angles[1].sin():.2f})" in README.replace("\n   ", " ")


def test_3_the_heads(lab, rows):
    x = torch.tensor([numbers(rows[3][0])])
    attention = lab.Attention(small_config(), 0, None)
    for parameter in attention.parameters():
        parameter.fill_(1.0)
    attention.q_proj.weight.copy_(torch.eye(8))
    q, _, _ = attention.heads(x, torch.tensor([0]))
    assert q.flatten().tolist() == pytest.approx(numbers(rows[3][1]), abs=1e-4)
    together = float(x.square().mean().sqrt())
    assert f"Over all eight numbers the root mean square would be {together:.2f}" in README


def test_4_the_attention(lab, rows):
    *scores, v0, v1, v2 = numbers(rows[4][0])
    q = torch.tensor([2.0, 0.0, 0.0, 0.0]).repeat(3, 1, 1)
    k = torch.zeros(3, 1, 4)
    k[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0]).log()
    assert (q[0, 0] @ k[:, 0].T / 4**0.5).tolist() == pytest.approx(scores, abs=0.005)
    v = torch.tensor([v0, v1, v2]).view(3, 1, 1).repeat(1, 1, 4)
    out = lab.causal_attention(q, k, v)[:, 0, 0].tolist()
    assert out == pytest.approx(numbers(rows[4][1]), abs=1e-4)
    assert (
        f"itself: {out[0]:.0f}. Token 1: (6 + 2·12) / 3 = {(6 + 24) / 3:.0f}. "
        f"Token 2: (6 + 2·12 + 3·24) / 6 = {(6 + 24 + 72) / 6:.0f}."
        in README
    )


def test_4_the_groups(lab):
    values = torch.tensor([[[0.0], [1.0]]])  # KV head g holds the number g
    read = lab.causal_attention(torch.zeros(1, 4, 1), values, values).flatten().tolist()
    assert "query heads read the KV heads " + " ".join(f"{head:.0f}" for head in read) in README
    wrong = values.repeat(1, 2, 1).flatten().tolist()
    assert "the query heads read the KV heads " + " ".join(f"{head:.0f}" for head in wrong) in README.replace("\n", " ")


def test_4_the_case_that_fails_fails_with_the_words_of_the_readme():
    q, k = torch.zeros(3, 4, 4), torch.zeros(3, 2, 4)
    statement = "q.transpose(0, 1) @ k.transpose(0, 1).transpose(1, 2)"
    assert f"`{statement}` raises" in README
    with pytest.raises(RuntimeError) as caught:
        eval(statement, {"q": q, "k": k})
    assert f"RuntimeError: {caught.value}\n" in README


def test_4_a_score_that_bfloat16_does_not_know(lab):
    score = torch.tensor(8.03)
    assert score.bfloat16() == 8.0 == torch.tensor(8.0).bfloat16()
    percent = round(100 * float(torch.expm1(score - 8)))
    text = " ".join(README.split())
    assert f"A score of 8.03 would become 8.0 and its weight {percent} % smaller" in text
    assert f"exp(8.03) is {percent} % more than exp(8.0)" in text
    scores = torch.tensor([[0.0, -7.5, -8.0, -8.0]]).bfloat16()
    assert torch.equal(scores.softmax(dim=-1), scores.float().softmax(dim=-1).bfloat16())  # float32 inside


def test_5_the_gate(lab, rows):
    mlp = lab.MLP(small_config(hidden_size=4))
    mlp.gate_proj.weight.copy_(torch.eye(4)[:2])
    mlp.up_proj.weight.copy_(torch.eye(4)[2:])
    mlp.down_proj.weight.copy_(torch.eye(4)[:, :2])
    out = mlp(torch.tensor([numbers(rows[5][0])]))[0, :2].tolist()
    assert out == pytest.approx(numbers(rows[5][1]), abs=0.005)
    assert f"silu(0) = {F.silu(torch.tensor(0.0)):.0f}" in README and f"silu(2) = {F.silu(torch.tensor(2.0)):.2f}" in README


def test_6_the_rows(lab, rows):
    """Each row of hidden states holds its own number, so the logits say which rows they are of."""
    assert numbers(rows[6][0]) == [A, B, PADDING]
    total = A + B + PADDING
    network = lab.Qwen3ForCausalLM(small_config(num_hidden_layers=0), None)
    network.model.embed_tokens.weight[:total] = torch.eye(16)[:total, :8] + torch.arange(total)[:, None]
    network.model.norm.weight.fill_(1.0)
    network.lm_head.weight.copy_(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)))
    computed = []
    network.lm_head.register_forward_hook(lambda module, inputs, output: computed.append(len(output)))
    metadata = AttentionMetadata([A, B], [A, B], torch.zeros(2, 2), torch.zeros(total), 0, 4)
    got = network.last_logits(torch.arange(total), torch.zeros(total), [], metadata)
    assert f"The head computes {sum(computed)} rows instead of {total}" in README
    each = network.compute_logits(network.model.embed_tokens.weight[:total])
    found = [next(i for i in range(total) if torch.allclose(row, each[i], atol=1e-5)) for row in got]
    assert found == numbers(rows[6][1])
    lies = f"A lies in the rows 0 to {A - 1}, B in {A} to {A + B - 1}, padding in {A + B} to {total - 1}"
    assert lies in README.replace("\n   ", " ")


def test_the_tokens_that_the_program_counts():
    prompt, written, computed = 7, 36, 925
    assert sum(range(prompt, prompt + written + 1)) == computed
    text = " ".join(README.split())
    assert f"{written} tokens in" in text and f"{written + 1} passes. In all of them {computed} tokens were computed" in text
    assert f"{prompt} + {prompt + 1} + ... + {prompt + written} = {computed}" in text


def test_the_numbers_of_qwen3s_matrices(lab):
    shape = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    with torch.device("meta"):
        attention = lab.Attention(small_config(**shape), 0, None)
    for name, heads in (("q_proj", 16), ("o_proj", 16), ("k_proj", 8), ("v_proj", 8)):
        count = getattr(attention, name).weight.numel()
        line = next(line for line in README.splitlines() if re.match(r"\| [qk]_proj", line) and name in line)
        assert f"{heads} · 128 · 1024 = {count:,} each" in line


def test_the_errors_under_troubleshooting_are_torchs_words():
    with pytest.raises(RuntimeError, match="view size is not compatible with input tensor's size and stride"):
        torch.zeros(2, 3).T.view(6)
    with pytest.raises(RuntimeError, match="expected m1 and m2 to have the same dtype"):
        torch.zeros(2, 3) @ torch.zeros(3, 2, dtype=torch.bfloat16)
    refused = "imports transformers.Qwen3ForCausalLM. Reading it is allowed, importing it is not"
    with pytest.raises(loading.ImportRefused, match=re.escape(refused)):
        loading.refuse_imports(LAB, loading.ast.parse("from transformers import Qwen3ForCausalLM"), "starter.py")
    for words in (
        "view size is not compatible with input tensor's size and stride",
        "expected m1 and m2 to have the same dtype",
        refused,
    ):
        assert words in README


def test_going_further_1_one_product_of_q_k_and_v_is_made_by_finalize_weights(lab):
    """What the README promises of the loader holds for a network of this lab."""
    from nano_qwen3_serving import EngineArgs
    from nano_qwen3_serving.model.loader import load_weights

    calls = []

    class Fused(lab.Attention):
        def finalize_weights(self):
            calls.append(self.layer_idx)
            self.qkv = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])

        def heads(self, x, positions):
            sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
            q, k, v = (x @ self.qkv.T).unflatten(1, (-1, self.head_dim)).split(sizes, dim=1)
            return self.rotary(self.q_norm(q), positions), self.rotary(self.k_norm(k), positions), v

    config = EngineArgs(model="course", device="cpu").create_engine_config()
    core, tokens = lab.DenseCore(), torch.arange(300, 312)

    def logits(network):
        cache = core.make_cache(config.model, 12)
        return network.last_logits(tokens, torch.arange(12), cache, lab.one_request(0, 12))

    plain = load_weights(lab.Qwen3ForCausalLM(config.model, core), config)
    network = lab.Qwen3ForCausalLM(config.model, core)
    for i, layer in enumerate(network.model.layers):
        layer.self_attn = Fused(config.model, i, core)
    load_weights(network, config)
    assert calls == list(range(config.model.num_hidden_layers))
    torch.testing.assert_close(logits(network), logits(plain), atol=1e-3, rtol=1e-4)


# Half an hour before, and Step 6


def test_what_flat_tensors_shows_is_what_torch_prints():
    found = doctest.testfile(str(LAB.folder / "flat_tensors.md"), module_relative=False, encoding="utf-8")
    assert found.attempted > 30 and found.failed == 0


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Number → logits after the prompts, and texts, of the solution with that mistake in it; 0 is the solution."""
    tool, folder, found = module("broken"), tmp_path_factory.mktemp("broken"), {}
    text = LAB.solution.read_text(encoding="utf-8")
    for number, mistake in enumerate([None, *tool.MISTAKES]):
        file = folder / f"{number}.py"
        file.write_text(tool.with_mistake(text, *mistake) if mistake else text, encoding="utf-8")
        with torch.inference_mode():
            found[number] = tool.written(loading.load(LAB, file), most=12)
    return found


def test_the_five_broken_networks_do_what_the_readme_says_of_them(broken):
    right, texts = broken[0]
    off = {number: float((logits - right).abs().max()) for number, (logits, _) in broken.items()}
    same = {number for number, (_, said) in broken.items() if said == texts}
    assert {1, 2} <= same and not {4, 5} & same, "two read as if nothing were wrong, two do not"
    assert off[2] == 0 and "One of them is right to the last digit" in FLAT
    assert off[3] > 100 and broken[3][1][0] == texts[0] and "writes a right answer with logits that are off by hundreds" in FLAT
    assert 0.1 < off[1] < 5 < off[5]


@pytest.mark.share(1)
@pytest.mark.parametrize("number", range(1, 6))
def test_each_broken_network_fails_a_test_of_the_todo_that_is_wrong_in_it(number, tmp_path):
    tool, text = module("broken"), LAB.solution.read_text(encoding="utf-8")
    method = tool.MISTAKES[number - 1][0]
    [todo] = [todo for todo, names in regions.functions_of(text).items() if method in names]
    file = tmp_path / f"{number}.py"
    file.write_text(tool.with_mistake(text, *tool.MISTAKES[number - 1]), encoding="utf-8")
    result = pytest_on(file, f"todo_{todo}_")
    assert result.returncode == 1 and " failed" in result.stdout, result.stdout[-2000:]


def pytest_on(file: Path, select: str) -> subprocess.CompletedProcess:
    """The lab's tests of these names on this file, to the first that fails."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--plain", "-p", "no:cacheprovider", str(LAB.tests),
               "--impl", str(file), "-k", select]
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, encoding="utf-8", timeout=300)


def test_the_engine_takes_no_row_of_a_request_whose_prompt_is_not_all_computed():
    """What the README says under TODO 6, and of the example's row 6."""
    rows = []
    engine = LLMEngine.from_engine_args(EngineArgs(model="course-draft", device="cpu", long_prefill_token_threshold=6))
    model = engine.model_runner.model
    compute = model.compute_logits
    model.compute_logits = lambda hidden: rows.append(len(hidden)) or compute(hidden)
    for name, length in (("A", 8), ("B", 3)):
        params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": list(range(300, 300 + length))}, params)
    engine.step()
    engine.step()
    assert rows == [1, 2], "6 of A's 8 tokens and all of B: B's row alone; then a row of each"
