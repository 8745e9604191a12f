"""A checkpoint on disk: where it is, what its configuration says, and its tensors by name.

Knows Hugging Face's layout of files; knows nothing of modules. Only safetensors are read, and no
code of a checkpoint ever runs. Every failure is a `ModelLoadError` that says what to do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.exceptions import ModelLoadError

BUNDLED = Path(__file__).parent.parent / "checkpoints"
BUNDLED_NAMES = ("course", "course-draft")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def default_model_name() -> str:
    """The environment variable NANO_QWEN3_MODEL if set, else the bundled course checkpoint."""
    return os.environ.get("NANO_QWEN3_MODEL") or "course"


def find_checkpoint(name: str) -> Path:
    """The folder of a checkpoint: a bundled name, a local path, or a Hugging Face id.

    A hub id is looked up in the local cache first and downloaded only if it is not there.

    Raises:
        ModelLoadError: nothing of that name exists, or the hub cannot be reached.
    """
    if name in BUNDLED_NAMES:
        return BUNDLED / name
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(f"{name!r} is a file; give the folder that holds config.json and *.safetensors")
    if not HUB_ID.fullmatch(name):
        raise ModelLoadError(
            f"there is no checkpoint {name!r}: no such folder, and not a Hugging Face id like "
            f"'Qwen/Qwen3-0.6B'; the bundled ones are {', '.join(BUNDLED_NAMES)}")
    return download(name)


def download(name: str) -> Path:
    """The hub's snapshot of `name`, from the local cache or the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:
        raise ModelLoadError(
            f"cannot get {name!r} from the Hugging Face hub ({type(error).__name__}: {first_line(error)}). "
            "Check the name and the network, or download it elsewhere and give the folder; "
            "model='course' is bundled and needs no network") from error


def first_line(error: BaseException) -> str:
    """What an error says, without its tail."""
    return str(error).strip().split("\n", 1)[0]


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; a `ModelLoadError` if it is missing or is no JSON object."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} is missing; a checkpoint folder holds config.json, tokenizer.json and *.safetensors") from None
    except (ValueError, OSError) as error:
        raise ModelLoadError(f"{path} cannot be read ({first_line(error)}); copy or download it again") from error
    if not isinstance(parsed, dict):
        raise ModelLoadError(f"{path} holds no JSON object; copy or download it again")
    return parsed


def read_model_config(folder: Path) -> ModelConfig:
    """The network's shape, from config.json and generation_config.json."""
    generation = folder / "generation_config.json"
    return ModelConfig.from_dict(
        read_json(folder / "config.json"), read_json(generation) if generation.exists() else None)


class Tensors:
    """The tensors of a checkpoint by name.

    A loaded tensor is a view of the memory-mapped file: pages are read when touched, and are gone
    with the tensor. Each has a mapping of its own, so that one that stays keeps no other in memory.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def load(self, name: str) -> Tensor:
        """One tensor, on the CPU, as stored."""
        with open_file(self._files[name]) as file:
            return file.get_tensor(name)


def open_tensors(folder: Path) -> Tensors:
    """The tensors in a checkpoint's safetensors, one file or many."""
    index = folder / "model.safetensors.index.json"
    names = shard_names(index) if index.exists() else ["model.safetensors"]
    files: dict[str, Path] = {}
    for name in names:
        with open_file(folder / name) as file:
            files.update(dict.fromkeys(file.keys(), folder / name))
    return Tensors(files)


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ModelLoadError(f"{index} has no weight_map of tensors to files; copy or download it again")
    return sorted(set(where.values()))


def open_file(path: Path) -> Any:
    """One open safetensors file."""
    if not path.exists():
        raise ModelLoadError(f"{path} is missing; only safetensors are read: copy or download the file again")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is corrupt ({first_line(error)}); copy or download it again") from error

