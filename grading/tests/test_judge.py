"""The judge's report: points only for checks that passed, a reason for every other, and no submission that stops it."""

import json
import os
import re
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from grading.export.lines import lines_of
from grading.judge import grader as grader_module
from grading.judge import predictions
from grading.judge.checks import Check, Wrong, expect, hold, look
from grading.judge.grader import MESSAGE, NOTHING_SAID, Grader, Settings, grader_of, with_ours
from grading.judge.intake import Submission
from grading.judge.report import Report
from grading.judge.seeds import seed_for
from grading.judge.show import print_report, words_for
from grading.sandbox.isolation import Limits, confinement
from grading.sandbox.supervisor import Sandbox, SetupError
from grading.sandbox.worker.peer import Remote
from labs.harness.catalog import find_lab
from labs.harness.regions import put_back
from labs.harness.suite.expecting import same

pytestmark = pytest.mark.slow

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


@pytest.mark.share(1)
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
    messages = lost(report)[4]
    assert len(messages) == sum(check.todo == 4 for check in grader.checks) and all(message.strip() for message in messages)
    assert not lost(report)[1] and not lost(report)[3]


def test_an_empty_verdict_is_one_too(grader: Grader, box: Sandbox):
    def says_nothing(lab: object, rng: object) -> None:
        raise Wrong("")

    result, _ = grader._run(Check("one", 1, 3, False, "", "", says_nothing), SOLUTION, (), "seed", box)
    assert (result.earned, result.message) == (0, NOTHING_SAID)


def test_a_submission_that_cannot_be_laid_out_is_not_graded(grader: Grader, box: Sandbox):
    """Whatever fails before its first line runs is the machine's fault, and must not become points lost."""
    with box.child() as child, pytest.raises(SetupError, match="could not be laid into the folder .*IsADirectoryError"):
        (box._folder / str(box._number) / "starter.py").mkdir()
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


@pytest.mark.share(1)
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
    assert "popitem" not in with_ours(WRONG_TAKE, SOLUTION, (1,), only=["FreeList.give_back"])


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
    (result,) = predictions.judge(LAB, content)
    assert result.earned == 0 and result.message


@pytest.mark.parametrize(
    "attempt",
    [{"seed": 10**400, "answers": {}}, {"seed": -1, "answers": {"no such question": 1}},
     {"seed": 0, "answers": {"peak": "1" * 5000}}, {"seed": 3, "answers": dict.fromkeys(map(str, range(5000)), 1)}],
)  # fmt: skip
def test_strange_attempts_earn_nothing(attempt: dict):
    (result,) = predictions.judge(LAB, json.dumps({"attempts": [attempt] * 3}).encode())
    assert result.earned == 0 and result.message


FAILS_FOR_SEVERAL = """

the_right_sample = Sampler.sample


def sample(self, logits, rows):
    if len(rows) > 1 and rows[0].params.max_tokens == 8:
        raise RuntimeError("\x1b[2J one at a time, please")
    return the_right_sample(self, logits, rows)


Sampler.sample = sample
"""


def test_a_part_that_fails_in_a_step_of_many_loses_points_though_the_engine_recovers(capfd: pytest.CaptureFixture[str]):
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


# what reaches a student

SAYS_OUR_CODE = WRONG_TAKE + """

def blocks_needed(num_tokens, block_size):
    text = open(__file__).read().partition("class FreeList")[2]
    raise type("Error" + text[100:150].encode().hex(), (RuntimeError,), {})(text[:1500])
"""


def test_a_failed_check_on_our_code_shows_students_only_error_class_and_our_words():
    with grader_of(LAB, Settings(seed="judge", predictions=False)) as grader, grader.sandbox() as box:
        grader.checks = [check for check in grader.checks if check.todo in (1, 2)]
        report = graded(grader, box, SAYS_OUR_CODE)
    on_ours = [check for check in report.checks if check.on_ours and not check.passed]
    assert on_ours and any("popitem" in check.message for check in on_ours), "an instructor sees all of it"
    told = "\n".join([words_for(check, as_student=True) for check in on_ours] + [line.message for line in lines_of(report)])
    assert "popitem" not in told and not re.search("[0-9a-f]{40}", told) and "failed with our TODO 1 in place of yours" in told


