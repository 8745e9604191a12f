"""The student edition of a term: the course without anything that shows how a TODO is done.

Knows which files students get; knows nothing of grading. Its versions are pinned in `term.json`
and, in a git repository, by the tag `term/NAME`, at which regrades run.
"""

import json
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from grading.edition.sealing import seal
from grading.judge.report import digest_of
from labs.harness.catalog import Lab, LabError, all_labs, lab_at
from labs.harness.originals import starter_text

COURSE = Path(__file__).parents[2]
TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
MARK = "<!-- with solutions -->"
"""Marks a README line that the student edition leaves out."""

_ROOT = ("CHANGELOG.md", "LICENSE", "pyproject.toml", "requirements.txt", ".gitignore")
_FOLDERS = ("labs/", "notebooks/", "reference_engine/")
_LEFT_OUT = re.compile(r"labs/tests/|labs/harness/README\.md|labs/lab\d\d_\w+/(solution|starter|going_further)\.py$"
                       r"|notebooks/tests/|reference_engine/(tests|tools)/")
_WORKFLOW = Path(".github/workflows/practice.yml")


def release(term: str, out: Path, course: Path = COURSE) -> dict:
    """Write the student edition of `term` into the new folder `out`; return what `term.json` says.

    Raises `LabError` for a name that cannot be a tag, a folder that is not empty, or a course
    outside of git.
    """
    if not NAME.fullmatch(term):
        raise LabError(f"--term {term!r}: letters, digits, points, dashes and underscores, at most 40, such as 2027S.")
    if out.exists() and any(out.iterdir()):
        raise LabError(f"{out} is not empty. The student edition is written into a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".release-") as name:
        built = Path(name) / "edition"
        edition = _build(term, course, built)
        if out.exists():
            out.rmdir()
        built.rename(out)
    return edition


def _build(term: str, course: Path, built: Path) -> dict:
    for path in _files(course):
        target = built / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(course / path, target)
        if path.suffix == ".md":
            target.write_text(_for_students(target.read_text(encoding="utf-8")), encoding="utf-8")
    labs = [_add_starter(lab, built) for lab in all_labs(course / "labs")]
    version = tomllib.loads((course / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    edition = {"term": term, "version": version, "commit": _commit(course), "labs": {lab.id: _pin(lab) for lab in labs},
               "engine": digest_of(_contents(built / "reference_engine"))}
    (built / "term.json").write_text(json.dumps(edition, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    readme = (TEMPLATES / "README.md.in").read_text(encoding="utf-8")
    table = "\n".join(["| lab | hours (estimated, not yet measured with learners) |", "| --- | --- |", *(
        f"| [{lab.id} {lab.title}](labs/{lab.folder.name}/README.md) | {lab.hours} |" for lab in labs)])
    (built / "README.md").write_text(
        readme.replace("{term}", term).replace("{version}", version).replace("{labs}", table), encoding="utf-8")
    shutil.copy2(TEMPLATES / "Makefile", built / "Makefile")
    (built / _WORKFLOW).parent.mkdir(parents=True)
    shutil.copy2(TEMPLATES / "practice.yml", built / _WORKFLOW)
    _test_labs_only(built / "pyproject.toml")
    return edition


def _files(course: Path) -> Iterator[Path]:
    """The course's files in git that students get."""
    listed = _git(course, "ls-files", "-z")
    if listed is None:
        raise LabError(f"{course} is no git repository: the list of the course's files comes from git.")
    for name in filter(None, listed.split("\0")):
        if name in _ROOT or (name.startswith(_FOLDERS) and not _LEFT_OUT.match(name)):
            yield Path(name)


def _for_students(text: str) -> str:
    """A README without lines about files that students do not get, and with lines about the files in a solution's place."""
    kept = [line for line in text.splitlines() if MARK not in line and not re.match(r"[├└]── going_further\.py", line)]
    return re.sub(r"^├── solution\.py( +)#.*$", _instead, "\n".join(kept), flags=re.MULTILINE) + "\n"


def _instead(line: re.Match) -> str:
    width = len("├── solution.py" + line[1])
    return "\n".join("├── ".ljust(4) + f"{name.ljust(width - 4)}# {what}" for name, what in (
        ("untouched.py", "the starter as it was: python -m labs reset puts it back"),
        ("ours.sealed", "our functions, which stand in for yours in tests of later TODOs")))


def _add_starter(lab: Lab, built: Path) -> Lab:
    """The starter, made anew; the copy that `labs reset` puts back; and our functions that stand in for a TODO."""
    built_lab = lab_at(built / "labs" / lab.folder.name)
    for path in (built_lab.starter, built_lab.untouched):
        path.write_text(starter_text(lab), encoding="utf-8", newline="\n")
    built_lab.sealed.write_text(seal(lab), encoding="utf-8", newline="\n")
    return built_lab


def _pin(lab: Lab) -> str:
    """A digest of everything that a lab's points depend on."""
    return digest_of((path.name, path.read_bytes()) for path in (lab.tests, lab.untouched, lab.sealed, lab.folder / "lab.toml"))


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _test_labs_only(pyproject: Path) -> None:
    text = pyproject.read_text(encoding="utf-8")
    changed = re.sub(r'^testpaths = .*$', 'testpaths = ["labs"]', text, flags=re.MULTILINE)
    if changed == text:
        raise LabError(f"{pyproject} has no testpaths to change.")
    pyproject.write_text(changed, encoding="utf-8")


def tag(term: str, course: Path = COURSE) -> None:
    """Give the present commit the tag `term/NAME`. Raises `LabError` if it points elsewhere, or files are uncommitted."""
    name = f"term/{term}"
    there = _git(course, "rev-parse", "-q", "--verify", f"refs/tags/{name}^{{commit}}")
    if there is not None and there.strip() != _commit(course):
        raise LabError(f"The tag {name} is there and names another commit. Grades of that term need it; choose another name.")
    if _git(course, "status", "--porcelain", "--untracked-files=no"):
        raise LabError("Some files differ from the last commit. Commit them first: the tag has to name what students get.")
    if there is None and _git(course, "tag", name) is None:
        raise LabError(f"git could not make the tag {name}.")


def _commit(course: Path) -> str:
    return (_git(course, "rev-parse", "HEAD") or "").strip()


def _git(course: Path, *arguments: str) -> str | None:
    """The output of git; None if git fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=course, capture_output=True, text=True, encoding="utf-8")
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
