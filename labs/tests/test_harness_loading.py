"""Which file is tested, and that it does not import the answer."""

from pathlib import Path

import pytest

from labs.harness.catalog import LabError, all_labs, find_lab, lab_at
from labs.harness.loading import ImportRefused, choose, lacking, load

HEADER = 'title = "A toy"\nhours = "1"\npart = "the toy"\n'
TODO = '[[todo]]\ntitle = "First"\npoints = 85\n'


@pytest.fixture
def toy_lab(toy: Path):
    (toy / "lab.toml").write_text(HEADER + 'refuse = ["json.decoder", "json.loads"]\n' + TODO)
    return lab_at(toy)


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["7", "07", "lab07", "LAB7", "lab07_toy", "labs/lab07_toy", "labs/lab07_toy/"])
def test_a_lab_is_found_by_any_of_its_names(toy_lab, name: str):
    assert find_lab(name, toy_lab.folder.parent) == toy_lab


@pytest.mark.parametrize("name", ["8", "lab08", "toy", "", "-1", "7.5"])
def test_an_unknown_lab_is_answered_with_the_ones_there_are(toy_lab, name: str):
    with pytest.raises(LabError, match=r"no lab .*The labs here: 07 \(lab07_toy\)"):
        find_lab(name, toy_lab.folder.parent)


def test_a_folder_without_lab_toml_is_no_lab(toy_lab):
    (toy_lab.folder.parent / "lab09_draft").mkdir()
    assert all_labs(toy_lab.folder.parent) == [toy_lab]


def test_a_misspelt_key_of_lab_toml_is_refused(toy_lab):
    (toy_lab.folder / "lab.toml").write_text('titel = "A toy"\n')
    with pytest.raises(LabError, match="lab07_toy/lab.toml: unknown key titel"):
        lab_at(toy_lab.folder)


def test_the_four_kinds_of_implementation(toy_lab, tmp_path: Path):
    assert choose(toy_lab, "starter") == toy_lab.starter
    assert choose(toy_lab, "solution") == toy_lab.solution
    assert choose(toy_lab, str(toy_lab.folder)) == toy_lab.starter.resolve()
    assert choose(toy_lab, "lab07_toy/solution.py", tmp_path) == toy_lab.solution.resolve()
    assert choose(toy_lab, ".", tmp_path) == toy_lab.starter.resolve(), "a folder of labs holds this lab's folder"
    with pytest.raises(LabError, match="makes no part of it"):
        choose(toy_lab, "reference")
    with pytest.raises(LabError, match="--impl nonsense: not starter, solution or reference"):
        choose(toy_lab, "nonsense")


def test_reference_py_goes_before_the_engines_module_and_may_import_it(toy_lab):
    (toy_lab.folder / "lab.toml").write_text(
        HEADER + 'refuse = ["json.decoder"]\nreference = "json.decoder"\n' + TODO)
    named = lab_at(toy_lab.folder)
    assert choose(named, "reference") == "json.decoder"
    named.reference_file.write_text("from json.decoder import JSONDecoder\n\n\ndef double(number):\n    return number + number\n")
    assert choose(named, "reference") == named.reference_file
    module = load(named, named.reference_file)
    assert module.double(4) == 8
    assert lacking(named, module) == {2: ["count"], 3: ["quadruple"]}


def test_what_a_module_lacks_is_found_in_classes_and_taken_as_given_inside_functions(toy_lab):
    toy_lab.solution.write_text(
        "class Box:\n    @property\n    def size(self):\n        # TODO 1: a\n        ### BEGIN SOLUTION\n        return 1\n"
        "        ### END SOLUTION\n\n\ndef outer():\n    def inner():\n        # TODO 2: b\n        ### BEGIN SOLUTION\n"
        "        return 2\n        ### END SOLUTION\n    return inner\n")
    assert lacking(toy_lab, load(toy_lab, toy_lab.solution)) == {}
    module = load(toy_lab, write(toy_lab.folder, "class Box:\n    pass\n"))
    assert lacking(toy_lab, module) == {1: ["Box.size"], 2: ["outer.inner"]}


def test_an_absent_solution_is_explained(toy_lab):
    toy_lab.solution.unlink()
    with pytest.raises(LabError, match="not part of the student edition"):
        choose(toy_lab, "solution")


