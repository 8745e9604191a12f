"""JUnit XML as pytest writes it: a suite for each submission, a case for each check.

Durations are not known, so none are given.
"""

from collections.abc import Sequence
from xml.etree import ElementTree

from grading.cohort.journal import Entry
from grading.export.lines import Line, decided, lines_of
from grading.judge.show import plain


def document(entries: Sequence[Entry], as_student: bool = True) -> str:
    """The file's text."""
    root = ElementTree.Element("testsuites", name="grading")
    for entry in entries:
        _suite(root, entry, lines_of(entry.report, as_student))
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(root: ElementTree.Element, entry: Entry, lines: Sequence[Line]) -> None:
    report = entry.report
    failed = sum(not line.passed for line in lines)
    suite = ElementTree.SubElement(root, "testsuite", name=f"lab{report.lab}.{plain(report.student)}", errors="0",
                                   failures=str(failed), skipped="0", tests=str(len(lines)))
    if entry.overrides:
        properties = ElementTree.SubElement(suite, "properties")
        for decision in decided(entry):
            ElementTree.SubElement(properties, "property", name="override", value=decision)
    for line in lines:
        where = f"lab{report.lab}.{f'todo_{line.todo}' if line.todo else 'predictions'}"
        case = ElementTree.SubElement(suite, "testcase", classname=where, name=f"{line.number} {line.title}")
        if not line.passed:
            first = line.message.splitlines()[0] if line.message else "failed"
            section = f"\nREADME: {line.section}" if line.section else ""
            ElementTree.SubElement(case, "failure", message=first).text = line.message + section
        if line.printed:
            ElementTree.SubElement(case, "system-out").text = line.printed
