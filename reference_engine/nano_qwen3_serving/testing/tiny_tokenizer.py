"""Qwen3's tokenizer in small: its pipeline and its 26 added tokens over a vocabulary of bytes and a few words.

Files of a trained tokenizer take seconds to read; these take milliseconds, and everything that lies beside a
vocabulary is as in the published checkpoints of Qwen3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nano_qwen3_serving.text.tokenizer_files import QWEN_PIPELINE

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>")
OTHER_ADDED_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "Ã ©", "' '", ": Ġ")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def byte_alphabet() -> list[str]:
    """The character that byte-level BPE writes for each byte, 0 to 255 (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(plain)]
    character = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [character[b] for b in range(256)]


def added_tokens() -> list[dict[str, Any]]:
    """Qwen3's added tokens as `tokenizer.json` writes them, behind the vocabulary."""
    first = 256 + len(MERGES)
    return [
        {"id": first + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": content in SPECIAL_TOKENS}
        for i, content in enumerate(SPECIAL_TOKENS + OTHER_ADDED_TOKENS)]


def tokenizer_files() -> dict[str, Any]:
    """Name → content of each file: objects of JSON, and jinja as text."""
    words = [merge.replace(" ", "") for merge in MERGES]
    split, to_bytes = QWEN_PIPELINE["pre_tokenizer"]["pretokenizers"]
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, {**to_bytes, "trim_offsets": False}]}
    return {
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens(),
            "normalizer": {"type": "NFC"}, "pre_tokenizer": pre_tokenizer, "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": {token: i for i, token in enumerate(byte_alphabet() + words)}, "merges": list(MERGES)}},
        "tokenizer_config.json": {
            "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
            "tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072},
        "chat_template.jinja": TEMPLATE,
    }


def write_tokenizer(folder: Path) -> None:
    """Puts the files into a folder."""
    for name, content in tokenizer_files().items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
