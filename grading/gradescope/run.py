"""The program in Gradescope's container: grades one submission into `results.json`.

    python -m grading.gradescope.run ROOT

ROOT is laid out as `/autograder` is. If grading itself fails there is no `results.json`, and
Gradescope reports that: no student gets a zero for it.
"""

import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from grading.cohort.journal import Entry
from grading.export import gradescope
from grading.export.files import write
from grading.judge.grader import Settings, grader_of
from grading.judge.intake import read_submission
from grading.judge.seeds import read_secret
from grading.sandbox.isolation import Limits, strongest_level, weaknesses
from labs.harness.catalog import find_lab


@dataclass(frozen=True)
class GradescopeHandIn:
    """A submission's student and time (ISO 8601 in UTC), as Gradescope gives them."""

    student: str
    submitted: str | None


def read_metadata(path: Path, identity: str = "email") -> GradescopeHandIn:
    """Reads `submission_metadata.json`; a group is named by all its members, in alphabetical order.

    Args:
        identity: `email`, `id` or `name`: the field that names a student in the journal and the roster.

    Raises:
        ValueError: if the file does not say who handed in.
    """
    metadata = json.loads(path.read_text(encoding="utf-8"))
    users = [str(user.get(identity) or "") for user in metadata.get("users", [])]
    if not users or not all(users):
        raise ValueError(f"{path.name} does not say the {identity} of everybody who handed in")
    created = metadata.get("created_at")
    submitted = datetime.fromisoformat(created).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if created else None
    return GradescopeHandIn("+".join(sorted(users)), submitted)


def run(root: Path) -> Entry:
    """Grade what lies in `root/submission` and write `root/results/results.json`."""
    begin = time.monotonic()
    chosen = json.loads((root / "source" / "settings.json").read_text(encoding="utf-8"))
    lab = find_lab(chosen["lab"])
    handed_in = read_metadata(root / "submission_metadata.json", chosen["identity"])
    submission = read_submission(root / "submission", handed_in.student, lab.folder.name)
    with grader_of(lab, settings_of(chosen, root / "source" / "term_secret")) as grader:
        report = grader.grade(submission)
    entry = Entry(report, handed_in.submitted, 0.0, report.score)
    write(root / "results" / "results.json",
          gradescope.results(entry, chosen["hidden"], time.monotonic() - begin).encode("utf-8"))
    return entry


def settings_of(chosen: dict, secret: Path) -> Settings:
    """The settings chosen when the zip was made."""
    seconds = chosen["seconds"]
    limits = Limits(wall_seconds=seconds, cpu_seconds=max(1, int(seconds / 2)), memory_bytes=chosen["memory_mib"] << 20)
    level = chosen["isolation"] or strongest_level()
    return Settings(read_secret(secret), chosen["seed_mode"], None, level, limits, chosen["predictions"])


def main() -> None:
    """Grade; only instructors see what is printed."""
    entry = run(Path(sys.argv[1]))
    report = entry.report
    print(f"{report.student}: {report.score:g} of {report.max_score:g}; isolation level {report.isolation}")
    for weakness in weaknesses(report.isolation):
        print(f"isolation: {weakness}")


if __name__ == "__main__":
    main()
