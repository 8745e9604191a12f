"""The judge's report: points only for checks that passed, a reason for every other, and no submission that stops it."""

import json
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grading import answers
from grading import judge as grader_module
from grading.checks import Check, Wrong
from grading.intake import Submission
from grading.isolation import Limits
from grading.judge import MESSAGE, NOTHING_SAID, Grader, Settings, grader_of, with_ours
from grading.model import Report
from grading.sandbox import Child, Sandbox, SetupError
from labs.harness.catalog import find_lab
from labs.harness.regions import put_back

LAB = find_lab("06")
SOLUTION = LAB.solution.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    """Of Lab 06's TODO 4, which needs no other, and TODO 1 and 3, the second of which needs the first."""
    with grader_of(LAB, Settings(seed="judge", predictions=False, limits=Limits(wall_seconds=20.0, cpu_seconds=5))) as one:
        one.checks = [check for check in one.checks if check.todo in (1, 3, 4)]
        yield one


@pytest.fixture(scope="module")
def box(grader: Grader) -> Iterator[Sandbox]:
    with grader.sandbox() as one:
        yield one


def graded(grader: Grader, box: Sandbox, text: str, student: str = "ada", **files: bytes) -> Report:
    return grader.grade(Submission(student, {"starter.py": text.encode("utf-8", "surrogatepass"), **files}), shared=box)


def with_slots(body: str) -> str:
    """The solution with another `slots`."""
    return put_back(SOLUTION, f"def slots(block_table, positions, block_size):\n    {body}\n", ["slots"])


def lost(report: Report) -> dict[int, list[str]]:
    """TODO → the messages of its checks that failed."""
    return {row.todo: [check.message for check in report.checks if check.todo == row.todo and not check.passed]
            for row in report.todos()}


def test_the_solution_gets_every_point_and_no_message(grader: Grader, box: Sandbox):
    report = graded(grader, box, SOLUTION)
    assert report.score == report.max_score and not any(lost(report).values())


@pytest.mark.parametrize(
    "body",
    [
        "raise type('TodoError', (Exception,), {})('\\n \\n')", "exec(\"raise type('', (Exception,), {})()\")",
        "exec(\"raise type(' ', (Exception,), {})('\\\\t')\")", "raise type('TodoError', (Exception,), {})()",
        "raise AssertionError",
    ],
)  # fmt: skip
def test_a_failure_that_says_nothing_is_a_failure(grader: Grader, box: Sandbox, body: str):
    """Whether a check passed must not be told by what the submission's exceptions say."""
    report = graded(grader, box, with_slots(body))
    assert len(lost(report)[4]) == 4 and all(message.strip() for message in lost(report)[4])
    assert not lost(report)[1] and not lost(report)[3]


def test_an_empty_verdict_is_one_too(grader: Grader, box: Sandbox):
    def says_nothing(lab: object, dice: object) -> None:
        raise Wrong("")

    result, _ = grader._run(Check("one", 1, 3, False, "", "", says_nothing), SOLUTION, (), "seed", box)
    assert (result.earned, result.message) == (0, NOTHING_SAID)


def test_a_submission_that_cannot_be_laid_out_is_not_graded(grader: Grader, box: Sandbox):
    """Whatever fails before its first line runs is the machine's fault, and must not become points lost."""
    with box.child() as child, pytest.raises(SetupError, match="could not be laid into the folder .*IsADirectoryError"):
        (box._folder / "starter.py").mkdir()
        grader_module._lay(child, SOLUTION)
    check = next(check for check in grader.checks if check.todo == 4)
    assert grader._run(check, SOLUTION, (), "seed", box)[0].passed


def test_points_are_not_lost_on_a_full_disk(grader: Grader, box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    wrong, usage = with_slots("return [-1]"), shutil.disk_usage(".")
    assert lost(graded(grader, box, wrong))[4]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 10))
    assert graded(grader, box, SOLUTION).score > 0, "what passed has passed"
    with pytest.raises(SetupError, match="is full: 1 KiB are left, and a check may use 16 MiB; make room, or set TMPDIR"):
        graded(grader, box, wrong)


def test_a_message_is_short_and_can_be_written(grader: Grader, box: Sandbox):
    report = graded(grader, box, with_slots("raise ValueError('\\ud800\\x1b[2J' + 'x' * 10**6)"), student="a\udc80b")
    assert all(len(message) <= MESSAGE for message in lost(report)[4])
    assert Report.from_json(report.to_json().encode("utf-8").decode()) == report


def test_what_is_printed_is_kept_in_part_and_can_be_written(grader: Grader, box: Sandbox):
    report = graded(grader, box, with_slots("__import__('os').write(1, b'\\xff\\x00' * 5000) and None"))
    printed = [check.printed for check in report.checks if check.todo == 4]
    assert all(printed) and max(map(len, printed)) <= 2000
    report.to_json().encode("utf-8")


