"""Starters from solutions, and a region put back, on source text alone."""

import ast

import pytest

from labs.harness import regions
from labs.harness.catalog import LabError, all_labs

RAISE_1 = 'raise TodoError("TODO 1: goal", lab="05")'


def solution(body: str, head: str = "def f(a):") -> str:
    """A function with one region around `body`."""
    return f"{head}\n    # TODO 1: goal\n    ### BEGIN SOLUTION\n    {body}\n    ### END SOLUTION\n"


def kinds(source: str) -> dict[str, tuple[bool, bool]]:
    """Function -> (is it async, is it a generator)."""
    found = regions.definitions(ast.parse(source))
    return {name: (isinstance(node, ast.AsyncFunctionDef), regions.is_generator(node)) for name, node in found.items()}


def test_a_region_becomes_one_line_and_everything_else_stays():
    source = "import os\n\n\n" + solution("return a") + "\n\nprint(os.sep)  # ü\n"
    starter = regions.make_starter(source, "05")
    assert starter == (
        "import os\nfrom labs.harness.todo import TodoError\n\n\n"
        f"def f(a):\n    # TODO 1: goal\n    {RAISE_1}\n\n\nprint(os.sep)  # ü\n"
    )


def test_the_import_of_the_harness_is_extended_rather_than_repeated():
    starter = regions.make_starter("from labs.harness.todo import run_lab\n" + solution("return a"), "05")
    assert starter.startswith("from labs.harness.todo import TodoError, run_lab\n")
    assert starter.count("TodoError") == 2


@pytest.mark.parametrize("head", ["def f(a):", "async def f(a):"])
@pytest.mark.parametrize("body", ["return a", "yield a", "yield from_here(a)", "g = lambda: (yield)\n    return g"])
def test_every_function_keeps_its_kind(head: str, body: str):
    source = solution(body, head)
    assert kinds(regions.make_starter(source, "05")) == kinds(source)


def test_a_generator_with_a_yield_outside_of_the_region_needs_no_extra_one():
    source = solution("a = a + 1", "async def f(a):") + "    yield a\n"
    assert "delete this line too" not in regions.make_starter(source, "05")


def test_a_region_in_a_nested_generator_leaves_the_outer_function_plain():
    inner = "".join("    " + line + "\n" for line in solution("yield 1", "async def inner():").splitlines())
    source = "def outer():\n" + inner + "    return inner\n"
    starter = regions.make_starter(source, "05")
    assert kinds(starter) == {"outer": (False, False), "outer.inner": (True, True)}
    assert regions.functions_of(source) == {1: ["outer.inner"]}


def test_two_regions_of_one_function_both_become_stubs_with_one_yield():
    source = solution("yield 1") + "    # TODO 1: goal\n    ### BEGIN SOLUTION\n    yield 2\n    ### END SOLUTION\n"
    starter = regions.make_starter(source, "05")
    assert starter.count(RAISE_1) == 2 and starter.count("delete this line too") == 1


def test_a_goal_may_contain_quotes_and_lines_between_it_and_the_region():
    source = 'def f():\n    # TODO 1: say "hello"\n    # and more\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n'
    assert 'raise TodoError("TODO 1: say \\"hello\\"", lab="05")' in regions.make_starter(source, "05")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f():\n    ### BEGIN SOLUTION\n    pass\n    ### END SOLUTION\n", "line 2: no comment"),
        ("def f():\n    # TODO 1: goal\n    ### BEGIN SOLUTION\n    pass\n", "line 3: a region begins and never ends"),
        ("def f():\n    pass\n    ### END SOLUTION\n", "line 3: ### END SOLUTION without"),
        ("# TODO 1: goal\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n", "outside of every function"),
        (solution("pass\n    ### BEGIN SOLUTION\n    pass"), "begins inside the one from line 3"),
        (solution("pass") + solution("pass").replace("TODO 1", "TODO 2").replace("def f(a):\n", ""), "holds TODO 1 and TODO 2"),
    ],
)
def test_a_malformed_region_is_named_by_line(source: str, complaint: str):
    with pytest.raises(LabError, match=complaint):
        regions.find_regions(source)


