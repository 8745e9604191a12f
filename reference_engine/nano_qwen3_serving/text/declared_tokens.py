"""Tokens that a tokenizer's files declare beside its vocabulary: added tokens, and special ones with names.

Trainers have written them in five places. This file knows the places, the forms, and which place transformers
believes; it knows nothing of vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.side_files import Fields, is_text, read_object

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

Token = str | AddedToken


class DeclaredTokens:
    """What the files declare.

    Attributes:
        names: `eos_token` and the like → their token.
        extra: special tokens without a name.
        added: id → the token and the file that says so.
    """

    def __init__(self) -> None:
        self.names: dict[str, Token] = {}
        self.extra: list[Token] = []
        self.added: dict[int, tuple[AddedToken, Path]] = {}
        self._named_null: set[str] = set()

    def name(self, name: str, token: Token | None) -> None:
        """Gives a token its name, or notes that no token has it. A later file overrules an earlier one."""
        self.names.pop(name, None)
        self._named_null.discard(name)
        if token is None:
            self._named_null.add(name)
        else:
            self.names[name] = token

    def default_names(self, defaults: Mapping[str, str]) -> None:
        """Adds the names that a tokenizer's class sets, except for names that some file mentions."""
        for name in defaults.keys() - self.names.keys() - self._named_null:
            self.names[name] = defaults[name]

    def settle(self) -> None:
        """Puts the names in transformers' order, and gives an added token's flags to its name."""
        by_text = {token.content: token for token, _ in self.added.values()}
        order = [*NAMES, *(name for name in self.names if name not in NAMES)]
        self.names = {name: by_text.get(str(self.names[name]), self.names[name]) for name in order if name in self.names}

    def add_to(self, backend: tokenizers.Tokenizer) -> None:
        """Adds them as transformers does: those with an id in its order, then special ones that are not among them.

        Raises:
            ModelLoadError: a token would get another id than its file says.
        """
        self.settle()
        new = [self.added[i][0] for i in sorted(self.added)]
        known = {t.content for t in [*backend.get_added_tokens_decoder().values(), *new]}
        for token in (*self.names.values(), *self.extra):
            if str(token) not in known:
                known.add(str(token))
                new.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        named = {str(token) for token in self.names.values()}
        for added in new:
            added.special = added.special or added.content in named
        backend.add_tokens(new)
        self._check_ids(backend)

    def add_names_to(self, backend: tokenizers.Tokenizer) -> None:
        """Adds the special tokens once more, as transformers' class for Qwen does: it changes their flags."""
        backend.add_tokens([AddedToken(str(token), special=True) for token in (*self.names.values(), *self.extra)])

    def _check_ids(self, backend: tokenizers.Tokenizer) -> None:
        for token_id, (token, file) in self.added.items():
            actual = backend.token_to_id(token.content)
            if actual != token_id:
                raise ModelLoadError(
                    f"{file} says that {token.content!r} is token {token_id}; after this vocabulary it would be {actual}: "
                    "copy or download all of the tokenizer's files again")


def declared_tokens(folder: Path, settings: Fields, definition: Fields) -> DeclaredTokens:
    """All that a folder's files declare.

    Args:
        folder: of the files.
        settings: `tokenizer_config.json`. If it lists the added tokens, no other file is read for them.
        definition: `tokenizer.json`.

    Raises:
        ModelLoadError: something declared is no token.
    """
    tokens = DeclaredTokens()
    take_names(tokens, settings)
    take_extra(tokens, settings)
    if "added_tokens_decoder" in settings:
        if settings.get("added_tokens_decoder") is None:
            raise settings.wrong("added_tokens_decoder", "an object of token ids, or left out")
        take_added(tokens, settings.section("added_tokens_decoder"))
        return tokens
    if (folder / "special_tokens_map.json").exists():
        take_special_tokens_map(tokens, read_object(folder / "special_tokens_map.json"))
    if (folder / "added_tokens.json").exists():
        take_added_tokens_json(tokens, read_object(folder / "added_tokens.json"))
    if definition.get("added_tokens") is None:
        raise definition.wrong("added_tokens", "a list: copy or download the file again")
    for i, raw in enumerate(definition.items("added_tokens")):
        token = Fields(definition.file, raw if isinstance(raw, dict) else {}, f"added_tokens[{i}].")
        tokens.added[token.integer("id", at_least=0)] = added_token(token), definition.file
    return tokens