def test_two_versions_of_a_lab_live_in_one_process_and_find_their_own_dataclasses(toy_lab):
    text = "from dataclasses import dataclass\n\n@dataclass\nclass Box:\n    n: 'int' = {}\n"
    first, second = (load(toy_lab, write(toy_lab.folder, text.format(n))) for n in (1, 2))
    assert (first.Box().n, second.Box().n) == (1, 2)
    assert first.__name__ != second.__name__


@pytest.mark.parametrize(
    "line",
    [
        "import solution",
        "from solution import double",
        "from .solution import *",
        "from . import solution",
        "from labs.lab07_toy import solution as mine",
        "import labs.lab07_toy.solution",
        "import importlib; importlib.import_module('labs.lab07_toy.solution')",
        "from importlib import import_module\nimport_module('solution')",
        "__import__('solution')",
        "import runpy; runpy.run_path('../lab07_toy/solution.py')",
        "from pathlib import Path; from importlib.util import spec_from_file_location as s; "
        "x = s.spec_from_file_location('a', Path('.') / 'solution.py')",
        "def inside():\n    from solution import double",
        "import json.decoder",
        "from json import decoder",
        "from json.decoder import JSONDecoder",
        "from json import loads",
    ],
)
def test_importing_the_answer_is_refused_and_reading_it_recommended(toy_lab, line: str):
    with pytest.raises(ImportRefused, match=r"mine.py line \d+ imports .*Reading it is allowed, importing it is not"):
        load(toy_lab, write(toy_lab.folder, line + "\n"))


@pytest.mark.parametrize(
    "line",
    [
        "import json",
        "from json import dumps",
        "solution = 1",
        "text = 'import solution'",
        "from fractions import Fraction as solution",
    ],
)
def test_other_imports_are_not_refused(toy_lab, line: str):
    assert load(toy_lab, write(toy_lab.folder, line + "\nloaded = True\n")).loaded


def test_a_learner_may_read_the_solution(toy_lab):
    module = load(
        toy_lab, write(toy_lab.folder, "from pathlib import Path\ntext = Path(__file__).with_name('solution.py').read_text()\n")
    )
    assert module.text == (toy_lab.folder / "solution.py").read_text()


def test_a_file_that_is_no_python_is_named_with_its_line(toy_lab):
    with pytest.raises(LabError, match="mine.py line 2 is not Python yet"):
        load(toy_lab, write(toy_lab.folder, "x = 1\ndef f(:\n"))


def test_a_module_that_fails_is_not_left_behind(toy_lab):
    import sys

    before = set(sys.modules)
    with pytest.raises(LabError, match="mine.py line 2, while it is loaded: ZeroDivisionError: division by zero"):
        load(toy_lab, write(toy_lab.folder, "x = 1\n1 / 0\n"))
    assert set(sys.modules) == before


def test_our_function_stands_in_inside_the_learners_module(toy_lab):
    module = load(toy_lab, toy_lab.starter, stand_ins=[1])
    assert module.double(4) == 8
    with pytest.raises(NotImplementedError, match="TODO 3"):
        module.quadruple(4)


def test_a_lab_toml_that_lacks_a_key_is_refused_with_its_name(toy_lab):
    (toy_lab.folder / "lab.toml").write_text('title = "A toy"\n')
    with pytest.raises(LabError, match="lab07_toy/lab.toml: hours, part, todo missing"):
        lab_at(toy_lab.folder)


@pytest.mark.parametrize(("text", "complaint"), [
    ("todo = []\n", r"lab07_toy/lab.toml: a \[\[todo\]\] for each TODO is missing"),
    ("[todo]\ntitle = 'First'\n", r"a \[\[todo\]\] for each TODO is missing"),
    (TODO + "title_ = 'x'\n", r"\[\[todo\]\] 1: unknown key title_"),
    (TODO + "[[todo]]\ntitle = 'Second'\n", r"\[\[todo\]\] 2: points missing"),
    (TODO + "needs = [1]\n", r"\[\[todo\]\] 1 needs TODO 1, which is not before it"),
    ("station = 'moon'\n" + TODO, "there is no station 'moon'; there are caller, server"),
])
def test_what_is_wrong_in_a_lab_toml_is_named(toy_lab, text: str, complaint: str):
    (toy_lab.folder / "lab.toml").write_text(HEADER + text)
    with pytest.raises(LabError, match=complaint):
        lab_at(toy_lab.folder)


def test_a_todo_is_known_by_its_number(toy_lab):
    assert toy_lab.todo(1).heading == "TODO 1: First" and toy_lab.todo(1).points == 85
    with pytest.raises(LabError, match="Lab 07 has no TODO 2; it has 1"):
        toy_lab.todo(2)
