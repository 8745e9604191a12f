"""Writes a checkpoint with random weights and the shape of a Qwen3 model.

    python reference_engine/benchmarks/make_checkpoint.py --like qwen3-0.6b DIR

Speed and memory do not depend on the values of weights, so this measures what the real one would.
The tokenizer is the course's: token ids beyond it are valid and have no text.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file

from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.observe.progress import track

# hidden, MLP, layers, query heads, KV heads, tied
SHAPES = {
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, True),
    "qwen3-4b": (2560, 9728, 36, 32, 8, True),
    "qwen3-8b": (4096, 12288, 36, 32, 8, False),
}
VOCABULARY = 151_936
HEAD_DIM = 128


def config_dict(name: str) -> dict[str, object]:
    """The `config.json` of a shape."""
    hidden, mlp, layers, heads, kv_heads, tied = SHAPES[name]
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "tie_word_embeddings": tied, "hidden_act": "silu", "attention_bias": False,
        "eos_token_id": VOCABULARY - 1,
    }


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint and its shape."""
    hidden, mlp, dim = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * dim, config.num_key_value_heads * dim
    layer = {
        "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q), "self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,),
        "mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp),
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }
    shapes = {f"model.layers.{i}.{n}.weight": s for i in range(config.num_hidden_layers) for n, s in layer.items()}
    shapes |= {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def random_tensor(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Ones for norms; for matrices normal numbers scaled so that activations keep their size."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, shape[1] ** -0.5, generator=generator)


def make_checkpoint(name: str, folder: Path, seed: int = 0) -> None:
    """Writes the checkpoint; the folder appears when it is complete."""
    raw = config_dict(name)
    generator = torch.Generator().manual_seed(seed)
    shapes = tensor_shapes(ModelConfig.from_dict(raw))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        work = Path(temporary) / "checkpoint"
        work.mkdir()
        tensors = {n: random_tensor(s, generator) for n, s in track(shapes.items(), f"Making {name}")}
        save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
        (work / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(BUNDLED / "course" / file, work / file)
        work.rename(folder)


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist.")],
    like: Annotated[str, typer.Option(help=", ".join(SHAPES))] = "qwen3-0.6b",
    seed: int = 0,
) -> None:
    """Make a checkpoint with random weights."""
    if like not in SHAPES:
        raise typer.BadParameter(f"{like!r} is not one of {', '.join(SHAPES)}", param_hint="--like")
    if folder.exists():
        raise typer.BadParameter(f"{folder} exists already", param_hint="FOLDER")
    make_checkpoint(like, folder, seed)
    typer.echo(f"{folder}: {(folder / 'model.safetensors').stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    typer.run(main)
