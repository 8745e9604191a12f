"""What a worker keeps a submission from, at each level that this machine has, and that nothing is left of it."""

import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from grading.edition.sealing import seal
from grading.judge.grader import Settings, grader_of
from grading.sandbox import footprint, isolation
from grading.sandbox import supervisor as sandboxes
from grading.sandbox.footprint import bytes_in, clear, lives, processes_of
from grading.sandbox.isolation import Limits, confinement, other_user, strongest_level, weaknesses
from grading.sandbox.runtime import make_runtime
from grading.sandbox.supervisor import Sandbox, Stopped
from grading.sandbox.worker import main as worker
from labs.harness.catalog import Lab, all_labs, find_lab
from labs.harness.imports import ANSWERS, works_there

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
LIMITS = Limits(wall_seconds=20.0, cpu_seconds=5, memory_bytes=768 << 20)

TOOLS = '''
import importlib, os, resource, signal, socket, sys, time

def attempt(name, *arguments):
    """How something ended, in words."""
    try:
        return repr(globals()[name](*arguments))
    except BaseException as error:
        return type(error).__name__

def content(path): return open(path, "rb").read(20)
def names(path): return os.listdir(path)
def write(path):
    open(path, "w").write("x")
    return "written"
def imports_as_it_is(name): return importlib.import_module(name)
def imports(name):
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Hidden" not in type(finder).__name__]
    return importlib.import_module(name)
def signals(number): return os.kill(os.getppid(), number)
def talks(family, kind, where):
    with socket.socket(family, kind) as out:
        out.settimeout(0.2)
        out.connect(tuple(where) if isinstance(where, list) else where)
        out.send(b"leaked")
def leaves_a_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()
    return "left"
def nests(depth):
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    os.chmod(".", 0)
def makes_files(number):
    for one in range(number):
        open(str(one), "w").close()
def ends_by(number):
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(5)
def who(): return os.getuid()
def limit_of(pid): return resource.prlimit(pid or os.getppid(), resource.RLIMIT_CPU)
def memory_file(): return os.memfd_create("x")
def sleeps(): time.sleep(600)
def loops():
    while True: pass
'''


def levels() -> list:
    """Each level as a parameter; one that this machine lacks is skipped, and says so."""
    lacks = {"namespaces": strongest_level() != "namespaces", "limits": os.name != "posix"}
    return [pytest.param(level,
                         marks=pytest.mark.skipif(lacking, reason=f"this machine does not have the isolation level {level}"))
            for level, lacking in lacks.items()]