@pytest.mark.parametrize(
    "text, words",
    [
        ("def slots(:\n", "line 1 is not Python"), ("x = 1\x00", "line 1 has a NUL byte"), ("(" * 5000, "not Python"),
        ("-" * 100_000 + "1", "not Python"), ("x = " + "9" * 5000, "not Python"), ("import solution", "imports solution"),
        ("from labs.lab06_block_manager.solution import slots", "imports"),
        ("import nano_qwen3_serving.scheduling.block_manager", "imports"), ("", "FreeList"),
        ("class FreeList: pass", "FreeList"), ("# -*- coding: rot13 -*-\nvzcbeg bf", "text in rot13, which is not read here"),
        ("raise SystemExit", "SystemExit"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_solution_gets_nothing_and_a_reason(grader: Grader, box: Sandbox, text: str, words: str):
    report = graded(grader, box, text)
    assert report.score == 0 and len(report.checks) == len(grader.checks)
    assert all(check.message for check in report.checks)
    assert any(words in check.message for check in report.checks), report.checks[0].message


def test_a_submission_that_is_none_gets_nothing_and_a_reason(grader: Grader):
    report = grader.grade(Submission("ada", {}, ("ada.zip cannot be read: it is damaged",)))
    assert report.score == 0 and report.notes == ("ada.zip cannot be read: it is damaged", "there is no starter.py to grade")


# our functions in the submission's place

WRONG_TAKE = put_back(SOLUTION, "class FreeList:\n    def take(self, count):\n        return []\n", ["FreeList.take"])


@pytest.mark.parametrize("more", ["", f"NUMBER = 0x{'f' * 5000}", "TEXT = f'''{1!r:>{2}}\"\"'''"])
def test_a_mistake_is_paid_for_once_also_where_the_text_is_strange(grader: Grader, box: Sandbox, more: str):
    report = graded(grader, box, f"{WRONG_TAKE}\n{more}\n")
    assert lost(report)[1] and not lost(report)[3] and not lost(report)[4]
    assert {check.on_ours for check in report.checks if check.todo == 3} == {(1,)}


def test_where_ours_cannot_stand_in_that_is_said(grader: Grader, box: Sandbox):
    strange = SOLUTION.replace("class FreeList:", "class Free:\n    pass\n\n\nFreeList = Free\n\n\nclass Other:")
    strange += f"\nNUMBER = 0x{'f' * 5000}\n"
    report = graded(grader, box, strange)
    assert all("could not be put in its place" in message for message in lost(report)[3]) and not lost(report)[4]


def test_a_stand_in_is_the_solutions_text():
    assert "popitem" in with_ours(WRONG_TAKE, SOLUTION, (1,)) and "popitem" not in WRONG_TAKE


# predictions

things = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["attempts", "seed", "answers", "x"]), inner, max_size=3)),
    max_leaves=10)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=60), things.map(lambda thing: json.dumps(thing).encode()),
                 st.lists(things, max_size=2).map(lambda found: json.dumps({"attempts": found}).encode())))
def test_whatever_predictions_are_handed_in_there_is_one_result(content: bytes):
    (result,) = answers.judge(LAB, content)
    assert result.earned == 0 and result.message


@pytest.mark.parametrize(
    "attempt",
    [{"seed": 10**400, "answers": {}}, {"seed": -1, "answers": {"no such question": 1}},
     {"seed": 0, "answers": {"peak": "1" * 5000}}, {"seed": 3, "answers": dict.fromkeys(map(str, range(5000)), 1)}],
)  # fmt: skip
def test_strange_attempts_earn_nothing(attempt: dict):
    (result,) = answers.judge(LAB, json.dumps({"attempts": [attempt] * 3}).encode())
    assert result.earned == 0 and result.message


FAILS_FOR_SEVERAL = """

the_right_sample = Sampler.sample


def sample(self, logits, rows):
    if len(rows) > 1 and rows[0].params.max_tokens == 8:
        raise RuntimeError("\x1b[2J one at a time, please")
    return the_right_sample(self, logits, rows)


Sampler.sample = sample
"""


def test_a_part_that_fails_in_a_step_of_many_loses_points_though_the_engine_helps_itself(capfd: pytest.CaptureFixture[str]):
    """And nothing that it says is printed by the engine's log."""
    lab = find_lab("04")
    with grader_of(lab, Settings(seed="judge", predictions=False)) as grader:
        grader.checks = [check for check in grader.checks if check.name.startswith("in_the_engine")]
        names = [check.name for check in grader.checks]
        text = lab.solution.read_text(encoding="utf-8") + FAILS_FOR_SEVERAL
        report = grader.grade(Submission("ada", {"starter.py": text.encode()}))
    assert len(names) == 2 and [check.name for check in report.checks if not check.passed] == names
    assert all("one at a time, please" in check.message for check in report.checks)
    assert "one at a time" not in "".join(capfd.readouterr())
