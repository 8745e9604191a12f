"""One submission's grading: its checks, TODO by TODO, each in a process of its own.

The judge never imports what it grades. If a TODO builds on one that lost points, the judge puts our solution of that one in
its place, so that no mistake costs points twice.
"""

import ast
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from grading.judge import predictions
from grading.judge.checks import Check, Wrong, expect, shorter
from grading.judge.intake import Submission
from grading.judge.report import CheckResult, Report, digest_of
from grading.judge.seeds import PUBLIC_SECRET, rng_for, seed_for
from grading.judge.suite import checks_of
from grading.labs import judging_files
from grading.sandbox.isolation import LEVELS, Limits, strongest_level
from grading.sandbox.runtime import PACKAGE, make_runtime
from grading.sandbox.supervisor import Child, Sandbox, SetupError, Stopped
from grading.sandbox.worker.peer import Raised
from grading.sandbox.worker.wire import Garbled
from labs.harness import loading, regions, source
from labs.harness.catalog import Lab, LabError

PRINTED = 2_000
"""How many characters of a check's printed output the report keeps."""
MESSAGE = 2_000
"""How many characters of a check's message the report keeps."""
OUT_OF_TIME = "not tried in time"
"""How the message begins for a check that would have started too late."""
NOTHING_SAID = "an exception without a name or a message"
TOOLS = ("hold", "look", "log", "replaced")
"""The functions of the bench that checks measure with."""


@dataclass(frozen=True)
class Settings:
    """How a lab is graded.

    Attributes:
        secret: of the term, see `grading.judge.seeds`.
        seed_mode: `student` or `cohort`.
        seed: this seed, whatever secret and student say: to reproduce a report.
        level: of isolation; by default the strongest there is.
        limits: of one check.
        predictions: whether they count.
        seconds: how long all checks of a submission may take together; after that no check starts. None for no such limit.
    """

    secret: str = PUBLIC_SECRET
    seed_mode: str = "student"
    seed: str | None = None
    level: str = field(default_factory=strongest_level)
    limits: Limits = field(default_factory=Limits)
    predictions: bool = True
    seconds: float | None = None


class Grader:
    """Grades submissions of one lab. Made by `grader_of`."""

    def __init__(self, lab: Lab, settings: Settings, runtime: Path, libraries: Sequence[str]) -> None:
        self.lab, self.settings = lab, settings
        self.checks = checks_of(lab)
        self.versions = versions(lab)
        self._runtime, self._libraries = runtime, libraries
        self._solution = lab.solution.read_text(encoding="utf-8")

    def sandbox(self) -> Sandbox:
        """A worker's supervisor; submissions that trust each other may share one."""
        return Sandbox(self.settings.level, self._runtime, self._libraries, self.settings.limits)

    def grade(
        self, submission: Submission, done: Callable[[Check], None] = lambda check: None, shared: Sandbox | None = None
    ) -> Report:
        """The report; `done` is called after every check. Nothing that a submission does raises here.

        Args:
            shared: a sandbox to use; by default one of its own.
        """
        settings, notes, student = self.settings, list(submission.notes), encodable(submission.student)
        seed = settings.seed or seed_for(settings.secret, self.lab.id, student, submission.digest, settings.seed_mode)
        results: list[CheckResult] = []
        text, problem = self._usable(submission)
        if problem:
            notes += [problem] if problem not in notes else []
            results = [_result(check, problem) for check in self.checks]
        else:
            until = None if settings.seconds is None else time.monotonic() + settings.seconds
            with nullcontext(shared) if shared else self.sandbox() as sandbox:
                for todo in sorted({check.todo for check in self.checks}):
                    results += self._grade_todo(todo, text, results, seed, sandbox, done, until)
        if settings.predictions:
            results = [*predictions.judge(self.lab, submission.files.get("predictions.json")), *results]
        sayable_notes = tuple(map(encodable, notes))
        return Report(student, self.lab.id, submission.digest, settings.level, seed, self.versions, tuple(results), sayable_notes)

    def _usable(self, submission: Submission) -> tuple[str, str]:
        """The text to run, and the reason why it cannot run, empty if it can."""
        try:
            text = submission.text()
            if text is None:
                return "", "there is no starter.py to grade"
            loading.refuse_imports(self.lab, source.parsed(text, "starter.py"), "starter.py")
        except LabError as error:
            return "", str(error)
        return text, ""

    def _grade_todo(
        self, todo: int, text: str, before: Sequence[CheckResult], seed: str, sandbox: Sandbox, done: Callable[[Check], None],
        until: float | None = None,
    ) -> Iterator[CheckResult]:
        lost = {result.todo for result in before if not result.passed}
        ours = tuple(needed for needed in self.lab.todo(todo).needs if needed in lost)
        graded, broken, functions = text, "", {}
        if ours:
            only = self.lab.todo(todo).stand_ins or None
            functions = our_functions(self._solution, ours, only)
            try:
                graded = with_ours(text, self._solution, ours, only)
            except LabError as error:
                broken = str(error)
        for check in [check for check in self.checks if check.todo == todo]:
            if until is not None and time.monotonic() > until:
                broken = f"{OUT_OF_TIME}: the {self.settings.seconds:g} s that a submission has were over"
            result, ended = ((_result(check, broken), False) if broken else
                             self._run(check, graded, ours, seed, sandbox, functions))
            if ended and not broken:
                broken = f"not tried any more: {result.message}"
            done(check)
            yield result

    def _run(
        self, check: Check, text: str, ours: tuple[int, ...], seed: str, sandbox: Sandbox, functions: dict[str, str] | None = None
    ) -> tuple[CheckResult, bool]:
        """One check's result, and whether it ended in a way that makes the TODO's other checks a waste of time."""
        message, ended, unwritten, printed = None, False, False, b""
        try:
            runs = []
            for which in range(2 if check.repeats else 1):
                if which:  # forks of one process share Python's random choices at its start, such as the hashes of texts
                    sandbox.begin_anew()
                with sandbox.child() as child:
                    _lay(child, text)
                    try:
                        child.peer.tools = {name: getattr(child.bench, name) for name in TOOLS}
                        more = (which,) if check.repeats else ()
                        runs.append(check.run(child.bench.load(text, functions or {}), rng_for(seed, check.name), *more))
                    finally:
                        child.last_words()
                        printed += child.printed
            expect(all(run == runs[0] for run in runs), check.repeats)
        except Wrong as wrong:
            message = str(wrong)
        except Stopped as stopped:
            message, ended = str(stopped), stopped.costly
        except Garbled as garbled:
            message = f"what it answered cannot be used: {garbled}"
        except Raised as error:
            unwritten = "TodoError" in error.kinds
            where = f" (line {error.line} of starter.py)" if error.line and not ours else ""
            message = error.text.strip().partition("\n")[0] if unwritten else f"{error}{where}"
        except SetupError:
            raise
        except OSError as error:  # the judge's own: a submission's arrive as `Raised`
            raise SetupError(f"{check.name} could not be run on this machine: {error}") from error
        except Exception as error:  # an answer of a kind that the check did not expect
            message = f"its answer could not be judged: {type(error).__name__}: {shorter(str(error))}"
        if message is not None:
            sandbox.look_for_room()
        output = printed.decode("utf-8", errors="replace")[:PRINTED] if message is not None and not ours else ""
        return _result(check, message, ours, unwritten, output), ended


