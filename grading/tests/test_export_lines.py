"""Whatever leaves for a student tells of a hidden check its TODO and its concept, and nothing else; and is harmless."""

import json

import pytest
from rich.console import Console

from grading.cohort.journal import Entry
from grading.export import classroom50, gradescope, html, junit, markdown
from grading.export.files import file_name
from grading.export.lines import lines_of, lost_lines
from grading.judge.report import CheckResult, Report
from grading.judge.show import print_report

PLACE = classroom50.Place("serving", "lab06", "individual", "submit/2027-02-01T10-00-00Z-0a1b2c3", "commit", "release", "review")
SECRETS = ("the_name_that_tells", "the name that tells", "words that tell", "a section that tells", "prints that tell",
           "5eed5eed5eed5eed")


def entry_of(*checks, student="ada", final=None, late=0.0):
    report = Report(student, "06", "0" * 64, "limits", "5eed5eed5eed5eed",
                    {"checks": "abc", "python": "3.12.1", "torch": "2.13.0"}, checks, ("a note",))
    return Entry(report, "2027-02-01T10:00:00Z", late, report.score if final is None else final)


OPEN = CheckResult(1, "a_block_is_free_once", 3, 0, False, "expected 4 blocks, 3 came", "TODO 1: Free list", "what is free", (),
                   False, "my print")
HIDDEN = CheckResult(1, "the_name_that_tells", 2, 0, True, "words that tell", "a section that tells", "pools", (), False,
                     "prints that tell")
HIDDEN_PASSED = CheckResult(2, "the_name_that_tells", 4, 4, True, "", "a section that tells", "all or nothing")
ENTRY = entry_of(OPEN, HIDDEN, HIDDEN_PASSED)


def for_student(form: str) -> str:
    if form == "gradescope":  # extra_data is for instructors; the receipt is shown when results are published
        facts = json.loads(gradescope.results(ENTRY))
        facts["tests"] = [test for test in facts["tests"] if test["name"] != "Receipt"]
        return json.dumps({key: value for key, value in facts.items() if key != "extra_data"})
    return {"classroom50": lambda: classroom50.result(ENTRY, PLACE), "junit": lambda: junit.document([ENTRY]),
            "markdown": lambda: markdown.summary(ENTRY), "html": lambda: html.page(ENTRY)}[form]()


@pytest.mark.parametrize("form", ["gradescope", "classroom50", "junit", "markdown", "html"])
def test_a_student_learns_of_a_hidden_check_its_todo_and_concept_only(form):
    said = for_student(form)
    told = [secret for secret in SECRETS if secret in said]
    assert not told, f"{form} tells students {told}"
    assert "about: pools" in said, f"{form} does not say what the hidden check is about"


@pytest.mark.parametrize("form", [junit.document, markdown.summary, html.page])
def test_instructors_see_hidden_checks_in_full(form):
    said = form([ENTRY] if form is junit.document else ENTRY, as_student=False)
    assert all(secret in said
               for secret in ("the name that tells", "words that tell", "a section that tells", "prints that tell"))


UNWRITTEN = [CheckResult(3, f"check_{number}", 2, 0, number == 1, f"TODO 3: the goal{' and more' * (number == 1)}",
                         f"TODO 3: Goal{' hidden' * (number == 1)}", "goals", on_ours, True)
             for number, on_ours in enumerate([(2,), (), (), (), ()], 0)]


@pytest.mark.parametrize("form", [markdown.summary, html.page])
def test_a_todo_that_is_not_written_is_said_once_with_all_the_points_it_costs(form):
    entry = entry_of(OPEN, *UNWRITTEN[:2], CheckResult(3, "passes", 1, 1, False), *UNWRITTEN[2:])
    told = form(entry).replace("&minus;", "-")
    assert told.count("TODO 3: the goal") == 1 and told.count("not written yet") == 1 and "and more" not in told
    assert "TODO 3, -10: not written yet" in told or "TODO 3: -10" in told
    assert "expected 4 blocks, 3 came" in told, "what is written and wrong is said as before"
    assert sum(line.points - line.earned for line in lost_lines(entry.report)) == 3 + 10
    assert len(lines_of(entry.report)) == 7, "every check has its line where all are listed"


def test_of_a_todo_that_is_not_written_nothing_hidden_is_said():
    hidden = entry_of(*UNWRITTEN[:2])
    line, = lost_lines(hidden.report)
    assert (line.message, line.section, line.points) == ("TODO 3 is not written yet", "", 4)
    console = Console(record=True, width=200)
    print_report(hidden.report, console, as_student=True)
    assert "TODO 3  -4  not written yet: TODO 3 is not written yet\n" in console.export_text()


def test_control_sequences_and_marks_of_direction_do_not_get_through():
    nasty = CheckResult(1, "x", 1, 0, False, "\x1b[31mred\x1b[0m \x00 \u202edesrever \x9b31m \ud800", "s", "c", (), False,
                        "\x1b]0;title\x07")
    line = lines_of(entry_of(nasty).report)[0]
    assert not [character for character in line.message + line.printed if ord(character) < 32 or character in "\u202e\x9b\ud800"]
    for text in (junit.document([entry_of(nasty)]), markdown.summary(entry_of(nasty)), html.page(entry_of(nasty)),
                 gradescope.results(entry_of(nasty))):
        assert "\x1b" not in text and "\u202e" not in text
        text.encode("utf-8")


def test_files_are_named_after_students_and_stay_in_their_folder():
    names = ["ada@example.com", "../../etc/passwd", "..", "Ada", "a" * 300, "a/b", "a\\b", "a:b", "Zoë", "\ud800"]
    made = [file_name(name, "06", "json") for name in names]
    assert made[0] == "lab06-ada@example.com.json"
    assert len({name.lower() for name in made}) == len(names), f"two students have one file: {made}"
    assert not [name for name in made if "/" in name or "\\" in name or ":" in name or len(name) > 120]
