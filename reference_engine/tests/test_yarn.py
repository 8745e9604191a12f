"""YaRN, Qwen3's way to read texts longer than any in training, is what it is in transformers."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config
from transformers.modeling_rope_utils import _compute_yarn_parameters
from transformers.utils import logging

from nano_qwen3_serving import LLM, AsyncLLM, EngineArgs, SamplingParams
from nano_qwen3_serving.components import Components, default_sampler
from nano_qwen3_serving.config import EngineConfig, ModelConfig
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError
from nano_qwen3_serving.model.layers import RotaryEmbedding, rotary_frequencies
from nano_qwen3_serving.testing.checkpoints import Shape
from nano_qwen3_serving.testing.oracle import Oracle
from nano_qwen3_serving.testing.verify import RecordingSampler

pytestmark = pytest.mark.slow

ORIGINAL, LONG = 64, 200  # tokens of the longest text in training, and of the prompt here
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
SHAPE = Shape(head_dim=32, max_position_embeddings=ORIGINAL)
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "rope_theta": 1e6,
    "max_position_embeddings": 40_960}  # of Qwen3-0.6B, but for the sizes
PUBLISHED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}  # Qwen3's model card
OUTPUT = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    """transformers warns of lengths and factors that do not fit together."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(before)


# --- frequencies


def some_fields(rng: random.Random) -> dict[str, Any]:
    """Fields of `config.json` with YaRN in one spelling or another."""
    choices: dict[str, list[Any]] = {
        "original_max_position_embeddings": [rng.randrange(1, 5000), 32_768],
        "attention_factor": [None, 1.0, rng.uniform(0.5, 2)], "mscale": [None, 1.0, 0.707], "mscale_all_dim": [None, 0.5, 1],
        "truncate": [True, False], "beta_fast": [None, 32, rng.uniform(8, 64)], "beta_slow": [None, 1, rng.uniform(0.5, 8)]}
    rope = {name: rng.choice(values) for name, values in choices.items() if rng.random() < 0.6}
    rope |= {"factor": rng.choice([1, 2, 4.0, 40, rng.uniform(1, 64)]), rng.choice(["type", "rope_type"]): "yarn"}
    fields = QWEN3 | {"head_dim": rng.choice([64, 128, 16, 6]), "max_position_embeddings": rng.choice([32_768, 131_072])}
    theta = fields.pop("rope_theta")
    place, theta = rng.choice(["rope_scaling", "rope_parameters"]), rng.choice([theta, 1e4, 500.0, 10, 1_000_000])
    return fields | ({place: rope, "rope_theta": theta} if rng.random() < 0.5 else {place: rope | {"rope_theta": theta}})


def ours_and_theirs(fields: dict[str, Any]) -> tuple[tuple[Tensor, float], tuple[Tensor, float]]:
    config = ModelConfig.from_dict(fields)
    assert config.rope_scaling is not None
    ours = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling), config.rope_scaling.attention_factor
    return ours, _compute_yarn_parameters(Qwen3Config(**json.loads(json.dumps(fields))))


def test_frequencies_and_attention_factor_are_those_of_transformers_to_the_bit() -> None:
    rng, factors = random.Random(0), set()
    for _ in range(400):
        fields = some_fields(rng)
        (frequencies, factor), (their_frequencies, their_factor) = ours_and_theirs(fields)
        assert torch.equal(frequencies, their_frequencies) and factor == their_factor, fields
        factors.add(factor)
    assert len(factors) > 100, "the sets hardly differ"


@pytest.mark.parametrize("beta", [1, 4.0, 32])
@pytest.mark.parametrize("truncate", [True, False])
def test_both_borders_may_be_the_same(beta: float, truncate: bool) -> None:
    fields = QWEN3 | {"rope_scaling": PUBLISHED | {"beta_fast": beta, "beta_slow": beta, "truncate": truncate}}
    (frequencies, factor), (their_frequencies, their_factor) = ours_and_theirs(fields)
    assert torch.equal(frequencies, their_frequencies) and factor == their_factor
    assert torch.isfinite(frequencies).all()


