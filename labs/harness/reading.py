"""What a learner's file says: from bytes to text, from text to a syntax tree. Practice and judge both read with this.

Knows no labs and runs nothing. Every fault of a file is one sentence, with its line.
"""

import ast
import codecs
import io
import re
import tokenize
import warnings

from labs.harness.catalog import LabError

_ENCODINGS = {"utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252"}
"""What a coding line may name. The judge decodes strangers' files, so no codec is looked up that does more than map bytes."""
MOST_BYTES = 256 << 10
"""Of one file: ten times the longest solution."""
_CONFLICT = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
_WIDE = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def decode(content: bytes, name: str = "starter.py") -> str:
    """The text of a Python file, as Python itself would read it, with every line end as `\\n`.

    Raises `LabError` if it is not text, or is longer than what is graded.
    """
    if len(content) > MOST_BYTES:
        raise LabError(f"{name}: it has {len(content) >> 10} KiB; {MOST_BYTES >> 10} KiB are allowed.")
    for mark, encoding in _WIDE.items():
        if content.startswith(mark):
            raise LabError(f"{name} is text in {encoding}. Save it as UTF-8: your editor offers that under Save as.")
    if b"\0" in content:
        raise LabError(f"{name} line {_line(content, content.index(0))} has a NUL byte: it is binary, or damaged, and no text.")
    encoding = _encoding(content, name)
    try:
        text = content.decode("utf-8-sig" if encoding.startswith("utf-8") else encoding)
    except UnicodeDecodeError as error:
        said = "UTF-8" if encoding.startswith("utf-8") else encoding
        line = _line(content, error.start)
        raise LabError(f"{name} line {line} is not text in {said} (byte {error.start}). Save the file as UTF-8.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(content: bytes, at: int) -> int:
    return len(re.split(rb"\r\n|\r|\n", content[:at]))


def _encoding(content: bytes, name: str) -> str:
    """What the file's first two lines say, by Python's rules."""
    try:
        found, _ = tokenize.detect_encoding(io.BytesIO(content.replace(b"\r", b"\n")).readline)
    except SyntaxError as error:
        if re.search(r"coding[:=]", content[:400].decode("latin-1")):
            raise LabError(f"{name}: its coding line is wrong ({error.msg}). Save it as UTF-8 and delete that line.") from None
        return "utf-8"  # the bytes are not, and decoding says where
    if found.startswith("utf-8"):
        return "utf-8"
    known = codecs.lookup(found).name
    if known not in _ENCODINGS:
        raise LabError(f"{name} says that it is text in {found}, which is not read here. Save it as UTF-8 and delete that line.")
    return known


def lines_of(text: str) -> list[str]:
    """The lines as Python counts them: form feeds, U+2028 and the like, at which `str.splitlines` breaks, end none."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def parse(text: str, name: str = "starter.py") -> ast.Module:
    """The syntax tree of a file that Python can compile. Raises `LabError` naming the line if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is told when the file is loaded
            tree = ast.parse(text, name)
            compile(text, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise LabError(_fault(text, name, error)) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise LabError(f"{name} is not Python: {str(error)[:200] or 'it is nested too deeply'}.") from None
    return tree


def _fault(text: str, name: str, error: SyntaxError) -> str:
    lines = lines_of(text)
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        mark = lines[line - 1][:40]
        return f"{name} line {line} is a mark of a merge that git could not finish ({mark}): keep one of the two versions."
    shown = lines[error.lineno - 1].strip()[:80] if error.lineno and 0 < error.lineno <= len(lines) else ""
    return f"{name} line {error.lineno} is not Python yet: {error.msg}" + (f": {shown}" if shown else "")
