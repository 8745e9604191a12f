"""What a checkpoint is and how the engine runs it, checked and complete.

Knows the fields of a Qwen3 `config.json` and `generation_config.json`; knows nothing of tensors. `EngineArgs`
(what a user writes) becomes `EngineConfig` (what the parts read) in `engine/arg_utils.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nano_qwen3_serving.arguments import invalid, refuse_unknown
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.side_files import Fields

ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = "qwen3"
DEFAULT_HEAD_DIM = 128  # for a config.json that gives none, as in transformers
DEFAULT_ROPE_THETA = 10_000.0  # the same
ROPE_SECTIONS = ("rope_scaling", "rope_parameters")  # the older name and the newer one
ROPE_TYPES = ("default", "yarn")
YARN_FIELDS = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
               "mscale_all_dim", "truncate")
LONGEST_YARN = 1 << 24  # tokens: angles are computed in float32, which has every whole number up to here
SAMPLING_DEFAULTS = {name: name for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")} | {
    "max_new_tokens": "max_tokens"}  # of generation_config.json → of SamplingParams, as in vLLM


@dataclass(frozen=True)
class YarnScaling:
    """Rotary angles stretched for texts longer than any in training: YaRN (Peng et al., 2023).

    Attributes:
        factor: how many times longer.
        original_max_position_embeddings: tokens of the longest text in training.
        attention_factor: multiplies cosines and sines, and so attention's scores by its square.
        beta_fast: a pair of numbers that turns more often than this within the original length keeps its frequency.
        beta_slow: the frequency of a pair that turns less often is divided by `factor`; in between, it is a blend.
        truncate: both borders are rounded outwards to whole pairs.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Qwen3 network, from the checkpoint's `config.json`, and its recommended sampling parameters.

    Attributes:
        max_position_embeddings: as the file has it; see `derived_max_model_len`.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how they are stretched; None: not at all.
        eos_token_ids: tokens that end a sequence; the tokenizer's own is the first, see `with_eos`.
        generation_defaults: what `generation_config.json` gives, under the names of `SamplingParams`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    rope_scaling: YarnScaling | None = None
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()
    generation_defaults: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], generation: dict[str, Any] | None = None, folder: Path | None = None
    ) -> ModelConfig:
        """From the parsed `config.json` and, if there is one, `generation_config.json`.

        Args:
            raw: the object in `config.json`.
            generation: the object in `generation_config.json`; None if there is no such file.
            folder: where the files lie, for errors.

        Raises:
            ModelLoadError: another architecture, a field that is missing or has an impossible value, or a feature that
                would change the results and is not implemented.
        """
        folder = folder or Path()
        fields = Fields(folder / "config.json", raw)
        defaults = None if generation is None else Fields(folder / "generation_config.json", generation)
        refuse_other_networks(fields)
        vocab_size, heads = fields.integer("vocab_size"), fields.integer("num_attention_heads")
        ends = token_ids(fields, "eos_token_id", vocab_size)
        longest = fields.integer("max_position_embeddings")
        theta, scaling = rotary_angles(fields, longest)
        config = cls(
            vocab_size=vocab_size,
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=num_key_value_heads(fields, heads),
            head_dim=head_dim(fields),
            max_position_embeddings=longest,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            attention_bias=fields.flag("attention_bias", False),
            eos_token_ids=ends if defaults is None else token_ids(defaults, "eos_token_id", vocab_size),
            generation_defaults={} if defaults is None else sampling_defaults(defaults),
        )
        refuse_other_layers(fields, config.num_hidden_layers)
        return config

    @property
    def derived_max_model_len(self) -> int:
        """Tokens of the longest text, as vLLM derives them: YaRN's original length times its factor, whatever
        `max_position_embeddings` says, because files differ in whether they stretch that number too."""
        yarn = self.rope_scaling
        return self.max_position_embeddings if yarn is None else int(yarn.original_max_position_embeddings * yarn.factor)

    def with_hf_overrides(self, overrides: dict[str, Any]) -> ModelConfig:
        """The configuration with other rotary angles than the file's.

        Args:
            overrides: vLLM's `hf_overrides`: {"rope_scaling": fields}, or the same as "rope_parameters". A rope_theta
                that it leaves out is the file's.

        Raises:
            InvalidParametersError: another field, or a value that `config.json` could not have either.
        """
        if not overrides:
            return self
        refuse_unknown("hf_overrides", ROPE_SECTIONS, overrides)
        name, raw = next(iter(overrides.items()))
        if len(overrides) > 1 or not isinstance(raw, dict) or not {"rope_type", "type"} & raw.keys():
            raise invalid("hf_overrides", overrides, "one of rope_scaling and rope_parameters, an object with a rope_type")
        refuse_unknown(f"hf_overrides[{name!r}]", ("rope_type", "type", "rope_theta", *YARN_FIELDS), raw)
        try:
            theta, scaling = read_angles(
                Fields(Path("hf_overrides"), raw, f"{name}."), self.rope_theta, self.max_position_embeddings)
        except ModelLoadError as error:
            raise InvalidParametersError(str(error), parameter="hf_overrides", value=overrides) from None
        return replace(self, rope_theta=theta, rope_scaling=scaling)

    def with_eos(self, token_id: int | None) -> ModelConfig:
        """The configuration with the tokenizer's end-of-sequence token in front of its own ones, as in vLLM.

        A token without a row in the network can never be generated, so it is left out.
        """
        if token_id is None or token_id >= self.vocab_size:
            return self
        return replace(self, eos_token_ids=tuple(dict.fromkeys([token_id, *self.eos_token_ids])))


