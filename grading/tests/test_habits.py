"""Honest files with the habits that people have: the same points in practice and at every level of isolation.

Each habit stands at the top or the end of Lab 06's solution. What runs while the file is loaded meets a folder, variables and
packages that are not those of the student's machine; were a habit to fail there, it would cost every point. So TODO 4's tests
and checks, which build on no other, tell. Encodings and line ends: labs/tests/test_harness_loading.py.
"""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from grading.authoring import suite_runner
from grading.gradescope import autograder, dry_run
from grading.judge.grader import Settings, grader_of
from grading.judge.intake import Submission
from grading.sandbox.isolation import LEVELS, strongest_level
from labs.harness.catalog import find_lab

pytestmark = pytest.mark.slow

LAB = find_lab("06")
SOLUTION = LAB.solution.read_text(encoding="utf-8")
TODO = 4


@dataclass(frozen=True)
class Habit:
    """Lines that somebody has at the top of a file, under its docstring, and lines at its end."""

    name: str
    top: str = ""
    end: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        """The solution of a student with this habit."""
        docstring, quotes, rest = SOLUTION[3:].partition('"""')
        return f'"""{docstring}{quotes}\n{self.top}\n{rest}\n{self.end}\n'


HABITS = [
    Habit("plots", "import matplotlib.pyplot as plt"),
    Habit("a style for plots", "import matplotlib\nmatplotlib.use('Agg')\nmatplotlib.rcParams['figure.dpi'] = 150"),
    Habit("a notebook's display", "from IPython.display import display"),
    Habit("pytest in the file", "import pytest", "def test_mine():\n    assert blocks_needed(5, 4) == 2"),
    Habit("unittest in the file", "import unittest", "class Mine(unittest.TestCase):\n    pass"),
    Habit("self-tests that run", end="assert slots([2], range(1), 4) == [8]"),
    Habit("a main guard", end="if __name__ == '__main__':\n    print(slots([2], range(1), 4))"),
    Habit("a table that is printed", end="for n in range(20):\n    print(n, blocks_needed(n, 4))"),
    Habit("numpy and torch", "import numpy as np\nimport torch\ntorch.manual_seed(0)\ntorch.set_num_threads(1)"),
    Habit("a temporary folder", "import tempfile\nFOLDER = tempfile.mkdtemp()"),
    Habit("a temporary file", "import tempfile\nwith tempfile.NamedTemporaryFile('w') as file:\n    file.write('x')"),
    Habit("notes in a file", "import os\nwith open('note', 'w') as file:\n    file.write('x')\nos.remove('note')"),
    Habit("a folder for output", "import os\nos.makedirs('out/plots')\nos.removedirs('out/plots')"),
    Habit("settings at home", "from pathlib import Path\nSETTINGS = (Path.home() / '.settings.json').exists()"),
    Habit("its own path", "from pathlib import Path\nHERE = Path(__file__).resolve().parent\nassert HERE.is_dir()"),
    Habit("its own text", "import inspect", "assert 'block' in inspect.getsource(slots)"),
    Habit("a log", "import logging\nlogging.basicConfig(level=logging.DEBUG)\nlogging.info('loaded')"),
    Habit("a log in a file",
          "import logging, tempfile\nlogging.basicConfig(filename=tempfile.mkdtemp() + '/log', force=True)"),
    Habit("no warnings", "import warnings\nwarnings.filterwarnings('ignore')"),
    Habit("who am I", "import getpass\nassert getpass.getuser()"),
    Habit("where am I", "import os, platform\nprint(os.environ['HOME'], os.getcwd(), platform.platform())"),
    Habit("a variable for torch", "import os\nos.environ['OMP_NUM_THREADS'] = '1'"),
    Habit("the time", "import datetime, time\nBEGAN = time.perf_counter(), datetime.datetime.now()\ntime.sleep(0.01)"),
    Habit("deep recursion", "import sys\nsys.setrecursionlimit(10_000)"),
    Habit("its folder on the path", "import sys\nsys.path.insert(0, '.')"),
    Habit("a thread", "import threading\nthread = threading.Thread(target=print)\nthread.start()\nthread.join()"),
    Habit("a pool of threads",
          "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool:\n    list(pool.map(abs, [1]))"),
    Habit("an event loop", "import asyncio\nasyncio.run(asyncio.sleep(0))"),
    Habit("a goodbye", "import atexit\natexit.register(print, 'bye')"),
    Habit("a pickle", "import pickle\nassert pickle.loads(pickle.dumps([1])) == [1]"),
    Habit("a database", "import sqlite3\nsqlite3.connect(':memory:').execute('select 1')"),
    Habit("caches", "import functools\n@functools.lru_cache\ndef square(n):\n    return n * n\nsquare(2)"),
    Habit("types", "from typing import TYPE_CHECKING, Final\nif TYPE_CHECKING:\n    import nothing\nSIZE: Final = 4"),
    Habit("a colourful traceback", "from rich import traceback\ntraceback.install()"),
    Habit("a progress bar", "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)):\n    pass"),
    Habit("the engine's names", "from nano_qwen3_serving import SamplingParams\nPARAMS = SamplingParams(temperature=0)"),
    Habit("a long text", "NOTES = '''" + "what I learnt today, " * 2000 + "'''"),
    Habit("foreign letters", "größe = 4  # 块大小 🙂\nassert größe == 4"),
]