@pytest.fixture(scope="module", params=levels())
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A worker of Lab 06 with short limits."""
    with grader_of(find_lab("06"), Settings(level=request.param, limits=LIMITS)) as grader, grader.sandbox() as one:
        yield one


def tried(box: Sandbox, *what: object) -> str:
    with box.child() as child:
        return child.bench.load(TOOLS).attempt(*what)


def tried_all(box: Sandbox, *attempts: tuple) -> list[str]:
    """The same for several, one after the other in one process."""
    with box.child() as child:
        tools = child.bench.load(TOOLS)
        return [tools.attempt(*what) for what in attempts]


needs_landlock = pytest.mark.skipif(not confinement()[0],
                                    reason="this kernel has no Landlock, and reports say that files can be read")


# files


def secrets() -> list[Path]:
    """What a submission would like to read: solutions, tests, checks, the judge."""
    return [PROJECT / "labs/lab06_block_manager/solution.py", PROJECT / "labs/lab06_block_manager/test_lab.py",
            PROJECT / "grading/labs/lab06/hidden.py", PROJECT / "grading/judge/grader.py",
            PROJECT / "reference_engine/nano_qwen3_serving/scheduling/block_manager.py", Path("/etc/passwd")]


@needs_landlock
def test_nothing_of_the_course_can_be_read(box: Sandbox):
    attempts = [("names", str(PROJECT))]
    for path in secrets():
        attempts += [("content", str(path)), ("names", str(path.parent))]
    for attempt, ended in zip(attempts, tried_all(box, *attempts), strict=True):
        assert ended in ("PermissionError", "FileNotFoundError"), attempt


@needs_landlock
def test_nothing_of_other_processes_can_be_read(box: Sandbox):
    attempts = [("content", path) for path in ("/proc/self/environ", "/proc/1/cmdline", "/proc/self/status")]
    assert set(tried_all(box, *attempts)) <= {"PermissionError", "FileNotFoundError"}


@needs_landlock
def test_nothing_can_be_written_but_its_own_folder(box: Sandbox):
    attempts = [("write", f"{folder}/from-a-submission")
                for folder in ("/tmp", "/dev/shm", "/var/tmp", "/", "/usr/lib", str(box._runtime))]
    *elsewhere, mine = tried_all(box, *attempts, ("write", "mine"))
    assert set(elsewhere) <= {"PermissionError", "FileNotFoundError", "OSError"} and mine == "'written'"


def test_a_library_that_is_the_answer_cannot_be_imported_nor_found_on_the_disk():
    """Transformers is installed."""
    for level in (param.values[0] for param in levels() if not param.marks[0].args[0]):
        with grader_of(find_lab("03"), Settings(level=level, limits=LIMITS)) as grader, grader.sandbox() as box:
            path = next(Path(place, "transformers", "__init__.py") for place in sys.path
                        if Path(place, "transformers", "__init__.py").is_file())
            refused, model, read, other = tried_all(
                box, ("imports_as_it_is", "transformers"), ("imports", "transformers.models.qwen3"), ("content", str(path)),
                ("imports", "safetensors"))
            assert refused == "ModuleNotFoundError" and model in ("ModuleNotFoundError", "PermissionError")
            assert read in ("PermissionError", "FileNotFoundError")
            assert "module" in other, "what torch or the engine uses can be imported"


def test_nothing_that_knows_an_answer_can_be_imported(box: Sandbox):
    names = ["solution", "labs.lab06_block_manager.solution", "labs.harness.learner.predictions", "grading",
             "grading.labs.lab06.hidden", "test_lab"]
    assert set(tried_all(box, *(("imports", name) for name in names))) == {"ModuleNotFoundError"}


HABITS = """
import matplotlib.pyplot as plt
from IPython.display import display
import plotly.express as px
import seaborn.objects as so

plt.rcParams["figure.dpi"] = 150
plt.style.use("dark_background")
so.set_theme("dark")


class Mine(so.Plot):
    pass

try:
    import numba
except ImportError:
    numba = None


def there():
    figure, axes = plt.subplots()
    return len(axes.plot([1, 2])) == 1 and display is not None and numba is None and callable(px.line)


def used():
    first, second = so.Plot([1, 2])
