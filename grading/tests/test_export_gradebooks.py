"""Canvas and Moodle: exported files are filled in, each grade at the right person or at nobody, everything else byte for byte."""

import csv
import io

import pytest

from grading.cohort.journal import Entry
from grading.cohort.overrides import Override
from grading.export import canvas, moodle
from grading.export.sheet import Sheet
from grading.judge.report import CheckResult, Report

CANVAS = (
    b'\xef\xbb\xbfStudent,ID,SIS User ID,SIS Login ID,Section,"Lab 05 (4711)",Lab 06 (4712),Current Score (read only)\r\n'
    b',,,,,Manual Posting,,\r\n'
    b'    Points Possible,,,,,100,10,(read only)\r\n'
    b'"Lovelace, Ada",101,s-1,ada@example.com,"A, ""morning""",88.00,,91.2\r\n'
    b'"Babbage, Ben",102,s-2,ben,A,,3,"4"\r\n'
    b'"K\xc3\xb6nig, Cem",103,s-3,cem,B,,EX,\r\n'
    b'"Twin, Dora",104,s-4,dora,B,,"",\r\n'
    b'"Twin, Dora",105,s-5,dora2,B,,,\r\n'
    b'"Student, Test",199,,4f2a,A,,,')
"""What real exports have: a byte-order mark, quotation marks, lines of their own, somebody excused, no end of the last line."""


def entry(student, score, late=0.0):
    report = Report(student, "06", "0" * 64, "limits", "5eed", {"checks": "abc"},
                    (CheckResult(1, "x", 10, score, False, "", "s", "c"),))
    return Entry(report, None, late, score)


def cells(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))


@pytest.mark.parametrize("data", [
    CANVAS, CANVAS + b"\r\n", CANVAS.replace(b"\r\n", b"\n"), CANVAS.removeprefix(b"\xef\xbb\xbf"), b"a",
    b'"a;b";c\n1;"x,""y"\n\n2;3\n', b'a,b\n"li\r\nne",2\n', b"a,\n,\n"])
def test_a_sheet_that_is_read_and_not_changed_is_the_same_bytes(data):
    sheet = Sheet(data)
    assert sheet.data() == data
    separator = ";" if b'"a;b"' in data else ","
    read = [row or [""] for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=separator)]
    assert [[sheet.value(row, column) for column in range(len(read[row]))] for row in range(len(read))] == read


def test_a_cell_keeps_its_quotation_marks_and_a_short_row_gets_its_cells():
    sheet = Sheet(b'a,b,c\r\n"1",2\r\n')
    sheet.put(1, 0, "7")
    sheet.put(1, 1, 'x "y"')
    sheet.put(1, 2, "9")
    assert sheet.data() == b'a,b,c\r\n"7","x ""y""",9\r\n'


def test_canvas_fills_the_column_and_nothing_else():
    entries = [entry("101", 9.5), entry("s-2", 10), entry("dora", 7), entry("dora2", 2.25)]
    filled = canvas.fill(CANVAS, "Lab 06", entries)
    expected = CANVAS.replace(b'88.00,,91.2', b'88.00,9.5,91.2').replace(b'A,,3,"4"', b'A,,10,"4"').replace(
        b'dora,B,,"",', b'dora,B,,"7",')
    expected = expected.replace(b"dora2,B,,,", b"dora2,B,,2.25,")
    assert filled.data == expected
    assert filled.unplaced == ()
    assert set(filled.notes) == {"s-2: was 3, is 10 now, higher", "no grade for König, Cem: the cell stays as it is",
                                 "no grade for Student, Test: the cell stays as it is"}
    assert cells(filled.data)[2][:8] == ["    Points Possible", "", "", "", "", "100", "10", "(read only)"]


@pytest.mark.parametrize("name, row", [("101", 3), ("s-1", 3), ("ada@example.com", 3), ("Lovelace, Ada", 3), ("König, Cem", 5)])
def test_canvas_finds_people_by_number_sis_login_and_name(name, row):
    filled = canvas.fill(CANVAS.replace(b",EX,", b",,"), "4712", [entry(name, 4)])
    assert [number for number, cell in enumerate(cells(filled.data)) if cell[6] == "4"] == [row]


def test_canvas_ids_go_before_sis_ids_and_the_doubt_is_said():
    data = CANVAS.replace(b"102,s-2", b"102,101")
    filled = canvas.fill(data, "4712", [entry("101", 4)])
    assert [number for number, cell in enumerate(cells(filled.data)) if cell[6] == "4"] == [3]
    assert "101 was found by ID; as SIS User ID it stands in another row" in filled.notes


def test_canvas_lists_whom_it_does_not_find_for_certain_and_enters_nobody():
    entries = [entry("stranger", 4), entry("Twin, Dora", 5), entry("101", 6), entry("s-1", 7), entry("ADA@example.com", 3),
               entry("cem", 8), entry("Points Possible", 1)]
    filled = canvas.fill(CANVAS, "4712", entries)
    assert filled.data == CANVAS
    assert set(filled.unplaced) == {
        "stranger: no row has it as ID, SIS User ID, SIS Login ID, Student", "Twin, Dora: 2 rows have it as Student",
        "101 (by ID) and s-1 (by SIS User ID): they come to one row, number 4, and none of them is entered",
        "ADA@example.com: no row has it as ID, SIS User ID, SIS Login ID, Student", "cem: is excused in Canvas, and stays so",
        "Points Possible: no row has it as ID, SIS User ID, SIS Login ID, Student"}


