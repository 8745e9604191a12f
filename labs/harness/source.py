"""A file of Python as text whose lines end where Python's parser says, and back to the same kind of bytes.

`str.splitlines` also ends lines at form feeds, U+2028 and the like, which may stand in comments and strings: who
counts lines so cuts a file at other places than the parser's line numbers mean.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

from labs.harness.catalog import LabError

_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Source:
    """What a file of Python says."""

    text: str
    r"""Its lines end in `\n`; a byte order mark is left out."""
    encoding: str = "utf-8"
    """As its byte order mark or coding comment says; `utf-8-sig` with a mark."""
    newline: str = "\n"
    """How its first line ends."""

    def with_text(self, text: str) -> bytes:
        """Another text in bytes of this file's kind. Raises `LabError` if its encoding lacks a character."""
        try:
            return text.replace("\n", self.newline).encode(self.encoding)
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            raise LabError(f"the file is in {self.encoding}, which has no {character!r}: save it in UTF-8.") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text as Python's parser counts them, without their ends."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def read(path: Path) -> Source:
    """The text of `path`. Raises `LabError` for bytes that are no text."""
    return decoded(path.read_bytes(), path.name)


def decoded(content: bytes, name: str) -> Source:
    """What the bytes of the file `name` say. Raises `LabError` if they are no text."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        raise LabError(f"{name} is not text in UTF-8.") from None
    end = _LINE_END.search(text)
    return Source(_LINE_END.sub("\n", text), encoding, end[0] if end else "\n")


def parsed(text: str, name: str) -> ast.Module:
    """The tree of `text`. Raises `LabError` that names the line where it is no Python."""
    try:
        return ast.parse(text)
    except SyntaxError as error:
        where = f" line {error.lineno}" if error.lineno else ""  # a null byte has no line
        raise LabError(f"{name}{where} is not Python yet ({error.msg}).") from None
    except (ValueError, RecursionError, MemoryError) as error:  # nested too deeply
        raise LabError(f"{name} is not Python: {error or type(error).__name__}.") from None
