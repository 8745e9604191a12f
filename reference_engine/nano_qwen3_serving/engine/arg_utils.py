"""What a user writes → what the parts read. vLLM's `EngineArgs`, same names and defaults.

Checks every argument, finds the checkpoint, picks device and dtype, sizes the KV pool.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nano_qwen3_serving.arguments import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_text,
    invalid,
    names_unknown_arguments,
    own_copy,
    refuse_unknown,
)
from nano_qwen3_serving.config import ROPE_SECTIONS, CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from nano_qwen3_serving.model.checkpoint import (
    BUNDLED_NAMES,
    default_model_name,
    find_checkpoint,
    read_model_config,
)

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "half": torch.float16,
          "float32": torch.float32, "float": torch.float32}
LONGEST_PATH, LONGEST_NAME = 4096, 255  # of most systems, which raise errors of their own for longer ones
DEFAULT_POOL_BYTES = 1 << 30
ACTIVATION_RESERVE = 1 << 30  # CUDA bytes left to activations


@names_unknown_arguments
@dataclass
class EngineArgs:
    """Arguments of an engine.

    Args:
        model: "course", "course-draft", a folder, or a Hugging Face id.
        tokenizer: where the tokenizer is, if not in the model's folder.
        dtype: "auto", "bfloat16", "float16" or "float32".
        seed: seeds the requests that bring no seed of their own.
        max_model_len: tokens of one request, prompt and output; None is what the model was trained
            for, or what YaRN stretches that to. Never more than the KV pool holds.
        block_size: tokens in a KV block; None is 16.
        enable_prefix_caching: share blocks of equal beginnings; None is True.
        gpu_memory_utilization: share of the CUDA device's memory for weights and KV cache.
        kv_cache_memory_bytes: bytes of the KV pool, instead of the default.
        num_gpu_blocks_override: blocks of the KV pool, instead of a number of bytes.
        max_num_batched_tokens: tokens computed in one step; None is 2048.
        max_num_seqs: requests running at once; None is 128.
        enable_chunked_prefill: compute prompts over several steps; None is True.
        long_prefill_token_threshold: the longest chunk of a prompt; 0 is no such bound.
        scheduling_policy: "fcfs", or "priority": the smaller number first.
        max_logprobs: the most log-probabilities a request may ask for; -1 is no bound.
        stream_interval: tokens between two outputs of a stream.
        stream_pause: seconds between two deliveries of outputs to an event loop; a stream's outputs of the time between arrive
            as one. Async engines only.
        max_num_queued_reqs: requests that may wait; None is no bound. Async engines only.
        disable_log_stats: no statistics in the log.
        enforce_eager: accepted as in vLLM; there are no graphs to switch off yet.
        device: "auto" (CUDA, then MPS, then CPU), or one of them.
        check_invariants: check batches, block tables and the block pool in every step; for tests.
        batch_invariant: the same bits for a request whatever runs beside it and however it is
            chunked; slower. See "Determinism" in reference_engine/README.md.
        cpu_kernels: compiled operators on a CPU, built once with the machine's C++ compiler. None: for
            bfloat16 models, where they can be built; False: torch alone.
        hf_overrides: rotary angles instead of those in the checkpoint's config.json, such as {"rope_scaling": {"rope_type":
            "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}} for texts four times longer than in
            training; other fields are refused.
        trust_remote_code: accepted, with a warning: code from a checkpoint is never run here.
        tensor_parallel_size, quantization, speculative_config: as in vLLM; only the defaults are
            supported, anything else is refused.

    Raises:
        InvalidParametersError: on construction, for a wrong type or range.
        UnknownArgumentError: there is no such argument.
    """

    model: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    max_model_len: int | None = None
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    enable_chunked_prefill: bool | None = None
    long_prefill_token_threshold: int = 0
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    scheduling_policy: str = "fcfs"
    max_logprobs: int = 20
    stream_interval: int = 1
    stream_pause: float = 0.0
    max_num_queued_reqs: int | None = None
    disable_log_stats: bool = False
    quantization: str | None = None
    speculative_config: dict[str, Any] | None = field(default=None)
    device: str = "auto"
    check_invariants: bool = False
    batch_invariant: bool = False
    cpu_kernels: bool | None = None

    def __post_init__(self) -> None:
        for name in ("model", "tokenizer"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, (str, Path)) or not str(value):
                raise invalid(name, value, "a name or a path")
            check_text(name, str(value))
            if len(str(value)) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in Path(value).parts):
                raise invalid(name, value, f"a path of at most {LONGEST_PATH} characters, {LONGEST_NAME} bytes a folder")
        for name, at_least in (("seed", 0), ("tensor_parallel_size", 1), ("max_logprobs", -1),
                               ("stream_interval", 1), ("long_prefill_token_threshold", 0)):
            check_int(name, getattr(self, name), at_least=at_least)
        for name in ("max_model_len", "block_size", "kv_cache_memory_bytes", "max_num_batched_tokens",
                     "max_num_seqs", "max_num_queued_reqs"):
            check_int(name, getattr(self, name), at_least=1, optional=True)
        check_int("num_gpu_blocks_override", self.num_gpu_blocks_override, at_least=2, optional=True)
        for name in ("trust_remote_code", "enforce_eager", "disable_log_stats", "check_invariants", "batch_invariant"):
            check_bool(name, getattr(self, name))
        for name in ("enable_prefix_caching", "enable_chunked_prefill", "cpu_kernels"):
            if getattr(self, name) is not None:
                check_bool(name, getattr(self, name))
        check_float("gpu_memory_utilization", self.gpu_memory_utilization, low=0, high=1, open_low=True)
        check_float("stream_pause", self.stream_pause, low=0, high=60)
        check_choice("scheduling_policy", self.scheduling_policy, ["fcfs", "priority"])
        check_choice("dtype", self.dtype, ["auto", *DTYPES])
        if not isinstance(self.hf_overrides, dict):
            raise invalid("hf_overrides", self.hf_overrides, "a dict such as {'rope_scaling': {'rope_type': 'yarn', ...}}")
        refuse_unknown("hf_overrides", ROPE_SECTIONS, self.hf_overrides)
        self.hf_overrides = own_copy("hf_overrides", self.hf_overrides)
        self._refuse_unsupported()

    def _refuse_unsupported(self) -> None:
        for name, supported in (("tensor_parallel_size", 1), ("quantization", None), ("speculative_config", None)):
            if type(getattr(self, name)) is not type(supported) or getattr(self, name) != supported:
                raise invalid(name, getattr(self, name), f"{supported!r}: nothing else is supported")

    def create_engine_config(self) -> EngineConfig:
        """The complete configuration.

        Raises:
            ModelLoadError: the checkpoint is missing or not usable.
            InvalidParametersError: an argument does not fit this checkpoint or this machine.
        """
        if self.trust_remote_code:
            warnings.warn("trust_remote_code=True changes nothing: code from a checkpoint is never run here", stacklevel=2)
        name = str(self.model or default_model_name())
        path = find_checkpoint(name)
        model = read_model_config(path).with_hf_overrides(self.hf_overrides)
        device = pick_device(self.device)
        dtype = pick_dtype(self.dtype, device, name)
        cache = self._cache_config(model, device, dtype)
        return EngineConfig(
            model_name=name,
            model_path=path,
            tokenizer_path=find_checkpoint(str(self.tokenizer), weights=False) if self.tokenizer else path,
            model=model,
            cache=cache,
            scheduler=self._scheduler_config(model, cache),
            device=device,
            dtype=dtype,
            seed=self.seed,
            max_logprobs=self.max_logprobs,
            stream_interval=self.stream_interval,
            stream_pause=self.stream_pause,
            max_num_queued_reqs=self.max_num_queued_reqs,
            log_stats=not self.disable_log_stats,
            check_invariants=self.check_invariants,
            batch_invariant=self.batch_invariant,
            cpu_kernels=self._builds_cpu_kernels(model, device, dtype),
        )

    def _builds_cpu_kernels(self, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether compiled operators are used; builds them if so."""
        by_default = device.type == "cpu" and dtype == torch.bfloat16
        if not (by_default if self.cpu_kernels is None else self.cpu_kernels):
            return False
        reason = self._no_cpu_kernels_because(model, device, dtype)
        if reason and self.cpu_kernels:
            raise invalid("cpu_kernels", True, f"None or False here: {reason}")
        if reason:
            logger.info("no compiled operators: %s", reason)
        return reason is None

    def _no_cpu_kernels_because(self, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"the device is {device.type}"
        if self.batch_invariant:
            return "batch_invariant computes in torch alone"
        from nano_qwen3_serving.kernels.shapes import misfit  # only here: without them there is still torch

        return misfit(model, dtype) or build_failure()

    def _cache_config(self, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> CacheConfig:
        size = self.block_size or 16
        caching = self.enable_prefix_caching is not False
        token_bytes = kv_bytes_per_token(model, dtype)
        if self.num_gpu_blocks_override is not None:
            refuse_more_than_there_is("num_gpu_blocks_override", self.num_gpu_blocks_override, size * token_bytes, device)
            return CacheConfig(self.num_gpu_blocks_override, size, caching)
        wanted = self.kv_cache_memory_bytes or self._pool_bytes(model, device, dtype, token_bytes)
        num_blocks = wanted // (token_bytes * size)
        if num_blocks < 2:
            raise invalid("kv_cache_memory_bytes", wanted,
                          f"at least two blocks of {token_bytes * size} bytes; give more memory or a smaller block_size")
        refuse_more_than_there_is("kv_cache_memory_bytes", wanted, 1, device)
        return CacheConfig(num_blocks, size, caching)

    def _pool_bytes(self, model: ModelConfig, device: torch.device, dtype: torch.dtype, token_bytes: int) -> int:
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            weights = num_parameters(model) * dtype.itemsize
            return int(total * self.gpu_memory_utilization) - weights - ACTIVATION_RESERVE
        size = self.block_size or 16
        longest = -(-(self.max_model_len or model.derived_max_model_len) // size) * size
        return min((self.max_num_seqs or 128) * longest * token_bytes + size * token_bytes, DEFAULT_POOL_BYTES)

    def _scheduler_config(self, model: ModelConfig, cache: CacheConfig) -> SchedulerConfig:
        longest = model.derived_max_model_len
        reason = "what the model was trained for" + (", stretched by YaRN" if model.rope_scaling else "")
        if self.max_model_len is not None and self.max_model_len > longest:
            raise invalid("max_model_len", self.max_model_len, f"at most {longest}, {reason}")
        max_model_len = self.max_model_len or longest
        if max_model_len > cache.capacity:
            logger.info("max_model_len is %d, what the KV pool of %d blocks holds (%d was asked for)",
                        cache.capacity, cache.num_blocks, max_model_len)
            max_model_len = cache.capacity
        max_num_seqs = self.max_num_seqs or min(128, self.max_num_batched_tokens or 128)
        budget = self.max_num_batched_tokens or max(2048, max_num_seqs)
        if budget < max_num_seqs:
            raise invalid("max_num_batched_tokens", budget,
                          f"at least max_num_seqs={max_num_seqs}: each running request computes a token a step")
        chunked = self.enable_chunked_prefill is not False
        if not chunked and budget < max_model_len:
            raise invalid("max_num_batched_tokens", budget,
                          f"at least max_model_len={max_model_len} when enable_chunked_prefill is False")
        if not chunked and self.long_prefill_token_threshold:
            raise invalid("long_prefill_token_threshold", self.long_prefill_token_threshold,
                          "0 when enable_chunked_prefill is False")
        return SchedulerConfig(max_num_seqs, budget, max_model_len, self.scheduling_policy, chunked,
                               self.long_prefill_token_threshold)


@names_unknown_arguments
@dataclass
class AsyncEngineArgs(EngineArgs):
    """Arguments of an asynchronous engine: the same."""


def refuse_more_than_there_is(parameter: str, value: int, each: int, device: torch.device) -> None:
    """Refuses a KV pool of `value` times `each` bytes that the device's memory could never hold, where that is known."""
    there = memory_bytes(device)
    if there is not None and value * each > there:
        raise invalid(parameter, value, f"at most {there // each}, for the memory has {there / 1e9:.1f} GB")


def memory_bytes(device: torch.device) -> int | None:
    """Bytes of the memory in which the KV pool would be; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def pick_device(name: str) -> torch.device:
    """The device asked for, or the best one there is; refuses one that is not there."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    if not isinstance(name, str) or name.split(":")[0] not in available:
        raise invalid("device", name, "'auto' or one of this machine's: " + ", ".join(map(repr, available)))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise invalid("device", name, "a device such as 'cpu', 'cuda' or 'cuda:1'") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise invalid("device", name, f"one of this machine's {torch.cuda.device_count()} CUDA devices")
    return device


def pick_dtype(name: str, device: torch.device, model_name: str) -> torch.dtype:
    """The dtype asked for, or what suits the device: float32 for the bundled checkpoints, so that
    printed outputs agree everywhere."""
    if name != "auto":
        return DTYPES[name]
    if model_name in BUNDLED_NAMES:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    flags = torch._C._cpu if hasattr(torch._C, "_cpu") else None
    asks = [getattr(flags, f, None) for f in ("_is_avx512_bf16_supported", "_is_amx_tile_supported",
                                              "_is_arm_bf16_supported")]
    return any(ask() for ask in asks if ask) and capabilities != "NO AVX"


def build_failure() -> str | None:
    """Builds the compiled operators; why that did not work, or None."""
    from nano_qwen3_serving.kernels.build import BuildError, cpu_kernels

    try:
        cpu_kernels()
    except BuildError as error:
        return str(error)
    return None


def kv_bytes_per_token(model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * dtype.itemsize


def num_parameters(model: ModelConfig) -> int:
    """Parameters of the network; a tied head counts once."""
    heads = model.num_attention_heads + 2 * model.num_key_value_heads
    bias = (heads * model.head_dim + model.hidden_size) if model.attention_bias else 0
    attention = model.hidden_size * model.head_dim * (heads + model.num_attention_heads) + bias
    norms = 2 * model.hidden_size + 2 * model.head_dim
    layer = attention + 3 * model.hidden_size * model.intermediate_size + norms
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    return model.num_hidden_layers * layer + embeddings + model.hidden_size
