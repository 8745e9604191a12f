"""Fills the network with a checkpoint's tensors, one layer at a time.

Knows names, shapes and the order of work; the files are `checkpoint.py`'s. A layer is loaded,
fused and packed before the next one is touched, so that never two copies of all weights exist.
"""

from __future__ import annotations

import torch
from torch import nn

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.interfaces import AttentionBackend
from nano_qwen3_serving.model.checkpoint import Tensors, open_tensors
from nano_qwen3_serving.model.qwen3 import Qwen3ForCausalLM
from nano_qwen3_serving.observe.progress import track

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def load_model(config: EngineConfig, attention: AttentionBackend) -> Qwen3ForCausalLM:
    """The network of `config` with the checkpoint's weights, ready to run.

    Raises:
        ModelLoadError: a tensor is missing, unexpected, or has another shape than the configuration.
    """
    with torch.device("meta"):
        network = Qwen3ForCausalLM(config.model, attention, config.scheduler.max_model_len)
    tensors = open_tensors(config.model_path)
    check_names(network, tensors, config)
    for i, layer in enumerate(track(network.model.layers, f"Loading {config.model_name}")):
        fill(layer, f"model.layers.{i}.", tensors, config)
        layer.self_attn.finalize_weights()
        layer.mlp.finalize_weights()
        leave_file(layer)
    fill(network.model.norm, "model.norm.", tensors, config)
    leave_file(network.model.norm)
    fill(network.model.embed_tokens, "model.embed_tokens.", tensors, config)  # stays in the file: few rows are read
    tied = config.model.tie_word_embeddings
    fill(network.lm_head, "model.embed_tokens." if tied else "lm_head.", tensors, config)
    network.lm_head.finalize_weights()
    network.model.rotary.finalize_weights(config.device, config.dtype)
    return network.eval()


def check_names(network: nn.Module, tensors: Tensors, config: EngineConfig) -> None:
    """Refuses a checkpoint that has other tensors than the network."""
    expected, found = set(network.state_dict()), set(tensors)
    if config.model.tie_word_embeddings:
        expected.discard(HEAD)
        found.discard(HEAD)
    for what, names in (("lacks", expected - found), ("has unexpected", found - expected)):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise ModelLoadError(
                f"the checkpoint in {config.model_path} {what} {len(names)} tensors, such as {some}; "
                "does its config.json belong to these weights?")


def fill(module: nn.Module, prefix: str, tensors: Tensors, config: EngineConfig) -> None:
    """Replaces each parameter of `module` by the tensor of its name, in the engine's dtype and place."""
    for name, parameter in list(module.named_parameters()):
        tensor = tensors.load(prefix + name)
        if tensor.shape != parameter.shape:
            raise ModelLoadError(
                f"{prefix + name} has shape {list(tensor.shape)}, config.json says {list(parameter.shape)}")
        path, _, leaf = name.rpartition(".")
        loaded = tensor.to(device=config.device, dtype=config.dtype)
        setattr(module.get_submodule(path), leaf, nn.Parameter(loaded, requires_grad=False))


def leave_file(module: nn.Module) -> None:
    """Copies what is still a view of the checkpoint's file, so that the file may go."""
    for parameter in module.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
