"""The two forms in JSON: their fields and values are those that the two systems take, read back from the text."""

import json
import re

import pytest

from grading.cohort.journal import Entry
from grading.export import classroom50, gradescope
from grading.judge.report import CheckResult, Report

PREDICTED = CheckResult(0, "predictions", 15, 12.4, False, "83% of the answers of the best attempt are right", "Predict first",
                        "what happens")
RIGHT = CheckResult(1, "a_block_is_free_once", 3, 3, False, "", "TODO 1: Free list", "what is free")
WRONG = CheckResult(1, "takes_all_or_none", 2, 0, False, "expected 4 blocks, 3 came", "TODO 1: Free list", "taking", (), False,
                    "hello")
HIDDEN = CheckResult(2, "pools_are_apart", 5, 0, True, "secret", "TODO 2", "pools")
REPORT = Report("ada@example.com", "06", "ab" * 32, "limits", "5eed", {"checks": "abc"}, (PREDICTED, RIGHT, WRONG, HIDDEN))
ENTRY = Entry(REPORT, "2027-02-01T12:00:00+02:00", 1.0, 13.86)
LATE_FREE = Entry(REPORT, None, 0.0, REPORT.score)

GRADESCOPE = {"score", "execution_time", "output", "output_format", "visibility", "stdout_visibility", "extra_data", "tests",
              "leaderboard"}
GRADESCOPE_TEST = {"score", "max_score", "status", "name", "number", "output", "output_format", "tags", "visibility",
                   "extra_data"}
VISIBILITY = {"hidden", "after_due_date", "after_published", "visible"}
CLASSROOM50 = {"schema", "classroom", "assignment", "assignment_type", "owner", "submission", "commit", "release", "review",
               "datetime", "score", "max-score", "tests"}
PLACES = json.dumps({"classroom": "serving", "assignment": "lab06", "assignment_type": "individual", "submissions": {
    "ada@example.com": {
        "submission": "submit/2027-02-01T10-00-00Z-0a1b2c3", "commit": "a link", "release": "another", "review": "a third"}}})


def check_gradescope(facts: dict) -> None:
    """As far as its documentation goes."""
    assert set(facts) <= GRADESCOPE and type(facts["score"]) in (int, float)
    assert facts["visibility"] in VISIBILITY and facts["stdout_visibility"] in VISIBILITY and facts["output_format"] == "text"
    for test in facts["tests"]:
        assert set(test) <= GRADESCOPE_TEST, f"unknown fields {set(test) - GRADESCOPE_TEST}"
        assert test["visibility"] in VISIBILITY and test["status"] in ("passed", "failed") and isinstance(test["tags"], list)
        assert 0 <= test["score"] <= test["max_score"] and isinstance(test["number"], str) and isinstance(test["output"], str)


def test_gradescope_gets_every_check_and_the_score_that_counts():
    facts = json.loads(gradescope.results(ENTRY, seconds=12.34))
    check_gradescope(facts)
    assert (facts["score"], facts["execution_time"]) == (13.86, 12.3), "lateness is in the score, which overrides the sum"
    *tests, receipt = facts["tests"]
    got = [(test["name"], test["score"], test["max_score"], test["status"], test["visibility"]) for test in tests]
    assert got == [
        ("predictions: predictions", 12.4, 15, "failed", "visible"),
        ("TODO 1: a block is free once", 3, 3, "passed", "visible"),
        ("TODO 1: takes all or none", 0, 2, "failed", "visible"),
        ("TODO 2: a hidden check, about: pools", 0, 5, "failed", "after_published")]
    assert [test["number"] for test in tests] == ["0.1", "1.1", "1.2", "2.1"]
    assert tests[2]["output"] == "expected 4 blocks, 3 came\nREADME: TODO 1: Free list\nIt printed:\nhello"
    assert receipt["visibility"] == "after_published" and "5eed" in receipt["output"] and receipt["max_score"] == 0
    assert facts["extra_data"]["seed"] == "5eed" and "1 day late" in facts["output"]


def test_gradescope_can_keep_hidden_checks_for_ever():
    facts = json.loads(gradescope.results(LATE_FREE, hidden="hidden"))
    check_gradescope(facts)
    assert [test["visibility"] for test in facts["tests"]] == ["visible", "visible", "visible", "hidden", "after_published"]
    assert "late" not in facts["output"]
    with pytest.raises(ValueError, match="after_published or hidden, not 'visible'"):
        gradescope.results(ENTRY, hidden="visible")


def check_classroom50(facts: dict) -> None:
    """As its schema has it."""
    assert set(facts) == CLASSROOM50 and facts["schema"] == "classroom50/result/v1"
    assert all(isinstance(facts[name], str) and facts[name] for name in CLASSROOM50 - {"score", "max-score", "tests"})
    assert facts["assignment_type"] in ("individual", "group") and facts["submission"].startswith("submit/")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ", facts["datetime"])
    assert type(facts["score"]) is int and type(facts["max-score"]) is int and 0 <= facts["score"] <= facts["max-score"]
    for test in facts["tests"]:
        assert set(test) == {"test-name", "passed", "score", "max-score"} and test["test-name"] and type(test["passed"]) is bool
        assert type(test["score"]) is int and type(test["max-score"]) is int and 0 <= test["score"] <= test["max-score"]


def test_classroom50_gets_whole_numbers_and_the_time_in_utc():
    place = classroom50.read_places(PLACES)["ada@example.com"]
    facts = json.loads(classroom50.result(ENTRY, place))
    check_classroom50(facts)
    assert (facts["score"], facts["max-score"], facts["datetime"]) == (14, 25, "2027-02-01T10:00:00Z")
    assert (facts["owner"], facts["classroom"], facts["review"]) == ("ada@example.com", "serving", "a third")
    assert [(test["passed"], test["score"], test["max-score"]) for test in facts["tests"]] == [
        (False, 12, 15), (True, 3, 3), (False, 0, 2), (False, 0, 5)]
    assert len({test["test-name"] for test in facts["tests"]}) == 4


def test_classroom50_says_what_it_lacks():
    place = classroom50.read_places(PLACES)["ada@example.com"]
    with pytest.raises(ValueError, match="not known when ada@example.com handed in"):
        classroom50.result(LATE_FREE, place)
    for broken, told in ((PLACES.replace('"review"', '"revue"'), "'ada@example.com' has no review"),
                         (PLACES.replace("individual", "pair"), "not 'pair'"),
                         (PLACES.replace("submit/", "tag/"), "begin with submit/"), ('{"classroom": "x"}', "assignment"),
                         ("[", "needs classroom"), ("[]", "needs")):
        with pytest.raises(ValueError, match=told):
            classroom50.read_places(broken)


def test_the_same_entry_gives_the_same_bytes():
    place = classroom50.read_places(PLACES)["ada@example.com"]
    assert gradescope.results(ENTRY) == gradescope.results(Entry(Report.from_json(REPORT.to_json()), ENTRY.submitted, 1.0, 13.86))
    assert classroom50.result(ENTRY, place) == classroom50.result(ENTRY, place)
