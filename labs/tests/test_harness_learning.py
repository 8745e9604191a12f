"""The learner's commands watch, update and solution, and the progress file they share."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from labs.harness.catalog import LabError, lab_at
from labs.harness.learner import backups, learning_path
from labs.harness.learner.progress import DAMAGED, FILE, Progress
from labs.harness.learner.update import merged_starter, update
from labs.harness.suite import watch

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
STUB = 'raise TodoError("TODO {}: {}", lab="07")'
STUBS = {1: STUB.format(1, "return twice the number"), 3: STUB.format(3, "double twice")}


def write(starter: Path, todo: int, code: str) -> None:
    """Put `code` where the stub of a TODO stands."""
    text = starter.read_text()
    assert STUBS[todo] in text
    starter.write_text(text.replace(STUBS[todo], code))


# watch


class Watching:
    """`labs watch` as a process of its own, and what it has said since it was last asked."""

    def __init__(self, workshop, *arguments: str):
        keep = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        environment = keep | {
            "NANO_LABS_HOME": str(workshop.home), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8",
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "reference_engine")]),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "labs", "watch", *arguments], cwd=workshop.home, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def until(self, text: str | None) -> str:
        """What it says up to a line with `text`, or to its end."""
        said = []
        while (line := self.lines.get(timeout=90)) is not None:
            said.append(line)
            if text is not None and text in line:
                return "".join(said)
        assert text is None, f"it ended without saying {text!r}:\n{''.join(said)}"
        assert self.process.wait(30) == 0, "".join(said)
        return "".join(said)


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds"
        time.sleep(0.01)


@pytest.fixture
def watching(workshop, toy):
    started = []

    def start(*arguments: str) -> Watching:
        started.append(Watching(workshop, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        one.process.stdout.close()


@pytest.mark.slow
def test_watch_runs_the_tests_of_the_todo_that_was_changed_at_each_save(toy, watching):
    run = watching("7", "--rounds", "4")
    assert "not started" in run.until("Watching starter.py")
    write(toy / "starter.py", 1, "return 2 * number")
    assert "30/30" in run.until("Watching starter.py")
    whole = (toy / "starter.py").read_text()
    (toy / "starter.py").write_text(whole + "def half(:\n")
    said = run.until("Watching starter.py")
    assert "starter.py line" in said and "is not Python yet" in said and "Traceback" not in said
    (toy / "starter.py").write_text(whole.replace(STUBS[3], "return 9"))
    said = run.until(None)
    assert "Lab 07, TODO 3" in said and "0/30" in said and "test_todo_1" not in said


@pytest.mark.proof
@pytest.mark.slow
def test_a_save_during_a_run_ends_it_and_begins_another(toy, watching):
    asleep = toy / "asleep"
    write(toy / "starter.py", 1, f"import time; open({str(asleep)!r}, 'w').close(); time.sleep(600)")
    run = watching("7", "--todo", "1", "--rounds", "2")
    run.until("Lab 07, TODO 1")
    wait_until(asleep.exists)
    shutil.copyfile(toy / "solution.py", toy / "starter.py")
    said = run.until(None)
    assert said.index("Ended, before the tests were through") < said.index("Lab 07, TODO 1") < said.index("30/30")


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_ctrl_c_ends_watching_without_a_traceback(watching):
    run = watching()
    run.until("Watching starter.py")
    run.process.send_signal(signal.SIGINT)
    assert "Traceback" not in run.until(None)


def test_what_was_changed_is_found_by_meaning_not_by_layout(toy):
    lab, starter = lab_at(toy), toy / "starter.py"
    before = watch._Saved(starter)
    starter.write_text("# a comment\n" + starter.read_text())
    assert watch._changed(lab, before, watch._Saved(starter)) is None
    write(starter, 3, "return 4 * number")
    assert watch._changed(lab, before, watch._Saved(starter)) == 3


# solution


def test_the_solution_of_one_todo_is_written_in_and_noted_and_the_work_is_kept(workshop, toy):
    write(toy / "starter.py", 3, "return 9  # mine")
    said = workshop.labs("solution", "7", "--todo", "1").stdout
    text = (toy / "starter.py").read_text()
    assert "return 2 * number" in text and "return 9  # mine" in text and "SOLUTION" not in text and STUBS[1] not in text
    (kept,) = (workshop.home / ".backups").iterdir()
    assert STUBS[1] in kept.read_text() and str(kept) in said
    assert Progress(workshop.home).solutions_used("07") == [1]
    assert "TODO 1  double: not tested yet  (our solution was written in)" in workshop.labs("status").stdout


@pytest.mark.proof
def test_the_whole_solution_passes_and_is_not_counted_as_the_learners(workshop, toy):
    assert workshop.labs("solution", "7").returncode == 0
    run = workshop.pytest("lab07_toy/test_lab.py")
    assert run.returncode == 0 and "SOLUTION" not in (toy / "starter.py").read_text()
    progress = Progress(workshop.home)
    assert learning_path.authorship(lab_at(toy), progress) == learning_path.OURS
    assert learning_path.open_todos(lab_at(toy), progress) == []
    workshop.labs("reset", "7", "--todo", "3")
    after = Progress(workshop.home)
    assert after.solutions_used("07") == [1, 2] and learning_path.open_todos(lab_at(toy), after) == [3]


def test_the_solution_can_be_shown_and_then_nothing_changes(workshop, toy):
    before = (toy / "starter.py").read_text()
    said = workshop.labs("solution", "7", "--todo", "3", "--show").stdout
    assert said.startswith("def quadruple") and "return double(double(number))" in said and "SOLUTION" not in said
    assert (toy / "starter.py").read_text() == before and not (workshop.home / ".progress.json").exists()


def test_without_a_solution_or_a_place_for_it_nothing_is_written(toy):
    lab = lab_at(toy)
    before = (toy / "starter.py").read_text()
    with pytest.raises(LabError, match="no TODO 8; it has 1, 2, 3"):
        backups.write_solution(lab, 8)
    (toy / "starter.py").write_text(before.replace("def quadruple", "def fourfold"))
    with pytest.raises(LabError, match="no function quadruple any more"):
        backups.write_solution(lab, 3)
    assert "def fourfold" in (toy / "starter.py").read_text()
    lab.solution.unlink()
    with pytest.raises(LabError, match="not part of the student edition"):
        backups.write_solution(lab)


# update


WORK = """\
def _helper(number):
    return number + number