def take_names(tokens: DeclaredTokens, fields: Fields) -> None:
    """`eos_token` and the like; names of a model's own, such as `image_token`, if they are texts."""
    for name, value in fields.raw.items():
        if name in NAMES:
            tokens.name(name, None if value is None else token(fields, name, value))
        elif name.endswith("_token") and (isinstance(value, str) or is_marked(value)):
            tokens.name(name, token(fields, name, value))


def take_extra(tokens: DeclaredTokens, fields: Fields) -> None:
    """Special tokens without a name, under the newer key or the older one; an object under the newer gives them names."""
    named = fields.get("extra_special_tokens")
    if isinstance(named, dict):
        for name, value in named.items():
            tokens.name(name, token(fields, "extra_special_tokens", value))
    key = "extra_special_tokens" if named and not isinstance(named, dict) else "additional_special_tokens"
    tokens.extra += [token(fields, key, value) for value in fields.items(key)]


def take_added(tokens: DeclaredTokens, fields: Fields) -> None:
    """`added_tokens_decoder`: id, as text → token."""
    for name in fields.raw:
        if not (name.isascii() and name.isdigit()):
            raise fields.wrong(name, "under a token id: the names of added_tokens_decoder are ids")
        tokens.added[int(name)] = added_token(fields.section(name)), fields.file


def take_special_tokens_map(tokens: DeclaredTokens, fields: Fields) -> None:
    """`special_tokens_map.json`, the older home of names: it is believed before `tokenizer_config.json`."""
    for name, value in fields.raw.items():
        if isinstance(value, dict) and name != "extra_special_tokens":
            tokens.name(name, added_token(fields.section(name), special=True))
        elif name in NAMES or (name.endswith("_token") and isinstance(value, str)):
            tokens.name(name, None if value is None else token(fields, name, value))
    had = list(tokens.extra)
    if not had or "extra_special_tokens" in fields:
        tokens.extra = []
        take_extra(tokens, fields)
        tokens.extra = had + [t for t in tokens.extra if str(t) not in map(str, had)]


def take_added_tokens_json(tokens: DeclaredTokens, fields: Fields) -> None:
    """`added_tokens.json`: text → id. A token is special if a name or a list declares it so."""
    special = {str(t) for t in (*tokens.names.values(), *tokens.extra)}
    for text in fields.raw:
        is_special = text in special
        added = AddedToken(checked_text(fields, text, text), normalized=not is_special, special=is_special)
        tokens.added[fields.integer(text, at_least=0)] = added, fields.file


def token(fields: Fields, name: str, value: Any) -> Token:
    """A token as `tokenizer_config.json` writes it: its text, or an object marked as an `AddedToken`."""
    if is_marked(value):
        return added_token(Fields(fields.file, value, f"{name}."))
    return checked_text(fields, name, value)


def is_marked(value: Any) -> bool:
    """Whether it is an object that says it is an `AddedToken`."""
    return isinstance(value, dict) and value.get("__type") == "AddedToken"


def added_token(fields: Fields, **overrides: bool) -> AddedToken:
    """A token written as an object: its text, and how it is recognised; `overrides` count more than the file."""
    flags = {flag: fields.flag(flag, False) for flag in FLAGS if flag in fields} | overrides
    return AddedToken(checked_text(fields, "content", fields.get("content")), **flags)


def checked_text(fields: Fields, name: str, value: Any) -> str:
    """The text of a token."""
    if not is_text(value):
        raise fields.wrong(name, 'a token: a string of whole characters, or in tokenizer_config.json an object with '
                                 '"__type": "AddedToken"')
    return value

