"""The pytest plugin of the labs: options, the `lab` fixture, points, and the end of a run's report.

It acts on tests that lie in a lab's folder and is silent about all others, except for the one line
that closes a run without any.
"""

import gc
import json
import logging
import random
import sys
from collections import defaultdict
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from labs.harness import loading, originals, regions
from labs.harness.catalog import Lab, LabError, lab_at
from labs.harness.learner import diagnosis, results
from labs.harness.learner.progress import Progress
from labs.harness.learner.results import MESSAGE_LENGTH, Outcome, Tests
from labs.harness.suite import patience
from labs.harness.suite.expecting import Here
from labs.harness.suite.failures import failure_of
from labs.harness.suite.table import print_table
from labs.harness.suite.telling import PRINTED, Failure, report_lines
from labs.harness.todo import TodoError

WARNINGS = 3
"""Of Python, that are shown beside failures."""
NO_POINTS = "no points with -n, for a TODO is tested after those it builds on, in one process. Points: pytest test_lab.py"
NOT_YOUR_WORK = "This tests the project, not your work. Yours: python -m labs status."


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("labs")
    group.addoption(
        "--impl",
        default="starter",
        metavar="starter|solution|reference|PATH",
        help="what a lab's tests run on (default: your starter)",
    )
    group.addoption("--plain", action="store_true", help="the lab's table without colours and box drawing")
    group.addoption(
        "--limit", type=float, default=60, metavar="SECONDS",
        help="a test that computes, or idles, for longer fails with the line it was in (default: 60; 0: no limit)")
    group.addoption("--seed", default="practice", help="what tests draw their inputs from; any text")
    group.addoption("--lab-json", metavar="FILE", help="write the outcome of every test of a TODO to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "todo(number, points): a test of one TODO of a lab, and what it is worth")
    config.addinivalue_line("markers", "practice: a test that looks into the learner's process; the judge does not run it")
    config.addinivalue_line("markers", "optional: a test of a lab's Going Further section; worth no points")
    config.pluginmanager.register(LabRun(config), "lab-run")


ENGINE = "nano_qwen3_serving.execution.executor"


class _Kept(logging.Handler):
    """Warnings of steps that failed and are computed again: the records that have a `failure`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        if hasattr(record, "failure"):
            self.records.append(record)


class LabRun:
    """One pytest run: which labs were collected, which files were loaded, how each test ended."""

    def __init__(self, config: pytest.Config):
        self.impl = config.getoption("--impl")
        self.plain = config.getoption("--plain")
        self.report_file = config.getoption("--lab-json")
        self.base = config.invocation_params.dir
        self.labs: dict[Path, Lab] = {}
        self.seconds = 0 if config.getoption("usepdb", False) else config.getoption("--limit")
        self.whole_tracebacks = config.getoption("tbstyle", "auto") not in ("auto", "short")
        self.tests: dict[Path, Tests] = {}
        """Lab folder -> all of its tests, selected or not."""
        self.hung: dict[tuple[Path, int], str] = {}
        """(lab folder, TODO) -> the line in which one of its tests waited for ever; the other tests are not tried."""
        self.elsewhere: set[str] = set()
        """Labs whose tests ran in other processes, with pytest -n."""
        self.outcomes: dict[Path, dict[str, Outcome]] = defaultdict(dict)
        """Lab folder -> test id -> how it ended."""
        self.left_out: dict[Path, dict[int, list[str]]] = {}
        """Lab folder -> TODO -> functions that the reference does not have; its tests are deselected."""
        self.modules: dict[tuple[Path, str, tuple[int, ...], tuple[str, ...] | None], ModuleType | LabError] = {}
        self.written: dict[tuple[Path, Path], _Written] = {}
        """(lab folder, learner's file) -> the content of the file; read once."""
        self.ran_other_tests = False

    # collecting

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self.impl == "reference":
            self.leave_out(config, items)
        for item in items:
            lab = self.lab_of(item)
            if lab is None:
                self.ran_other_tests = True
            elif marker := item.get_closest_marker("todo"):
                number, points = _todo_of(marker)
                if not item.name.startswith(f"test_todo_{number}_"):
                    raise pytest.UsageError(f"{item.nodeid} tests TODO {number}, so its name begins test_todo_{number}_.")
                if not points > 0:
                    raise pytest.UsageError(f"{item.nodeid}: its marker gives no points.")
                if lab.folder not in self.tests:
                    self.tests[lab.folder] = _all_tests(item)

    def leave_out(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselects tests of TODOs for which the engine has no part under the lab's names."""
        marked = [(item, marker) for item in items if (marker := item.get_closest_marker("todo"))]
        left_out = [item for item, marker in marked if _todo_of(marker)[0] in self.lacking(item)]
        if left_out:
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)

    def lacking(self, item: pytest.Item) -> dict[int, list[str]]:
        """TODO → the functions that the reference does not have, of the lab in whose folder `item` lies."""
        lab = self.lab_of(item)
        if lab is None:
            return {}
        if lab.folder not in self.left_out:
            try:
                self.left_out[lab.folder] = loading.lacking(lab, loading.load(lab, loading.choose(lab, self.impl)))
            except LabError:
                self.left_out[lab.folder] = {}  # each test will report it
        return self.left_out[lab.folder]

    def lab_of(self, item: pytest.Item) -> Lab | None:
        """The lab in whose folder a test lies."""
        folder = item.path.parent
        if not (folder / "lab.toml").is_file():
            return None
        if folder not in self.labs:
            self.labs[folder] = lab_at(folder)
        return self.labs[folder]

    # running

    def module_for(self, item: pytest.Item) -> ModuleType:
        """The implementation under test, with our code for each earlier TODO that it needs and that is not right yet."""
        __tracebackhide__ = True
        lab = self.lab_of(item)
        if lab is None:
            pytest.fail("the fixture `lab` is for tests in a lab's folder", pytrace=False)
        if where := self.hung.get((lab.folder, _number_of(item))):
            raise LabError(where)
        chosen = loading.choose(lab, self.impl, self.base)
        ours = self.stand_ins(lab, chosen, item)
        item.stash[_ON_OURS] = ours
        only = lab.todo(_number_of(item)).stand_ins or None if ours else None
        key = (lab.folder, str(chosen), ours, only)
        if key not in self.modules:
            self.modules[key] = self.load(lab, chosen, ours, only)
        found = self.modules[key]
        if isinstance(found, LabError):
            raise found.with_traceback(None)
        return found

    def load(
        self, lab: Lab, chosen: Path | str, ours: tuple[int, ...], only: tuple[str, ...] | None
    ) -> ModuleType | LabError:
        """The module, or the reason why there is none: a file that cannot be loaded runs once, not once for each test."""
        try:
            return loading.load(lab, chosen, ours, only)
        except LabError as error:
            return error

    def stand_ins(self, lab: Lab, chosen: Path | str, item: pytest.Item) -> tuple[int, ...]:
        """The TODOs that `item` needs and that are unwritten, or failed earlier in this run."""
        marker = item.get_closest_marker("todo")
        if marker is None or isinstance(chosen, str) or chosen in (lab.solution, lab.reference_file):
            return ()
        key = (lab.folder, chosen)
        if key not in self.written:
            self.written[key] = _read(lab, chosen)
        written = self.written[key]
        if gone := written.gone.get(_todo_of(marker)[0]):
            raise LabError(
                f"{chosen.name} has no function {gone[0]} any more, and the tests call it. "
                f"To start it afresh: python -m labs reset {lab.id}"
            )
        if not (lab.solution.is_file() or lab.sealed.is_file()):  # our code is not available
            return ()
        failed = {outcome.todo for outcome in self.outcomes[lab.folder].values() if not outcome.passed}
        return tuple(todo for todo in lab.todo(_todo_of(marker)[0]).needs if todo in written.unwritten | failed)

    def limit_of(self, item: pytest.Item) -> AbstractContextManager:
        """Ends a test of a lab that waits for ever."""
        lab = self.lab_of(item)
        if lab is None or patience.debugged():
            return nullcontext()
        return patience.Limit(self.seconds, self.file_of(lab), lambda words: _stop_all(item, words))

    def file_of(self, lab: Lab) -> Path | None:
        """The file under test; None if it is a module of the engine, or cannot be chosen."""
        try:
            chosen = loading.choose(lab, self.impl, self.base)
        except LabError:
            return None
        return chosen if isinstance(chosen, Path) else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        """Limits the set-up, too: it loads the learner's file, which may never end."""
        __tracebackhide__ = True
        with self.limit_of(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """A part that fails in a step of many requests fails its test, though the engine recovers."""
        __tracebackhide__ = True
        log, kept = logging.getLogger(ENGINE), _Kept()
        log.addHandler(kept)
        try:
            with self.limit_of(item):
                yield
        finally:
            log.removeHandler(kept)
        if kept.records and self.lab_of(item) is not None:
            first = kept.records[0]
            raise AssertionError(f"in the engine {first.getMessage()}") from vars(first)["failure"]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        lab, marker = self.lab_of(item), item.get_closest_marker("todo")
        if lab is None:
            return (yield)
        error = call.excinfo.value if call.excinfo else None
        brief = self.failure(lab, item, error) if error is not None and self.has_own_report(error) else None
        if brief is not None:  # formatting a traceback that is never shown takes longer than the test
            item.repr_failure = lambda *_, **__: "\n".join(brief.lines)  # type: ignore[method-assign]
        if isinstance(error, patience.WaitsForEver):
            self.hung[lab.folder, _number_of(item)] = str(error)
        report = yield
        facts: dict[str, object] = {"lab": lab.id}  # plain data: pytest -n sends it to another process
        if brief is not None and report.failed:
            report.longrepr = "\n".join(brief.lines)
            printed = (report.capstdout + report.capstderr).splitlines()
            facts["lab_failure"] = vars(brief) | {"printed": tuple(printed[-PRINTED - 1 :])}
        vars(report).update(facts)
        if marker is not None and (report.when == "call" or report.failed):
            number, points = _todo_of(marker)
            self.outcomes[lab.folder][item.nodeid] = Outcome(
                test=getattr(item, "originalname", None) or item.name,
                todo=number,
                points=points,
                passed=report.passed,
                error=type(error).__name__ if error else "",
                message=_first_line(error) if error else "",
                unwritten=error.number if isinstance(error, TodoError) else None,
                on_ours=item.stash.get(_ON_OURS, ()),
            )
        return report

    def has_own_report(self, error: BaseException) -> bool:
        """Whether we report the error instead of pytest."""
        return isinstance(error, TodoError) or not (self.whole_tracebacks or isinstance(error, pytest.skip.Exception))

    def failure(self, lab: Lab, item: pytest.Item, error: BaseException) -> Failure:
        """The report on a failed test."""
        test = getattr(item, "originalname", None) or item.name
        return failure_of(error, _number_of(item), test, item.name.removeprefix(test), self.file_of(lab), item.path)

    # closing

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """With pytest -n, reports are the only data that come from the processes that run tests."""
        if hasattr(report, "lab") and not self.labs:
            self.elsewhere.add(report.lab)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
        """Reports failures of labs' tests once for each kind, in place of pytest's report."""
        stats = terminalreporter.stats
        before: dict[str, list] = {name: stats[name] for name in ("failed", "error", "warnings") if name in stats}
        reports = [report for name in ("failed", "error") for report in before.get(name, ()) if hasattr(report, "lab_failure")]
        for name in before:
            stats[name] = [report for report in before[name] if not hasattr(report, "lab_failure")]
        if reports and "warnings" in stats:
            stats["warnings"] = list({warning.message: warning for warning in stats["warnings"]}.values())[:WARNINGS]
        failures = sorted((Failure(**report.lab_failure) for report in reports), key=lambda failure: failure.todo)
        for line in report_lines(failures):
            terminalreporter.write_line(line)
        try:
            return (yield)
        finally:
            stats.update(before)

    def pytest_unconfigure(self) -> None:
        """If only a lab's tests ran, skips the last garbage collection.

        Among all objects of torch and transformers it takes 0.7 s. Leaks that only it would find are missed.
        """
        if self.labs and not self.ran_other_tests:
            gc.freeze()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        if hasattr(session.config, "workeroutput"):  # pytest-xdist: another process closes the run
            session.config.workeroutput["ran_other_tests"] = self.ran_other_tests
            return (yield)
        result = yield
        if session.config.option.collectonly:
            return result
        for folder, outcomes in self.outcomes.items():
            self.close_lab(self.labs[folder], list(outcomes.values()))
        for folder, lacking in self.left_out.items():
            for todo, names in lacking.items():
                print(f"Lab {self.labs[folder].id}, TODO {todo} is left out: the reference has no {', '.join(names)}.")
        if self.report_file:
            self.write_report()
        if self.elsewhere:
            print(f"\nLab {', '.join(sorted(self.elsewhere))}: {NO_POINTS}")
        elif self.ran_other_tests and not self.labs:
            print(f"\n{NOT_YOUR_WORK}")
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.ran_other_tests |= getattr(node, "workeroutput", {}).get("ran_other_tests", False)

    def close_lab(self, lab: Lab, outcomes: list[Outcome]) -> None:
        """Prints a lab's table, and saves the results if the starter was tested."""
        tests = self.tests[lab.folder]
        rows = results.summarise(lab, outcomes, tests)
        partial = {row.todo for row in rows if row.kind == results.IN_PART}
        progress = Progress(lab.folder.parent)
        if self.impl == "starter":
            for row in rows:
                if row.todo not in partial:
                    progress.record_todo(lab.id, row.todo, points=row.points, of=row.of, state=row.state)
            progress.save()
        whole = not partial and {row.todo for row in rows} == set(tests) - set(self.left_out.get(lab.folder, ()))
        print_table(lab, rows, whole, progress, self.impl, self.plain)
        if self.impl == "starter":
            for line in loading.runs_when_loaded(lab.starter):
                print(line)
            complete = [outcome for outcome in outcomes if outcome.todo not in partial]
            for todo in diagnosis.available(lab, complete):
                print(f"A diagnosis is available: python -m labs diagnose {lab.id} --todo {todo}")

    def write_report(self) -> None:
        """The outcome of every test, for other programs."""
        report = {
            lab.id: [vars(outcome) for outcome in self.outcomes[folder].values()] for folder, lab in self.labs.items()
        }
        Path(self.report_file).write_text(json.dumps(report, indent=1), encoding="utf-8")


_ON_OURS = pytest.StashKey[tuple[int, ...]]()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """The random numbers for a test's inputs: the same in each run, unless `--seed` changes them."""
    test = getattr(request.node, "originalname", None) or request.node.name
    return random.Random(f"{request.config.getoption('--seed')}/{test}")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Generator[Here, None, None]:
    """Where the part lives: in a lab's own run, here."""
    here = Here(monkeypatch)
    yield here
    here.close()


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> ModuleType:
    """The module under test: your `starter.py`, or what `--impl` names."""
    return request.config.pluginmanager.getplugin("lab-run").module_for(request.node)


def _all_tests(item: pytest.Item) -> Tests:
    """TODO -> test -> points and number of cases, of the file in which `item` stands; also of what a node id or -k leaves out."""
    found: Tests = {}
    module = item.getparent(pytest.Module)
    for one in module.collect() if module is not None else ():
        if isinstance(one, pytest.Item) and (marker := one.get_closest_marker("todo")):
            number, points = _todo_of(marker)
            tests = found.setdefault(number, {})
            name = getattr(one, "originalname", None) or one.name
            tests[name] = (points, tests.get(name, (points, 0))[1] + 1)
    return found


def _number_of(item: pytest.Item) -> int:
    """The TODO that a test belongs to; 0 if it belongs to none."""
    marker = item.get_closest_marker("todo")
    return _todo_of(marker)[0] if marker else 0


def _stop_all(item: pytest.Item, words: str) -> None:
    """Prints why the run ends here."""
    if capture := item.config.pluginmanager.getplugin("capturemanager"):
        capture.suspend(in_=True)
    print(f"\n{item.nodeid}: {words}\nIt could not be ended, so the whole run is.", file=sys.stderr, flush=True)


def _todo_of(marker: pytest.Mark) -> tuple[int, float]:
    number, points = (*marker.args, None)[0], marker.kwargs.get("points", 0)
    if not isinstance(number, int) or not isinstance(points, int | float):
        raise pytest.UsageError(f"write @pytest.mark.todo(3, points=4), not {marker}")
    return number, points


@dataclass(frozen=True)
class _Written:
    """The state of a learner's file.

    Attributes:
        unwritten: the TODOs of which nothing is written.
        gone: TODO -> its functions that the starter had and the file lacks.
    """

    unwritten: set[int]
    gone: dict[int, list[str]]


def _read(lab: Lab, file: Path) -> _Written:
    """The state of a learner's file. Raises `LabError` if it is not Python or has a refused import."""
    tree = loading.parse(file)
    loading.refuse_imports(lab, tree, file.name)
    present = regions.definitions(tree)
    gone = {
        todo: [name for name in names if name not in present and "." not in name]
        for todo, names in originals.functions(lab).items()
    }
    return _Written(regions.unwritten_todos(tree), gone)


def _first_line(error: BaseException) -> str:
    """The first line of a message; of a long one, whole words and an ellipsis."""
    line = (str(error).splitlines() or [""])[0]
    return line if len(line) <= MESSAGE_LENGTH else line[:MESSAGE_LENGTH].rpartition(" ")[0] + " …"
