"""Moodle, in both of its ways: a file for the gradebook's import, and an offline grading worksheet that is filled in."""

from collections.abc import Sequence

from grading.cohort.journal import Entry
from grading.export.csv_table import harmless, written
from grading.export.lines import days, name_of
from grading.export.sheet import Filled, Sheet, changed, grade, number, place
from grading.judge.show import plain, points

IDENTITIES = {"username": "Username", "email": "Email address", "idnumber": "ID number", "id": "User ID"}
"""By what the import finds a person, and what the column is headed here."""
KEYS = ("Identifier", "ID number", "Email address", "Username", "Full name")
NEEDED = ("Identifier", "Grade", "Last modified (grade)")


def gradebook(entries: Sequence[Entry], identity: str = "username") -> str:
    """The file for the import: who, final score, feedback.

    Moodle asks which column is which when it is uploaded, and lists whom it does not know.

    Args:
        identity: one of `IDENTITIES`: what the students are called by in the journal.
    """
    if identity not in IDENTITIES:
        raise ValueError(f"Moodle finds people by {', '.join(IDENTITIES)}, not by {identity!r}")
    labs = sorted({entry.report.lab for entry in entries})
    if len(labs) > 1:
        raise ValueError(f"these are results of several labs ({', '.join(labs)}); choose one with --lab")
    lab = f"Lab {labs[0]}" if labs else "Lab"
    rows = [[entry.report.student, float(grade(entry.final_score)), feedback(entry)] for entry in entries]
    return written([[IDENTITIES[identity], lab, f"{lab} feedback"], *rows])


def fill_worksheet(data: bytes, entries: Sequence[Entry]) -> Filled:
    """The worksheet that Moodle gave out, with final scores and feedback in it.

    `Last modified (grade)` stays: by it Moodle notices that somebody has graded meanwhile. Raises
    `ValueError` if it is no such worksheet.
    """
    sheet = Sheet(data)
    if missing := [name for name in NEEDED if name not in sheet.heading]:
        raise ValueError(f"that is no grading worksheet of Moodle: it has no column {' and no '.join(missing)}")
    column, said = sheet.heading.index("Grade"), sheet.column("Feedback comments")
    keys = [(name, sheet.column(name)) for name in KEYS]
    rows = [row for row in range(1, len(sheet)) if sheet.value(row, keys[0][1]).strip()]
    placed, unplaced, notes = place(sheet, entries, keys, rows)
    for row, entry in sorted(placed.items()):
        if sheet.value(row, sheet.column("Grade can be changed")).strip().lower() == "no":
            unplaced.append(f"{plain(entry.report.student)}: the grade is locked in Moodle")
            continue
        notes += changed(sheet.value(row, column), entry, number) + _wrong_points(sheet, row, entry)
        sheet.put(row, column, grade(entry.final_score))
        if said is not None:
            sheet.put(row, said, str(harmless(feedback(entry))))
    notes += [f"no grade for {plain(sheet.value(row, keys[0][1]))}: the cell stays as it is" for row in rows if row not in placed]
    return Filled(sheet.data(), tuple(unplaced), tuple(notes))


def feedback(entry: Entry) -> str:
    """Points per TODO, in a line."""
    told = ", ".join(f"{name_of(row.todo)} {points(row.earned)}/{points(row.points)}" for row in entry.report.todos())
    late = f"; {days(entry.late_days)} late" if entry.late_days else ""
    return f"{told}; total {points(entry.report.score)}/{points(entry.report.max_score)}{late}"


def _wrong_points(sheet: Sheet, row: int, entry: Entry) -> list[str]:
    there = number(sheet.value(row, sheet.column("Maximum Grade")))
    if there in (None, entry.report.max_score):
        return []
    return [f"{plain(entry.report.student)}: Moodle's maximum is {points(there)}, here it is {points(entry.report.max_score)}"]
