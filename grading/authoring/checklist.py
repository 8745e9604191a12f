"""What is proved of every lab, in the order in which an author makes it: `python -m grading check-lab NN`.

The project's own tests check the quick steps for every lab. A slow step that has passed is remembered with a digest of
the files that it depends on, and does not run again while they are the same.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from grading.authoring import lab_proofs as proofs
from grading.judge.report import digest_of
from grading.labs import authors_folder
from labs.harness.catalog import Lab, LabError
from labs.harness.learner.predictions import FILE as PREDICTIONS
from nano_qwen3_serving.observe.files import write_atomically

MEMORY = ".checked.json"
"""The file of passed steps in the project's root; git ignores it."""
CODE, AUTHORS, PAGES = "the lab's code", "its author's files", "its pages and the project's tests"
_COURSE = ("reference_engine/nano_qwen3_serving", "labs/harness", "grading/authoring", "grading/judge", "grading/sandbox",
           "grading/labs/__init__.py", "labs/__init__.py", "conftest.py", "pyproject.toml")
"""What every step depends on."""
_PAGES = ("README.md", "labs/README.md", "labs/tests", "notebooks")


@dataclass(frozen=True)
class Step:
    """One thing that is proved of a lab.

    Attributes:
        says: the claim, in a sentence.
        how: how an author makes it true; `NN` stands for the lab's number.
        check: raises `LabError` unless the claim is true.
        reads: for a slow step, those of `CODE`, `AUTHORS` and `PAGES` that it depends on besides the course.
    """

    says: str
    how: str
    check: Callable[[Lab], None]
    reads: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether it takes a while."""
        return bool(self.reads)


CHECKLIST = (
    Step(
        "solution.py has a region for each [[todo]] of lab.toml",
        "write the solution by hand; a region lies between ### BEGIN SOLUTION and ### END SOLUTION, under a comment # "
        "TODO 1: its goal",
        proofs.solution_has_the_todos),
    Step(
        "starter.py is made from it",
        "python -m grading starter NN",
        proofs.starter_is_made_from_the_solution),
    Step(
        "starter and solution have the same public functions",
        "python -m grading starter NN",
        proofs.signatures_stay),
    Step(
        "the tests' points are those of lab.toml",
        "in test_lab.py, mark each test @pytest.mark.todo(1, points=4)",
        proofs.tests_are_worth_what_lab_toml_says),
    Step(
        "the solution passes every test",
        "pytest test_lab.py --impl solution",
        proofs.the_solution_passes, (CODE,)),
    Step(
        "the untouched starter fails every test with that test's TODO",
        "a test calls its own TODO's functions; the TODOs it needs besides are listed under needs in lab.toml",
        proofs.the_starter_fails_every_test, (CODE,)),
    Step(
        "every TODO has mutants",
        "write them into grading/labs/labNN/mutants/todo_1.toml; grading/README.md has their form",
        proofs.mutants_are_there),
    Step(
        "every mutant is caught by a test of its TODO",
        "write a test of that TODO which fails on it; python -m grading mutants NN shows what catches each",
        proofs.mutants_are_caught, (CODE, AUTHORS)),
    Step(
        "a deleted test is noticed",
        "only names the one test that catches a mutant",
        proofs.a_guard_that_is_broken_is_noticed, (CODE, AUTHORS)),
    Step(
        "right solutions that are built differently pass",
        "write one into grading/labs/labNN/alternatives/; a test that rejects it looks at how instead of what",
        proofs.alternatives_pass, (CODE, AUTHORS)),
    Step(
        "the judge says what the tests say",
        "a test exchanges plain values and tensors with the part, see One suite in labs/harness/README.md; python -m "
        "grading agreement NN",
        proofs.the_judge_agrees, (CODE, AUTHORS)),
    Step(
        "symptoms.json is current",
        "areas are in grading/labs/labNN/concepts.toml; then python -m grading symptoms NN",
        proofs.symptoms_are_current),
    Step(
        "hints.md has three hints for each TODO",
        "from a question to nearly the answer",
        proofs.hints_are_whole),
    Step(
        "predict.toml asks five to eight questions",
        "each has a function of its name in predict.py, which asks the engine",
        proofs.questions_have_truths, (CODE,)),
    Step(
        "README.md is whole",
        "Lab 02's headings, and #### TODO 1: with the title of lab.toml",
        proofs.readme_is_whole),
    Step(
        "README.md shows what the solution prints",
        "run solution.py, and copy",
        proofs.the_program_prints_what_the_readme_shows, (CODE, PAGES)),
    Step(
        "a notebook leads to the lab",
        "notebooks/NN_name.ipynb has a link to the lab's README in its first cell",
        proofs.notebook_is_there),
    Step(
        "README.md and labs/README.md list the lab",
        "add a row: | [NN its title](labNN_name/README.md) | hours | what comes before it | what one writes |",
        proofs.tables_list_it),
    Step(
        "nothing is left to fill in",
        f"replace what stands behind each {proofs.UNFINISHED}",
        proofs.nothing_is_left_to_fill_in),
    Step(
        "the project's own tests of it pass",
        "pytest labs/tests grading/labs notebooks/tests -k NN; what a notebook must have is in CONTRIBUTING.md",
        proofs.the_projects_tests_pass, (CODE, AUTHORS, PAGES)),
)


class Passed:
    """Which steps have passed, and on what. A file that cannot be read remembers nothing.

    A step is forgotten before it runs and noted once it has passed, so however it ends, nothing false is remembered.

    Args:
        project: the folder that has the file.
    """

    def __init__(self, project: Path = proofs.PROJECT) -> None:
        self._project, self._path, self._on = project, project / MEMORY, dict[str, str]()
        with suppress(OSError, ValueError):
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            self._on = dict(entries) if isinstance(entries, dict) else {}

    def digest(self, step: Step, lab: Lab) -> str:
        """A digest of everything a step depends on: files, and the versions of Python, torch and transformers."""
        roots = [self._project / name for name in _COURSE]
        roots += [authors_folder(lab, self._project / "grading" / "labs")] if AUTHORS in step.reads else []
        roots += [self._project / name for name in _PAGES] if PAGES in step.reads else []
        files = {path.relative_to(self._project): path for root in roots for path in _inside(root)}
        for path in _inside(lab.folder):
            is_page = path.suffix == ".md" or path.name == "symptoms.json"
            if (PAGES if is_page else CODE) in step.reads and path.name != PREDICTIONS:
                files["labs" / path.relative_to(lab.folder.parent)] = path
        versions = f"{sys.version} {version('torch')} {version('transformers')}".encode()
        return digest_of([("", versions), *((name.as_posix(), path.read_bytes()) for name, path in files.items())])

    def has(self, step: Step, lab: Lab, digest: str) -> bool:
        """Whether the step has passed on files with this digest."""
        return self._on.get(_name(step, lab)) == digest

    def forget(self, step: Step, lab: Lab) -> None:
        """Forgets that the step has passed. Raises `LabError` if the file cannot be updated."""
        if self._on.pop(_name(step, lab), None) is not None:
            try:
                self._write()
            except OSError as error:
                raise LabError(f"{self._path} cannot be written: {error.strerror}; delete it, or make room.") from None

    def note(self, step: Step, lab: Lab, digest: str) -> None:
        """Notes that the step has passed. If that cannot be written, the step runs again next time."""
        self._on[_name(step, lab)] = digest
        with suppress(OSError):
            self._write()

    def _write(self) -> None:
        write_atomically(self._path, json.dumps(self._on, indent=1, sort_keys=True) + "\n", 0o644)


def _name(step: Step, lab: Lab) -> str:
    return f"{lab.id}: {step.says}"


def _inside(path: Path) -> Iterator[Path]:
    """A file, or all files of a folder except those that runs leave behind."""
    if path.is_file():
        yield path
    for inner in path.rglob("*"):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inner.relative_to(path).parts)
        if inner.is_file() and not hidden:
            yield inner


Show = Callable[[Step, str | None, bool], None]
"""Called with a step, with what is missing (None for nothing), and with whether the result is remembered."""


def walk(lab: Lab, show: Show, steps: Sequence[Step] = CHECKLIST, passed: Passed | None = None, anew: bool = False) -> bool:
    """Checks the steps in order and shows each with what is missing, up to the first failure; returns whether all passed.

    Args:
        passed: the memory of slow steps; None to remember nothing.
        anew: whether slow steps run even if they have passed on the same files.
    """
    for step in steps:
        memory = passed if step.runs else None
        on = memory.digest(step, lab) if memory else ""
        if memory and not anew and memory.has(step, lab, on):
            show(step, None, True)
            continue
        if memory:
            memory.forget(step, lab)
        try:
            step.check(lab)
        except (LabError, SyntaxError, ValueError) as error:  # of the lab's files, too
            show(step, str(error), False)
            return False
        if memory and memory.digest(step, lab) == on:  # else they were changed while it ran
            memory.note(step, lab, on)
        show(step, None, False)
    return True
