"""Canvas: fills one assignment's column in a gradebook that the instructor exported, and leaves all else as it is.

Canvas turns an unknown column into a new assignment, so this module never makes a gradebook of its own.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from grading.cohort.journal import Entry
from grading.export.lines import decided
from grading.export.sheet import Filled, Sheet, changed, grade, names_in, number, place
from grading.judge.show import plain, points

KEYS = ("ID", "SIS User ID", "SIS Login ID", "Student")
"""The columns by which Canvas matches students, in this order; `Student` is the name."""
OF_ROSTER = {"ID": "lms_id", "SIS User ID": "sis_id", "SIS Login ID": "login", "Student": "name"}
"""Canvas' columns, each with the roster's column for the same."""
EXCUSED = "EX"
_TITLED = re.compile(r"(.*) \((\d+)\)")


def assignments(sheet: Sheet) -> list[str]:
    """The headings of assignments: a title, and Canvas' number in brackets."""
    return [name for name in sheet.heading if _TITLED.fullmatch(name)]


def fill(
    data: bytes, assignment: str, entries: Sequence[Entry], roster: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> Filled:
    """The gradebook with the final scores in it.

    Args:
        data: what Canvas exported.
        assignment: its column: the heading, the title, or the number. Raises `ValueError` that lists them
            if there is none, or more than one.
        roster: student → what else they are known by.
    """
    sheet = Sheet(data)
    if missing := [name for name in ("Student", "ID") if name not in sheet.heading]:
        raise ValueError(f"that is no gradebook exported by Canvas: it has no column {' and no '.join(missing)}")
    column = _column(sheet, assignment)
    keys = [(name, sheet.column(name)) for name in KEYS]
    rows = [row for row in range(1, len(sheet)) if any(sheet.value(row, at).strip() for _, at in keys[:3])]
    placed, unplaced, notes = place(sheet, entries, keys, rows, names_in(roster, OF_ROSTER))
    notes += _wrong_points(sheet, column, entries)
    for row, entry in sorted(placed.items()):
        before = sheet.value(row, column)
        if before.strip() == EXCUSED:
            unplaced.append(f"{plain(entry.report.student)}: is excused in Canvas, and stays so")
            continue
        notes += changed(before, entry, number)
        sheet.put(row, column, grade(entry.final_score))
        notes += [f"{plain(entry.report.student)}: a gradebook has no place for this: {decision}" for decision in decided(entry)]
    notes += [f"no grade for {plain(sheet.value(row, keys[3][1]))}: the cell stays as it is" for row in rows if row not in placed]
    return Filled(sheet.data(), tuple(unplaced), tuple(notes))


def _column(sheet: Sheet, wanted: str) -> int:
    there = assignments(sheet)
    hits = [name for name in there if wanted == name or ((titled := _TITLED.fullmatch(name)) and wanted in titled.groups())]
    if len(hits) != 1 or sheet.heading.count(hits[0]) != 1:
        which = "no assignment" if not hits else "more than one assignment"
        raise ValueError(f"the gradebook has {which} {wanted!r}; it has: {'; '.join(there) or 'none'}")
    return sheet.heading.index(hits[0])


def _wrong_points(sheet: Sheet, column: int, entries: Sequence[Entry]) -> list[str]:
    """A remark if the assignment has other maximum points in Canvas."""
    row = next((row for row in range(1, len(sheet)) if sheet.value(row, 0).strip() == "Points Possible"), None)
    there = None if row is None else number(sheet.value(row, column))
    most = {entry.report.max_score for entry in entries}
    return [f"in Canvas the assignment is worth {points(there)} points, here {points(here)}" for here in sorted(most)
            if there not in (None, here)]