"""


def test_what_students_have_works_and_any_other_library_is_there_by_name(box: Sandbox):
    with box.child() as child:
        module = child.bench.load(HABITS)
        assert module.there() is True, "an import in a try is answered as it is"
        with pytest.raises(ModuleNotFoundError, match=r"seaborn.objects.Plot\(\) is used, which is not there where"):
            module.used()


@pytest.mark.parametrize("lab", all_labs(), ids=lambda lab: lab.id)
def test_no_runtime_holds_what_its_lab_refuses_nor_any_answer(lab: Lab, tmp_path: Path):
    libraries = make_runtime(lab, tmp_path, checkpoints=False)
    assert not {name.split(".")[0] for name in ANSWERS} & (set(libraries) - {"torch"})
    for name in lab.refuse:
        top, *rest = name.split(".")
        for path in _files_of(tmp_path.joinpath(top, *rest)):
            assert not _bodies(path), f"{path.name} still says how {_bodies(path)} is done"
    for path in (tmp_path / "nano_qwen3_serving").rglob("*.py"):
        module = ".".join(path.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        assert works_there(lab, module) or not _bodies(path), f"{module} still says how {_bodies(path)} is done"
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    told = {"solution.py", "test_lab.py", "starter.py", "reference.py", "seam.py", "predict.py", "symptoms.json", "judge.py",
            "checks.py", "hints.md"}
    assert not {path for path in kept if Path(path).name in told and not path.startswith("nano_qwen3_serving/")}
    assert not any("judge" in path or "__pycache__" in path or path.endswith((".pyc", ".so")) for path in kept)


def test_a_runtime_has_nothing_of_what_stands_in_for_todos(tmp_path: Path):
    """Also where grading runs beside a student edition."""
    folder = tmp_path / "labs" / find_lab("06").folder.name
    shutil.copytree(find_lab("06").folder, folder, ignore=shutil.ignore_patterns("__pycache__", "solution.py"))
    lab = replace(find_lab("06"), folder=folder)
    lab.sealed.write_text(seal(find_lab("06")), encoding="utf-8")
    lab.untouched.write_text(find_lab("06").starter.read_text(encoding="utf-8"), encoding="utf-8")
    make_runtime(lab, tmp_path / "runtime", checkpoints=False)
    kept = {path.name for path in (tmp_path / "runtime" / "labs").rglob("*") if path.is_file()}
    assert kept and lab.sealed.name not in kept and "untouched.py" not in kept


def test_what_the_engine_offers_can_be_imported_where_it_has_only_its_names(tmp_path: Path):
    make_runtime(find_lab("07"), tmp_path, checkpoints=False)
    names = "import sys; sys.path.insert(0, sys.argv[1]); import nano_qwen3_serving as n; assert sys.argv[1] in n.__file__"
    program = f"{names}\nfor name in n.__all__:\n    getattr(n, name)\nn.SamplingParams(temperature=0.5)"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _files_of(target: Path) -> list[Path]:
    if target.is_dir():
        others = [path for path in target.rglob("*") if path.is_file() and path.suffix != ".py"]
        assert not others, f"{target.name} has more than Python left"
        return list(target.rglob("*.py"))
    return [path for path in [target.with_suffix(".py")] if path.is_file()]


def _bodies(path: Path) -> list[str]:
    """Functions of a module that do more than say that they are not there."""
    functions = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node.name for node in functions if not (len(node.body) == 1 and isinstance(node.body[0], ast.Raise))]


# other processes, and the network


def test_no_signal_reaches_who_started_it(box: Sandbox):
    if any("other processes" in said for said in weaknesses(box.level)):
        pytest.skip(f"at the level {box.level} this machine cannot keep a submission from it, and reports say so")
    sent = tried_all(box, *(("signals", int(number)) for number in (0, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL)))
    assert set(sent) == {"PermissionError"}
    assert set(tried_all(box, ("limit_of", 0), ("limit_of", os.getpid()))) <= {"PermissionError", "ProcessLookupError"}


def test_under_limits_roots_submissions_are_somebody_else(box: Sandbox):
    if box.level != "limits" or os.geteuid() != 0 or other_user() is None:
        pytest.skip("the judge is not root, or there are namespaces")
    assert tried(box, "who") == str(other_user())


def test_nothing_goes_out_over_the_network(box: Sandbox):
    if any("network" in said for said in weaknesses(box.level)):
        pytest.skip(f"at the level {box.level} this machine cannot keep a submission from the network, and reports say so")
    with (socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
          tempfile.TemporaryDirectory() as folder):
        udp.bind(("127.0.0.1", 0))
        os.chmod(folder, 0o777)
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.bind(f"{folder}/socket")
        local.listen()
        inet, stream, datagram = int(socket.AF_INET), int(socket.SOCK_STREAM), int(socket.SOCK_DGRAM)
        talks = tried_all(box, ("talks", inet, stream, list(tcp.getsockname())),
                          ("talks", inet, datagram, list(udp.getsockname())),
                          ("talks", int(socket.AF_UNIX), stream, f"{folder}/socket"))
        assert set(talks) <= {"PermissionError", "ConnectionRefusedError", "FileNotFoundError", "OSError"}
        for listener in (tcp, udp, local):
            listener.setblocking(False)
        for listen in (tcp.accept, lambda: udp.recv(100), local.accept):
            with pytest.raises(BlockingIOError):
                listen()
        local.close()


def test_memory_that_no_watchdog_sees_cannot_be_had(box: Sandbox):
    if any("network" in said for said in weaknesses(box.level)):
        pytest.skip("system calls cannot be filtered here")
    assert tried(box, "memory_file") == "PermissionError"


# what is left


def test_processes_that_were_left_behind_are_gone_with_the_check(box: Sandbox):
    with box.child() as child:
        tools = child.bench.load(TOOLS)
        before = len(processes_of(box._process.pid))
        assert tools.leaves_a_daemon() == "left"
        assert len(processes_of(box._process.pid)) == before + 1, "the daemon should be there now, or this test tests nothing"
    assert len(processes_of(box._process.pid)) == before - 1, "the check's process and its daemon should be gone"


def test_files_that_were_left_behind_are_gone_with_the_check(box: Sandbox):
    tried(box, "nests", 1000)
    tried(box, "makes_files", 300)
    assert list(box._folder.iterdir()) == []


def test_many_empty_files_are_as_much_as_a_large_one(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(box, "limits", replace(LIMITS, file_bytes=1 << 20))
    with pytest.raises(Stopped, match="too many files"), box.child() as child:
        tools = child.bench.load(TOOLS)
        tools.attempt("makes_files", 50_000)
        tools.attempt("loops")
    assert tried(box, "who").isdigit(), "the next check runs"


@pytest.mark.parametrize("number, words", [(signal.SIGSEGV, "SIGSEGV"), (40, "signal 40")])
def test_how_a_process_ended_is_said(box: Sandbox, number: int, words: str):
    with pytest.raises(Stopped, match=f"ended before it answered, by {words}"):
        tried(box, "ends_by", int(number))


def test_a_submission_that_does_not_read_holds_nobody_up(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    """What the judge sends does not fit into the socket any more."""
    monkeypatch.setattr(box, "limits", replace(LIMITS, wall_seconds=2.0))
    with pytest.raises(Stopped, match="had not ended after"), box.child() as child:
        attempt = child.bench.load(TOOLS).attempt
        for argument in ("sleeps", *["x" * (1 << 20)] * 100):
            child.peer._send({"do": "call", "on": attempt._number, "name": ""}, {"arguments": [argument], "named": {}})
        pytest.fail("100 MiB were sent to somebody who reads nothing")
    assert tried(box, "who").isdigit(), "the next check runs"


def test_a_killed_worker_is_replaced_and_its_start_takes_nothing_from_a_checks_time(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(Stopped, match="lost|ended"), box.child() as child:
        tools = child.bench.load(TOOLS)
        tools.leaves_a_daemon()
        before = processes_of(box._process.pid)
        box._process.kill()
        tools.attempt("loops")
    starts, start = [], Sandbox._start
    monkeypatch.setattr(Sandbox, "_start", lambda self: (start(self), starts.append(time.monotonic())))
    with box.child() as child:
        assert len(starts) == 1 and child._deadline >= starts[0] + LIMITS.wall_seconds, (
            "the clock starts when the worker is there")
        assert child.bench.load(TOOLS).attempt("who").isdigit()
    orphans = [pid for pid in before if lives(pid)]
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    assert len(orphans) <= (box.level == "limits"), (
        "only a daemon that has cut itself loose outlives a worker that is killed from outside")


def test_a_worker_that_was_stopped_goes_on():
    """As a submission can stop it at the level `none`."""
    with grader_of(find_lab("06"), Settings(level="none", limits=LIMITS)) as grader, grader.sandbox() as box:
        assert tried(box, "who").isdigit()
        first = box._process.pid
        os.kill(first, signal.SIGSTOP)
        assert tried(box, "who").isdigit() and box._process.pid == first


def test_where_descriptors_cannot_be_handed_over_the_systems_that_can_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delattr(socket, "send_fds")
    with pytest.raises(sandboxes.SetupError, match="graded on Linux and macOS"):
        Sandbox("none", tmp_path, [], LIMITS)


JUDGE = """
import sys
from grading.judge.grader import Settings, grader_of
from labs.harness.catalog import find_lab
with grader_of(find_lab("06"), Settings(level=sys.argv[1])) as grader, grader.sandbox() as box, box.child() as child:
    tools = child.bench.load(sys.stdin.read())
    tools.leaves_a_daemon()
    print(box._process.pid, flush=True)
    tools.loops()
