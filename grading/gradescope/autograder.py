"""The autograder for Gradescope: a zip with the judge, one lab, the engine, and the two scripts that Gradescope starts.

    setup.sh  run_autograder     at the root, as Gradescope wants them
    requirements.txt             the packages, in the versions that are installed here
    settings.json  term_secret   the options, and the secret from which the inputs of the checks are drawn
    course/                      grading, labs, nano_qwen3_serving: what judge and worker import

The same sources and choices make the same bytes.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import nano_qwen3_serving
from grading.export.gradescope import HIDDEN
from grading.labs import judging_files
from labs.harness.catalog import Lab

HERE = Path(__file__).parents[1]
LABS = HERE.parent / "labs"
ENGINE = Path(nano_qwen3_serving.__file__).parent
ROOMS = ("authoring", "cli", "cohort", "edition", "export", "gradescope", "judge", "red_team", "sandbox")
SCRIPTS = ("setup.sh", "run_autograder")
WITHOUT = {"__pycache__", "tests", "predictions.json"}
"""Folders and files to leave out, besides those whose names begin with a dot."""
STUDENTS_HAVE = ("reference_engine/requirements.txt", "notebooks/requirements.txt")
"""What `requirements.txt` installs."""
IDENTITIES = ("email", "id", "name")


@dataclass(frozen=True)
class Choices:
    """The contents of `settings.json`.

    Attributes:
        lab: its id.
        hidden: see `grading.export.gradescope`.
        seed_mode: `student` or `cohort`.
        identity: which field of a Gradescope user names a student here.
        isolation: a level; None takes the strongest that the container has.
        seconds: of one check, by the wall clock; half a core needs twice the time of a whole one.
        memory_mib: of a worker; Python and torch take 200 of it. The judge takes up to 250, and a container has 768.
    """

    lab: str
    hidden: str = "after_published"
    seed_mode: str = "student"
    identity: str = "email"
    isolation: str | None = None
    seconds: float = 60.0
    memory_mib: int = 450
    predictions: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("hidden", HIDDEN), ("seed_mode", ("student", "cohort")), ("identity", IDENTITIES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {' or '.join(allowed)}, not {getattr(self, name)!r}")


def build(lab: Lab, choices: Choices, secret: str, index: str | None = None) -> bytes:
    """The zip.

    Args:
        secret: of the term.
        index: the address of a package index besides the usual one, such as the one with torch's builds for CPUs.
    """
    files = {f"course/{name}": path.read_bytes() for name, path in course_files(lab)}
    files |= {name: (HERE / "gradescope" / name).read_bytes() for name in SCRIPTS}
    files["requirements.txt"] = requirements(index).encode()
    files["settings.json"] = (json.dumps(asdict(choices), indent=1, sort_keys=True) + "\n").encode()
    files["term_secret"] = (secret + "\n").encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(_member(name), content)
    return out.getvalue()


def _member(name: str) -> zipfile.ZipInfo:
    """A file of the zip, with a fixed date; scripts are executable."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (0o100755 if name in SCRIPTS else 0o100600 if name == "term_secret" else 0o100644) << 16
    return info


def course_files(lab: Lab) -> Iterator[tuple[str, Path]]:
    """Path in `course/`, and the file: no other lab, no mutants, no alternatives, no tests of the engine."""
    for path in sorted([*HERE.glob("*.py"), *(path for room in ROOMS for path in HERE.joinpath(room).glob("*.py"))]):
        yield path.relative_to(HERE.parent).as_posix(), path
    for path in (HERE / "labs/__init__.py", *judging_files(lab)):
        yield path.relative_to(HERE.parent).as_posix(), path
    yield from _below(HERE / "sandbox/worker", "grading/sandbox")
    for page in sorted([*HERE.glob("export/*.html"), *HERE.glob("export/*.css")]):
        yield f"grading/export/{page.name}", page
    yield "labs/__init__.py", LABS / "__init__.py"
    yield from _below(LABS / "harness", "labs")
    yield from _below(lab.folder, "labs")
    yield from _below(ENGINE, "")


def _below(folder: Path, where: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder.parent)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not hidden and not WITHOUT & set(inside.parts) and path.suffix != ".pyc":
            yield (Path(where) / inside).as_posix(), path


def requirements(index: str | None = None) -> str:
    """All packages that students have, in the versions installed here: imports have to work there, and scores depend on them."""
    lines = [line for file in STUDENTS_HAVE for line in (HERE.parent / file).read_text(encoding="utf-8").splitlines()]
    names = {match[0] for line in lines if (match := re.match(r"[\w.-]+", line)) and "==" in line}
    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in sorted(names)]
    return "\n".join([*([f"--extra-index-url {index}"] if index else []), *pinned]) + "\n"
