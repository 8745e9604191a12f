"""The zip for Gradescope, unpacked and started as its container starts it.

With half a core and 768 MiB where control groups can be made.
"""

import io
import json
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from grading.authoring.mutants import read_mutants
from grading.gradescope import autograder, container_limits, dry_run, run
from grading.judge.seeds import seed_for
from labs.harness.catalog import find_lab

pytestmark = pytest.mark.slow

SECRET = "a secret of the term 0123456789"
LAB = find_lab("06")
MOST_BYTES = 600 << 20
MOST_SECONDS = 300
NOBODY = 65534


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "lab06.zip"
    path.write_bytes(autograder.build(LAB, autograder.Choices("06", predictions=False), SECRET))
    return path


@pytest.fixture(scope="module")
def mutant(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("handed in") / "my work.py"
    path.write_text(next(one for one in read_mutants(LAB) if one.name == "rounds_down").text)
    return path


@pytest.fixture(scope="module")
def ran(archive, mutant):
    """(what it took, results.json, the folder); None as what it took where no group can be made."""
    with tempfile.TemporaryDirectory(prefix="autograder-") as name:  # below /tmp, where other users may look
        root = Path(name)
        try:
            used, results = dry_run.run(archive, mutant, root)
        except container_limits.NoGroups:
            done = subprocess.run([root / "run_autograder"], env=dry_run.environment(root), capture_output=True, text=True,
                                  timeout=MOST_SECONDS)
            assert done.returncode == 0, done.stderr
            used, results = None, dry_run.results(root)
        yield used, results, root


def test_the_zip_has_what_gradescope_looks_for_at_its_root(archive):
    with zipfile.ZipFile(archive) as opened:
        modes = {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in opened.infolist()}
    assert modes["setup.sh"] == modes["run_autograder"] == 0o755 and modes["term_secret"] == 0o600
    for name in ("setup.sh", "run_autograder"):
        assert subprocess.run(["bash", "-n", autograder.HERE / "gradescope" / name]).returncode == 0


def test_the_zip_has_one_lab_and_nothing_that_only_authors_need(archive):
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
    assert {name.split("/")[2] for name in names if name.startswith("course/labs/lab")} == {LAB.folder.name}
    assert not [name for name in names if any(part in name for part in (
        "mutants/", "alternatives/", "cheats/", "tests/", ".pyc", "/.", "predictions.json"))]
    assert f"course/labs/{LAB.folder.name}/solution.py" in names and "course/grading/labs/lab06/hidden.py" in names


def test_the_same_sources_make_the_same_zip():
    one, two = (autograder.build(LAB, autograder.Choices("06"), SECRET) for _ in range(2))
    assert one == two


def test_packages_are_pinned_and_a_second_index_is_what_was_asked_for():
    lines = autograder.requirements().splitlines()
    assert all("==" in line and "+" not in line for line in lines) and any(line.startswith("torch==") for line in lines)
    assert any(line.startswith("matplotlib==") for line in lines), "what students have installed can be imported there, too"
    assert autograder.requirements("file:///wheels").startswith("--extra-index-url file:///wheels\n")


def test_choices_that_do_not_exist_are_refused():
    for name, value in (("hidden", "visible"), ("seed_mode", "everyone"), ("identity", "shoe")):
        with pytest.raises(ValueError, match=f"{name} is .* not '{value}'"):
            autograder.Choices("06", **{name: value})


@pytest.mark.proof
@pytest.mark.slow
def test_a_submission_is_graded_from_the_unpacked_zip_alone(ran):
    _, results, root = ran
    scores = {}
    for test in results["tests"]:
        for tag in test["tags"]:
            earned, most = scores.get(tag, (0, 0))
            scores[tag] = (earned + test["score"], most + test["max_score"])
    assert {tag for tag, (earned, most) in scores.items() if earned < most} == {"TODO 2"}, "the mutant is wrong in TODO 2"
    assert results["score"] == sum(earned for earned, _ in scores.values()) and sum(most for _, most in scores.values()) == 85
    assert {test["visibility"] for test in results["tests"]} == {"visible", "after_published"}
    facts = results["extra_data"]
    assert facts["student"] == "student@example.com"
    assert facts["seed"] == seed_for(SECRET, "06", "student@example.com", facts["digest"])
    code = "import grading, labs, nano_qwen3_serving as n; print(grading.__file__, labs.__file__, n.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root / "source" / "course", capture_output=True, text=True, timeout=120).stdout.split()
    assert len(where) == 3 and all(path.startswith(str(root)) for path in where), f"modules came from {where}"


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can look as another user")
def test_another_user_finds_neither_checks_nor_secret_nor_submissions(ran):
    _, _, root = ran
    hidden = ["source/term_secret", "source/course/grading/labs/lab06/hidden.py",
              f"source/course/labs/{LAB.folder.name}/solution.py", "submission/starter.py", "results/results.json",
              "submission_metadata.json"]
    assert all((root / name).is_file() for name in hidden)
    for name in [*hidden, "source", "submission", "results"]:
        seen = subprocess.run(["ls" if "." not in name and name != "source/term_secret" else "cat", str(root / name)],
                              user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True)
        assert seen.returncode != 0, f"nobody can read {name}"
    assert (subprocess.run(["cat", str(root / "run_autograder")], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/",
                           capture_output=True).returncode == 0)


@pytest.mark.proof
@pytest.mark.slow
def test_judge_and_worker_fit_half_a_core_and_768_mib(ran):
    used, results, _ = ran
    if used is None:
        pytest.skip("no control group can be made here, so nothing can be limited; `gradescope-zip --try` measures where one can")
    assert used.returncode == 0 and results, used.output
    assert used.killed == 0
    assert 0 < used.peak_bytes <= MOST_BYTES, (
        f"judge and worker took {used.peak_bytes >> 20} MiB; {MOST_BYTES >> 20} are planned for")
    assert used.seconds <= MOST_SECONDS
    assert used.cpu_seconds <= 0.55 * used.seconds + 0.5, (
        f"{used.cpu_seconds:.1f} s of a core in {used.seconds:.1f} s: that is more than half a core")


def test_a_command_that_wants_more_memory_than_it_may_have_is_ended():
    try:
        used = container_limits.run([sys.executable, "-c", "x = bytearray(300 << 20)"], dict(os.environ), memory_bytes=64 << 20)
    except container_limits.NoGroups:
        pytest.skip("no control group can be made here")
    assert used.returncode != 0 and used.charged_bytes <= 64 << 20


def test_metadata_say_who_handed_in_and_when(tmp_path):
    path = tmp_path / "submission_metadata.json"
    facts = {"created_at": "2018-07-01T14:22:32.365935-07:00",
             "users": [{"email": "b@x", "id": 2, "name": "B"}, {"email": "a@x", "id": 1, "name": "A"}]}
    path.write_text(json.dumps(facts))
    assert run.read_metadata(path) == run.GradescopeHandIn("a@x+b@x", "2018-07-01T21:22:32Z")
    assert run.read_metadata(path, "id").student == "1+2"
    for broken in ({"users": []}, {"users": [{"email": ""}]}, {}):
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="does not say the email"):
            run.read_metadata(path)


def test_a_submission_that_is_a_folder_is_laid_out_with_its_predictions(archive, tmp_path):
    work, root = tmp_path / "work", tmp_path / "root"
    for folder in (work, root):
        folder.mkdir()
    for name in ("starter.py", "predictions.json", "conftest.py"):
        (work / name).write_text(name)
    dry_run.lay_out(archive, work, root)
    assert {path.name: path.read_text() for path in (root / "submission").iterdir()} == {
        "starter.py": "starter.py", "predictions.json": "predictions.json"}
    assert zipfile.is_zipfile(io.BytesIO(archive.read_bytes())) and os.access(root / "run_autograder", os.X_OK)
