"""Standard streams as programs find them: of any encoding, without a terminal behind them, or not there at all.

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

    What an encoding lacks is written as plainly as possible (`readable`), instead of ending the program. What is typed
    and is no text of standard input's encoding becomes U+FFFD.
    """
    codecs.register_error("readable", readable)
    for stream, errors in ((sys.stdout, "readable"), (sys.stderr, "readable"), (sys.stdin, "replace")):
        with suppress(Exception):  # a stream that is None, closed, or somebody's own object
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]  # as said


def readable(error: UnicodeError) -> tuple[str, int]:
    """What is written instead of characters that an encoding lacks: `->`, a letter without its accent, or `\\u4f60`."""
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
    """Whether a person looks at the stream; not at one that is None, closed, or has no `isatty`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
