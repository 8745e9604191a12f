"""JUnit, CSV, Markdown, HTML: read back by other people's parsers, with text in them that wants out."""

import csv
import io
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from grading.cohort.journal import Entry
from grading.export import csv_table, html, junit, markdown
from grading.judge.report import CheckResult, Report

NASTY = (
    "``` \n~~~\n````\n# heading\n<script>alert(1)</script> </pre></textarea> ]]> &amp; "
    "::stop-commands::x\n::error::y | [l](javascript:1) @team `x``y`")


def entry_of(*checks, student="ada", notes=()):
    report = Report(student, "06", "ab" * 32, "limits", "5eed", {"checks": "abc"}, checks, notes)
    return Entry(report, "2027-02-01T10:00:00Z", 0.0, report.score)


RIGHT = CheckResult(1, "a_block_is_free_once", 3, 3, False, "", "TODO 1: Free list", "what is free")
WRONG = CheckResult(2, "takes_all_or_none", 2, 0, False, NASTY, "TODO 2: Taking", "taking", (), False, NASTY)
HOSTILE = entry_of(RIGHT, WRONG, student="<b>`ada`</b>|", notes=(NASTY,))

# JUnit

SUITE = '''
def test_right(): pass
def test_wrong():
    print("hello")
    assert [1] == [2]
'''


def shape(element: ElementTree.Element, found: dict | None = None) -> dict[str, tuple[set, set]]:
    """Tag -> its attributes and its children's tags."""
    found = {} if found is None else found
    attributes, children = found.setdefault(element.tag, (set(), set()))
    attributes |= set(element.attrib)
    for child in element:
        children.add(child.tag)
        shape(child, found)
    return found


@pytest.mark.proof
def test_junit_has_the_elements_and_attributes_that_pytest_writes(tmp_path):
    (tmp_path / "test_it.py").write_text(SUITE)
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path),
                    "-o", "junit_logging=system-out", "--junitxml", str(tmp_path / "out.xml"), str(tmp_path)],
                   capture_output=True, timeout=60)
    theirs = shape(ElementTree.parse(tmp_path / "out.xml").getroot())
    ours = shape(ElementTree.fromstring(junit.document([HOSTILE, entry_of(RIGHT)])))
    assert set(ours) == set(theirs), "testsuites, testsuite, testcase, failure, system-out"
    for tag, (attributes, children) in ours.items():
        assert attributes <= theirs[tag][0], f"pytest's {tag} has no {attributes - theirs[tag][0]}"
        assert children <= theirs[tag][1], f"pytest has no {children - theirs[tag][1]} in a {tag}"
    unknown_here = {"time", "timestamp", "hostname"}
    assert all(theirs[tag][0] - unknown_here <= ours[tag][0] for tag in ("testsuite", "testcase")), (
        "all but what is not known, or the machine's, is there")


def test_junit_says_each_check_once_and_nothing_gets_out_of_its_place():
    suite, = ElementTree.fromstring(junit.document([HOSTILE]))
    assert {key: suite.get(key) for key in ("name", "tests", "failures", "errors", "skipped")} == {
        "name": "lab06.<b>`ada`</b>|", "tests": "2", "failures": "1", "errors": "0", "skipped": "0"}
    right, wrong = suite
    assert (right.get("classname"), right.get("name"), len(right)) == ("lab06.todo_1", "1.1 a block is free once", 0)
    assert wrong.find("failure").text == NASTY + "\nREADME: TODO 2: Taking"
    assert wrong.find("failure").get("message") == "``` " and wrong.find("system-out").text == NASTY


# CSV


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_csv_cells_that_a_spreadsheet_would_run_are_text(text):
    read = list(csv.reader(io.StringIO(csv_table.written([[text, 1.5, -2]]), newline="")))
    assert read == [["'" + text, "1.5", "-2"]], "numbers stay numbers"


def test_the_table_has_a_row_for_each_submission_and_a_column_for_each_todo():
    other = entry_of(CheckResult(0, "predictions", 15, 12.5, False, "", "", ""), CheckResult(3, "x", 4, 4, True),
                     student='ben, "b"', notes=("=n",))
    rows = list(csv.DictReader(io.StringIO(csv_table.table([HOSTILE, other]), newline="")))
    assert [(row["student"], row["final_score"], row["max_score"]) for row in rows] == [
        ("<b>`ada`</b>|", "3", "5"), ('ben, "b"', "16.5", "19")]
    assert [[row[name] for name in ("predictions", "TODO 1", "TODO 2", "TODO 3")] for row in rows] == [
        ["", "3", "0", ""], ["12.5", "", "", "4"]]
    assert rows[1]["notes"] == "'=n" and rows[0]["submitted"] == "2027-02-01T10:00:00Z"


# Markdown


def test_markdown_keeps_a_submissions_text_in_fences_it_cannot_close():
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown.summary(HOSTILE))
    fences = [token.content for token in tokens if token.type == "fence"]
    assert fences[:2] == [f"2.1 takes all or none\n{NASTY}\n", NASTY + "\n"]
    assert len(fences) == 3 and NASTY in fences[2], "the note stands in the last"
    assert not [token for token in tokens if token.type == "html_block"]
    inline = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inline} <= {"text", "code_inline"}, "no link, no HTML, no emphasis"
    assert [child.content for child in inline if child.type == "code_inline"] == ["<b>`ada`</b>|", "TODO 2: Taking"]
    headings = [tokens[number + 1].content for number, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["Lab 06: 3 of 5 points", "Where points were lost", "TODO 2: -2", "How it was graded"]


def test_markdown_has_a_row_for_each_todo():
    assert "| TODO 1 | 3/3 | solved |\n| TODO 2 | 0/2 | failing |" in markdown.summary(HOSTILE)


# HTML


class Page(HTMLParser):
    """Tags in their order, their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *one) for one in attributes]
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} is closed where another tag is open"

    def handle_data(self, data):
        self.text += data


def test_the_page_of_one_student_is_whole_and_runs_nothing():
    page = Page(html.page(HOSTILE))
    assert page.open == [], "every tag is closed"
    assert NASTY in page.text and "<b>`ada`</b>|" in page.text
    assert not {"script", "link", "img", "iframe", "b"} & set(page.tags)
    assert not [one for one in page.attributes if one[1] in ("src", "onclick", "style")]
    assert {value for _, name, value in page.attributes if name == "href"} == {"#lost"}


def test_the_page_can_be_read_without_seeing_it():
    page = Page(html.page(HOSTILE))
    assert ("html", "lang", "en") in page.attributes and page.tags.count("h1") == 1 and "main" in page.tags
    assert page.tags.count("th") == len([one for one in page.attributes if one[:2] == ("th", "scope")])
    assert "solved" in page.text and "failing" in page.text, "states are words, not only colours"


@pytest.mark.parametrize("form", [junit.document, csv_table.table, markdown.summary, html.page])
def test_the_same_entry_gives_the_same_bytes(form):
    again = Entry(Report.from_json(HOSTILE.report.to_json()), HOSTILE.submitted, 0.0, HOSTILE.final_score)
    many = form in (junit.document, csv_table.table)
    assert form([HOSTILE] if many else HOSTILE) == form([again] if many else again)


def test_the_seed_is_told_only_where_it_is_asked_for():
    for form in (markdown.summary, html.page):
        assert "5eed" not in form(HOSTILE) and "5eed" in form(HOSTILE, with_seed=True)
