"""Fills a network with a checkpoint's tensors, one layer at a time.

Knows names, shapes and the order of work; the files are `checkpoint.py`'s. The network may come from
anywhere: it has Hugging Face's parameter names, and its modules may have `finalize_weights()`. A
layer is loaded and finalized before the next one is touched, so that two full copies of
the weights never coexist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.interfaces import AttentionBackend
from nano_qwen3_serving.model.checkpoint import Tensors, open_tensors
from nano_qwen3_serving.observe.progress import track

if TYPE_CHECKING:
    from nano_qwen3_serving.model.qwen3 import Qwen3ForCausalLM

HEAD = "lm_head.weight"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # dtypes that need no scale stored beside them

Network = TypeVar("Network", bound=Any)


def load_model(config: EngineConfig, attention: AttentionBackend) -> Qwen3ForCausalLM:
    """The reference network of `config` with the checkpoint's weights, ready to run.

    Raises:
        ModelLoadError: a tensor is missing, unexpected, or has another shape than the configuration.
    """
    from nano_qwen3_serving.model.operators import operators_for
    from nano_qwen3_serving.model.qwen3 import Qwen3ForCausalLM  # imported here: a replacement network does not need this file

    with torch.device("meta"):
        network = Qwen3ForCausalLM(
            config.model, attention, config.scheduler.max_model_len, operators_for(config))
    return load_weights(network, config)


def load_weights(network: Network, config: EngineConfig) -> Network:
    """Fills a freshly built `network` with the checkpoint's weights; returns it, ready to run.

    Args:
        network: has `model.layers`, `model.norm`, `model.embed_tokens` and `lm_head`, whose parameters are
            named as in Hugging Face's checkpoints. Their values are never read: they may lie on torch's
            meta device, or in memory that was never touched.
        config: which checkpoint, in which dtype and place.

    Raises:
        ModelLoadError: a tensor is missing, unexpected, quantized, or has another shape than the network's.
    """
    tensors = open_tensors(config.model_path)
    check_names(network, tensors, config)
    check_tied_head(tensors, config)
    model = network.model
    for i, layer in enumerate(track(model.layers, f"Loading {config.model_name}")):
        fill(layer, f"model.layers.{i}.", tensors, config)
        finalize(layer)
        leave_file(layer)
    fill(model.norm, "model.norm.", tensors, config)
    leave_file(model.norm)
    fill(model.embed_tokens, "model.embed_tokens.", tensors, config)  # stays in the file: few rows are read
    tied = config.model.tie_word_embeddings
    fill(network.lm_head, "model.embed_tokens." if tied else "lm_head.", tensors, config)
    finalize(network.lm_head)
    rotary: Any = getattr(model, "rotary", None)
    if hasattr(rotary, "finalize_weights"):  # its tables are computed, not loaded: they need a device and a dtype
        rotary.finalize_weights(config.device, config.dtype)
    return network.eval()


def finalize(module: nn.Module) -> None:
    """Calls `finalize_weights()` of `module`, or else of the outermost modules inside that have it.

    A module that has it is responsible for every module inside it, because it may fuse them.
    """
    finalize_weights = getattr(module, "finalize_weights", None)
    if finalize_weights is not None:
        finalize_weights()
    else:
        for child in module.children():
            finalize(child)


def check_names(network: nn.Module, tensors: Tensors, config: EngineConfig) -> None:
    """Refuses a checkpoint whose tensors are not exactly the network's."""
    expected, actual = set(network.state_dict()), set(tensors)
    if config.model.tie_word_embeddings:
        expected.discard(HEAD)
        actual.discard(HEAD)
    for what, names in (("lacks", expected - actual), ("has unexpected", actual - expected)):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise ModelLoadError(
                f"the checkpoint in {config.model_path} {what} {len(names)} tensors, such as {some}; "
                "does its config.json belong to these weights?")


def check_tied_head(tensors: Tensors, config: EngineConfig) -> None:
    """Refuses a file with a head of its own where the configuration says that head and embedding are one.

    Programs read such a file differently: vLLM takes the embedding, transformers the head.
    """
    embedding = "model.embed_tokens.weight"
    if not config.model.tie_word_embeddings or HEAD not in set(tensors):
        return
    if not torch.equal(tensors.load(HEAD), tensors.load(embedding)):
        raise ModelLoadError(
            f"{config.model_path / 'config.json'} has tie_word_embeddings=true, but {HEAD} differs from {embedding} in "
            "the checkpoint; set it to false if the head is right, or remove the tensor if it is left over")


def fill(module: nn.Module, prefix: str, tensors: Tensors, config: EngineConfig) -> None:
    """Replaces each parameter of `module` by the tensor of its name, in the engine's dtype and place."""
    for name, parameter in list(module.named_parameters()):
        tensor = tensors.load(prefix + name)
        if tensor.shape != parameter.shape:
            raise ModelLoadError(
                f"{prefix + name} has shape {list(tensor.shape)}, config.json says {list(parameter.shape)}")
        if tensor.dtype not in DTYPES:
            raise ModelLoadError(
                f"{prefix + name} is stored as {tensor.dtype}, so it is quantized; give a checkpoint of the same model in "
                "bfloat16, float16 or float32")
        path, _, leaf = name.rpartition(".")
        loaded = tensor.to(device=config.device, dtype=config.dtype)
        setattr(module.get_submodule(path), leaf, nn.Parameter(loaded, requires_grad=False))


def leave_file(module: nn.Module) -> None:
    """Copies what is still a view of the checkpoint's file, so that the file may go."""
    for parameter in module.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
