"""What a learner sees when running a lab's tests: outcomes, states, the table, the progress file."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SOLVED = {
    1: ('raise TodoError("TODO 1: return twice the number", lab="07")', "return 2 * number"),
    2: ('raise TodoError("TODO 2: yield the numbers below the limit", lab="07")', "for number in range(limit): yield number"),
    3: ('raise TodoError("TODO 3: double twice", lab="07")', "return double(double(number))"),
}


def solve(toy: Path, *todos: int, **wrong: str) -> None:
    """Write the right code for `todos`, and `todo_1="return 5"` for others."""
    text = (toy / "starter.py").read_text()
    for todo in todos:
        text = text.replace(*SOLVED[todo])
    for name, code in wrong.items():
        text = text.replace(SOLVED[int(name[5:])][0], code)
    lines = [line for line in text.splitlines() if 2 not in todos or "delete this line too" not in line]
    (toy / "starter.py").write_text("\n".join(lines) + "\n")


def rows(run) -> dict[str, list[str]]:
    """First column -> the other columns of a plain table."""
    lines = run.stdout.split("next hint\n")[1].splitlines()
    cells = [[cell for cell in line.split("  ") if cell] for line in lines if line.strip()]
    return {first: [cell.strip() for cell in rest] for first, *rest in cells}


def rows_until_blank(run) -> dict[str, list[str]]:
    """`rows` of a table after which something else is said."""
    return {first: rest for first, rest in rows(run).items() if not first.startswith("Lab ")}


def test_the_untouched_starter_fails_every_test_with_its_own_todo(workshop, toy):
    outcomes, run = workshop.outcomes("lab07_toy/test_lab.py", "--plain")
    assert len(outcomes["07"]) == 5
    assert all(not one["passed"] and one["error"] == "TodoError" and one["unwritten"] == one["todo"] for one in outcomes["07"])
    assert "Traceback" not in run.stdout and "conftest" not in run.stdout
    assert "check it:   pytest test_lab.py -k todo_3" in run.stdout
    assert "get a hint: python -m labs hint 07 3" in run.stdout
    assert rows(run) == {
        "1": ["0/30", "not started", "python -m labs hint 07 1"],
        "2": ["0/25", "not started", "python -m labs hint 07 2"],
        "3": ["0/30", "not started", "python -m labs hint 07 3"],
        "predictions": ["0/15", "not answered yet", "python -m labs predict 07"],
        "total": ["0/100"],
    }


@pytest.mark.proof
def test_the_solution_passes_everything_and_leaves_no_progress(workshop, toy):
    run = workshop.pytest("lab07_toy/test_lab.py", "--impl", "solution", "--plain")
    assert run.returncode == 0
    assert rows(run)["total"] == ["85/85"]
    assert not (workshop.home / ".progress.json").exists()


@pytest.mark.proof
def test_the_reference_is_tested_on_the_todos_it_has_functions_for(workshop, toy):
    (toy / "reference.py").write_text(
        "def double(number):\n    return number + number\n\n\ndef quadruple(number):\n    return 7\n"
    )
    run = workshop.pytest("lab07_toy/test_lab.py", "--impl", "reference", "--plain")
    assert rows_until_blank(run) == {
        "1": ["30/30", "solved"], "3": ["0/30", "failing", "python -m labs hint 07 3"], "total": ["30/60"]}
    assert "Lab 07, TODO 2 is left out: the reference has no count." in run.stdout
    assert "1 deselected" in run.stdout
    alone = workshop.pytest("lab07_toy/test_lab.py", "--impl", "reference", "--plain", "-k", "todo_2")
    assert "TODO 2 is left out" in alone.stdout


@pytest.mark.proof
def test_without_a_reference_each_test_says_so(workshop, toy):
    run = workshop.pytest("lab07_toy/test_lab.py", "--impl", "reference", "--plain")
    assert run.returncode == 1 and "there is no reference of it to test" in run.stdout and "deselected" not in run.stdout


@pytest.mark.proof
def test_a_todo_that_needs_an_unwritten_one_is_tested_with_ours_and_reads_blocked(workshop, toy):
    solve(toy, 3)
    run = workshop.pytest("lab07_toy/test_lab.py", "--plain")
    assert rows(run)["3"][:2] == ["30/30", "blocked by TODO 1 (passes with our TODO 1 in place of yours)"]
    alone = workshop.pytest("lab07_toy/test_lab.py", "--plain", "-k", "todo_3")
    assert rows(alone) == {"3": ["30/30", "solved with our TODO 1 in place of yours"]}


@pytest.mark.proof
def test_a_todo_that_needs_a_wrong_one_is_tested_with_ours_too(workshop, toy):
    solve(toy, 3, todo_1="return number + 4")
    run = workshop.pytest("lab07_toy/test_lab.py", "--plain")
    assert rows(run)["1"][:2] == ["20/30", "partly: 1 of 3 tests pass"], "the parametrised test is worth 10, split over its cases"
    assert rows(run)["3"][1] == "blocked by TODO 1 (passes with our TODO 1 in place of yours)"


@pytest.mark.proof
def test_without_a_solution_to_stand_in_the_blocking_todo_is_named(workshop, toy):
    solve(toy, 3)
    (toy / "solution.py").unlink()
    assert rows(workshop.pytest("lab07_toy/test_lab.py", "--plain"))["3"][1] == "blocked by TODO 1"


@pytest.mark.proof
def test_wrong_code_is_failing_and_keeps_its_traceback(workshop, toy):
    solve(toy, 1, todo_3="return 7")
    run = workshop.pytest("lab07_toy/test_lab.py", "--plain")
    assert rows(run)["1"] == ["30/30", "solved"]
    assert rows(run)["3"][1] == "failing"
    assert "assert lab.quadruple(5) == 20" in run.stdout


@pytest.mark.proof
def test_progress_keeps_whole_todos_only_and_survives_damage(workshop, toy):
    solve(toy, 1)
    file = workshop.home / ".progress.json"
    workshop.pytest("lab07_toy/test_lab.py", "-k", "doubles_four")
    assert "07" not in file.read_text() or "todos" not in json.loads(file.read_text())["labs"]["07"]
    workshop.pytest("lab07_toy/test_lab.py", "-k", "todo_1")
    assert json.loads(file.read_text())["labs"]["07"]["todos"] == {"1": {"of": 30, "points": 30, "state": "solved"}}
    file.write_text("{ torn")
    workshop.pytest("lab07_toy/test_lab.py", "-k", "todo_2")
    assert list(json.loads(file.read_text())["labs"]["07"]["todos"]) == ["2"]
    assert not list(workshop.home.glob(".progress.json?*")), "no half-written file is left"


@pytest.mark.proof
def test_one_test_by_its_node_id_counts_as_one_of_its_todo_and_is_not_kept(workshop, toy):
    """As VS Code and PyCharm run it."""
    solve(toy, todo_1="return 8")
    workshop.pytest("test_lab.py", "-k", "todo_1", cwd=toy)
    kept = (workshop.home / ".progress.json").read_text()
    assert json.loads(kept)["labs"]["07"]["todos"]["1"]["points"] == 20
    one = workshop.pytest("test_lab.py::test_todo_1_doubles_four", "--plain", cwd=toy)
    assert rows(one)["1"][:2] == ["20/30", "1 of 1 tests pass, 2 not run"] and "total" not in one.stdout
    case = workshop.pytest("test_lab.py::test_todo_1_doubles_other_numbers[0]", "--plain", cwd=toy)
    assert rows(case)["1"][:2] == ["0/30", "0 of 1 tests pass, 2 not run"]
    assert (workshop.home / ".progress.json").read_text() == kept


@pytest.mark.proof
def test_in_several_processes_there_are_no_points_and_it_says_why(workshop, toy):
    solve(toy, 1, todo_3="return 7")
    run = workshop.run("-m", "pytest", "-p", "no:cacheprovider", "test_lab.py", "-n", "1", cwd=toy)
    assert "Lab 07: no points with -n, for a TODO is tested after those it builds on" in run.stdout
    assert "assert lab.quadruple(5) == 20" in run.stdout and not (workshop.home / ".progress.json").exists()


@pytest.mark.proof
def test_a_narrow_terminal_keeps_points_and_commands(workshop, toy):
    solve(toy, 1)
    run = workshop.run("-m", "pytest", "-p", "no:cacheprovider", "test_lab.py", cwd=toy, COLUMNS="40")
    table = run.stdout.partition("Lab 07, A toy")[2].splitlines()
    assert table[1:4] == ["TODO 1  30/30  solved", "TODO 2  0/25  not started", "    python -m labs hint 07 2"]
    assert "total  30/100" in table and max(map(len, table)) <= 40


WAYS_NOT_TO_LOAD = {
    "no Python": ("x = (\n", "starter.py line 1 is not Python yet ('(' was never closed), at: x = ("),
    "found when compiled": ("async for x in y:\n    pass\n", "starter.py line 1 is not Python yet"),
    "a return outside": ("return 5\n", "starter.py line 1 is not Python yet ('return' outside function), at: return 5"),
    "raises": ("x = 1\n1 / 0\n", "starter.py line 2, while it is loaded: ZeroDivisionError: division by zero"),
    "absent module": ("import nowhere_at_all\n", "line 1, while it is loaded: ModuleNotFoundError: No module named 'nowhere"),
    "a module beside it": ("import helpers\n", "line 1 imports helpers, which lies beside it. Only starter.py is handed in"),
    "a merge": ("<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> other\n", "starter.py line 1 is a mark of a merge"),
    "exits": ("raise SystemExit(3)\n", "starter.py line 1, while it is loaded: SystemExit: 3"),
}


@pytest.mark.share(1)
@pytest.mark.parametrize("way", WAYS_NOT_TO_LOAD)
def test_a_file_that_cannot_be_loaded_is_told_once(workshop, toy, way: str):
    text, says = WAYS_NOT_TO_LOAD[way]
    (toy / "helpers.py").write_text("HALF = 0.5\n")
    (toy / "starter.py").write_text(text + (toy / "starter.py").read_text())
    run = workshop.pytest("test_lab.py", "--plain", cwd=toy)
    assert run.stdout.count(says) == 1 and "… and 4 more, for the same reason" in run.stdout
    assert len(run.stdout.splitlines()) < 30 and "harness" not in run.stdout and rows(run)["1"][0] == "0/30"


def test_a_test_that_waits_for_ever_fails_with_its_line_and_its_todo_is_not_retried(workshop, toy):
    solve(toy, 3, todo_1="while True: number += 1")
    run = workshop.pytest("test_lab.py", "--plain", "--limit", "1", cwd=toy)
    assert re.search(r"after 1 s of computing it was still in line \d+ of starter.py, in double: while True", run.stdout)
    assert rows(run)["1"][:2] == ["0/30", "failing"]
    assert rows(run)["3"][:2] == ["30/30", "blocked by TODO 1 (passes with our TODO 1 in place of yours)"]


@pytest.mark.proof
def test_what_starts_when_the_file_is_loaded_is_said_after_a_run_that_passes(workshop, toy):
    solve(toy, 1, 2, 3)
    text = (toy / "starter.py").read_text()
    (toy / "starter.py").write_text(text.replace('if __name__ == "__main__":\n    run_lab(main)', "run_lab(main)"))
    run = workshop.pytest("test_lab.py", "--plain", cwd=toy)
    assert re.search(r"^Line \d+ of starter.py runs run_lab\(\) whenever the file is loaded", run.stdout, re.MULTILINE)
    (toy / "starter.py").write_text(text)
    assert "whenever the file is loaded" not in workshop.pytest("test_lab.py", "--plain", cwd=toy).stdout


@pytest.mark.proof
def test_an_error_in_ours_names_the_line_that_called_it(workshop, toy):
    solve(toy, todo_3="return double(None)")
    run = workshop.pytest("test_lab.py", "--plain", cwd=toy)
    assert re.search(r"it went wrong in our double, in place of TODO 1, called by your line \d+", run.stdout)


@pytest.mark.proof
def test_what_a_test_printed_and_whole_tracebacks_can_be_had(workshop, toy):
    solve(toy, todo_1="print('number is', number); return 5")
    assert "    number is 4" in workshop.pytest("test_lab.py", cwd=toy).stdout
    assert "def test_todo_1_doubles_four(lab):" in workshop.pytest("test_lab.py", "--tb=long", cwd=toy).stdout


@pytest.mark.proof
def test_several_labs_in_one_process_keep_apart(workshop, toy):
    workshop.add_lab("lab08_other")
    solve(toy, 1, 2, 3)
    outcomes, run = workshop.outcomes("lab07_toy/test_lab.py", "lab08_other/test_lab.py", "--plain")
    assert {one["passed"] for one in outcomes["07"]} == {True}
    assert {one["error"] for one in outcomes["08"]} == {"TodoError"}
    assert run.stdout.index("Lab 07") < run.stdout.index("Lab 08, A toy: your starter.py")


@pytest.mark.proof
def test_from_inside_the_labs_folder_and_with_a_path(workshop, toy):
    mine = toy.parent / "elsewhere"
    mine.mkdir()
    (mine / "starter.py").write_text((toy / "solution.py").read_text())
    assert workshop.pytest("test_lab.py", "--impl", "../elsewhere", cwd=toy).returncode == 0
    refused = workshop.pytest("test_lab.py", "--impl", "../nowhere", "-k", "doubles_four", cwd=toy)
    assert "--impl ../nowhere: not starter, solution or reference" in refused.stdout


@pytest.mark.proof
def test_importing_the_solution_fails_with_one_sentence(workshop, toy):
    (toy / "starter.py").write_text("from solution import *\n")
    run = workshop.pytest("test_lab.py", "-k", "doubles_four", cwd=toy)
    assert run.returncode == 1
    assert "Reading it is allowed, importing it is not" in run.stdout


@pytest.mark.proof
def test_a_deleted_function_is_asked_back(workshop, toy):
    (toy / "starter.py").write_text("x = 1\n")
    run = workshop.pytest("test_lab.py", "-k", "doubles_four", cwd=toy)
    assert "starter.py has no function double any more" in run.stdout


@pytest.mark.proof
def test_the_drawn_table_says_the_same_in_words(workshop, toy):
    run = workshop.pytest("lab07_toy/test_lab.py")
    assert "│ 1           │   0/30 │ not started" in run.stdout
    assert "\x1b[" not in run.stdout.split("Lab 07")[1], "no colours where there is no terminal"


@pytest.mark.proof
def test_where_box_drawing_cannot_be_printed_the_table_is_plain(workshop, toy):
    run = workshop.run("-m", "pytest", "lab07_toy/test_lab.py", PYTHONIOENCODING="latin-1")
    assert "│" not in run.stdout and "total" in run.stdout


@pytest.mark.proof
def test_a_run_without_a_lab_closes_with_one_line(workshop, toy):
    (workshop.home / "test_project.py").write_text("def test_one():\n    assert True\n")
    run = workshop.pytest("test_project.py")
    assert run.stdout.endswith("\n\nThis tests the project, not your work. Yours: python -m labs status.\n")
    assert "This tests the project" not in workshop.pytest("test_project.py", "lab07_toy/test_lab.py").stdout


@pytest.mark.proof
def test_a_test_that_is_named_or_marked_wrongly_stops_the_run(workshop, toy):
    text = (toy / "test_lab.py").read_text()
    (toy / "test_lab.py").write_text(text.replace("test_todo_3_quadruples", "test_quadruples"))
    assert "its name begins test_todo_3_" in workshop.pytest("lab07_toy").stderr
    (toy / "test_lab.py").write_text(text.replace("todo(3, points=30)", "todo(3)"))
    assert "gives no points" in workshop.pytest("lab07_toy").stderr


def test_an_unwritten_labs_program_ends_in_a_note_and_a_wrong_ones_in_a_traceback(workshop, toy):
    run = workshop.run("starter.py", cwd=toy)
    assert (run.returncode, run.stderr) == (1, "")
    assert "TODO 1: return twice the number" in run.stdout and "python -m labs hint 07 1" in run.stdout
    solve(toy, todo_1="return 1 / 0")
    assert "ZeroDivisionError" in workshop.run("starter.py", cwd=toy).stderr
