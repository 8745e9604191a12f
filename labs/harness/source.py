"""A file of Python as text whose lines end where Python's parser says, and back to the same kind of bytes.

Practice and judge read a learner's file with this module, so both report the same; a fault is one sentence with its line.

`str.splitlines` also ends lines at form feeds, U+2028 and the like, which may occur in comments and strings: lines
counted that way do not match the parser's line numbers.
"""

import ast
import codecs
import io
import re
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path

from labs.harness.catalog import LabError

_LINE_END = re.compile(r"\r\n|\r|\n")
_CONFLICT = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
_ENCODINGS = {"utf-8", "utf-8-sig", "ascii", "iso8859-1", "iso8859-15", "cp1252"}
"""The encodings that a file may declare: the judge reads untrusted files, so every codec here only maps bytes."""
MOST_BYTES = 256 << 10
"""The largest size of a tested or graded file: ten times the longest solution."""


@dataclass(frozen=True)
class Source:
    """The text of a Python file, and how its bytes encode it."""

    text: str
    r"""Its lines end in `\n`; a byte order mark is left out."""
    encoding: str = "utf-8"
    """The encoding that its byte order mark or coding comment declares; `utf-8-sig` with a mark."""
    newline: str = "\n"
    """The line end of its first line."""

    def with_text(self, text: str) -> bytes:
        """Another text as bytes, in this file's encoding and line ends. Raises `LabError` if the encoding lacks a character."""
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
    """The text of `path`. Raises `LabError` if the bytes are not text."""
    return decoded(path.read_bytes(), path.name)


def decoded(content: bytes, name: str) -> Source:
    """The text in the bytes of the file `name`, decoded as Python does. Raises `LabError` if they are not text."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise LabError(f"{name} is text in UTF-16. Save it as UTF-8: your editor offers that under Save as.")
    if b"\0" in content:
        raise LabError(f"{name} line {_line(content, content.index(0))} has a NUL byte: it is binary, or damaged, and no text.")
    encoding = _encoding(content, name)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        shown, line = encoding.upper().removesuffix("-SIG"), _line(content, error.start)
        raise LabError(f"{name} line {line} is not text in {shown} (byte {error.start}). Save the file as UTF-8.") from None
    end = _LINE_END.search(text)
    return Source(_LINE_END.sub("\n", text), encoding, end[0] if end else "\n")


def _line(content: bytes, at: int) -> int:
    return len(re.split(rb"\r\n|\r|\n", content[:at]))


def _encoding(content: bytes, name: str) -> str:
    """The encoding that a byte order mark or the first two lines declare, by Python's rules."""
    marked = content.startswith(codecs.BOM_UTF8)
    try:
        declared, _ = tokenize.detect_encoding(io.BytesIO(content.replace(b"\r", b"\n")).readline)
        known = codecs.lookup(declared).name
    except SyntaxError as error:
        if re.search(r"coding[:=]", content[:400].decode("latin-1")):
            raise LabError(f"{name}: its coding line is wrong ({error.msg}). Save it as UTF-8 and delete that line.") from None
        return "utf-8"  # the bytes are not in it; decoding will report where
    if known not in _ENCODINGS:
        raise LabError(
            f"{name} says that it is text in {declared}, which is not read here. Save it as UTF-8 and delete that line.")
    return "utf-8-sig" if marked else known


def parsed(text: str, name: str) -> ast.Module:
    """The tree of a text that Python can compile. Raises `LabError` that names the line if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loading the file warns of an invalid escape
            tree = ast.parse(text, name)
            compile(text, name, "exec", dont_inherit=True)  # finds further faults, such as a `return` outside of functions
    except SyntaxError as error:
        raise LabError(_fault(text, name, error)) from None
    except (ValueError, RecursionError, MemoryError) as error:  # nested too deeply
        raise LabError(f"{name} is not Python: {str(error)[:200] or 'it is nested too deeply'}.") from None
    return tree


def _fault(text: str, name: str, error: SyntaxError) -> str:
    lines = lines_of(text)
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        mark = lines[line - 1][:40]
        return f"{name} line {line} is a mark of a merge that git could not finish ({mark}): keep one of the two versions."
    there = lines[error.lineno - 1].strip()[:80] if error.lineno and 0 < error.lineno <= len(lines) else ""
    where = f" line {error.lineno}" if error.lineno else ""  # a null byte has no line
    return f"{name}{where} is not Python yet ({error.msg})" + (f", at: {there}" if there else ".")
