"""Practice and judge say the same of a file, however strange its bytes are: it can be used by both or by neither."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import pytest

from grading.judge.grader import Grader, Settings, grader_of
from grading.judge.intake import read_submission
from grading.sandbox.isolation import Limits
from grading.sandbox.supervisor import Sandbox
from grading.sandbox.worker.peer import Raised
from labs.harness import loading
from labs.harness.catalog import LabError, find_lab
from labs.harness.source import MOST_BYTES

pytestmark = pytest.mark.slow

LAB = find_lab("06")
SOLUTION = LAB.solution.read_text(encoding="utf-8")
PLAIN = SOLUTION.encode()
SMALL = "class FreeList:\n    word = 'größe'\n"

USED = {
    "as it is": PLAIN,
    "with a byte order mark": codecs.BOM_UTF8 + PLAIN,
    "lines end as on Windows": PLAIN.replace(b"\n", b"\r\n"),
    "lines end in carriage returns": PLAIN.replace(b"\n", b"\r"),
    "line ends of three kinds": PLAIN.replace(b"\n", b"\r\n", 5).replace(b"\r\n", b"\r", 2),
    "no line end at the end": PLAIN.rstrip(b"\n"),
    "latin-1 and says so": b"# -*- coding: latin-1 -*-\n" + SMALL.encode("latin-1"),
    "cp1252 in the second line, for vim": b"#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\n" + SMALL.encode("cp1252"),
    "says latin-1 and is ascii": b"# coding: latin-1\n" + PLAIN.decode().encode("ascii", "ignore"),
    "U+2028 and U+0085 in comments and strings": "# one\u2028two\u0085three\nTEXT = 'a\u2028b'\n".encode() + PLAIN,
    "form feeds and file separators": b"\x0c\n# a\x0cb\x1cc\n" + PLAIN + b"\x0c\n",
    "tabs": b"class FreeList:\n\tdef take(self):\n\t\treturn 1\n",
    "an invalid escape": b"TEXT = '\\d'\n" + PLAIN,
    "other alphabets": "größe = 1\nпеременная = größe\n".encode() + PLAIN,
    "a comment of many characters": b"# " + b"x" * 5000 + b"\n" + PLAIN,
    "a function that is only a docstring": b"def helper():\n    'later'\n" + PLAIN,
}  # fmt: skip
NOT_USED = {
    "UTF-16": SOLUTION.encode("utf-16"),
    "UTF-16, the other way round": codecs.BOM_UTF16_BE + SOLUTION.encode("utf-16-be"),
    "UTF-32": SOLUTION.encode("utf-32"),
    "a NUL byte": PLAIN + b"x = '\0'\n",
    "latin-1 and does not say so": SMALL.encode("latin-1"),
    "says UTF-8 and has a mark, and is latin-1": codecs.BOM_UTF8 + SMALL.encode("latin-1"),
    "a mark, and says latin-1": codecs.BOM_UTF8 + b"# coding: latin-1\n" + PLAIN,
    "an encoding that nobody has": b"# coding: klingon\n" + PLAIN,
    "an encoding that does more than map bytes": b"# coding: unicode_escape\n" + PLAIN,
    "a merge that was not finished": b"<<<<<<< HEAD\n" + PLAIN + b"=======\n" + PLAIN + b">>>>>>> theirs\n",
    "a bracket that is not closed": PLAIN + b"x = (\n",
    "a return outside of functions": PLAIN + b"return 5\n",
    "async for outside of async functions": PLAIN + b"def f():\n    async for x in y:\n        pass\n",
    "tabs and blanks mixed": b"if True:\n\tx = 1\n        y = 2\n" + PLAIN,
    "nested too deeply": PLAIN + b"x = " + b"(" * 5000 + b")" * 5000,
    "too long": PLAIN + b"#" * MOST_BYTES,
    "imports the solution": b"import solution\n" + PLAIN,
    "imports a helper beside it": b"import helpers\n" + PLAIN,
    "imports what is nowhere": b"import nowhere_at_all\n" + PLAIN,
    "raises while it is loaded": PLAIN + b"1 / 0\n",
    "leaves while it is loaded": PLAIN + b"raise SystemExit\n",
    "random bytes": bytes(range(256)),
}  # fmt: skip
WHEN_RUN = ("imports a helper", "imports what", "raises", "leaves", "too long")
BEFORE_RUNNING = {name for name in NOT_USED if not name.startswith(WHEN_RUN)}
"""Of these both say the same sentence."""
BY_NAME = {"imports a helper beside it", "imports what is nowhere"}
"""Practice refuses these at once. A worker has any missing library by name: to import it costs nothing, to use it does."""


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with grader_of(LAB, Settings(seed="judge", predictions=False, limits=Limits(wall_seconds=60.0, cpu_seconds=20))) as one:
        yield one


@pytest.fixture(scope="module")
def box(grader: Grader) -> Iterator[Sandbox]:
    with grader.sandbox() as one:
        yield one


def in_practice(file: Path) -> str:
    """Why practice cannot use a file; empty if it can."""
    try:
        loading.load(LAB, file)
    except LabError as error:
        return str(error)
    return ""


def when_graded(file: Path, grader: Grader, box: Sandbox) -> str:
    """Why the judge cannot use it; empty if it can."""
    submission = read_submission(file.parent)
    text, problem = grader._usable(submission)
    if problem:
        return submission.notes[1] if problem == "there is no starter.py to grade" else problem
    with box.child() as child:
        try:
            child.bench.load(text)
        except Raised as error:
            return str(error)
    return ""


def written(folder: Path, content: bytes) -> Path:
    (folder / "helpers.py").write_text("HALF = 0.5\n")
    (folder / "starter.py").write_bytes(content)
    return folder / "starter.py"


@pytest.mark.parametrize("name", USED)
def test_what_practice_uses_the_judge_uses(name: str, tmp_path: Path, grader: Grader, box: Sandbox):
    file = written(tmp_path, USED[name])
    assert (in_practice(file), when_graded(file, grader, box)) == ("", "")


@pytest.mark.parametrize("name", NOT_USED)
def test_what_practice_refuses_the_judge_refuses(name: str, tmp_path: Path, grader: Grader, box: Sandbox):
    file = written(tmp_path, NOT_USED[name])
    practice, graded = in_practice(file), when_graded(file, grader, box)
    assert practice and (graded or name in BY_NAME) and len(practice) < 300
    if name in BEFORE_RUNNING:
        assert practice == graded


def test_the_sentences_name_the_line_and_the_way_out(tmp_path: Path):
    said = {name: in_practice(written(tmp_path, content)) for name, content in NOT_USED.items()}
    assert said["UTF-16"] == "starter.py is text in UTF-16. Save it as UTF-8: your editor offers that under Save as."
    assert said["latin-1 and does not say so"].startswith("starter.py line 2 is not text in UTF-8 (byte ")
    assert said["an encoding that nobody has"].endswith("Save it as UTF-8 and delete that line.")
    assert said["a merge that was not finished"] == (
        "starter.py line 1 is a mark of a merge that git could not finish (<<<<<<< HEAD): keep one of the two versions.")
    assert "imports helpers, which lies beside it. Only starter.py is handed in" in said["imports a helper beside it"]
    assert said["raises while it is loaded"].endswith("while it is loaded: ZeroDivisionError: division by zero")
    assert said["too long"] == f"starter.py has {(len(PLAIN) + MOST_BYTES) >> 10} KiB; 256 KiB are allowed."