def num_key_value_heads(fields: Fields, heads: int) -> int:
    """The number of key and value heads: as many as query heads if the field is null, else a divisor of that number."""
    if "num_key_value_heads" in fields and fields.get("num_key_value_heads") is None:
        return heads
    count = fields.integer("num_key_value_heads")
    if heads % count:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads={heads}")
    return count


def head_dim(fields: Fields) -> int:
    """Numbers in a head: even, because rotary embeddings turn pairs of numbers."""
    size = fields.integer("head_dim", DEFAULT_HEAD_DIM)
    if size % 2:
        raise fields.wrong("head_dim", "even: rotary embeddings turn pairs of numbers")
    return size


def refuse_other_networks(fields: Fields) -> None:
    """Raises a `ModelLoadError` for anything that this engine would compute wrongly."""
    served = f"{MODEL_TYPE!r} with architectures=[{ARCHITECTURE!r}]: this engine serves dense Qwen3, such as Qwen/Qwen3-0.6B"
    if fields.get("architectures") not in (None, [ARCHITECTURE]):
        raise fields.wrong("architectures", f"those of model_type {served}")
    if fields.raw.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise fields.wrong("model_type", served)
    if fields.get("architectures") is None:
        raise fields.wrong("architectures", f"those of model_type {served}")
    if fields.raw.get("hidden_act", "silu") != "silu":
        raise fields.wrong("hidden_act", "'silu': nothing else is supported")
    if fields.flag("use_sliding_window", False):
        raise fields.wrong("use_sliding_window", "false: sliding windows are not supported")
    if fields.raw.get("partial_rotary_factor", 1) != 1:
        raise fields.wrong("partial_rotary_factor", "1 or left out: only whole heads are rotated")
    for name in ("quantization_config", "compression_config", "per_layer_config"):
        if fields.get(name):
            raise fields.wrong(name, "left out: it is not supported")


def refuse_other_layers(fields: Fields, count: int) -> None:
    """Raises a `ModelLoadError` unless `layer_types`, if given, names full attention for each layer."""
    kinds = fields.get("layer_types")
    if kinds is not None and kinds != ["full_attention"] * count:
        raise fields.wrong("layer_types", f"left out, or 'full_attention' {count} times (num_hidden_layers)")


def rotary_angles(fields: Fields, longest: int) -> tuple[float, YarnScaling | None]:
    """The rotary base, at the top level in older files, and how angles are stretched.

    `rope_scaling`, the older name, comes before `rope_parameters`, as in transformers.

    Args:
        fields: of `config.json`.
        longest: `max_position_embeddings`.

    Raises:
        ModelLoadError: the file asks for angles that are not computed, or contradicts itself.
    """
    older, newer = (fields.section(name) for name in ROPE_SECTIONS)
    rope = older if older.raw else newer
    default = fields.number("rope_theta", DEFAULT_ROPE_THETA) if "rope_theta" not in rope else DEFAULT_ROPE_THETA
    theta, scaling = read_angles(rope, default, longest)
    if scaling is not None and "original_max_position_embeddings" in fields:
        raise fields.wrong("original_max_position_embeddings", "left out: it belongs beside YaRN's factor")
    return theta, scaling


def read_angles(rope: Fields, theta: float, longest: int) -> tuple[float, YarnScaling | None]:
    """The same from one section; `theta` is the base if the section has none.

    Raises:
        ModelLoadError: a stretching other than YaRN, angles for a part of a head, or for some layers.
    """
    for name in ("rope_type", "type"):
        if rope.raw.get(name, "default") not in ROPE_TYPES:
            raise rope.wrong(name, "'default', 'yarn' or left out: rotary angles stretched in other ways (linear, dynamic, "
                                   "llama3, longrope) are not supported; without them the model reads as many tokens as "
                                   "it was trained for")
    kind = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if rope.raw.get("type", kind) != kind:
        raise rope.wrong("type", f"{kind!r} like rope_type, or left out")
    if rope.raw.get("partial_rotary_factor", 1) != 1:
        raise rope.wrong("partial_rotary_factor", "1 or left out: only whole heads are rotated")
    for name, value in rope.raw.items():
        if isinstance(value, dict):
            raise rope.wrong(name, "left out: rotary angles of their own for some layers are not supported")
    theta = rope.number("rope_theta", theta)
    return theta, yarn_scaling(rope, theta, longest) if kind == "yarn" else None