"""


def test_update_brings_the_new_text_and_keeps_what_the_learner_wrote(workshop, toy, newer):
    starter = toy / "starter.py"
    write(starter, 1, "# mine\n    return math.prod([2, _helper(number)]) // 2")
    text = starter.read_text()
    head, tail = text.split("from labs.harness.todo import")
    starter.write_text(
        head + "import math\nfrom labs.harness.todo import" + tail.replace("\n\ndef double", f"\n\n{WORK}\n\ndef double")
    )
    work = starter.read_text()
    changes, kept = update(workshop.home, newer)
    merged = starter.read_text()
    assert "second edition" in merged and "twice four is" in merged and "TODO 4: double three times" in merged
    assert "# mine\n    return math.prod" in merged and WORK in merged and "import math" in merged
    assert "TODO 3: double it twice" in merged, "an unwritten function is the newer one's"
    module: dict = {"__name__": "merged"}
    exec(compile(merged, "starter.py", "exec"), module)
    assert module["double"](21) == 42
    assert {change.path.name for change in changes} == {"starter.py", "README.md", "hints.md"}
    with zipfile.ZipFile(kept) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        assert set(names) == {"starter.py", "hints.md"} and archive.read(names["starter.py"]).decode() == work
    (notes,) = [change.notes for change in changes if change.path == starter]
    assert "yours as before: double" in notes and "kept, which you added: import math, _helper" in notes
    assert update(workshop.home, newer) == ([], None), "a second time there is nothing to do"


def test_an_untouched_starter_becomes_the_newer_one(workshop, toy, newer):
    update(workshop.home, newer)
    assert (toy / "starter.py").read_text() == (newer / "lab07_toy" / "starter.py").read_text()


def test_without_a_solution_to_compare_with_everything_of_the_learners_is_kept(toy, newer):
    write(toy / "starter.py", 1, "return number + number")
    (toy / "starter.py").write_text((toy / "starter.py").read_text() + f"\n\n{WORK}")
    (toy / "solution.py").unlink()
    merged, notes = merged_starter(lab_at(toy), (newer / "lab07_toy" / "starter.py").read_text())
    assert "return number + number" in merged and WORK in merged and "octuple" in merged and "second edition" in merged
    assert "kept, which you added: _helper" in notes


METHODS = '''\
from labs.harness.todo import TodoError


class Pool:
    def take(self, count):
        # TODO 1: take some
        ### BEGIN SOLUTION
        return list(range(count))
        ### END SOLUTION

    def size(self):
        return 1
'''


def test_methods_stay_and_a_new_signature_is_pointed_out(workshop):
    toy = workshop.add_lab("lab08_pool", METHODS)
    newer = (
        (toy / "starter.py")
        .read_text()
        .replace("take(self, count)", "take(self, count, owner=None)")
        .replace("return 1", "return 2")
    )
    mine = (toy / "starter.py").read_text().replace('raise TodoError("TODO 1: take some", lab="08")', "return self._some(count)")
    (toy / "starter.py").write_text(mine + "\n    def _some(self, count):\n        return [7] * count\n")
    merged, notes = merged_starter(lab_at(toy), newer)
    module: dict = {"__name__": "merged"}
    exec(compile(merged, "starter.py", "exec"), module)
    assert module["Pool"]().take(2) == [7, 7] and module["Pool"]().size() == 2
    assert "Pool.take(self, count) is Pool.take(self, count, owner=None) in the newer version: look at it" in notes
    assert "kept, which you added: Pool._some" in notes


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        (
            ("pass\n", "pass\n"),
            ("def double", "def twice"),
            "lab07_toy/starter.py: you wrote double, and the newer version has no such function",
        ),
        (("return 2 * number", "return 2 * ("), ("", ""), r"lab07_toy/starter.py line \d+ is not Python yet"),
    ],
)
def test_update_changes_nothing_when_a_starter_cannot_be_merged(workshop, toy, newer, mine, theirs, said):
    write(toy / "starter.py", 1, "return 2 * number")
    (toy / "starter.py").write_text((toy / "starter.py").read_text().replace(*mine))
    file = newer / "lab07_toy" / "starter.py"
    file.write_text(file.read_text().replace(*theirs))
    before = {path: path.read_bytes() for path in toy.iterdir() if path.is_file()}
    with pytest.raises(LabError, match=said):
        update(workshop.home, newer)
    assert {path: path.read_bytes() for path in toy.iterdir() if path.is_file()} == before
    assert not (workshop.home / ".backups").exists()


def test_a_write_that_fails_halfway_is_undone(workshop, toy, newer, monkeypatch):
    before = {path: path.read_bytes() for path in toy.iterdir() if path.is_file()}
    really, calls = os.replace, []

    def fails_the_second_time(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("the disk is full")
        really(source, target)

    monkeypatch.setattr(os, "replace", fails_the_second_time)
    with pytest.raises(LabError, match="the disk is full. Nothing was changed"):
        update(workshop.home, newer)
    assert {path: path.read_bytes() for path in toy.iterdir() if path.is_file()} == before


def test_update_says_what_it_did_and_what_it_was_given_wrongly(workshop, toy, newer):
    (toy / ".notes").write_text("hidden, mine")
    said = workshop.labs("update", "--from", str(newer)).stdout
    assert "new  " in said and "lab07_toy/README.md" in said and "What was there before:" in said
    assert (toy / ".notes").exists()
    wrong = workshop.labs("update", "--from", str(workshop.home))
    assert wrong.returncode == 2 and "is this version itself" in wrong.stderr
    empty = newer / "empty"
    empty.mkdir()
    with pytest.raises(LabError, match="no folder of labs"):
        update(workshop.home, empty)


# the progress file


def test_two_that_write_at_once_lose_nothing(tmp_path):
    first, second = Progress(tmp_path), Progress(tmp_path)
    first.record_todo("07", 1, points=30, of=30, state="solved")
    second.record_hint("07", 2, 1)
    second.record_predictions("07", seed=1, right=2, of=2)
    first.save()
    second.save()
    first.record_predictions("07", seed=2, right=0, of=2)
    first.save()
    after = Progress(tmp_path)
    assert after.todos("07")[1]["points"] == 30 and after.hints_used("07", 2) == 1
    assert [attempt["seed"] for attempt in after.predictions("07")] == [1, 2]


WRITER = """\
import sys
from collections.abc import Callable
from pathlib import Path
from labs.harness.learner.progress import Progress
for number in range(25):
    progress = Progress(Path(sys.argv[1]))
    progress.record_diagnosis(sys.argv[2], 1)
    progress.record_diagnosis("99", 1)
    progress.save()