def test_fast_pairs_keep_their_frequency_and_slow_ones_turn_so_many_times_slower() -> None:
    config = ModelConfig.from_dict(QWEN3 | {"rope_scaling": PUBLISHED})
    slower = rotary_frequencies(128, 1e6) / rotary_frequencies(128, 1e6, config.rope_scaling)
    turns = rotary_frequencies(128, 1e6) * 32_768 / (2 * torch.pi)
    assert torch.equal(slower[turns > 33], torch.ones(int((turns > 33).sum())))
    assert torch.allclose(slower[turns < 0.8], torch.tensor(4.0))
    assert (slower.diff() >= -1e-6).all() and ((slower > 1.1) & (slower < 3.9)).sum() > 5


def test_the_attention_factor_multiplies_cosines_and_sines() -> None:
    config = ModelConfig.from_dict(QWEN3 | {"rope_scaling": PUBLISHED | {"attention_factor": 1.5}})
    rotary = RotaryEmbedding(128, 1e6, 50, config.rope_scaling)
    rotary.finalize_weights(torch.device("cpu"), torch.float32)
    assert torch.allclose(rotary.cos.square() + rotary.sin.square(), torch.tensor(1.5**2))


# --- logits


@pytest.fixture(scope="module")
def with_rope(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`with_rope(**fields)`: the same random network, with other fields in its `config.json`."""

    def make(**fields: Any) -> Path:
        folder = shutil.copytree(random_checkpoint(SHAPE), tmp_path_factory.mktemp("yarn") / "checkpoint")
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")
        return folder

    return make


def recording_llm(folder: Path, **arguments: Any) -> tuple[LLM, list[RecordingSampler]]:
    samplers: list[RecordingSampler] = []

    def make_sampler(config: EngineConfig) -> RecordingSampler:
        samplers.append(RecordingSampler(default_sampler(config)))
        return samplers[0]

    arguments = {"dtype": "float32", "device": "cpu", "check_invariants": True} | arguments
    return LLM(str(folder), components=Components(sampler=make_sampler), **arguments), samplers


def logits_and_tokens(folder: Path, prompt: list[int], **arguments: Any) -> tuple[Tensor, list[int]]:
    """Logits of the tokens that a request generates, [tokens, vocab_size], and the whole sequence."""
    llm, samplers = recording_llm(folder, **arguments)
    output = llm.generate({"prompt_token_ids": prompt}, OUTPUT, use_tqdm=False)[0].outputs[0]
    return torch.cat(samplers[0].logits), [*prompt, *output.token_ids]


def error_of(got: Tensor, sequence: list[int], oracle: Oracle) -> float:
    """The largest difference of a row, divided by the row's largest logit; the worst row's."""
    want = oracle.logits(sequence[:-1])[-len(got):]
    return float(((got - want).abs().amax(dim=-1) / want.abs().amax(dim=-1)).max())


PROMPT = random.Random(1).choices(range(SHAPE.vocab_size), k=LONG)
FILES: dict[str, dict[str, Any]] = {
    "the file has the original length": {"rope_parameters": YARN | {"rope_theta": 1e4}},
    "and does not repeat it": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
    "the file has the stretched length": {"rope_parameters": YARN | {"rope_theta": 1e4}, "max_position_embeddings": 4 * ORIGINAL},
    "the older spelling": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
                           "rope_theta": 1e4, "rope_parameters": None},
    "every field": {"rope_parameters": YARN | {
        "rope_theta": 1e4, "beta_fast": 16, "beta_slow": 2, "mscale": 1.4, "mscale_all_dim": 0.6, "truncate": False}},
    "an attention factor": {"rope_parameters": YARN | {"rope_theta": 1e4, "attention_factor": 1.3}},
}


@pytest.mark.parametrize("arguments", [{}, {"long_prefill_token_threshold": 7, "block_size": 4}], ids=["whole", "chunks of 7"])
@pytest.mark.parametrize("file", FILES)
def test_logits_beyond_the_original_length_equal_transformers(
    file: str, arguments: dict[str, Any], with_rope: Callable[..., Path]
) -> None:
    folder = with_rope(**FILES[file])
    got, sequence = logits_and_tokens(folder, PROMPT, **arguments)
    assert len(got) == OUTPUT.max_tokens and len(sequence) > 3 * ORIGINAL
    assert error_of(got, sequence, Oracle(folder)) <= 1e-4


def test_the_same_network_without_yarn_gives_other_logits(with_rope: Callable[..., Path]) -> None:
    plain = with_rope(max_position_embeddings=4 * ORIGINAL)
    got, sequence = logits_and_tokens(plain, PROMPT)
    assert error_of(got, sequence, Oracle(plain)) <= 1e-4
    assert error_of(got, sequence, Oracle(with_rope(**FILES["the file has the stretched length"]))) > 0.1
    short, of_short = logits_and_tokens(plain, PROMPT[:20])
    assert error_of(short, of_short, Oracle(with_rope(**FILES["the file has the original length"]))) > 0.01, (
        "YaRN changes short texts, too")


@pytest.mark.parametrize("chunk", [0, 7])
def test_in_bfloat16_with_compiled_operators_where_there_are_any(chunk: int, with_rope: Callable[..., Path]) -> None:
    folder = with_rope(**FILES["the file has the original length"])
    got, sequence = logits_and_tokens(folder, PROMPT, dtype="bfloat16", long_prefill_token_threshold=chunk)
    exact = Oracle(folder)
    assert error_of(got, sequence, exact) <= 2 * error_of(
        Oracle(folder, torch.bfloat16).logits(sequence[:-1])[-len(got):], sequence, exact) + 0.02
    assert error_of(got, sequence, Oracle(with_rope(max_position_embeddings=4 * ORIGINAL))) > 0.1


# --- lengths


@pytest.mark.parametrize("longest", [32_768, 40_960, 131_072])
def test_the_longest_text_is_the_original_length_times_the_factor_as_in_vllm(longest: int) -> None:
    config = ModelConfig.from_dict(QWEN3 | {"max_position_embeddings": longest, "rope_scaling": PUBLISHED})
    assert (config.max_position_embeddings, config.derived_max_model_len) == (longest, 131_072)


@pytest.mark.parametrize("file", FILES)
def test_max_model_len_follows_the_stretched_length(file: str, with_rope: Callable[..., Path]) -> None:
    folder = str(with_rope(**FILES[file]))
    assert EngineArgs(folder).create_engine_config().scheduler.max_model_len == 4 * ORIGINAL
    assert EngineArgs(folder, max_model_len=200).create_engine_config().scheduler.max_model_len == 200
    with pytest.raises(InvalidParametersError, match="at most 256, .*stretched by YaRN"):
        EngineArgs(folder, max_model_len=257).create_engine_config()
    assert AsyncLLM(folder, max_seq_length=4096).get_model_info()["max_seq_length"] == 4 * ORIGINAL


# --- refusals

BAD: list[tuple[dict[str, Any], str]] = [
    ({"factor": None}, "factor"), ({"factor": "4"}, "factor"), ({"factor": 0.5}, "factor"), ({"factor": True}, "factor"),
    ({"factor": 1e300}, "factor"), ({"original_max_position_embeddings": 0}, "original_max_position_embeddings"),
    ({"original_max_position_embeddings": 32_768.0}, "original_max_position_embeddings"),
    ({"original_max_position_embeddings": 40_961}, "original_max_position_embeddings"),
    ({"attention_factor": 0}, "attention_factor"), ({"attention_factor": "1"}, "attention_factor"),
    ({"beta_fast": 0}, "beta_fast"), ({"beta_slow": -1}, "beta_slow"), ({"beta_fast": 2, "beta_slow": 3}, "beta_fast"),
    ({"mscale": -0.7}, "mscale"), ({"mscale_all_dim": "all"}, "mscale_all_dim"), ({"truncate": 1}, "truncate"),
    ({"truncate": None}, "truncate"), ({"rope_theta": 1}, "rope_theta"), ({"rope_theta": 0}, "rope_theta"),
    ({"type": "default"}, "type"), ({"rope_type": "default", "type": "yarn"}, "type"),
    *(({"rope_type": kind}, "rope_type")
      for kind in ("linear", "dynamic", "llama3", "longrope", "proportional", "YaRN", None, 3)),
]


@pytest.mark.parametrize(("change", "name"), BAD, ids=str)
@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
def test_what_is_impossible_or_not_computed_is_refused_by_name_and_value(
    section: str, change: dict[str, Any], name: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        ModelConfig.from_dict(QWEN3 | {section: PUBLISHED | change})
    assert f"config.json has {section}.{name}={(PUBLISHED | change)[name]!r}; it must be " in str(caught.value)
    with pytest.raises(InvalidParametersError, match=re.escape(f"hf_overrides has {section}.{name}=")) as wrong:
        ModelConfig.from_dict(QWEN3).with_hf_overrides({section: PUBLISHED | change})
    assert wrong.value.parameter == "hf_overrides"


def test_a_factor_left_out_and_an_original_length_in_another_place_are_refused() -> None:
    without = {name: value for name, value in PUBLISHED.items() if name != "factor"}
    with pytest.raises(ModelLoadError, match="has no field 'rope_scaling.factor'"):
        ModelConfig.from_dict(QWEN3 | {"rope_scaling": without})
    with pytest.raises(ModelLoadError, match="original_max_position_embeddings=8192; .* beside YaRN's factor"):
        ModelConfig.from_dict(QWEN3 | {"rope_scaling": PUBLISHED, "original_max_position_embeddings": 8192})


# --- by argument


@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
def test_yarn_by_argument_is_yarn_in_the_file_and_keeps_the_files_theta(section: str, with_rope: Callable[..., Path]) -> None:
    plain = with_rope(rope_parameters={"rope_type": "default", "rope_theta": 5e3})
    stretched = with_rope(rope_parameters=YARN | {"rope_theta": 5e3})
    of_argument = EngineArgs(str(plain), hf_overrides={section: YARN}).create_engine_config().model
    assert of_argument == EngineArgs(str(stretched)).create_engine_config().model
    got, sequence = logits_and_tokens(plain, PROMPT, hf_overrides={section: YARN})
    assert error_of(got, sequence, Oracle(stretched)) <= 1e-4
    given = EngineArgs(str(plain), hf_overrides={section: YARN | {"rope_theta": 7e3}}).create_engine_config().model
    assert given.rope_theta == 7e3


def test_yarn_can_be_switched_off_by_argument(with_rope: Callable[..., Path]) -> None:
    folder = with_rope(**FILES["the file has the original length"])
    config = EngineArgs(str(folder), hf_overrides={"rope_scaling": {"rope_type": "default"}}).create_engine_config()
    assert config.model.rope_scaling is None and config.scheduler.max_model_len == ORIGINAL


@pytest.mark.parametrize(("overrides", "words"), [
    (None, "None"), ([], "[]"), ({"max_position_embeddings": 9}, "max_position_embeddings"), ({"rope_theta": 1e6}, "rope_theta"),
    ({"rope_scalings": YARN}, "did you mean 'rope_scaling'"), ({"rope_scaling": 4.0}, "4.0"), ({"rope_scaling": None}, "None"),
    ({"rope_scaling": {"factor": 4.0}}, "rope_type"), ({"rope_scaling": YARN, "rope_parameters": YARN}, "one of"),
    ({"rope_scaling": YARN | {"beta_fats": 3}}, "did you mean 'beta_fast'"),
    ({"rope_scaling": YARN | {"original_max_position_embeddings": 10**6}}, "1000000"),
])
def test_anything_but_rotary_fields_is_refused_by_name(overrides: Any, words: str) -> None:
    with pytest.raises(InvalidParametersError) as caught:
        EngineArgs("course", hf_overrides=overrides).create_engine_config()
    assert "hf_overrides" in str(caught.value) and words in str(caught.value)
