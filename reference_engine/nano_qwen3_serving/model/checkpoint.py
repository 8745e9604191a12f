"""A checkpoint on disk: where it is, what its configuration says, and its tensors by name.

Knows Hugging Face's layout of files; knows nothing of modules. Only safetensors are read, and no
code of a checkpoint ever runs. Every failure is a `ModelLoadError` that says what to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.side_files import read_object

BUNDLED = Path(__file__).parent.parent / "checkpoints"
BUNDLED_NAMES = ("course", "course-draft")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SIDE_FILES = ["*.json", "*.jinja"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def default_model_name() -> str:
    """The environment variable NANO_QWEN3_MODEL if set, else the bundled course checkpoint."""
    return os.environ.get("NANO_QWEN3_MODEL") or "course"


def find_checkpoint(name: str, *, weights: bool = True) -> Path:
    """The folder of a checkpoint: a bundled name, a local path, or a Hugging Face id.

    A hub id is looked up in the local cache first; what is missing there is downloaded.

    Args:
        name: of the checkpoint.
        weights: whether the weights are needed; if not, the tokenizer's files are enough.

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
    return download(name, weights)


def download(name: str, weights: bool) -> Path:
    """The hub's snapshot of `name`: the local cache's if nothing is missing there, else completed from the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = SIDE_FILES + ["*.safetensors"] * weights
    try:
        try:
            folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
            if not missing_files(folder, weights):
                return folder
        except LocalEntryNotFoundError:
            pass  # the cache has no file of this model
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        missing = missing_files(folder, weights)  # without a network the library returns what there is
    except Exception as error:
        raise ModelLoadError(cannot_get(name, f"{type(error).__name__}: {first_line(error)}")) from error
    if missing:
        raise ModelLoadError(cannot_get(name, f"{folder} still lacks {', '.join(missing[:3])}"))
    return folder


def cannot_get(name: str, why: str) -> str:
    """What to do without the hub."""
    return (f"cannot get {name!r} from the Hugging Face hub ({why}). Check the name and the network, or download it "
            "elsewhere and give the folder; model='course' is bundled and needs no network")


def missing_files(folder: Path, weights: bool) -> list[str]:
    """Required files that a snapshot lacks. A program that downloaded only a tokenizer leaves such snapshots."""
    needed = ["tokenizer.json"]
    if weights:
        index = folder / INDEX
        sharded = index.exists() and not (folder / WEIGHTS).exists()
        needed += ["config.json", *(shard_names(index) if sharded else [WEIGHTS])]
    return [file for file in needed if not (folder / file).exists()]


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n", 1)[0]


def read_model_config(folder: Path) -> ModelConfig:
    """The network's shape and its defaults, from config.json and generation_config.json.

    Raises:
        ModelLoadError: a file is missing, or describes a model that cannot be served.
    """
    generation = folder / "generation_config.json"
    return ModelConfig.from_dict(
        read_object(folder / "config.json").raw, read_object(generation).raw if generation.exists() else None, folder)


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
    """The tensors in a checkpoint's safetensors: the one file, or without it the shards that an index names.

    Raises:
        ModelLoadError: a file is missing or corrupt, two files hold the same tensor, or the index and its files differ.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        return Tensors(dict.fromkeys(tensor_names(folder / WEIGHTS), folder / WEIGHTS))
    files: dict[str, Path] = {}
    for shard in shard_names(index):
        for name in tensor_names(folder / shard):
            if name in files:
                raise ModelLoadError(
                    f"{folder / shard} and {files[name]} both hold {name}; delete the one that is not of this checkpoint")
            files[name] = folder / shard
    for name, shard in read_object(index).section("weight_map").raw.items():
        if files.get(name) != folder / shard:
            raise ModelLoadError(f"{index} says that {name} is in {shard}, and it is not; copy or download both again")
    return Tensors(files)


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, each beside it."""
    fields = read_object(index)
    where = fields.section("weight_map").raw
    beside = (isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") for name in where.values())
    if not where or not all(beside):
        raise ModelLoadError(
            f"{index} has no weight_map of tensors to *.safetensors beside it; copy or download it again")
    return sorted(set(where.values()))


def tensor_names(path: Path) -> list[str]:
    """The tensors in one safetensors file."""
    with open_file(path) as file:
        return list(file.keys())


def open_file(path: Path) -> Any:
    """One open safetensors file."""
    if not path.exists():
        raise ModelLoadError(f"{path} is missing; only safetensors are read: copy or download the file again")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is corrupt ({first_line(error)}); copy or download it again") from error
