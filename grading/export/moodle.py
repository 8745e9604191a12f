"""Moodle, both ways: a file for the gradebook's import, and an offline grading worksheet to fill in."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from grading.cohort.journal import Entry
from grading.export.csv_table import harmless, written
from grading.export.lines import decided, how_late, lateness, lost_lines, name_of
from grading.export.sheet import Filled, Sheet, changed, grade, names_in, number, place
from grading.judge.show import plain, points

IDENTITIES = {"username": "Username", "email": "Email address", "idnumber": "ID number", "id": "User ID"}
"""The field by which the import finds a person, and our heading for its column."""
OF_ROSTER = {"Username": "login", "Email address": "email", "ID number": "sis_id", "User ID": "lms_id", "Identifier": "lms_id",
             "Full name": "name"}
"""Moodle's columns, each with the roster's column for the same."""
KEYS = ("Identifier", "ID number", "Email address", "Username", "Full name")
NEEDED = ("Identifier", "Grade", "Last modified (grade)")


def gradebook(
    entries: Sequence[Entry], identity: str = "username", roster: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> str:
    """The file for the import: student, final score, feedback.

    On upload, Moodle asks which column is which, and lists the students it does not know.

    Args:
        identity: one of `IDENTITIES`: a column of the roster, or the id that names students here.
    """
    if identity not in IDENTITIES:
        raise ValueError(f"Moodle finds people by {', '.join(IDENTITIES)}, not by {identity!r}")
    labs = sorted({entry.report.lab for entry in entries})
    if len(labs) > 1:
        raise ValueError(f"these are results of several labs ({', '.join(labs)}); choose one with --lab")
    lab = f"Lab {labs[0]}" if labs else "Lab"
    known = {student: row.get(OF_ROSTER[IDENTITIES[identity]]) for student, row in roster.items()}
    rows = [[known.get(entry.report.student) or entry.report.student, float(grade(entry.final_score)), feedback(entry)]
            for entry in entries]
    return written([[IDENTITIES[identity], lab, f"{lab} feedback"], *rows])


def fill_worksheet(
    data: bytes, entries: Sequence[Entry], roster: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> Filled:
    """The worksheet that Moodle exported, with final scores and feedback filled in.

    `Last modified (grade)` stays, because Moodle uses it to notice grades given meanwhile. Raises
    `ValueError` if the file is no such worksheet.
    """
    sheet = Sheet(data)
    if missing := [name for name in NEEDED if name not in sheet.heading]:
        raise ValueError(f"that is no grading worksheet of Moodle: it has no column {' and no '.join(missing)}")
    column, comments = sheet.heading.index("Grade"), sheet.column("Feedback comments")
    keys = [(name, sheet.column(name)) for name in KEYS]
    rows = [row for row in range(1, len(sheet)) if sheet.value(row, keys[0][1]).strip()]
    placed, unplaced, notes = place(sheet, entries, keys, rows, names_in(roster, OF_ROSTER))
    for row, entry in sorted(placed.items()):
        if sheet.value(row, sheet.column("Grade can be changed")).strip().lower() == "no":
            unplaced.append(f"{plain(entry.report.student)}: the grade is locked in Moodle")
            continue
        notes += changed(sheet.value(row, column), entry, number) + _wrong_points(sheet, row, entry)
        sheet.put(row, column, grade(entry.final_score))
        if comments is not None:
            sheet.put(row, comments, str(harmless(feedback(entry))))
    notes += [f"no grade for {plain(sheet.value(row, keys[0][1]))}: the cell stays as it is" for row in rows if row not in placed]
    return Filled(sheet.data(), tuple(unplaced), tuple(notes))


def feedback(entry: Entry) -> str:
    """Points per TODO, where they were lost, the cost of lateness and the instructor's decisions, in one line."""
    told = ", ".join(f"{name_of(row.todo)} {points(row.earned)}/{points(row.points)}" for row in entry.todos())
    short = {row.todo for row in entry.todos() if row.todo and row.earned < row.points}  # as the instructor has decided
    late = lateness(entry) or (how_late(entry) if entry.late_days else "")
    total = f"total {points(entry.score)}/{points(entry.report.max_score)}"
    lost = [f"{name_of(line.todo)}, -{points(line.points - line.earned)}: {line.title}" for line in lost_lines(entry.report)
            if line.todo in short]
    return "; ".join(filter(None, [told, total, *lost, late, *decided(entry)]))


def _wrong_points(sheet: Sheet, row: int, entry: Entry) -> list[str]:
    there = number(sheet.value(row, sheet.column("Maximum Grade")))
    if there in (None, entry.report.max_score):
        return []
    return [f"{plain(entry.report.student)}: Moodle's maximum is {points(there)}, here it is {points(entry.report.max_score)}"]
