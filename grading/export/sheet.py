"""A platform's CSV file in which single cells are filled in; everything else stays as it is, byte for byte.

Knows bytes, cells and which row is a student's; knows nothing of Canvas or Moodle.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from grading.cohort.journal import Entry
from grading.judge.show import plain, points

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Filled:
    """A file that was filled in.

    Attributes:
        data: all of it.
        unplaced: one sentence for each graded student without a row, or without a certain one.
        notes: other remarks: grades that change, rows without a grade.
    """

    data: bytes
    unplaced: tuple[str, ...]
    notes: tuple[str, ...]


class Sheet:
    """Rows of cells. Row 0 is the heading.

    Raises `ValueError` if it is not text in UTF-8 or has no rows.
    """

    def __init__(self, data: bytes) -> None:
        self._bom = BOM if data.startswith(BOM) else b""
        try:
            text = data.removeprefix(BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the CSV file is not in UTF-8 (byte {error.start}); export it anew") from None
        first = re.match(r'(?:"(?:[^"]|"")*"|[^,;\r\n"])*', text)
        self._separator = ";" if first and text.startswith(";", first.end()) else ","
        self._rows = list(_rows(text, self._separator))
        if not self._rows:
            raise ValueError("the CSV file is empty")
        self.heading = [_value(raw) for raw, _ in self._rows[0]]

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, *names: str) -> int | None:
        """The first of these headings that the file has."""
        return next((self.heading.index(name) for name in names if name in self.heading), None)

    def value(self, row: int, column: int | None) -> str:
        """A cell's text; empty if there is no such cell."""
        return _value(self._rows[row][column][0]) if column is not None and column < len(self._rows[row]) else ""

    def put(self, row: int, column: int, text: str) -> None:
        """Change one cell; it keeps its quotation marks. Cells that the row lacks are added."""
        cells = self._rows[row]
        while len(cells) <= column:
            raw, end = cells[-1]
            cells[-1] = (raw, self._separator)
            cells.append(("", end))
        raw, end = cells[column]
        quoted = raw.startswith('"') or re.search(r'[",;\r\n]', text)
        cells[column] = ('"' + text.replace('"', '""') + '"' if quoted else text, end)

    def data(self) -> bytes:
        """The file as it is now."""
        return self._bom + "".join(raw + end for row in self._rows for raw, end in row).encode("utf-8")


def _rows(text: str, separator: str) -> Iterable[list[tuple[str, str]]]:
    """Rows of raw cells, each with the separator or line end that follows it."""
    cell = re.compile(rf'("(?:[^"]|"")*"[^{separator}\r\n]*|[^{separator}\r\n]*)({separator}|\r\n|\n|\r|\Z)')
    row: list[tuple[str, str]] = []
    at = 0
    while (at < len(text) or row) and (match := cell.match(text, at)):  # always matches, because a cell may be empty
        row.append((match[1], match[2]))
        at = match.end()
        if match[2] != separator:
            yield row
            row = []


def _value(raw: str) -> str:
    if raw.startswith('"') and raw.rstrip().endswith('"') and len(raw) > 1:
        return raw.rstrip()[1:-1].replace('""', '"')
    return raw


def place(
    sheet: Sheet, entries: Sequence[Entry], keys: Sequence[tuple[str, int | None]], rows: Sequence[int],
    names: Callable[[str, str], str] = lambda student, key: student,
) -> tuple[dict[int, Entry], list[str], list[str]]:
    """Row -> the entry whose grade goes there; a sentence for each entry without a row; and remarks.

    The first of `keys` (name and column of each) in which exactly one row has the student's name
    decides. If several rows have it, or several students match one row, none of them is placed.

    Args:
        names: of a student in the column of a key, see `names_in`.
    """
    wanted: dict[int, list[tuple[Entry, str]]] = {}
    unplaced, notes = [], []
    for entry in entries:
        there = [(name, column) for name, column in keys if column is not None]
        hits = {name: [row for row in rows if sheet.value(row, column).strip() == names(entry.report.student, name)]
                for name, column in there}
        name, matching = next(((name, matching) for name, matching in hits.items() if matching), ("", []))
        who = plain(entry.report.student)
        if len(matching) != 1:
            why = f"{len(matching)} rows have it as {name}" if matching else f"no row has it as {', '.join(hits) or 'anything'}"
            unplaced.append(f"{who}: {why}")
            continue
        if others := [key for key, rows_ in hits.items() if rows_ and rows_ != matching]:
            notes.append(f"{who} was found by {name}; as {', '.join(others)} it stands in another row")
        wanted.setdefault(matching[0], []).append((entry, name))
    for row, claims in wanted.items():
        if len(claims) > 1:
            claimants = " and ".join(f"{plain(entry.report.student)} (by {name})" for entry, name in claims)
            unplaced.append(f"{claimants}: they come to one row, number {row + 1}, and none of them is entered")
    return {row: claims[0][0] for row, claims in wanted.items() if len(claims) == 1}, unplaced, notes


def names_in(roster: Mapping[str, Mapping[str, str]], of_roster: Mapping[str, str]) -> Callable[[str, str], str]:
    """The function that gives a student's name in a column: the roster's value, else their id.

    Args:
        of_roster: column → the roster's column for the same.
    """
    return lambda student, key: roster.get(student, {}).get(of_roster.get(key, "")) or student


def changed(before: str, entry: Entry, read: Callable[[str], float | None]) -> list[str]:
    """A remark if an existing grade changes."""
    old = read(before)
    if old is None or old == entry.final_score:
        return []
    way = "lower" if entry.final_score < old else "higher"
    return [f"{plain(entry.report.student)}: was {before.strip()}, is {points(entry.final_score)} now, {way}"]


def number(text: str) -> float | None:
    """The grade in a cell of such a file; None if the cell holds no grade."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return None


def grade(value: float) -> str:
    """A grade as such files write it, to two places."""
    return f"{round(value, 2):.10g}"
