"""The batch on a Ray cluster: the same units, the same journal, also when a worker is lost."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from grading.cohort.batch import Plan, Unit, run_batch
from grading.cohort.journal import Journal
from grading.cohort.ray_cluster import cluster
from grading.cohort.roster import read_cohort
from grading.judge.grader import Settings
from grading.judge.report import CheckResult, Report
from labs.harness.catalog import find_lab

pytestmark = pytest.mark.slow
LAB = find_lab("06")
PROJECT = Path(__file__).parents[2]
COUNT = 16


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two machines, as far as Ray knows, with three cores together."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(PROJECT))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            made.add_node(num_cpus=1)
            yield made.address
        finally:
            made.shutdown()


@dataclass(frozen=True)
class Noting:
    """Makes a grader that notes who graded what, and kills its own process: at `once` the first time, at `always` every time."""

    log: Path
    once: str = ""
    always: str = ""

    @contextmanager
    def __call__(self) -> Iterator:
        def grade(unit: Unit) -> Report:
            student = unit.submission.student
            mark = self.log.with_suffix(f".{student}")
            if student == self.always or (student == self.once and not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with open(self.log, "a") as log:
                log.write(f"{os.getpid()} {student}\n")
            check = CheckResult(1, "a_check", 100, points_of(unit.submission.files["starter.py"]), False)
            return Report(student, unit.lab, unit.submission.digest, "none", "seed", {}, (check,))

        yield grade


def points_of(text: bytes) -> int:
    return int(hashlib.sha256(text).hexdigest()[:4], 16) % 100


def batch(tmp_path: Path, address: str, **how: str):
    (tmp_path / "submissions").mkdir(exist_ok=True)
    for number in range(COUNT):
        path = tmp_path / "submissions" / f"s{number:02}.py"
        path.write_text(f"number = {number}\n")
    plan = Plan({"06": LAB}, Settings(level="none"), {"06": {"checks": "v1"}})
    log = tmp_path / "graded.log"
    with Journal(tmp_path / "journal", create=True) as base, cluster(address, Noting(log, **how), 120.0) as crew:
        summary = run_batch(base, plan, read_cohort(tmp_path / "submissions", [LAB]), crew)
        scores = {entry.report.student: entry.report.score for entry in base.latest()}
    return summary, scores, [line.split() for line in log.read_text().splitlines()]


def test_killed_workers_cost_a_retry_or_one_result_that_a_second_run_fills_in(address, tmp_path):
    expected = {f"s{n:02}": points_of(f"number = {n}\n".encode()) for n in range(COUNT)}
    summary, scores, log = batch(tmp_path, address, once="s05", always="s03")
    assert scores == {student: score for student, score in expected.items() if student != "s03"}
    said = {(line.kind, line.student): line.text for line in summary.lines}
    assert set(said) == {("crash", "s05"), ("error", "s03")}
    assert "graded at the second try" in said["crash", "s05"] and said["error", "s03"].count("Ray worker is gone") == 2
    assert sorted(student for _, student in log) == sorted(scores), "each was graded once"
    assert len({process for process, _ in log}) >= 2, "several workers graded"
    again, scores, log = batch(tmp_path, address)
    assert (again.known, again.graded, again.failed, scores, len(log)) == (COUNT - 1, 1, 0, expected, COUNT)


def test_no_cluster_at_the_address_is_an_error_with_the_way_out():
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    refused = pytest.raises(ValueError, match="there is no Ray cluster at '127.0.0.1:1'.*ray start --head.*RAY_AUTH_TOKEN")
    with refused, cluster("127.0.0.1:1", Noting(Path("none")), 1.0):
        pass