def yarn_scaling(rope: Fields, theta: float, longest: int) -> YarnScaling:
    """YaRN's numbers; what is left out, or null, means what it means in transformers.

    Raises:
        ModelLoadError: a field is missing or has an impossible value, or two contradict each other.
    """
    factor = rope.number("factor", 0.0)  # no default: 0 is refused
    if factor < 1:
        raise rope.wrong("factor", "at least 1: it says how many times longer texts may be than in training")
    original = rope.integer("original_max_position_embeddings", longest)
    if original > longest:
        raise rope.wrong("original_max_position_embeddings", f"at most max_position_embeddings={longest}")
    if original > LONGEST_YARN or original * factor > LONGEST_YARN:
        raise rope.wrong("factor", f"so small that the stretched length is at most {LONGEST_YARN} tokens")
    if theta <= 1:
        raise rope.wrong("rope_theta", "above 1: YaRN takes its logarithm")
    fast, slow = number_or_null(rope, "beta_fast", 32.0), number_or_null(rope, "beta_slow", 1.0)
    if fast < slow:
        raise rope.wrong("beta_fast", f"at least beta_slow={slow:g}: fast pairs turn more often than slow ones")
    return YarnScaling(factor, original, attention_factor(rope, factor), fast, slow, rope.flag("truncate", True))


def attention_factor(rope: Fields, factor: float) -> float:
    """The one given; else the quotient of both `mscale`, if there are both; else the paper's 0.1 ln(factor) + 1."""
    given, above, below = (number_or_null(rope, name, 0.0) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given:
        return given
    return mscale(factor, above) / mscale(factor, below) if above and below else mscale(factor, 1.0)


def mscale(factor: float, weight: float) -> float:
    """How much larger cosines and sines are made for texts `factor` times longer, equation 22 of the paper."""
    return 0.1 * weight * math.log(factor) + 1.0


def number_or_null(fields: Fields, name: str, default: float) -> float:
    """A number above 0; `default` when the field is left out or null."""
    return default if fields.get(name) is None else fields.number(name, default)


def token_ids(fields: Fields, name: str, vocab_size: int) -> tuple[int, ...]:
    """A field that names one token, several, or none.

    Raises:
        ModelLoadError: the field holds something else, or the network has no row for one of the tokens.
    """
    value = fields.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        raise fields.wrong(name, f"a token id in [0, {vocab_size - 1}] (vocab_size), a list of such ids, or null")
    return tuple(dict.fromkeys(ids))


def sampling_defaults(fields: Fields) -> dict[str, Any]:
    """The defaults that `generation_config.json` gives for `SamplingParams`: the six fields that vLLM uses.

    Raises:
        ModelLoadError: `SamplingParams` refuses one of the values.
    """
    defaults = {ours: fields.raw[theirs] for theirs, ours in SAMPLING_DEFAULTS.items() if fields.get(theirs) is not None}
    try:
        SamplingParams(**defaults)
    except InvalidParametersError as error:
        theirs = next(theirs for theirs, ours in SAMPLING_DEFAULTS.items() if ours == error.parameter)
        raise fields.wrong(theirs, f"what SamplingParams takes ({error}), or null") from error
    return defaults


@dataclass(frozen=True)
class CacheConfig:
    """The KV cache: `num_blocks` blocks of `block_size` tokens, block 0 being the null block."""

    num_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True

    @property
    def capacity(self) -> int:
        """Tokens the pool can hold; the null block holds none."""
        return (self.num_blocks - 1) * self.block_size


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds of one step.

    Attributes:
        max_num_seqs: requests running at once.
        max_num_batched_tokens: tokens computed in one step.
        max_model_len: tokens of one request, prompt and output.
        policy: "fcfs", or "priority" (smaller number first).
        enable_chunked_prefill: a prompt may be computed over several steps.
        long_prefill_token_threshold: a chunk has at most this many tokens; 0 means no bound.
        num_speculative_tokens: drafts of a request in a step, if there is a drafter.
    """

    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2048
    policy: str = "fcfs"
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    num_speculative_tokens: int = 0


INVARIANT_ROWS = 16
"""With `batch_invariant` every matrix product has this many rows, and their number is padded to a multiple of it."""


@dataclass(frozen=True)
class EngineConfig:
    """Everything the parts of one engine are built from."""

    model_name: str
    model_path: Path
    tokenizer_path: Path
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    max_logprobs: int = 20
    stream_interval: int = 1
    stream_pause: float = 0.0
    max_num_queued_reqs: int | None = None
    log_stats: bool = True
    check_invariants: bool = False
    batch_invariant: bool = False
    cpu_kernels: bool = False
