"""A tokenizer's files as trainers save them → the tokenizer they mean.

Knows `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, and which of
them transformers believes when they differ; knows nothing of text or templates. What transformers would
silently drop is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.side_files import Fields, read_object
from nano_qwen3_serving.text.declared_tokens import declared_tokens

QWEN_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")  # what transformers takes for Qwen3 unless told otherwise
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast")
QWEN_DEFAULTS = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_PIPELINE: dict[str, Any] = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
}
QWEN_MODEL = {"unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
              "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer's files say, checked.

    Attributes:
        backend: the tokenizer, with its added tokens, and without truncation and padding.
        special_token_map: texts of `eos_token` and the like, for templates.
        settings: `tokenizer_config.json`.
    """

    backend: tokenizers.Tokenizer
    special_token_map: dict[str, str]
    settings: Fields


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """The tokenizer in a folder.

    Raises:
        ModelLoadError: a file is missing, corrupt or contradicts another, or the vocabulary is not byte-level.
    """
    definition = read_object(folder / "tokenizer.json")
    path = folder / "tokenizer_config.json"
    settings = read_object(path) if path.exists() else Fields(path, {})
    refuse_other_forms(definition, settings)
    is_qwen = tokenizer_class(settings) in QWEN_CLASSES
    tokens = declared_tokens(folder, settings, definition)
    if is_qwen:
        backend = qwen_backend(definition, settings)
        tokens.default_names(QWEN_DEFAULTS)
    else:
        backend = backend_as_written(definition)
        padding = definition.section("padding").text("pad_token")
        tokens.default_names({} if padding is None else {"pad_token": padding})
    tokens.add_to(backend)
    if is_qwen:
        tokens.add_names_to(backend)
    backend.encode_special_tokens = settings.flag("split_special_tokens", False)
    return TokenizerFiles(backend, {name: str(token) for name, token in tokens.names.items()}, settings)


def refuse_other_forms(definition: Fields, settings: Fields) -> None:
    """Raises a `ModelLoadError` for a vocabulary that is not byte-level, or is stored in another file."""
    if not isinstance(definition.get("model"), dict):
        raise ModelLoadError(f"{definition.file} is corrupt: it has no object 'model'; copy or download it again")
    if definition.section("decoder").get("type") != "ByteLevel":
        raise definition.wrong("decoder", "of type 'ByteLevel': only byte-level vocabularies are served")
    if definition.section("model").get("dropout"):
        raise definition.section("model").wrong("dropout", "0 or null: the same text has to give the same tokens")
    if any(name != definition.file.name for name in settings.items("fast_tokenizer_files")):
        raise settings.wrong("fast_tokenizer_files", f"left out: {definition.file.name} is the file that is read")


def tokenizer_class(settings: Fields) -> str:
    """How transformers would build this tokenizer."""
    name = QWEN_CLASSES[0] if settings.get("tokenizer_class") is None else settings.text("tokenizer_class")
    if name not in QWEN_CLASSES + GENERIC_CLASSES:
        raise settings.wrong("tokenizer_class", f"{QWEN_CLASSES[0]!r}, or {GENERIC_CLASSES[0]!r} for a tokenizer.json "
                                                "that is complete in itself")
    return name


# -- the tokenizer without its added tokens --


def qwen_backend(definition: Fields, settings: Fields) -> tokenizers.Tokenizer:
    """Qwen's tokenizer with the vocabulary of `tokenizer.json`.

    transformers reads nothing else from that file for this class and silently drops the rest, so a file that
    says anything else is refused.
    """
    refuse_other_pipelines(definition)
    model = definition.section("model")
    if settings.get("add_prefix_space") not in (None, False):
        raise settings.wrong("add_prefix_space", "false or left out: no text gets a space in front")
    try:
        merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model.items("merges")]
        backend = tokenizers.Tokenizer(models.BPE(vocab=model.section("vocab").raw, merges=merges))
    except Exception as error:  # the library raises plain Exception
        raise corrupt(definition, error) from error
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def refuse_other_pipelines(definition: Fields) -> None:
    """Raises a `ModelLoadError` unless `tokenizer.json` splits text as Qwen's class does."""
    way_out = (f"Qwen's, because transformers uses that of {QWEN_CLASSES[0]} whatever the file says; if this one is right, "
               f"give tokenizer_config.json a tokenizer_class of {GENERIC_CLASSES[0]!r}")
    for name, qwens in QWEN_PIPELINE.items():
        if without_offsets(definition.get(name)) != qwens:
            raise definition.wrong(name, way_out)
    model = definition.section("model")
    if model.get("type") not in (None, "BPE"):
        raise model.wrong("type", "'BPE'")
    for name, qwens in QWEN_MODEL.items():
        if (model.get(name) or None) != (qwens or None):
            raise model.wrong(name, way_out)


def without_offsets(part: Any) -> Any:
    """A part of the pipeline without `trim_offsets`, which changes no token."""
    if isinstance(part, dict):
        return {k: without_offsets(v) for k, v in part.items() if k != "trim_offsets"}
    return [without_offsets(p) for p in part] if isinstance(part, list) else part


def backend_as_written(definition: Fields) -> tokenizers.Tokenizer:
    """The tokenizer of `tokenizer.json`, all of it but truncation and padding."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(definition.file))
    except Exception as error:  # the library raises plain Exception for a corrupt file
        raise corrupt(definition, error) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def corrupt(definition: Fields, error: Exception) -> ModelLoadError:
    """The error for a file that the library cannot read."""
    return ModelLoadError(f"{definition.file} is corrupt ({error}); copy or download it again")
