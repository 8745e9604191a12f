"""The batch on a Ray cluster: the same units, the same journal, also when a worker is lost."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from grading.batch import Plan, Unit, run_batch
from grading.cluster import cluster
from grading.journal import Journal
from grading.judge import Settings
from grading.model import CheckResult, Report
from grading.roster import read_cohort
from labs.harness.catalog import find_lab

pytestmark = pytest.mark.slow
LAB = find_lab("06")
PROJECT = Path(__file__).parents[2]
COUNT = 16


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two machines, as far as Ray knows, with two cores each."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        patch.setenv("PYTHONPATH", str(PROJECT))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            made.add_node(num_cpus=2)
            yield made.address
        finally:
            made.shutdown()


@dataclass(frozen=True)
class Noting:
    """Makes a grader that notes who graded what, and kills its own process at one student: the first time, or always."""

    log: Path
    dies_at: str = ""
    always: bool = False

    @contextmanager
    def __call__(self) -> Iterator:
        def grade(unit: Unit) -> Report:
            student, mark = unit.submission.student, self.log.with_suffix(".died")
            if student == self.dies_at and (self.always or not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with open(self.log, "a") as log:
                log.write(f"{os.getpid()} {student}\n")
            earned = int(hashlib.sha256(unit.submission.files["starter.py"]).hexdigest()[:4], 16) % 100
            return Report(student, unit.lab, unit.submission.digest, "none", "seed", {}, (CheckResult(1, "a_check", 100, earned, False),))

        yield grade


def batch(tmp_path: Path, address: str, name: str, **how):
    for number in range(COUNT):
        (tmp_path / "submissions").mkdir(exist_ok=True)
        (tmp_path / "submissions" / f"s{number:02}.py").write_text(f"number = {number}\n")
    plan = Plan({"06": LAB}, Settings(level="none"), {"06": {"checks": "v1"}})
    log = tmp_path / f"{name}.log"
    with Journal(tmp_path / name, create=True) as base, cluster(address, Noting(log, **how), 60.0) as crew:
        summary = run_batch(base, plan, read_cohort(tmp_path / "submissions", [LAB]), crew)
        scores = {entry.report.student: entry.report.score for entry in base.latest()}
    return summary, scores, [line.split() for line in log.read_text().splitlines()]


def test_a_worker_killed_in_the_middle_costs_nobody_a_result(address, tmp_path):
    summary, scores, log = batch(tmp_path, address, "killed", dies_at="s05")
    expected = {f"s{n:02}": int(hashlib.sha256(f"number = {n}\n".encode()).hexdigest()[:4], 16) % 100 for n in range(COUNT)}
    assert scores == expected
    assert [(line.kind, line.student) for line in summary.lines] == [("crash", "s05")] and "graded at the second try" in summary.lines[0].text
    assert sorted(student for _, student in log) == sorted(expected), "each was graded once"
    assert len({process for process, _ in log}) >= 2, "several workers graded"
    again, scores, log = batch(tmp_path, address, "killed")
    assert (again.known, again.graded, scores, len(log)) == (COUNT, 0, expected, COUNT)


def test_a_submission_that_kills_every_worker_is_an_error_line_and_the_rest_goes_on(address, tmp_path):
    summary, scores, _ = batch(tmp_path, address, "always", dies_at="s03", always=True)
    assert [(line.kind, line.student) for line in summary.lines] == [("error", "s03")] and summary.lines[0].text.count("Ray worker is gone") == 2
    assert len(scores) == COUNT - 1 and "s03" not in scores


def test_no_cluster_at_the_address_is_an_error_with_the_way_out():
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    with pytest.raises(ValueError, match="there is no Ray cluster at '127.0.0.1:1'.*ray start --head"):
        with cluster("127.0.0.1:1", Noting(Path("none")), 1.0):
            pass
