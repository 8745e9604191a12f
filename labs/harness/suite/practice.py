"""The labs' suites on the learner's starters, one after the other, and a summary in Markdown: for a fork's automatic runs.

Advisory, like every practice run. What the learner's code prints is fenced on GitHub, where a line of
output can otherwise be a command to the runner.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from labs.harness.catalog import Lab
from labs.harness.learner.results import Outcome, Row, points_text, summarise

SECONDS = 300
"""How many seconds one lab's suite may take."""


def run_labs(labs: Sequence[Lab]) -> list[tuple[Lab, list[Row], str]]:
    """Each lab's rows, and the reason if its suite did not get to its end. Output goes to standard output."""
    return [(lab, *_run(lab)) for lab in labs]


def _run(lab: Lab) -> tuple[list[Row], str]:
    print(f"\nLab {lab.id}, {lab.title}", flush=True)
    with tempfile.TemporaryDirectory() as folder, _fenced():
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", str(lab.tests), "--lab-json", str(report), "--plain", "-q", "--tb=short"]
        try:
            status = subprocess.run(command, timeout=SECONDS, stdin=subprocess.DEVNULL).returncode
        except subprocess.TimeoutExpired:
            return [], f"the tests had not ended after {SECONDS} seconds"
        if status not in (0, 1) or not report.is_file():
            return [], f"pytest ended with status {status}"
        found = json.loads(report.read_text(encoding="utf-8")).get(lab.id, [])
    return summarise(lab, [Outcome.from_json(facts) for facts in found]), ""


@contextmanager
def _fenced() -> Iterator[None]:
    """On GitHub, keeps the runner from taking printed lines for commands."""
    if not os.environ.get("GITHUB_ACTIONS"):
        yield
        return
    token = secrets.token_hex(16)
    print(f"::stop-commands::{token}", flush=True)
    try:
        yield
    finally:
        print(f"\n::{token}::", flush=True)


def summary(results: Sequence[tuple[Lab, list[Row], str]]) -> str:
    """A table for every started lab, in Markdown; it contains no text that a submission wrote."""
    parts, untouched = ["# Practice run", "Advisory: the tests that you have, on the file that you pushed."], []
    for lab, rows, trouble in results:
        if rows and not trouble and all(row.kind == "not started" for row in rows):
            untouched.append(lab.id)
            continue
        parts.append(f"## Lab {lab.id}, {lab.title}")
        parts.append(trouble.capitalize() + "." if trouble else _table(rows))
    if untouched:
        parts.append(f"Not started: Lab {', '.join(untouched)}.")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    lines = ["| TODO | points | state |", "| --- | ---: | --- |"]
    lines += [f"| {row.todo} | {points_text(row.points)}/{points_text(row.of)} | {row.state} |" for row in rows]
    earned, of = sum(row.points for row in rows), sum(row.of for row in rows)
    return "\n".join([*lines, f"| **total** | **{points_text(round(earned, 1))}/{points_text(of)}** | |"])
