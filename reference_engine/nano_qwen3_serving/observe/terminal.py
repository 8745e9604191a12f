"""Standard streams as a program finds them: in any encoding, without a terminal behind them, or missing altogether.

Knows the standard library only, so that a command line can use it before anything else is imported.
"""

from __future__ import annotations

import codecs
import sys
import unicodedata
from contextlib import suppress
from typing import Any

PLAIN = {
    "–": "-", "—": "-", "−": "-", "‑": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "·": ".", "•": "*",
    "→": "->", "←": "<-", "⇒": "=>", "×": "x", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "✓": "+", "✔": "+", "✗": "x",
    "✘": "x", "█": "#", "▏": "|", "│": "|", "─": "-", "├": "+", "└": "+", "┌": "+", "┐": "+", "┘": "+", "┤": "+", "┼": "+",
    "┬": "+", "┴": "+", "━": "-", "╸": "-", "╺": "-",
}
"""Signs of our texts and tables → what stands for them where an encoding lacks them."""


def prepare_streams() -> None:
    """Lets standard output and error take every text, whatever their encoding; first thing in each `__main__`.

    A character that an encoding lacks is written as plainly as possible (`readable`), instead of ending the program.
    Typed bytes that are no text in standard input's encoding become U+FFFD.
    """
    codecs.register_error("readable", readable)
    for stream, errors in ((sys.stdout, "readable"), (sys.stderr, "readable"), (sys.stdin, "replace")):
        with suppress(Exception):  # a stream may be None, closed, or an object of the caller's
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]  # as said


def readable(error: UnicodeError) -> tuple[str, int]:
    """The text to write for characters that an encoding lacks: `->`, a letter without its accent, or `\\u4f60`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(plain, error.object[error.start : error.end])), error.end


def plain(character: str) -> str:
    """The character in ASCII."""
    if character in PLAIN:
        return PLAIN[character]
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return bare or character.encode("ascii", "backslashreplace").decode()


def is_terminal(stream: Any) -> bool:
    """Whether the stream is a terminal; False for a stream that is None, closed, or has no `isatty`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
