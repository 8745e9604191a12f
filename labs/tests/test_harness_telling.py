"""What a run says of failures: each kind once, with the learner's line, in a bounded number of lines."""

import traceback
from pathlib import Path

import pytest

from labs.harness.catalog import LabError
from labs.harness.loading import file_of_ours
from labs.harness.suite.failures import failure_of
from labs.harness.suite.telling import LINES, PRINTED, Failure, report_lines
from labs.harness.todo import TodoError

SUITE = Path(__file__)


def failure(test: str, case: str = "", kind: str = "", lines: tuple[str, ...] = ("wrong",), **more) -> Failure:
    return Failure(1, test, case, kind or f"{test}{case}", lines, **more)


def test_cases_of_one_test_are_told_once_and_counted():
    assert report_lines([failure("test_a", f"[{number}]") for number in range(28)]) == [
        "", "test_a[0]", "    wrong", "    … and 27 more cases of this test"]


def test_tests_that_fail_in_the_same_way_are_told_once_and_named():
    found = report_lines([
        failure("test_a", kind="k"), failure("test_b", "[1]", "k"), failure("test_b", "[2]", "k"), failure("test_c")])
    assert found == ["", "test_a", "    wrong", "    … and in the same way test_b (2 cases)", "", "test_c", "    wrong"]


def test_what_waits_for_something_else_is_only_counted():
    found = report_lines([
        failure("test_a", kind="k", waits=True), *(failure(f"test_{n}", kind="k", waits=True) for n in range(40))])
    assert found == ["", "test_a", "    wrong", "    … and 40 more, for the same reason"]


@pytest.mark.parametrize("kinds", [1, 10, 40, 2000])
@pytest.mark.parametrize("lines", [1, 12, 500])
def test_however_much_is_wrong_the_lines_are_bounded(kinds: int, lines: int):
    failures = [failure(f"test_{number}", kind=str(number), lines=("wrong",) * lines) for number in range(kinds)]
    found = report_lines(failures)
    assert len(found) <= LINES
    hidden = [int(line.split()[2]) for line in found if "more failing tests" in line]
    short = sum(line.startswith("  test_") for line in found)
    assert sum(line.startswith("test_") for line in found) + short + sum(hidden) == kinds, "each is told or counted"


def test_of_what_was_printed_the_end_is_told_once():
    lines = tuple(f"line {number}" for number in range(PRINTED + 1))
    found = report_lines([failure("test_a", printed=lines), failure("test_b", printed=lines)])
    assert found[:3] == ["", "test_a printed:", "    … (more before; all of it: pytest -s)"]
    assert found[3 : 3 + PRINTED] == [f"    {line}" for line in lines[1:]] and found.count("    line 5") == 1


# from an exception


def raised(call) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def module(folder: Path, text: str, name: str = "") -> dict:
    path = folder / "starter.py"
    path.write_text(text)
    namespace: dict = {}
    exec(compile(text, name or str(path), "exec"), namespace)
    return namespace


def test_an_error_in_the_learners_code_is_told_with_their_line_and_none_of_ours(tmp_path: Path):
    code = module(tmp_path, "def inner(x):\n    return [1][x]\n\n\ndef outer(x):\n    return inner(x)\n")
    found = failure_of(raised(lambda: code["outer"](4)), 2, "test_x", "[4]", tmp_path / "starter.py", SUITE)
    assert found.lines == ("IndexError: list index out of range", "starter.py line 2, in inner: return [1][x]")
    again = failure_of(raised(lambda: code["outer"](9)), 2, "test_y", "", tmp_path / "starter.py", SUITE)
    assert again.kind == found.kind, "the same error in the same line is one failure"


def test_what_the_engine_raises_from_the_learners_error_names_the_beginning(tmp_path: Path):
    code = module(tmp_path, "def take(n):\n    return n.blocks\n")

    def engine():
        try:
            code["take"](3)
        except AttributeError as error:
            raise RuntimeError("the step failed") from error

    found = failure_of(raised(engine), 1, "test_x", "", tmp_path / "starter.py", SUITE)
    assert found.lines == (
        "RuntimeError: the step failed", "it began with AttributeError: 'int' object has no attribute 'blocks'",
        "starter.py line 2, in take: return n.blocks")


def test_an_error_that_goes_on_through_our_code_names_the_call_of_it(tmp_path: Path):
    ours = module(tmp_path, "def slots(table):\n    return table[0]\n", file_of_ours(4, "slots"))
    code = module(tmp_path, "def forward():\n    return slots(None)\n")
    code["slots"] = ours["slots"]
    found = failure_of(raised(code["forward"]), 6, "test_x", "", tmp_path / "starter.py", SUITE)
    assert found.lines[1:] == (
        "starter.py line 2, in forward: return slots(None)",
        "it went wrong in our slots, in place of TODO 4, called by your line 2: look at what that line passes to it")


def test_an_assertion_is_told_in_its_own_words_and_without_words_by_the_tests_line(tmp_path: Path):
    def in_words():
        raise AssertionError("A keeps 3 blocks, expected 2\nassert 3 == 2\n +  where 3 = <function f at 0x1>()")

    def bare():
        raise AssertionError("assert 3 == 2\n +  where 3 = <function f at 0x1>()")

    assert failure_of(raised(in_words), 1, "test_x", "", None, SUITE).lines == ("A keeps 3 blocks, expected 2",)
    values, place = failure_of(raised(bare), 1, "test_x", "", None, SUITE).lines
    assert values == "assert 3 == 2"
    assert place.startswith("test_harness_telling.py line ") and "raise AssertionError" in place


def test_messages_that_differ_in_numbers_only_are_one_kind():
    kinds = {failure_of(AssertionError(f"expected {n}, got [1, {n}]"), 1, f"test_{n}", "", None, SUITE).kind for n in range(5)}
    assert len(kinds) == 1
    assert failure_of(AssertionError("expected 1, got [1, 1]"), 2, "t", "", None, SUITE).kind not in kinds, "another TODO"


def test_a_message_without_end_is_cut():
    found = failure_of(ValueError("x" * 10_000 + "\n" + "y\n" * 500), 1, "test_x", "", None, SUITE)
    assert len(found.lines) <= 9 and max(map(len, found.lines)) < 400


def test_an_unwritten_todo_and_a_file_that_cannot_be_loaded_are_each_reported_once():
    todo = [failure_of(TodoError("TODO 3: add", lab="02"), 3, f"test_{n}", "", None, SUITE) for n in range(3)]
    assert len({one.kind for one in todo}) == 1 and all(one.waits for one in todo)
    assert todo[0].lines[0] == "TODO 3: add" and "hint 02 3" in todo[0].lines[2]
    wrong = [failure_of(LabError("starter.py line 2 is not Python yet"), n, f"test_{n}", "", None, SUITE) for n in range(3)]
    assert report_lines(wrong) == [
        "", "test_0", "    starter.py line 2 is not Python yet", "    … and 2 more, for the same reason"]


def test_tracebacks_through_ours_have_a_file_of_their_own(tmp_path: Path):
    from labs.harness.loading import _moved

    code = _moved(compile("def f():\n    raise KeyError(1)\n", "starter.py", "exec"), file_of_ours(2, "f"))
    namespace: dict = {}
    exec(code, namespace)
    error = raised(namespace["f"])
    shown = "".join(traceback.format_exception(error))
    assert '"<our f, in place of TODO 2>", line 2' in shown and "(ours: our f, in place of TODO 2)" in shown
