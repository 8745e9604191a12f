"""Which submissions are more alike than independent solutions of a lab: copydetect, on this machine only.

Names, comments and the starter's code do not count. Submissions are compared with
each other, with our solution and with the engine. A high share is a reason to look, no verdict:
the shorter a lab, the more alike its honest solutions. Needs the extra `similarity`.
"""

import ast
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import nano_qwen3_serving
from grading.judge.intake import Submission, read_submission
from labs.harness.catalog import Lab

ENGINE = Path(nano_qwen3_serving.__file__).parent
LENGTH = 25
"""Length in characters of a piece that counts as shared, after names have become one letter each."""
ALIKE = 0.8
"""The share from which on a pair is listed, unless the caller gives another.

Renamed copies share all; honest solutions of the labs' alternatives share 10 to 70 % of each other, now and then 90 %."""


@dataclass(frozen=True)
class Source:
    """A student's code; `ours` if it is the course's or an earlier term's, which cannot have copied from this term."""

    name: str
    text: str
    ours: bool = False


@dataclass(frozen=True)
class Pair:
    """Two sources and what they share.

    Attributes:
        shares: for each source, the share of its own code that the other has too; from 0 to 1.
        share: the larger of the two, because a copy with additions is still a copy; against our code, the submission's.
        lines: for each source, the ranges of lines that are alike, counted from 1.
    """

    one: str
    other: str
    shares: tuple[float, float]
    share: float
    lines: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]


def read_sources(folder: Path, lab: Lab) -> tuple[list[Source], list[str]]:
    """The submissions in a folder, one entry for each, and what cannot be compared. Raises `ValueError` if there is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of submissions")
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    submissions = [read_submission(path, None, lab.folder.name) for path in paths]
    if not submissions:
        raise ValueError(f"there are no submissions in {folder}")
    usable = [Source(submission.student, _text(submission)) for submission in submissions if submission.text() is not None]
    return usable, [f"{submission.student}: {'; '.join(submission.notes)}"
                    for submission in submissions if submission.text() is None]


def earlier(folder: Path, lab: Lab) -> list[Source]:
    """Another term's submissions: compared with this term's, not with each other."""
    return [Source(f"{folder.name}/{source.name}", source.text, ours=True) for source in read_sources(folder, lab)[0]]


def _text(submission: Submission) -> str:
    return submission.text() or ""


def ours(lab: Lab) -> list[Source]:
    """The solution, and the engine's own code for the lab's TODOs: what `lab.toml` forbids importing."""
    sources = [Source("the solution", lab.solution.read_text(encoding="utf-8"), ours=True)]
    names = [*([lab.reference] if lab.reference else []), *lab.refuse]
    for name in dict.fromkeys(names):
        if name.split(".")[0] == "nano_qwen3_serving":
            sources += _of_engine(name)
    return sources


def _of_engine(name: str) -> list[Source]:
    """The source of a module, of a function, or of all modules in a folder."""
    path = ENGINE.joinpath(*name.split(".")[1:])
    if path.is_dir():
        paths = [module for module in sorted(path.rglob("*.py")) if module.name != "__init__.py"]
        return [Source(".".join((name, *module.relative_to(path).with_suffix("").parts)),
                       module.read_text(encoding="utf-8"), ours=True) for module in paths]
    if path.with_suffix(".py").is_file():
        return [Source(name, path.with_suffix(".py").read_text(encoding="utf-8"), ours=True)]
    text = path.parent.with_suffix(".py").read_text(encoding="utf-8")
    part = next(node for node in ast.walk(ast.parse(text)) if getattr(node, "name", None) == path.name)
    return [Source(name, ast.get_source_segment(text, part) or "", ours=True)]


def pairs(sources: Sequence[Source], starter: str, least: float = ALIKE) -> list[Pair]:
    """Pairs that share `least` or more, the most alike first; our own sources are not compared with each other.

    Raises `ValueError` if copydetect is not installed.
    """
    of_starter = set(_print_of(Source("starter", starter), set()).hashes)
    prints = [(source, _print_of(source, of_starter)) for source in sources]
    compared = [_pair(*first, *second) for first, second in combinations(prints, 2) if not (first[0].ours and second[0].ours)]
    return sorted((pair for pair in compared if pair.share >= least), key=lambda pair: (-pair.share, pair.one, pair.other))


def _print_of(source: Source, of_starter: set[int]) -> Any:
    """A file's fingerprint: every piece of it, except those of the starter."""
    copydetect = _copydetect()
    made = copydetect.CodeFingerprint(source.name, LENGTH, 1, language="python", fp=io.StringIO(source.text))
    made.hash_idx = {value: places for value, places in made.hash_idx.items() if value not in of_starter}
    made.hashes = set(made.hash_idx)
    made.token_coverage = copydetect.utils.get_token_coverage(made.hash_idx, LENGTH, len(made.filtered_code))
    return made


def _pair(source: Source, its_print: Any, other: Source, others_print: Any) -> Pair:
    _, shares, slices = _copydetect().compare_files(its_print, others_print)
    parts = _lines(source.text, slices[0]), _lines(other.text, slices[1])
    first, second = (min(1.0, float(share)) for share in shares)
    share = second if source.ours else first if other.ours else max(first, second)
    return Pair(source.name, other.name, (first, second), share, parts)


def _lines(text: str, slices: Iterable) -> tuple[tuple[int, int], ...]:
    """Ranges of characters as ranges of lines; adjacent ranges are merged."""
    ranges: list[tuple[int, int]] = []
    bounds = [list(map(int, part)) for part in slices]
    for begin, end in zip(*bounds, strict=True) if len(bounds) == 2 else ():
        first, last = 1 + text.count("\n", 0, begin), 1 + text.count("\n", 0, max(begin, end - 1))
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
        else:
            ranges.append((first, last))
    return tuple(ranges)


def _copydetect() -> Any:
    try:
        import copydetect
        import copydetect.utils
    except ImportError:
        raise ValueError("copydetect finds what is alike, and is not installed: pip install -e '.[similarity]'") from None
    return copydetect


def same_predictions(folder: Path, lab: Lab) -> list[tuple[str, ...]]:
    """Groups of students who handed in the same predictions with the same seed; the file itself names no student."""
    met: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            handed_in = read_submission(path, None, lab.folder.name)
            for attempt in _attempts(handed_in.files.get("predictions.json", b"")):
                met.setdefault(attempt, []).append(handed_in.student)
    return sorted({tuple(dict.fromkeys(students)) for students in met.values() if len(set(students)) > 1})


def _attempts(content: bytes) -> list[str]:
    """Each attempt in a form that can be compared; empty if the file has no attempts."""
    try:
        attempts = json.loads(content)["attempts"]
        return [json.dumps(attempt, sort_keys=True) for attempt in attempts if attempt.get("answers")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
