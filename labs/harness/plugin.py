"""The pytest plugin of the labs: options, the `lab` fixture, points, and what a run closes with.

It acts on tests that lie in a lab's folder and is silent about all others, except for the one line
that closes a run without any.
"""

import gc
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from labs.harness import diagnosis, given, loading, regions, results
from labs.harness.catalog import Lab, LabError, lab_at
from labs.harness.progress import Progress
from labs.harness.results import MESSAGE_LENGTH, Outcome
from labs.harness.table import print_table
from labs.harness.todo import TodoError

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
    group.addoption("--lab-json", metavar="FILE", help="write the outcome of every test of a TODO to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "todo(number, points): a test of one TODO of a lab, and what it is worth")
    config.addinivalue_line("markers", "optional: a test of a lab's Going Further section; worth no points")
    config.pluginmanager.register(LabRun(config), "lab-run")


ENGINE = "nano_qwen3_serving.engine.llm_engine"


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
        self.tests: dict[Path, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        """Lab folder -> TODO -> how many tests it has, whether selected by -k or not."""
        self.outcomes: dict[Path, dict[str, Outcome]] = defaultdict(dict)
        """Lab folder -> test id -> how it ended."""
        self.left_out: dict[Path, dict[int, list[str]]] = {}
        """Lab folder -> TODO -> functions that the reference does not have; its tests are deselected."""
        self.modules: dict[tuple[Path, str, tuple[int, ...]], ModuleType] = {}
        self.written: dict[tuple[Path, Path], _Written] = {}
        """(lab folder, learner's file) -> what it has; read once."""
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
                self.tests[lab.folder][number] += 1

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
                self.left_out[lab.folder] = {}  # each test will say so
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
        """The implementation under test, with our code where an earlier TODO it needs is not right yet."""
        __tracebackhide__ = True
        lab = self.lab_of(item)
        if lab is None:
            pytest.fail("the fixture `lab` is for tests in a lab's folder", pytrace=False)
        try:
            chosen = loading.choose(lab, self.impl, self.base)
            ours = self.stand_ins(lab, chosen, item)
            item.stash[_ON_OURS] = ours
            key = (lab.folder, str(chosen), ours)
            if key not in self.modules:
                self.modules[key] = loading.load(lab, chosen, ours)
            return self.modules[key]
        except LabError as error:
            mistake = str(error)
        pytest.fail(mistake, pytrace=False)

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
        if not (lab.solution.is_file() or lab.sealed.is_file()):  # nothing can stand in
            return ()
        failed = {outcome.todo for outcome in self.outcomes[lab.folder].values() if not outcome.passed}
        return tuple(todo for todo in lab.needs.get(_todo_of(marker)[0], ()) if todo in written.unwritten | failed)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """A part that fails in a step of many requests fails its test, though the engine helps itself."""
        __tracebackhide__ = True
        log, kept = logging.getLogger(ENGINE), _Kept()
        log.addHandler(kept)
        try:
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
        if isinstance(error, TodoError):  # to format a traceback that nobody will see takes longer than the test
            item.repr_failure = lambda excinfo, **_: str(excinfo.value)  # type: ignore[method-assign]
        report = yield
        if isinstance(error, TodoError):
            report.longrepr = str(error)
        if marker is not None and (report.when == "call" or report.failed):
            number, points = _todo_of(marker)
            self.outcomes[lab.folder][item.nodeid] = Outcome(
                test=getattr(item, "originalname", None) or item.name,
                todo=number,
                points=points,
                passed=report.passed,
                error=type(error).__name__ if error else "",
                message=(str(error).splitlines() or [""])[0][:MESSAGE_LENGTH] if error else "",
                unwritten=error.number if isinstance(error, TodoError) else None,
                on_ours=item.stash.get(_ON_OURS, ()),
            )
        return report

    # closing

    def pytest_unconfigure(self) -> None:
        """Where only a lab's tests ran, garbage is not looked for any more.

        In all that torch and transformers made that takes 0.7 s. What only that last search would find, is not found.
        """
        if self.labs and not self.ran_other_tests:
            gc.freeze()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        if hasattr(session.config, "workeroutput"):  # pytest-xdist: another process closes the run
            session.config.workeroutput["ran_other_tests"] = self.ran_other_tests
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
        if self.ran_other_tests and not self.labs:
            print(f"\n{NOT_YOUR_WORK}")
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.ran_other_tests |= getattr(node, "workeroutput", {}).get("ran_other_tests", False)

    def close_lab(self, lab: Lab, outcomes: list[Outcome]) -> None:
        """Prints a lab's table; what a run of the starter learnt is kept."""
        rows = results.summarise(lab, outcomes)
        run = Counter(outcome.todo for outcome in outcomes)
        progress = Progress(lab.folder.parent)
        if self.impl == "starter":
            for row in rows:
                if run[row.todo] == self.tests[lab.folder][row.todo]:
                    progress.record_todo(lab.id, row.todo, points=row.points, of=row.of, state=row.state)
            progress.save()
        whole = run == self.tests[lab.folder]
        print_table(lab, rows, whole, progress, self.impl, self.plain)
        if self.impl == "starter":
            complete = [outcome for outcome in outcomes if run[outcome.todo] == self.tests[lab.folder][outcome.todo]]
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
def lab(request: pytest.FixtureRequest) -> ModuleType:
    """The module under test: your `starter.py`, or what `--impl` names."""
    return request.config.pluginmanager.getplugin("lab-run").module_for(request.node)


def _todo_of(marker: pytest.Mark) -> tuple[int, float]:
    number, points = (*marker.args, None)[0], marker.kwargs.get("points", 0)
    if not isinstance(number, int) or not isinstance(points, int | float):
        raise pytest.UsageError(f"write @pytest.mark.todo(3, points=4), not {marker}")
    return number, points


@dataclass(frozen=True)
class _Written:
    """What a learner's file has.

    Attributes:
        unwritten: the TODOs of which nothing is written.
        gone: TODO -> its functions that were there at the start and have gone.
    """

    unwritten: set[int]
    gone: dict[int, list[str]]


def _read(lab: Lab, file: Path) -> _Written:
    """What a learner's file has. Raises `LabError` if it is no Python or imports what is refused."""
    tree = loading.parse(file)
    loading.refuse_imports(lab, tree, file.name)
    present = regions.definitions(tree)
    gone = {
        todo: [name for name in names if name not in present and "." not in name]
        for todo, names in given.functions(lab).items()
    }
    return _Written(regions.unwritten_todos(tree), gone)
