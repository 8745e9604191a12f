"""Running a grading command at a term's tag: with the checks, engine and labs that its students were given."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labs.harness.catalog import LabError


def run_at(term: str, arguments: Sequence[str], course: Path) -> int:
    """The exit status of `python -m grading ARGUMENTS`, run in a checkout of the tag `term/NAME`.

    Relative paths among the arguments keep their meaning. Raises `LabError` if there is no such tag.
    """
    with tempfile.TemporaryDirectory(prefix="term-") as name:
        folder = Path(name) / "course"
        made = subprocess.run(
            ["git", "worktree", "add", "--detach", "--quiet", str(folder), f"refs/tags/term/{term}"],
            cwd=course, capture_output=True, text=True)
        if made.returncode:
            hint = f" To name the file of a term: --term-file {term}, after the command." if term.endswith(".toml") else ""
            raise LabError(f"There is no tag term/{term} to grade by: {made.stderr.strip()}. python -m grading release makes it."
                           + hint)
        try:
            paths = os.pathsep.join([str(folder), str(folder / "reference_engine")])
            environment = {**os.environ, "PYTHONPATH": paths, "NANO_LABS_HOME": str(folder / "labs")}
            return subprocess.run([sys.executable, "-m", "grading", *arguments], env=environment).returncode
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=course, capture_output=True)