@pytest.fixture(scope="module")
def practice() -> dict[str, suite_runner.Result]:
    """Habit → how TODO 4's tests end on it."""
    jobs = [suite_runner.Job(LAB, habit.text, f"test_todo_{TODO}_") for habit in HABITS]
    return dict(zip(map(str, HABITS), suite_runner.run(jobs), strict=True))


@pytest.mark.proof
@pytest.mark.parametrize("habit", HABITS, ids=str)
def test_a_habit_costs_nothing_in_practice(practice, habit):
    result = practice[habit.name]
    assert result.outcomes and not result.failing() and not result.ended, result.printed


@pytest.fixture(scope="module", params=LEVELS)
def box(request):
    """A grader of one check of TODO 4 at one level, and one sandbox for all: the file is loaded for every check alike."""
    if LEVELS.index(request.param) < LEVELS.index(strongest_level()):
        pytest.skip(f"this machine does not have the isolation level {request.param}; its strongest is {strongest_level()}")
    with grader_of(LAB, Settings(seed="habits", predictions=False, level=request.param)) as grader:
        grader.checks = [check for check in grader.checks if check.todo == TODO][:1]
        with grader.sandbox() as sandbox:
            yield grader, sandbox


@pytest.mark.share(2)
@pytest.mark.parametrize("habit", HABITS, ids=str)
def test_a_habit_costs_nothing_where_it_is_graded(box, habit):
    grader, sandbox = box
    report = grader.grade(Submission("ada", {"starter.py": habit.text.encode()}), shared=sandbox)
    assert report.score == report.max_score > 0, [check.message for check in report.checks if check.message]


SLOW_TO_IMPORT = ("matplotlib", "IPython", "pytest", "rich", "tqdm")
"""Once for every check: left to the tests above."""


@pytest.mark.proof
def test_many_habits_at_once_cost_nothing_where_gradescope_grades(tmp_path):
    chosen = [habit for habit in HABITS if not any(name in habit.top for name in SLOW_TO_IMPORT)]
    everything = Habit("all", "\n".join(habit.top for habit in chosen), "\n".join(habit.end for habit in chosen))
    (tmp_path / "lab06.zip").write_bytes(autograder.build(LAB, autograder.Choices("06", predictions=False), "x" * 32))
    (tmp_path / "starter.py").write_text(everything.text, encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="autograder-") as name:  # below /tmp, where other users may look
        root = Path(name)
        dry_run.lay_out(tmp_path / "lab06.zip", tmp_path / "starter.py", root)
        done = subprocess.run([root / "run_autograder"], env=dry_run.environment(root), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results = dry_run.results(root)
    assert results["score"] == 85, [test["output"] for test in results["tests"] if test["score"] < test["max_score"]]
