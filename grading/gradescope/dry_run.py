"""The autograder's zip, run here as Gradescope would run it, under the limits of its default container."""

import json
import os
import sys
import zipfile
from pathlib import Path

from grading.gradescope import container_limits
from grading.judge.intake import ALLOWED

METADATA = {
    "id": 1, "created_at": "2027-02-01T10:00:00.000000-05:00",
    "assignment": {"due_date": "2027-02-08T23:59:00.000000-05:00", "title": "Lab"}, "submission_method": "upload",
    "users": [{"email": "student@example.com", "id": 1234, "name": "A Student"}], "previous_submissions": []}


def run(
    archive: Path, submission: Path, root: Path, cpus: float = 0.5, memory_bytes: int = 768 << 20
) -> tuple[container_limits.Used, dict]:
    """The resources used, and `results.json`, empty if there is none. Raises `container_limits.NoGroups`."""
    lay_out(archive, submission, root)
    used = container_limits.run([str(root / "run_autograder")], environment(root), cpus, memory_bytes)
    return used, results(root)


def lay_out(archive: Path, submission: Path, root: Path) -> None:
    """Lay out `root` as `/autograder` is before `run_autograder` starts.

    Args:
        submission: a `starter.py` under any name, or a folder with the files of a submission.
    """
    root.chmod(0o755)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(root / "source")
    (root / "run_autograder").write_bytes((root / "source" / "run_autograder").read_bytes())
    (root / "run_autograder").chmod(0o755)
    (root / "submission").mkdir()
    handed_in = {"starter.py": submission} if submission.is_file() else {name: submission / name for name in ALLOWED}
    for name, path in handed_in.items():
        if path.is_file():
            (root / "submission" / name).write_bytes(path.read_bytes())
    (root / "submission_metadata.json").write_text(json.dumps(METADATA), encoding="utf-8")


def environment(root: Path) -> dict[str, str]:
    """The variables that `run_autograder` needs when it does not run in `/autograder`."""
    return {"PATH": os.environ.get("PATH", os.defpath), "AUTOGRADER_ROOT": str(root), "AUTOGRADER_PYTHON": sys.executable}


def results(root: Path) -> dict:
    """`results.json`, read; empty if there is none."""
    path = root / "results" / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