"""


def test_processes_that_write_all_the_time_lose_nothing(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), f"0{number}"], env=environment) for number in range(3)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    after = Progress(tmp_path)
    assert [after.diagnoses_used(lab, 1) for lab in ("00", "01", "02", "99")] == [25, 25, 25, 75]


@pytest.mark.parametrize("text", ["{half", "[]", '"text"', "\x00\xff"])
def test_a_damaged_file_counts_as_empty_and_is_kept(tmp_path, text):
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    progress = Progress(tmp_path)
    assert "cannot be read; it is treated as missing" in progress.complaint and DAMAGED in progress.complaint
    progress.record_hint("07", 1, 1)
    progress.save()
    assert (tmp_path / DAMAGED).read_text(encoding="utf-8") == text
    assert Progress(tmp_path).complaint is None and Progress(tmp_path).hints_used("07", 1) == 1


def test_what_is_sound_in_an_older_file_is_kept(workshop, toy):
    rows = {"1": {"points": 30, "of": 30, "state": "solved"}, "2": {"points": "all"}, "x": {}}
    facts = {"name": "ada", "later": 1, "labs": {"07": {"todos": rows, "hints": [1], "badge": "gold"}, "08": []}}
    (workshop.home / FILE).write_text(json.dumps(facts))
    said = workshop.labs("status")
    assert said.returncode == 0 and "cannot be read in full" in said.stdout and "TODO 1  double: 30/30  solved" in said.stdout
    progress = Progress(workshop.home)
    assert progress.name == "ada" and list(progress.todos("07")) == [1] and progress.hints_used("07", 1) == 0
    progress.record_hint("07", 1, 2)
    progress.save()
    kept = json.loads((workshop.home / FILE).read_text())
    assert kept["later"] == 1 and kept["labs"]["07"]["badge"] == "gold", "what another version wrote stays"


# where a learner stands


def test_the_path_from_call_to_token_says_whose_each_part_is(workshop):
    workshop.add_lab("lab06_blocks", station="block manager")
    workshop.add_lab("lab07_toy", station="paged attention")
    progress = Progress(workshop.home)
    for todo in (1, 2, 3):
        progress.record_todo("06", todo, points=30, of=30, state="solved")
    progress.record_todo("07", 1, points=30, of=30, state="solved")
    line = learning_path.path_line(progress)
    assert line.startswith("call -> caller -> ") and line.endswith(" -> token")
    assert "block manager (06 yours) -> " in line and "paged attention (07 partly yours) -> " in line
    lab, todo = learning_path.next_todo(progress)
    assert (lab.id, todo) == ("07", 2)
    progress.record_solution("06", [2])
    assert "block manager (06 partly yours)" in learning_path.path_line(progress)


def test_a_lock_held_by_nobody_does_not_stop_a_save(tmp_path):
    (tmp_path / ".progress.lock").write_text("left over")
    progress = Progress(tmp_path)
    progress.record_hint("07", 1, 1)
    began = time.monotonic()
    progress.save()
    assert Progress(tmp_path).hints_used("07", 1) == 1 and time.monotonic() - began < 5