def test_a_student_is_not_shown_the_seed(grader: Grader, box: Sandbox):
    report = graded(grader, box, SOLUTION)
    for as_student in (False, True):
        with open(os.devnull, "w") as nowhere:
            console = Console(file=nowhere, record=True, width=200)
            print_report(report, console, as_student)
        assert (report.seed in console.export_text()) == (not as_student)


def test_a_changed_file_draws_other_inputs_and_the_same_file_the_same():
    seeds = [seed_for("a secret of a term", "06", "ada", digest) for digest in ("one", "two", "one")]
    assert seeds[0] == seeds[2] != seeds[1]
    assert len({seed_for("a secret of a term", "06", student, "one", "cohort") for student in "ab"}) == 1


NOTES = """
import os

def leave():
    done = []
    for path in (".", "..", __file__):
        for attempt in (lambda: os.setxattr(path, "user.note", b"1"), lambda: os.utime(path, ns=(777, 777)),
                        lambda: os.chmod(path, 0o700)):
            try:
                attempt()
                done.append(path)
            except OSError:
                pass
    return done, os.getcwd()
"""


def test_no_check_finds_a_note_of_another(box: Sandbox):
    folders = []
    for _ in range(2):
        with box.child() as child:
            done, folder = child.bench.load(NOTES).leave()
            folders.append(folder)
            assert done == [] or not confinement()[1], "marks cannot be made where system calls are filtered"
    assert folders[0] != folders[1], "a new folder has no times, rights or attributes that were given to the one before"


# what must repeat


def test_a_check_that_repeats_runs_in_two_processes_and_compares_what_they_gave(grader: Grader, box: Sandbox):
    text = SOLUTION + "\nimport os\n\n\ndef number(fixed):\n    return 5 if fixed else os.getpid()\n"
    runs = []

    def asks(fixed: bool) -> Check:
        def run(lab: object, rng: object, which: int) -> object:
            runs.append(which)
            return lab.number(fixed)

        return Check("one", 1, 3, False, "", "", run, "another process gave another number")

    assert grader._run(asks(True), text, (), "seed", box)[0].passed and runs == [0, 1]
    result, _ = grader._run(asks(False), text, (), "seed", box)
    assert result.message == "another process gave another number"


# what is measured beside a submission


@pytest.mark.parametrize(
    "change, what, name",
    [
        ("import mmap\nmmap.mmap = print", "maps", "mmap.mmap"),
        ("import torch\ntorch.Tensor.clone = print", "memory", "Tensor.clone"),
        ("from labs.harness.suite import operators\noperators.Log.watch = print", "operators", "Log.watch"),
        ("import builtins\nbuiltins.sorted = print", "types", "builtins.sorted"),
        ("import time\ntime.sleep = print", "turns", "time.sleep"), ("import time\ntime.sleep = print", "memory", ""),
        ("import torch, numpy\nx = 1", "memory", ""),
    ],
)  # fmt: skip
def test_the_bench_says_what_was_replaced_by_a_submission(box: Sandbox, change: str, what: str, name: str):
    with box.child() as child:
        replaced = child.bench.replaced
        child.bench.load(change)
        assert replaced(what) == name


def test_what_a_check_looks_with_was_taken_before_the_submission_came(grader: Grader, box: Sandbox):
    text = SOLUTION + "\nfrom worker import bench\nbench.Bench.look = lambda self, value: [3]\n"

    def looks(lab: Remote, rng: object) -> None:
        held = hold(lab, [1])
        held.append(2)
        expect(look(held) == [1, 2], "it saw something else")

    assert grader._run(Check("one", 1, 3, False, "", "", looks), text, (), "seed", box)[0].passed


@pytest.mark.parametrize(
    "found, right, equal",
    [([1, 2], [1, 2], True), ([1.0], [1], False), ([True], [1], False), ((1,), [1], False), (3.0, 3, False)])
def test_equal_numbers_of_other_types_are_not_the_same(found: object, right: object, equal: bool):
    assert same(found, right) is equal
