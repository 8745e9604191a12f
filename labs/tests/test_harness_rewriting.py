"""Commands that rewrite a starter lose nothing of the learner's, whatever stands in the file and wherever the write fails."""

import ast
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from labs.harness import files
from labs.harness.catalog import LabError, lab_at
from labs.harness.learner import backups
from labs.harness.learner.progress import Progress
from labs.harness.learner.update import update
from labs.harness.regions import definitions, put_back

GOALS = {1: "return twice the number", 3: "double twice"}
STUBS = {todo: f'raise TodoError("TODO {todo}: {goal}", lab="07")' for todo, goal in GOALS.items()}


def write(starter: Path, todo: int, code: str) -> None:
    """Put `code` where the stub of a TODO stands."""
    text = starter.read_text(encoding="utf-8")
    assert STUBS[todo] in text
    starter.write_text(text.replace(STUBS[todo], code), encoding="utf-8")


MINE = "text = 'one{}two'  # mine{}too\n    return number * 2 if text else 0"
ODD = {
    "line separator": "\u2028", "paragraph separator": "\u2029", "form feed": "\f", "next line": "\x85",
    "vertical tab": "\v", "file separator": "\x1c", "nothing odd": "",
}
COMMANDS = {
    "update": lambda home, toy, newer: update(home, newer),
    "reset --todo": lambda home, toy, newer: backups.reset(lab_at(toy), 3),
    "solution --todo": lambda home, toy, newer: backups.write_solution(lab_at(toy), 3),
}
BYTES = {
    "utf-8": lambda text: text.encode(),
    "a byte order mark": lambda text: text.encode("utf-8-sig"),
    "carriage returns and line feeds": lambda text: text.replace("\n", "\r\n").encode(),
    "carriage returns": lambda text: text.replace("\n", "\r").encode(),
    "no final newline": lambda text: text.rstrip("\n").encode(),
    "a coding comment": lambda text: f"# -*- coding: latin-1 -*-\n# caf\xe9\n{text}".encode("latin-1", "xmlcharrefreplace"),
    "tabs": lambda text: text.replace("    ", "\t").encode(),
}


def meanings(content: bytes) -> dict[str, str]:
    return {name: ast.dump(node) for name, node in definitions(ast.parse(content)).items()}


def odd_starter(toy: Path, odd: str, written: Callable[[str], bytes]) -> dict[str, str]:
    """A starter whose TODO 1 is the learner's, with `odd` in comments, strings and between functions; what it means."""
    write(toy / "starter.py", 1, MINE.format(odd, odd))
    text = (toy / "starter.py").read_text(encoding="utf-8").replace("def double", f"# note{odd}to self: {odd}\ndef double", 1)
    text += f"\n\ndef mine_too():\n    return '{odd}'\n    # and this{odd}belongs to it\n"
    (toy / "starter.py").write_bytes(written(text))
    return meanings((toy / "starter.py").read_bytes())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("odd", "kind"), [*((odd, "utf-8") for odd in ODD), *(("nothing odd", kind) for kind in BYTES)])
def test_no_command_that_rewrites_a_starter_changes_what_the_learner_wrote(workshop, toy, newer, command, odd, kind):
    before = odd_starter(toy, ODD[odd], BYTES[kind])
    COMMANDS[command](workshop.home, toy, newer)
    after = meanings((toy / "starter.py").read_bytes())
    assert {name: after[name] for name in ("double", "mine_too")} == {name: before[name] for name in ("double", "mine_too")}
    assert "octuple" in after or command != "update"
    assert ("TodoError" in after["quadruple"]) == (command != "solution --todo")
    if command != "update":
        assert {name: node for name, node in after.items() if name != "quadruple"} == {
            name: node for name, node in before.items() if name != "quadruple"}


def test_a_rewritten_starter_keeps_its_mark_its_encoding_and_its_line_ends(toy):
    lab = lab_at(toy)
    for kind in ("a byte order mark", "carriage returns and line feeds", "a coding comment"):
        backups.reset(lab)
        odd_starter(toy, "", BYTES[kind])
        before = (toy / "starter.py").read_bytes()
        backups.write_solution(lab, 3)
        after = (toy / "starter.py").read_bytes()
        assert after.splitlines()[:3] == before.splitlines()[:3]
        assert (after.count(b"\r\n") == after.count(b"\n")) == (kind == "carriage returns and line feeds")


def test_a_comment_at_the_end_of_a_function_moves_with_it(workshop, toy, newer):
    write(toy / "starter.py", 1, "return number + number\n    # it was 3 * number before\n    # and wrong")
    update(workshop.home, newer)
    assert "number + number\n    # it was 3 * number before\n    # and wrong\n" in (toy / "starter.py").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [("def double", "def double(number):\n    return 0\n\n\ndef double"), ("def double(number", "def double(\0number")],
)
def test_what_cannot_be_rewritten_safely_is_left_alone_and_said(workshop, toy, newer, old, new):
    write(toy / "starter.py", 1, "return 2 * number")
    text = (toy / "starter.py").read_text().replace(old, new)
    (toy / "starter.py").write_text(text)
    with pytest.raises(LabError, match=r"lab07_toy/starter.py (defines double more than once|line \d+ has a NUL byte)"):
        update(workshop.home, newer)
    assert (toy / "starter.py").read_text() == text and not (workshop.home / ".backups").exists()


def test_another_function_that_would_change_stops_the_rewriting():
    work = "def one():\n    return 1\ndef two(): return 2\n"
    assert "return 3" in put_back(work, "def two(): return 3\n", ["two"])
    with pytest.raises(LabError, match="one cannot be replaced on its own.*leave out --todo"):
        put_back("if True:\n  def one():\n    return 1\n", "def one():\n    return 3\n", ["one"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_to_is_one_line_and_nothing_is_lost(workshop, toy, newer, monkeypatch, command):
    odd_starter(toy, "", BYTES["utf-8"])
    before = {path: path.read_bytes() for path in workshop.home.rglob("*") if path.is_file()}

    def refuse(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    write((toy / "starter.py"), 3, "return 4 * number")
    before[toy / "starter.py"] = (toy / "starter.py").read_bytes()
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(LabError, match=r"cannot be written: Permission denied\. Nothing was changed\.$"):
        COMMANDS[command](workshop.home, toy, newer)
    now = {path: path.read_bytes() for path in workshop.home.rglob("*") if path.is_file() and ".backups" not in path.parts}
    assert now == before


@pytest.mark.parametrize("at", ["first file", "second file"])
def test_a_full_disk_leaves_every_file_as_it_was(tmp_path, monkeypatch, at):
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(b"old")
    really, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == {"first file": 1, "second file": 3}[at]:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match="No space left on device. Nothing was changed"):
        files.replace_all(dict.fromkeys(paths, b"new"))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(paths, b"old")


def test_a_replaced_file_keeps_its_rights_and_a_link_stays_one(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    files.replace(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new" and target.stat().st_mode & 0o777 == 0o640


def test_progress_that_cannot_be_kept_is_said_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")))
    progress = Progress(tmp_path)
    progress.name = "ada"
    progress.save()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Read-only file system. This run is not remembered." in said