def _lay(child: Child, text: str) -> None:
    """Writes the submission into its folder. A full disk, say, is not the student's mistake: `SetupError`, and no grade."""
    try:
        child.bench.write(text)
    except Raised as error:
        raise SetupError(f"the submission could not be laid into the folder where it runs: {error}") from None


def our_functions(solution: str, todos: Sequence[int], only: Sequence[str] | None = None) -> dict[str, str]:
    """Name → text of our functions for `todos`, or only of those in `only`."""
    made = regions.definitions(ast.parse(solution))
    return {name: ast.unparse(made[name]) for todo, names in regions.functions_of(solution).items() if todo in todos
            for name in names if only is None or name in only}


def with_ours(text: str, solution: str, todos: Sequence[int], only: Sequence[str] | None = None) -> str:
    """A submission with our functions for `todos`, or only those in `only`.

    Raises `LabError` if they cannot be put into it.
    """
    try:
        return regions.with_our_functions(text, solution, todos, only)
    except (ValueError, RecursionError, MemoryError):  # Python's own unparse does not write every tree
        names = list(our_functions(solution, todos, only))
    try:
        return regions.put_back(text, solution, names)
    except Exception as error:
        raise LabError(
            f"our code for {', '.join(names)}, which lost points, could not be put in its place: {shorter(str(error))}") from None


def encodable(text: str, most: int = MESSAGE) -> str:
    """Text that can be written as UTF-8, of at most `most` characters."""
    writable = text[:most].encode("utf-8", errors="replace").decode("utf-8")
    return writable if len(text) <= most else writable[:-1] + "…"


def _result(
    check: Check, message: str | None, ours: tuple[int, ...] = (), unwritten: bool = False, printed: str = ""
) -> CheckResult:
    """The result; a message of None means passed. An empty message is a failure: its words may be the submission's."""
    earned, words = (check.points, "") if message is None else (0, encodable(message).strip() or NOTHING_SAID)
    return CheckResult(
        check.todo, check.name, check.points, earned, check.hidden, words, check.section, check.concept, ours, unwritten, printed)


@contextmanager
def grader_of(lab: Lab, settings: Settings) -> Iterator[Grader]:
    """A grader, and the folder from which its workers run, which goes away at the end."""
    if settings.level not in LEVELS:
        raise ValueError(f"there is no isolation level {settings.level!r}; there are {', '.join(LEVELS)}")
    with tempfile.TemporaryDirectory(prefix="runtime-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Grader(lab, settings, Path(name), make_runtime(lab, Path(name)))


def versions(lab: Lab) -> dict[str, str]:
    """The versions that a score depends on, besides seed and submission."""
    return {"checks": digest_of(_what_judges(lab))[:12], "python": platform.python_version(), "torch": torch.__version__}


def _what_judges(lab: Lab) -> Iterator[tuple[str, bytes]]:
    """The judge, the lab's checks and what they use of the lab and of all labs, and the engine."""
    here = Path(__file__).parents[1]
    files = [here / f"{name}.py" for name in ("judge/predictions", "judge/checks", "judge/grader", "sandbox/runtime")]
    files += sorted([*(here / "sandbox/worker").glob("*.py"), here / "judge/suite.py"])
    harness = Path(loading.__file__).parent
    files += [harness / "suite" / f"{name}.py" for name in ("beside", "expecting", "first_fault", "operators")]
    files += sorted((harness / "scripted_engine").glob("*.py"))
    files += [*judging_files(lab), *sorted(path for path in lab.folder.glob("*.py") if path != lab.starter)]
    files += [path for path in (lab.folder / "lab.toml", lab.folder / "predict.toml") if path.is_file()]
    engine = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".cpp", ".h")]
    for path in [*files, *sorted(engine)]:
        yield path.relative_to(here if path.is_relative_to(here) else path.parents[1]).as_posix(), path.read_bytes()