"""


@pytest.mark.share(1)
@pytest.mark.share(1)
def test_nothing_goes_on_when_the_judge_is_killed(box: Sandbox):
    judge = subprocess.Popen([sys.executable, "-c", JUDGE, box.level], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)
    judge.stdin.write(TOOLS)
    judge.stdin.close()
    workers = processes_of(int(judge.stdout.readline()))
    assert len(workers) >= 3
    judge.kill()
    judge.wait()
    deadline = time.monotonic() + 60
    while left := [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]:
        assert time.monotonic() < deadline, f"{left} of {workers} still run"
        time.sleep(0.05)


# deleting


def deep(folder: Path, levels: int) -> None:
    """Folders in folders, by a process of its own: no path of theirs can be written."""
    code = (f"import os\nos.chdir({str(folder)!r})\nfor _ in range({levels}):\n"
            "    os.mkdir('d' * 20)\n    os.chdir('d' * 20)\n    open('file', 'w').close()\n")
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_folders_too_deep_for_a_path_are_deleted(tmp_path: Path):
    deep(tmp_path, 1500)
    assert clear(tmp_path) and list(tmp_path.iterdir()) == []


def test_folders_and_links_that_forbid_it_are_deleted_and_not_followed(tmp_path: Path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "closed").mkdir(parents=True)
    outside.mkdir()
    (outside / "kept").write_text("x")
    (inside / "closed" / "link").symlink_to(outside)
    (inside / "closed" / "deeper").mkdir()
    (inside / "closed" / "deeper").chmod(0)
    (inside / "closed").chmod(0)
    assert clear(inside) and (outside / "kept").exists()


def test_what_is_in_a_folder_is_counted_until_it_is_enough(tmp_path: Path):
    for number in range(20):
        (tmp_path / str(number)).touch()
    assert bytes_in(tmp_path, 1 << 20) == 20 * footprint.PAGE
    assert bytes_in(tmp_path, 3 * footprint.PAGE) == 4 * footprint.PAGE
    deep(tmp_path, 200)
    assert bytes_in(tmp_path, 64 << 20) > 64 << 20, "folders so deep that they cannot be counted are too much"


FORKS = """
import os, sys, time
memory = bytearray(os.urandom(1 << 20)) * 100
if os.fork() == 0:
    time.sleep(60)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what processes share is read from /proc")
