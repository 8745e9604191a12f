"""A toy lab on disk, and running pytest and the command line on it in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labs.harness.regions import make_starter

PROJECT = Path(__file__).parents[2]

PYTEST_INI = """\
[pytest]
addopts = --import-mode=importlib -p labs.harness.suite.plugin
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""

SOLUTION = '''\
"""A toy lab: three functions, of which the third uses the first."""

from labs.harness.todo import run_lab


def double(number: int) -> int:
    # TODO 1: return twice the number
    ### BEGIN SOLUTION
    return 2 * number
    ### END SOLUTION


async def count(limit: int):
    """Yield 0, 1, ... up to `limit`."""
    # TODO 2: yield the numbers below the limit
    ### BEGIN SOLUTION
    for number in range(limit):
        yield number
    ### END SOLUTION


def quadruple(number: int) -> int:
    # TODO 3: double twice
    ### BEGIN SOLUTION
    return double(double(number))
    ### END SOLUTION


def main():
    print("twice 4 is", double(4))


if __name__ == "__main__":
    run_lab(main)
'''

TESTS = '''\
import pytest


@pytest.mark.todo(1, points=20)
def test_todo_1_doubles_four(lab):
    assert lab.double(4) == 8


@pytest.mark.todo(1, points=10)
@pytest.mark.parametrize("number", [0, -3])
def test_todo_1_doubles_other_numbers(lab, number):
    assert lab.double(number) == 2 * number


@pytest.mark.todo(2, points=25)
async def test_todo_2_counts(lab):
    assert [number async for number in lab.count(3)] == [0, 1, 2]


@pytest.mark.todo(3, points=30)
def test_todo_3_quadruples(lab):
    assert lab.quadruple(5) == 20
'''

HINTS = "".join(
    f"## TODO {todo}: a title\n" + "".join(f"### Hint {number}\nhint {number} of todo {todo}\n\n" for number in (1, 2, 3))
    for todo in (1, 2, 3)
)

PREDICT_TOML = '''\
[[question]]
id = "sum"
ask = "What is {a} + {b}?"
why = "{a} and {b} are added."

[[question]]
id = "larger"
kind = "choice"
choices = ["a", "b"]
ask = "Which is larger, a = {a} or b = {b}?"
why = "One compares them."
'''

PREDICT_PY = '''\
def case(random):
    return {"a": random.randint(1, 1000), "b": random.randint(1001, 2000)}


def sum(case):
    return case["a"] + case["b"]


def larger(case):
    return "b"
'''


TODO = '[[todo]]\ntitle = "Something"\npoints = 30\n'


class Workshop:
    """A folder of toy labs, and what a learner does there."""

    def __init__(self, home: Path):
        self.home = home
        (home / "pytest.ini").write_text(PYTEST_INI)

    def add_lab(self, name: str = "lab07_toy", solution: str = SOLUTION, station: str = "") -> Path:
        """Write a lab's folder; its starter is generated. Of the toy itself TODO 3 needs TODO 1."""
        folder = self.home / name
        folder.mkdir()
        header = 'title = "A toy"\nhours = "1"\npart = "the toy"\n' + (f'station = "{station}"\n' if station else "")
        needs = "needs = [1]\n" if solution == SOLUTION else ""
        files = {
            "lab.toml": header + 2 * TODO + TODO + needs,
            "solution.py": solution,
            "starter.py": make_starter(solution, name[3:5]),
            "test_lab.py": TESTS,
            "hints.md": HINTS,
            "predict.toml": PREDICT_TOML,
            "predict.py": PREDICT_PY,
        }
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        return folder

    def run(self, *command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
        """Run `python command`, with the command line pointed at this folder."""
        keep = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        env = keep | {"NANO_LABS_HOME": str(self.home), "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"} | environment
        env["PYTHONPATH"] = os.pathsep.join([str(PROJECT), str(PROJECT / "reference_engine")])
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd or self.home,
            env=env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=600,
        )

    def pytest(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        """Run pytest as a learner does."""
        return self.run("-m", "pytest", "-p", "no:cacheprovider", *arguments, cwd=cwd)

    def labs(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run `python -m labs …`."""
        return self.run("-m", "labs", *arguments, **environment)

    def outcomes(self, *arguments: str) -> tuple[dict, subprocess.CompletedProcess]:
        """Run pytest and return what the plugin recorded, by lab id."""
        file = self.home / "outcomes.json"
        run = self.pytest(*arguments, "--lab-json", str(file))
        return json.loads(file.read_text()), run


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """An empty folder for toy labs."""
    return Workshop(tmp_path)


@pytest.fixture
def toy(workshop: Workshop) -> Path:
    """The folder of one toy lab in the workshop."""
    return workshop.add_lab()


@pytest.fixture
def newer(workshop, toy, tmp_path_factory) -> Path:
    """A newer version of the toy lab: another docstring, a goal in other words, a new TODO, a new file."""
    folder = tmp_path_factory.mktemp("newer")
    lab = folder / "lab07_toy"
    shutil.copytree(toy, lab)
    text = (toy / "starter.py").read_text().replace('"""A toy lab: three', '"""A toy lab, second edition: three')
    text = text.replace("twice 4 is", "twice four is").replace("TODO 3: double twice", "TODO 3: double it twice")
    more = (
        "\n\ndef octuple(number: int) -> int:\n    # TODO 4: double three times\n"
        '    raise TodoError("TODO 4: double three times", lab="07")\n')
    (lab / "starter.py").write_text(text.replace("\n\ndef main", more + "\n\ndef main"))
    (lab / "README.md").write_text("second edition\n")
    (lab / "hints.md").write_text((toy / "hints.md").read_text() + "## TODO 4: a title\n### Hint 1\nhm\n")
    return folder