IMPORT = "from labs.harness.todo import TodoError\n\n\n"
WORK = IMPORT + "def f(a):\n    return 'mine'\n\n\n@cached\ndef g(a):\n    return 'mine too'\n\n\nprint(1)\n"


def test_putting_one_function_back_leaves_the_others_alone():
    original = solution("return 1") + "\n\ndef g(a):\n    return 'theirs'\n"
    put_back = regions.put_back(WORK, original, ["g"])
    assert put_back == IMPORT + "def f(a):\n    return 'mine'\n\n\ndef g(a):\n    return 'theirs'\n\n\nprint(1)\n"


def test_putting_back_restores_the_import_that_a_finished_lab_no_longer_needed():
    work = "from labs.harness.todo import run_lab\n\ndef f(a):\n    return 1\n"
    assert regions.put_back(work, solution("return 1"), ["f"]).startswith("from labs.harness.todo import TodoError, run_lab\n")


def test_nothing_is_put_back_into_a_file_that_does_not_parse_or_lacks_the_function():
    with pytest.raises(LabError, match="line 1 is not Python yet"):
        regions.put_back("def f(:\n", solution("return 1"), ["f"])
    with pytest.raises(LabError, match="no function f any more"):
        regions.put_back("x = 1\n", solution("return 1"), ["f"])


def test_a_stand_in_calls_the_learners_other_functions():
    work = ast.parse("def helper():\n    return 'mine'\n\nclass C:\n    def f(self):\n        raise TodoError('TODO 1: x')\n")
    ours = ast.parse("def helper():\n    return 'ours'\n\nclass C:\n    def f(self):\n        return helper()\n")
    namespace: dict = {}
    exec(compile(regions.with_stand_ins(work, ours, ["C.f"]), "x", "exec"), namespace)
    assert namespace["C"]().f() == "mine"


def test_a_stand_in_brings_the_imports_that_the_learners_file_lacks():
    work = (
        '"""A lab."""\nfrom __future__ import annotations\nimport re\n' + "def f(a):\n    return g(a)\ndef g(a):\n    return 0\n"
    )
    ours = "import math\nimport re\nfrom functools import cache, reduce\n" + solution("return math.floor(a)", "def g(a):")
    text = regions.with_our_functions(work, ours, [1])
    module: dict = {}
    exec(text, module)
    assert module["f"](2.5) == 2
    assert module["__doc__"] == "A lab." and text.count("import re") == 1


def test_a_name_that_the_learner_gave_another_meaning_is_not_imported_over_it():
    work = "def floor(a):\n    return 'mine'\ndef f(a):\n    return floor(a)\ndef g(a):\n    return 0\n"
    ours = "from math import floor\n" + solution("return floor(a)", "def g(a):")
    module: dict = {}
    exec(regions.with_our_functions(work, ours, [1]), module)
    assert module["f"](2.5) == "mine"


def test_unwritten_todos_are_found_wherever_they_are_raised():
    tree = ast.parse(
        "def f():\n    raise TodoError('TODO 1: a')\n    raise todo.TodoError(\"TODO 12: b\", lab='05')\n"
        "    raise ValueError('TODO 3')\n"
    )
    assert regions.unwritten_todos(tree) == {1, 12}


@pytest.mark.parametrize("lab", all_labs(), ids=lambda lab: lab.id)
def test_a_starter_tells_which_functions_its_todos_are_in_as_its_solution_does(lab):
    source = lab.solution.read_text(encoding="utf-8")
    found = regions.functions_of_starter(regions.make_starter(source, lab.id))
    assert {todo: sorted(names) for todo, names in found.items()} == {
        todo: sorted(names) for todo, names in regions.functions_of(source).items()}
