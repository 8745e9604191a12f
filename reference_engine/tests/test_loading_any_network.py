"""The loader fills a network that somebody else built: a lab's, a learner's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nano_qwen3_serving import EngineArgs
from nano_qwen3_serving.config import EngineConfig, ModelConfig
from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.model.checkpoint import open_tensors
from nano_qwen3_serving.model.loader import load_weights
from nano_qwen3_serving.testing.checkpoints import Shape

SHAPE = Shape(
    hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, head_dim=10
)
UNTIED = Shape(**{**vars(SHAPE), "tie_word_embeddings": False, "attention_bias": True})


def matrix(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))


class Layer(nn.Module):
    """Parameters by Hugging Face's names, in plain modules."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.attention_bias
        heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.self_attn = nn.ModuleDict({
            "q_proj": matrix(hidden, heads, bias), "k_proj": matrix(hidden, kv, bias), "v_proj": matrix(hidden, kv, bias),
            "o_proj": matrix(heads, hidden, bias), "q_norm": Norm(config.head_dim), "k_norm": Norm(config.head_dim)})
        self.mlp = nn.ModuleDict({
            "gate_proj": matrix(hidden, inner), "up_proj": matrix(hidden, inner), "down_proj": matrix(inner, hidden)})
        self.input_layernorm = Norm(hidden)
        self.post_attention_layernorm = Norm(hidden)


class Network(nn.Module):
    def __init__(self, config: ModelConfig, layer: Callable[[ModelConfig], nn.Module] = Layer) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.utils.skip_init(nn.Embedding, config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(layer(config) for _ in range(config.num_hidden_layers))
        self.model.norm = Norm(config.hidden_size)
        self.lm_head = matrix(config.hidden_size, config.vocab_size)


def config_of(folder: Path, **arguments: Any) -> EngineConfig:
    return EngineArgs(model=str(folder), device="cpu", **{"dtype": "float32", **arguments}).create_engine_config()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [SHAPE, UNTIED], ids=["tied", "untied, biases"])
def test_every_parameter_gets_the_tensor_of_its_name(
    shape: Shape, dtype: str, device: str, random_checkpoint: Callable[..., Path]
) -> None:
    folder = random_checkpoint(shape)
    config = config_of(folder, dtype=dtype, cpu_kernels=False)
    network = Network(config.model).to(device=device)
    assert load_weights(network, config) is network and not network.training
    tensors = open_tensors(folder)
    state = network.state_dict()
    assert set(state) == {*tensors, "lm_head.weight"}
    for name, value in state.items():
        stored = tensors.load(name if name in tensors else "model.embed_tokens.weight")
        assert torch.equal(value, stored.to(config.dtype)), name
        assert value.device.type == "cpu" and not network.get_parameter(name).requires_grad


def test_finalize_weights_is_called_where_it_is_there_a_layer_at_a_time(random_checkpoint: Callable[..., Path]) -> None:
    config = config_of(random_checkpoint(SHAPE))
    loaded_then: list[list[bool]] = []

    class Inner(nn.ModuleDict):
        def finalize_weights(self) -> None:
            raise AssertionError("the module around it has finalize_weights(), and answers for what lies inside")

    class Finalized(Layer):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.mlp = Inner(self.mlp.items())

        def finalize_weights(self) -> None:
            layers = network.model.layers
            loaded_then.append([not any(p.is_meta for p in layer.parameters()) for layer in layers])

    network = Network(config.model, Finalized).to("meta")
    load_weights(network, config)
    assert loaded_then == [[True, False, False], [True, True, False], [True, True, True]]


def test_finalize_weights_is_found_inside_of_modules_without(random_checkpoint: Callable[..., Path]) -> None:
    config = config_of(random_checkpoint(SHAPE))
    called: list[nn.Module] = []

    class Fusing(nn.ModuleDict):
        def finalize_weights(self) -> None:
            called.append(self)

    class Part(Layer):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.self_attn = Fusing(self.self_attn.items())

    network = Network(config.model, Part)
    load_weights(network, config)
    assert called == [layer.self_attn for layer in network.model.layers]


def test_a_network_with_other_parameters_is_refused_by_name(random_checkpoint: Callable[..., Path]) -> None:
    config = config_of(random_checkpoint(SHAPE))
    network = Network(config.model)
    del network.model.layers[1].self_attn["k_norm"]
    with pytest.raises(ModelLoadError, match=r"unexpected 1 tensors, such as model\.layers\.1\.self_attn\.k_norm\.weight"):
        load_weights(network, config)
    network = Network(config.model)
    network.model.layers[0].mlp["down_proj"] = matrix(5, 7)
    with pytest.raises(ModelLoadError, match=r"model\.layers\.0\.mlp\.down_proj\.weight has shape \[24, 36\]"):
        load_weights(network, config)


def test_another_network_loads_with_the_files_of_ours_gone(
    random_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(random_checkpoint(SHAPE))
    for name in ("layers", "qwen3", "linear"):
        monkeypatch.setitem(sys.modules, f"nano_qwen3_serving.model.{name}", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "nano_qwen3_serving.model.loader")
    from nano_qwen3_serving.model import loader

    loader.load_weights(Network(config.model), config)


def test_what_stays_of_a_layer_does_not_hold_the_checkpoints_file(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint(SHAPE)
    config = config_of(folder)
    network = load_weights(Network(config.model), config)
    for name, parameter in network.model.layers.named_parameters():
        size = parameter.numel() * parameter.element_size()
        assert parameter.untyped_storage().nbytes() == size, f"{name} is a view of more than itself"