@pytest.mark.parametrize("told", [True, False], ids=["told by the kernel", "not told"])
def test_pages_that_a_fork_shares_count_once(monkeypatch: pytest.MonkeyPatch, told: bool):
    if not told:  # as for a user without root, whom a worker's pages are hidden from
        monkeypatch.setattr(footprint, "share_of_memory", lambda pid: None)
    with subprocess.Popen([sys.executable, "-c", FORKS], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            pids = processes_of(process.pid)
            assert len(pids) == 2 and 100 << 20 < footprint.memory_of_worker(pids) < 150 << 20
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_level_that_cannot_be_started_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandboxes, "command", lambda *_: [str(tmp_path / "nothing")])
    before = set(Path(tempfile.gettempdir()).glob("submission-*"))
    with (pytest.raises(sandboxes.SetupError, match="could not be started at the isolation level limits"),
          Sandbox("limits", tmp_path, [], LIMITS) as one, one.child()):
        pass
    assert set(Path(tempfile.gettempdir()).glob("submission-*")) <= before


def test_a_worker_that_has_forked_nothing_ends_nothing_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert worker._descendants(None) == []


def test_weaknesses_are_told_where_there_are_any():
    assert weaknesses("none") == ("it could read files that are not its own", "it could use the network",
                                  "it could end or change other processes of the judge's user")
    assert weaknesses("namespaces") == ()


def test_a_course_beside_the_systems_files_is_not_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As /usr/src/app, the usual folder in images of Python, or one below /usr/lib."""
    course = next(path for path in sorted(Path("/usr/lib").iterdir()) if path.is_dir() and not path.is_symlink())
    monkeypatch.setattr(isolation, "COURSE", course)
    options = isolation._bwrap(tmp_path, tmp_path, None)
    bound = {options[at + 1] for at, option in enumerate(options) if "bind" in option}
    assert not bound & {"/", "/usr", "/usr/src", "/usr/local", "/opt", "/home", "/srv"}
    assert "--tmpfs" in options and options[options.index(str(course)) - 1] == "--tmpfs"
