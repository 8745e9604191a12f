"""The student edition works on its own, and a term's submissions are graded by its tag."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grading.authoring.mutants import read_mutants
from grading.cli.release import workflow
from grading.edition import release as releases
from grading.edition.release import COURSE, MARK, release, tag
from labs.harness import originals, regions
from labs.harness.catalog import Lab, LabError, all_labs, find_lab, lab_at

pytestmark = pytest.mark.slow


def run(command: list[str], folder: Path, course: Path | None = None, **more: str) -> subprocess.CompletedProcess:
    """A command in `folder`, with the course's packages from `course`."""
    course = course or folder
    paths = os.pathsep.join([str(course), str(course / "reference_engine")])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "NANO_"))}
    return subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": paths, "COLUMNS": "200", **more}, capture_output=True, text=True,
        timeout=300)


def labs(edition: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    return run([sys.executable, "-m", "labs", *arguments], edition, **more)


def suite(lab: Lab, home: Path, *options: str) -> str:
    """What a run of a lab's tests says."""
    command = [sys.executable, "-m", "pytest", "test_lab.py", "--plain", "-p", "no:cacheprovider", *options]
    return run(command, lab.folder, home, PYTHONWARNINGS="ignore").stdout  # which name folders, and come when memory is tidied up


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this course, which may be tagged; as it was last committed."""
    if not (COURSE / ".git").exists():
        pytest.skip("this course is no git repository, and releases are made from one")
    folder = tmp_path_factory.mktemp("release") / "course"
    subprocess.run(["git", "clone", "--quiet", str(COURSE), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def edition(course: Path) -> Path:
    tag("2027S", course)
    folder = course.parent / "students"
    release("2027S", folder, course)
    return folder


def test_nothing_in_it_tells_how_a_todo_is_done(edition: Path):
    """Also not what is sealed, to who looks at it: no line of a solution, and none of the names in it, can be read."""
    files = [path.relative_to(edition).as_posix() for path in edition.rglob("*") if path.is_file()]
    assert not [name for name in files
                if "solution" in name or name.startswith("grading/") or "/tests/" in name or ".git/" in name]
    for lab in all_labs(COURSE / "labs"):
        text = lab.solution.read_text(encoding="utf-8")
        lines = text.splitlines()
        for region in regions.find_regions(text):
            hidden = "\n".join(lines[region.begin : region.end - 1])
            if len(hidden) > 60:
                holders = [name for name in files if name.endswith((".py", ".json", ".md", ".toml"))
                           and not name.startswith("reference_engine/")  # which may be read
                           and hidden in (edition / name).read_text(encoding="utf-8")]
                assert not holders, f"Lab {lab.id}, TODO {region.todo}: its solution stands in {holders}"
        sealed = (edition / "labs" / lab.folder.name / lab.sealed.name).read_text(encoding="utf-8")
        assert sealed.isascii() and not re.search(r"def |return|import|self|for \w+ in", sealed.partition("\n")[2])


def put_together(lab: Lab) -> str:
    """The starter with all of our functions, from the sealed file."""
    names = [name for found in originals.functions(lab).values() for name in found]
    untouched = ast.parse(lab.untouched.read_text(encoding="utf-8"))
    return ast.unparse(regions.with_stand_ins(untouched, ast.parse(originals.our_code(lab)), names))


@pytest.mark.share(1)
@pytest.mark.parametrize("name", [lab.folder.name for lab in all_labs(COURSE / "labs")])
def test_what_is_sealed_solves_the_lab(edition: Path, tmp_path: Path, name: str):
    lab, file = lab_at(edition / "labs" / name), tmp_path / "starter.py"
    file.write_text(put_together(lab), encoding="utf-8")
    said = suite(lab, edition, "--impl", str(file), "-q")
    assert re.search(r"^total +85/85$", said, re.MULTILINE), said


WRONG = {
    "06": ["never_gives_the_last_block", "rounds_down", "block_and_offset_swapped"],
    "02": ["awaits_the_stream"],
}
"""Lab -> mutants of TODOs on which others build."""


@pytest.mark.proof
@pytest.mark.parametrize(("number", "name"), [(number, name) for number, names in WRONG.items() for name in names])
def test_a_mistake_costs_the_same_with_and_without_solutions(edition: Path, course: Path, number: str, name: str):
    """And the run says the same of it, in less than 200 lines, with nothing of the harness in them."""
    wrong = next(one for one in read_mutants(find_lab(number)) if one.name == name)
    said = []
    for home in (course, edition):
        lab = find_lab(number, home / "labs")
        before = lab.starter.read_text(encoding="utf-8")
        try:
            lab.starter.write_text(wrong.text, encoding="utf-8")
            said.append(suite(lab, home, "-p", "no:warnings"))
        finally:
            lab.starter.write_text(before, encoding="utf-8")
    noise = re.compile(r"rootdir| in \d+\.\d+s")
    with_solutions, without = ([line for line in text.splitlines() if not noise.search(line)] for text in said)
    assert with_solutions == without
    assert len(without) < 200 and "labs/harness" not in said[1]
    for todo, points, of, state in re.findall(r"^(\d) +([\d.]+)/(\d+) +(.+?)(?:  .*)?$", said[1], re.MULTILINE):
        if int(todo) != wrong.todo:
            assert points == of, f"TODO {todo} lost points for a mistake in TODO {wrong.todo}: {state}"
            assert state == "solved" or state.startswith(f"blocked by TODO {wrong.todo}")


@pytest.mark.proof
def test_the_engine_takes_what_is_not_written_from_what_is_sealed(edition: Path):
    said = labs(edition, "generate", "What is a KV cache?", "--use", "mine:06", "--base", "solution")
    assert said.returncode == 0 and "KV cache stores" in said.stdout, said.stderr
    assert "--base solution" in labs(edition, "generate", "x", "--use", "mine:06").stderr


def test_no_page_speaks_of_solutions_that_are_not_there(edition: Path):
    """All that a learner reads: pages, hints, starters, messages of the command line. What says that there are none may."""
    allowed = [r"This edition has no solutions; `--impl solution` and `python -m labs solution` say so",
               r"`--base solution` has our functions", r"--impl solution", r"resolution", r"dissolution"]
    for path in [*edition.rglob("*.md"), *edition.glob("labs/lab*/*.py"), *edition.glob("labs/lab*/*.toml")]:
        if path.name in ("CHANGELOG.md", "test_lab.py") or path.is_relative_to(edition / "reference_engine"):
            continue
        text = path.read_text(encoding="utf-8")
        for pattern in allowed if path == edition / "README.md" else allowed[3:]:
            text = re.sub(pattern, "", text)
        found = [line for line in text.splitlines() if re.search(r"solution\b|solution\.py|going_further\.py|with ours", line)]
        assert not found, f"{path.relative_to(edition)}: {found}"


def test_readmes_name_only_what_is_there(edition: Path):
    for path in edition.rglob("README.md"):
        text = path.read_text(encoding="utf-8")
        assert MARK not in text and "{" not in re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL), path
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (path.parent / target).exists(), f"{path.relative_to(edition)} links to {target}"


def test_what_it_was_made_of_is_pinned(edition: Path, course: Path):
    facts = json.loads((edition / "term.json").read_text(encoding="utf-8"))
    head = subprocess.run(["git", "rev-parse", "term/2027S"], cwd=course, capture_output=True, text=True).stdout.strip()
    assert facts["commit"] == head and set(facts["labs"]) == {lab.id for lab in all_labs(COURSE / "labs")}


@pytest.mark.proof
def test_a_todo_is_solved_updated_reset_and_regraded_under_the_terms_tag(edition: Path, course: Path, tmp_path: Path):
    folder = edition / "labs" / "lab06_block_manager"
    starter = folder / "starter.py"
    before = starter.read_text(encoding="utf-8")
    ours = find_lab("06").solution.read_text(encoding="utf-8")
    solved = regions.put_back(before, ours, regions.functions_of(ours)[1])
    starter.write_text(solved, encoding="utf-8")

    said = run([sys.executable, "-m", "pytest", "test_lab.py", "--plain", "-q", "-p", "no:cacheprovider"], folder, edition).stdout
    assert re.search(r"^1 +12/12 +solved", said, re.MULTILINE), said
    assert re.search(r"^2 +0/18 +not started", said, re.MULTILINE), said
    assert "12/12" in labs(edition, "status").stdout

    newer = tmp_path / "newer"
    release("2027S", newer, course)
    (newer / "labs" / "lab06_block_manager" / "hints.md").write_text("# newer hints\n", encoding="utf-8")
    updated = labs(edition, "update", "--from", str(newer))
    assert updated.returncode == 0, updated.stderr
    assert starter.read_text(encoding="utf-8") == solved, "an update must not touch what the learner wrote"
    assert (folder / "hints.md").read_text(encoding="utf-8") == "# newer hints\n"

    graded = run([sys.executable, "-m", "grading", "--term", "2027S", "grade", "06", str(folder), "--student", "ada", "--json"],
                 course)
    report = json.loads(graded.stdout)
    assert report["lab"] == "06" and report["score"] == 12 and report["max_score"] == 100, graded.stderr

    assert labs(edition, "reset", "06").returncode == 0
    assert starter.read_text(encoding="utf-8") == before


@pytest.mark.proof
def test_without_solutions_the_reference_stands_in_and_asking_for_one_says_why_not(edition: Path):
    said = run([sys.executable, "-m", "pytest", "test_lab.py", "--impl", "solution", "-q", "-p", "no:cacheprovider"],
               edition / "labs" / "lab06_block_manager", edition).stdout
    assert "It is not part of the student edition." in said
    assert "It is not part of the student edition." in labs(edition, "solution", "06").stderr
    used = labs(edition, "generate", "What is a KV cache?", "--use", "solution:06")
    assert used.returncode == 2 and "It is not part of the student edition." in used.stderr and used.stderr.count("\n") == 1
    generated = labs(edition, "generate", "What is a KV cache?", "--use", "reference:06")
    assert generated.returncode == 0 and "KV cache stores" in generated.stdout, generated.stderr
    demo = run([sys.executable, "-m", "nano_qwen3_serving", "chat", "What is a KV cache?"], edition)
    assert "KV cache stores" in demo.stdout


@pytest.mark.proof
def test_a_practice_run_is_fenced_and_summed_up(edition: Path, tmp_path: Path):
    summary, starter = tmp_path / "summary.md", edition / "labs" / "lab02_online_serving" / "starter.py"
    before = starter.read_text(encoding="utf-8")
    starter.write_text(before + "\nprint('::error::a command to the runner')\n", encoding="utf-8")
    try:
        said = labs(edition, "practice", "02", "05", "--summary", str(summary), GITHUB_ACTIONS="true")
    finally:
        starter.write_text(before, encoding="utf-8")
    assert said.returncode == 0, said.stderr
    tokens = re.findall(r"^::stop-commands::(\w{32})$", said.stdout, re.MULTILINE)
    assert len(tokens) == 2 and len(set(tokens)) == 2
    for token in tokens:
        assert said.stdout.count(f"::{token}::") == 1
    assert said.stdout.index(tokens[0]) < said.stdout.index("::error::")
    assert summary.read_text(encoding="utf-8").endswith("Not started: Lab 02, 05.\n")


def test_a_tag_names_one_commit_for_good(course: Path):
    tag("2026W", course)
    tag("2026W", course)
    (course / "LICENSE").write_text("changed", encoding="utf-8")
    with pytest.raises(LabError, match="Commit them first"):
        tag("2028S", course)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "later"], cwd=course, check=True)
    with pytest.raises(LabError, match="names another commit"):
        tag("2026W", course)
    subprocess.run(["git", "reset", "-q", "--hard", "HEAD~1"], cwd=course, check=True)


@pytest.mark.parametrize("name", ["", "2027 S", "../x", "-x", "a" * 41])
def test_a_name_that_makes_no_tag_is_refused(name: str, tmp_path: Path):
    with pytest.raises(LabError, match="--term"):
        release(name, tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(LabError, match="is not empty"):
        release("2027S", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_workflow_is_written_as_releases_have_it(tmp_path: Path):
    workflow(tmp_path / "a" / "practice.yml")
    text = (tmp_path / "a" / "practice.yml").read_text(encoding="utf-8")
    assert text == (releases.TEMPLATES / "practice.yml").read_text(encoding="utf-8")
    assert "labs practice --summary" in text and "$GITHUB_STEP_SUMMARY" in text
