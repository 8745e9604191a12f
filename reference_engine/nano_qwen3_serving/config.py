"""What a checkpoint is and how the engine runs it, checked and complete.

Knows the fields of a Qwen3 `config.json` and `generation_config.json`; knows nothing of tensors. `EngineArgs`
(what a user writes) becomes `EngineConfig` (what the parts read) in `engine/arg_utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.side_files import Fields

ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = "qwen3"
DEFAULT_HEAD_DIM = 128  # for a config.json that gives none, as in transformers
DEFAULT_ROPE_THETA = 10_000.0  # the same
SAMPLING_DEFAULTS = {name: name for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")} | {
    "max_new_tokens": "max_tokens"}  # of generation_config.json → of SamplingParams, as in vLLM


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Qwen3 network, from the checkpoint's `config.json`, and its recommended sampling parameters.

    Attributes:
        rope_theta: base of the rotary frequencies.
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
        config = cls(
            vocab_size=vocab_size,
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=num_key_value_heads(fields, heads),
            head_dim=head_dim(fields),
            max_position_embeddings=fields.integer("max_position_embeddings"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=rope_theta(fields),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            attention_bias=fields.flag("attention_bias", False),
            eos_token_ids=ends if defaults is None else token_ids(defaults, "eos_token_id", vocab_size),
            generation_defaults={} if defaults is None else sampling_defaults(defaults),
        )
        refuse_other_layers(fields, config.num_hidden_layers)
        return config

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


def rope_theta(fields: Fields) -> float:
    """The rotary base: at the top level in older files, inside `rope_parameters` in newer ones.

    `rope_scaling`, the older name, comes before `rope_parameters`, as in transformers.

    Raises:
        ModelLoadError: the file asks for angles stretched for longer texts (YaRN and the like), or for angles that
            differ from layer to layer.
    """
    older, newer = fields.section("rope_scaling"), fields.section("rope_parameters")
    rope = older if older.raw else newer
    for name in ("rope_type", "type"):
        if rope.raw.get(name, "default") != "default":
            raise rope.wrong(name, "'default' or left out: stretched rotary angles (YaRN and the like) are not supported; "
                                   "without them the model reads as many tokens as it was trained for")
    if rope.raw.get("partial_rotary_factor", 1) != 1:
        raise rope.wrong("partial_rotary_factor", "1 or left out: only whole heads are rotated")
    for name, value in rope.raw.items():
        if isinstance(value, dict):
            raise rope.wrong(name, "left out: rotary angles of their own for some layers are not supported")
    default = fields.number("rope_theta", DEFAULT_ROPE_THETA) if "rope_theta" not in rope else DEFAULT_ROPE_THETA
    return rope.number("rope_theta", default)


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
    max_num_queued_reqs: int | None = None
    log_stats: bool = True
    check_invariants: bool = False
    batch_invariant: bool = False
    cpu_kernels: bool = False
