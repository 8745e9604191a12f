"""Trains the course checkpoint's tokenizer, byte-level BPE in the shape of Qwen3's.

Knows texts, vocabulary sizes and the chat template; knows nothing about models or training.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

VOCAB_SIZE = 2048
MAX_POSITIONS = 2048

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

# Never part of a text: decoding with skip_special_tokens drops them.
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
# One token each, but text like any other, as in Qwen3.
MARKUP_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)

# How Qwen cuts a text before merging: contractions, words with one leading sign or space, single
# digits, runs of punctuation, line breaks, blanks.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE_FILE = Path(__file__).resolve().parent / "chat_template.jinja"


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """A tokenizer of `VOCAB_SIZE` entries, added tokens included, with the course's chat template.

    Texts are cut into lines first: were they not, "?" and the line break after a question would
    merge, and a prompt without that line break would be cut differently from training.
    """
    lines = (line for text in texts for line in text.splitlines())
    bpe = _train_bpe(lines, VOCAB_SIZE - len(SPECIAL_TOKENS) - len(MARKUP_TOKENS))
    bpe.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return Qwen2Tokenizer(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        unk_token=None,
        model_max_length=MAX_POSITIONS,
        add_prefix_space=False,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE_FILE.read_text(encoding="utf-8"),
    )


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    thinking: bool = True,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The conversation in the chat template, up to where the assistant's answer begins."""
    return str(
        tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
    )


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over all 256 bytes, so that any text can be encoded."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