def test_canvas_says_lower_grades_and_other_points():
    filled = canvas.fill(CANVAS.replace(b",100,10,", b",100,20,"), "4712", [entry("ben", 2)])
    assert ("ben: was 3, is 2 now, lower" in filled.notes
            and "in Canvas the assignment is worth 20 points, here 10" in filled.notes)


@pytest.mark.parametrize("data, assignment, told", [
    (CANVAS, "Lab 07", "no assignment 'Lab 07'; it has: Lab 05 .4711.; Lab 06 .4712."),
    (CANVAS.replace(b"Lab 05", b"Lab 06"), "Lab 06", "more than one"), (CANVAS, "Section", "no assignment"),
    (b"Name,Grade\nada,1\n", "x", "no column Student and no ID"), (b"", "x", "empty"), (b"\xff\xfe", "x", "not in UTF-8")])
def test_canvas_says_what_it_cannot_fill(data, assignment, told):
    with pytest.raises(ValueError, match=told):
        canvas.fill(data, assignment, [entry("101", 4)])


WORKSHEET = (
    'Identifier,"Full name","Email address",Status,Grade,"Maximum Grade","Grade can be changed",'
    '"Last modified (submission)","Last modified (grade)","Feedback comments"\n'
    'Participant 7,"Ada Lovelace",ada@example.com,Submitted,,10.00,Yes,"Monday, 1 February 2027, 10:00 AM",-,\n'
    'Participant 8,"Ben Babbage",ben@example.com,Submitted,3.00,10.00,Yes,-,"Tuesday, 2 February 2027, 8:00 AM",old\n'
    'Participant 9,"Cem König",cem@example.com,Submitted,,10.00,No,-,-,\n').encode()


def test_moodles_worksheet_is_filled_and_keeps_when_grades_were_changed():
    filled = moodle.fill_worksheet(WORKSHEET, [entry("ada@example.com", 9.5), entry("Participant 8", 2), entry("Cem König", 1),
                                               entry("nobody", 1)])
    before, after = cells(WORKSHEET), cells(filled.data)
    assert [row[4] for row in after] == ["Grade", "9.5", "2", ""]
    assert [row[9] for row in after] == ["Feedback comments", "TODO 1 9.5/10; total 9.5/10; TODO 1, -0.5: x",
                                       "TODO 1 2/10; total 2/10; TODO 1, -8: x", ""]
    assert [row[:4] + row[5:9] for row in after] == [row[:4] + row[5:9] for row in before]
    assert set(filled.unplaced) == {"Cem König: the grade is locked in Moodle",
                                    "nobody: no row has it as Identifier, Email address, Full name"}
    assert "Participant 8: was 3.00, is 2 now, lower" in filled.notes


def test_moodle_refuses_a_sheet_that_is_no_worksheet():
    with pytest.raises(ValueError, match="no column Grade and no Last modified"):
        moodle.fill_worksheet(b"Identifier,Points\nx,1\n", [])


def test_moodles_import_has_a_column_by_which_people_are_found():
    read = cells(moodle.gradebook([entry("ada@example.com", 9.5), entry("=cmd|x", 3, late=1.5)], "email").encode())
    assert read == [["Email address", "Lab 06", "Lab 06 feedback"],
                    ["ada@example.com", "9.5", "TODO 1 9.5/10; total 9.5/10; TODO 1, -0.5: x"],
                    ["'=cmd|x", "3.0", "TODO 1 3/10; total 3/10; TODO 1, -7: x; 1.5 days late"]]


def test_moodles_line_says_where_points_were_lost_and_nothing_hidden():
    checks = (CheckResult(0, "predictions", 15, 9, False), CheckResult(1, "a", 12, 12, False),
              CheckResult(5, "the_name_that_tells", 4, 0, True, "words that tell", "TODO 5", "free exactly once"),
              *(CheckResult(6, f"unwritten_{number}", 2, 0, False, "TODO 6: the goal", "", "", (), True) for number in range(3)))
    report = Report("ada", "06", "d", "limits", "5eed", {"checks": "v"}, checks)
    lost = "TODO 5, -4: a hidden check, about: free exactly once; TODO 6, -6: not written yet"
    assert moodle.feedback(Entry(report, None, 0.0, 21)) == (
        f"predictions 9/15, TODO 1 12/12, TODO 5 0/4, TODO 6 0/6; total 21/37; {lost}")
    decided = Entry(report, None, 0.0, 25, overrides=(Override("ada", "06", "Shown.", 5, 4.0),))
    assert "TODO 5, -4" not in moodle.feedback(decided)


def test_moodles_import_refuses_what_it_does_not_find_people_by():
    with pytest.raises(ValueError, match="username, email, idnumber, id, not by 'name'"):
        moodle.gradebook([], "name")
