"""Every lab's checks: worth what its tests are worth, about sections that its README has, public and hidden."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from grading.judge.suite import HOME, checks_of
from labs.harness.catalog import Lab, all_labs
from labs.harness.originals import functions

LABS = pytest.mark.parametrize("lab", all_labs(), ids=lambda lab: lab.id)


def points_of_tests(lab: Lab) -> Counter:
    """TODO → what its tests are worth together."""
    points: Counter = Counter()
    for node in ast.parse(lab.tests.read_text(encoding="utf-8")).body:
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "todo":
                points[ast.literal_eval(call.args[0])] += next(ast.literal_eval(k.value) for k in call.keywords
                                                               if k.arg == "points")
    return points


@LABS
def test_each_todo_is_worth_what_its_tests_are(lab: Lab):
    points: Counter = Counter()
    for check in checks_of(lab):
        points[check.todo] += check.points
    assert points == points_of_tests(lab) and sum(points.values()) == 85


@pytest.mark.parametrize("lab", [lab for lab in all_labs() if (HOME.parent / "scenarios" / f"lab{lab.id}").is_dir()],
                         ids=lambda lab: lab.id)
def test_where_there_are_two_suites_each_todo_has_public_and_hidden_checks(lab: Lab):
    for todo in functions(lab):
        kinds = [check.hidden for check in checks_of(lab) if check.todo == todo]
        assert True in kinds and False in kinds, f"TODO {todo} has {'no public' if True in kinds else 'no hidden'} check"
    hidden = sum(check.points for check in checks_of(lab) if check.hidden)
    assert 15 <= hidden <= 45, f"{hidden} of 85 points are hidden"


@LABS
def test_each_check_is_about_a_section_of_the_readme(lab: Lab):
    headings = re.findall(r"^#+ (.+)$", (lab.folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    for check in checks_of(lab):
        assert check.section in headings, f"{check.name}: there is no section {check.section!r}"
        assert f"TODO {check.todo}" in check.section, f"{check.name} is of TODO {check.todo} and about {check.section!r}"


@LABS
def test_names_are_unique_and_concepts_are_a_few_words(lab: Lab):
    checks = checks_of(lab)
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert 1 <= len(check.concept.split()) <= 16 and not check.concept.endswith("."), check.concept
