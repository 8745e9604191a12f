"""`labs diagnose`: it names what it has seen, is silent where it cannot tell, and its tables are current."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grading.authoring import symptoms
from grading.authoring.mutants import Mutant, read_mutants
from grading.authoring.symptoms import Concept, MutantRun, Score, family_left_out, leave_one_out, symptoms_of
from labs.harness.catalog import LabError, all_labs, lab_at
from labs.harness.learner import diagnosis
from labs.harness.learner.diagnosis import Area, Symptom, diagnose, likeness, match, most_telling, pattern_of, same_everywhere
from labs.harness.learner.progress import Progress
from labs.harness.learner.results import Outcome

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
LABS = all_labs(PROJECT / "labs")


def failing(*tests: str, todo: int = 1, message: str = "no", unwritten: int | None = None) -> list[Outcome]:
    """A run in which these tests of a TODO fail, and one test passes."""
    failed = [Outcome(test, todo, 5, False, "AssertionError", unwritten, message=f"{message} in {test}") for test in tests]
    return [*failed, Outcome("passes", todo, 5, True)]


def symptom(says: str, *runs: list[Outcome], todo: int = 1, speaks: bool = True, area: Area | None = None) -> Symptom:
    return Symptom(todo, says, 2, tuple(pattern_of(run, todo) for run in runs), speaks, area)


TABLE = [
    symptom("edges", failing("a", "b"), failing("a", "b", "c")),
    symptom("order", failing("d")),
    symptom("elsewhere", failing("a", todo=2), todo=2),
]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (failing("a", "b"), "edges"),
        (failing("a", "b", "c"), "edges"),
        (failing("a", "b", "c", "e"), None),
        (failing("d"), "order"),
        (failing("d", message="another"), None),
        (failing("a", "d"), None),
        (failing("e"), None),
        (failing(), None),
        (failing("d", unwritten=1), None),
    ],
)
def test_a_kind_is_named_where_a_run_fails_just_as_it_does_and_nothing_otherwise(run, said):
    found = match(TABLE, run, 1)
    assert (found.says if found else None) == said


def test_two_kinds_that_look_alike_are_not_told_apart():
    table = [*TABLE, symptom("the same", failing("d"))]
    assert match(table, failing("d"), 1) is None
    quiet = [symptom("order", failing("d"), speaks=False)]
    assert match(quiet, failing("d"), 1) is None


BORDERS = Area(1, "a border is wrong", 1)
IN_AREAS = [
    symptom("first", failing("a", "b"), area=BORDERS),
    symptom("last", failing("a", "c"), area=BORDERS),
    symptom("order", failing("d", "e")),
]


def test_alike_kinds_are_told_by_their_area_and_a_kind_where_a_run_fails_just_as_it():
    assert match(IN_AREAS, failing("a"), 1) == BORDERS
    assert match(IN_AREAS, failing("a", "c"), 1) == IN_AREAS[1]
    assert match(IN_AREAS, failing("a", "c", "x"), 1) == BORDERS, "a kind has to fail just the same"
    assert match(IN_AREAS, failing("b", "d"), 1) is None, "half of what is near is another kind"
    assert match(IN_AREAS, failing("x"), 1) is None
    twins = [*IN_AREAS, symptom("inner", failing("a", "c"), area=BORDERS)]
    assert match(twins, failing("a", "c"), 1) == BORDERS, "two kinds fail just the same"
    quiet = [replace(one, area=replace(BORDERS, speaks=False) if one.area else None) for one in IN_AREAS]
    assert match(quiet, failing("a"), 1) is None


def test_only_the_nearest_runs_vote():
    far = [symptom(f"order {test}", failing("a", test)) for test in "pqrstuvw"]
    near = [symptom(f"border {test}", failing("a", "b", "c", test), area=BORDERS) for test in "defgh"]
    assert len(near) == diagnosis.NEAREST
    assert match([*far, *near], failing("a", "b", "c"), 1) == BORDERS
    assert match([*far, *near[:2]], failing("a", "b", "c"), 1) == BORDERS, "the more alike a run is, the more it counts"
    assert match([*far, *near], failing("a"), 1) is None


def test_mistakes_in_two_todos_are_told_apart():
    inner = Area(2, "an inner one is wrong", 1)
    table = [*TABLE[:2], *(replace(one, todo=2, area=inner if one.area else None) for one in IN_AREAS)]
    for second, said in ((failing("a", "b", todo=2), "first"), (failing("a", todo=2), inner.says)):
        run = [*failing("a", "b"), *second, *failing("e", todo=3)]
        assert {todo: one.says for todo, one in diagnose(table, run).items()} == {1: "edges", 2: said}
        assert diagnose(table, failing("a", "b")) | diagnose(table, second) == diagnose(table, run)


def test_the_most_telling_failure_is_the_first_that_explains_something():
    run = [
        Outcome("c", 1, 5, False, message="expected 4, got 5"),
        Outcome("a", 1, 5, False, message="A has three blocks and should have two of them"),
        Outcome("b", 1, 5, False, message="the newest token was not read by the second request"),
        Outcome("d", 1, 5, True), Outcome("d", 2, 5, False, message="of another TODO"),
    ]  # fmt: skip
    assert most_telling(run, 1).test == "a"
    assert most_telling(run[:1], 1).message == "expected 4, got 5", "rather than nothing"
    assert most_telling(run[3:4], 1) is None


def test_one_message_from_every_test_is_told_once_as_where_the_file_does_not_load():
    run = [Outcome(name, todo, 5, False, message="starter.py line 3: KeyError") for todo, name in ((1, "a"), (2, "b"))]
    assert same_everywhere(run) == "starter.py line 3: KeyError"
    assert same_everywhere([*run, Outcome("c", 2, 5, True)]) is None and same_everywhere(run[:1]) is None
    assert same_everywhere([replace(one, unwritten=1) for one in run]) is None


def test_numbers_lists_and_quoted_text_do_not_matter_but_wording_does():
    def pattern(message: str):
        return pattern_of([Outcome("a", 1, 5, False, "E", message=message)], 1)

    assert pattern("A has 3 blocks, [1, 2]: 'x' 1.5e-7") == pattern("A has 12 blocks, [7]: 'why' 2.0")
    assert pattern("A has 3 blocks") != pattern("A has 3 slots")
    assert likeness(pattern("A has 3 blocks"), pattern("A has 3 slots")) == pytest.approx(1 / 3)
    assert likeness({}, {}) == 0


# making and scoring tables


def seen(name: str, *tests: str, todo: int = 1) -> MutantRun:
    mutant = Mutant("07", name, todo, "author", "a slip", name, f"{name} it is", 1)
    return MutantRun(mutant, tuple(failing(*tests, todo=todo)))


BUGS = [seen("one", "a", "b"), seen("two", "a", "b", "c"), seen("three", "d"), seen("four", "e", todo=2)]
CONCEPTS = {name: Concept(1, "edges", 2) for name in ("one", "two")} | {
    "three": Concept(1, "three it is", 1), "four": Concept(2, "four it is", 1)}  # fmt: skip


def test_a_table_has_one_entry_for_each_concept():
    table = symptoms_of(BUGS, CONCEPTS)
    assert [(entry.todo, entry.says, entry.hint, len(entry.patterns), entry.speaks) for entry in table] == [
        (1, "edges", 2, 2, True),
        (1, "three it is", 1, 1, True),
        (2, "four it is", 1, 1, True),
    ]


def test_left_out_one_by_one_a_bug_is_right_only_by_its_concept():
    bugs = [*BUGS, seen("five", "a", "b")]
    assert leave_one_out(bugs, CONCEPTS | {"five": CONCEPTS["one"]}) == Score(right_kinds=2, silent=3), "as one and five fail"
    lone = {name: Concept(1, name, 1) for name in ("one", "two", "three", "five")} | {"four": Concept(2, "four", 1)}
    assert leave_one_out([bugs[0], *bugs[2:]], lone) == Score(wrong_kinds=2, silent=2)


def test_what_stems_from_a_mutant_is_diagnosed_without_it():
    same = seen("one in another", "a", "b", "c")
    assert family_left_out(BUGS, [(same, "one")], CONCEPTS) == Score(right_kinds=1), "by its concept's other mutant"
    assert family_left_out(BUGS, [(same, "two")], CONCEPTS) == Score(silent=1)
    assert family_left_out(BUGS, [(seen("three in another", "d"), "three")], CONCEPTS) == Score(silent=1)


def test_an_area_is_right_for_a_mutant_none_of_whose_concept_is_known():
    area = Area(1, "letters", 1)
    of = {name: Concept(1, name, 1, area) for name in ("first", "second", "third")} | {"other": Concept(1, "other", 1)}
    bugs = [seen("first", "a", "b"), seen("second", "a", "c"), seen("third", "a", "d", "e"), seen("other", "x")]
    assert leave_one_out(bugs, of) == Score(right_areas=3, silent=1)


@pytest.mark.parametrize(
    ("score", "enough"),
    [
        (Score(30, 22, 3, 5, 40), True),
        (Score(29, 20, 3, 7, 41), False),
        (Score(30, 25, 0, 4, 41), False),
        (Score(30, 25, 4, 1, 40), False),
    ],
    ids=["enough", "too seldom right", "too seldom anything", "too often false"],
)
def test_a_score_is_enough_if_it_speaks_often_is_mostly_right_and_seldom_false(score, enough):
    assert score.is_enough is enough


def test_concepts_that_are_mistaken_for_each_other_do_not_speak():
    bugs = [seen("one", "a", "b"), seen("two", "a", "b"), seen("three", "d")]
    lone = {name: Concept(1, name, 1) for name in ("one", "two", "three")}
    assert {entry.says: entry.speaks for entry in symptoms_of(bugs, lone)} == {"one": False, "two": False, "three": True}


def test_mutants_that_nothing_gathers_are_concepts_of_their_own(tmp_path, toy):
    mutants = [one.mutant for one in BUGS]
    (tmp_path / "lab07").mkdir()
    file = tmp_path / "lab07" / "concepts.toml"
    file.write_text('[[concept]]\ntodo = 1\nsays = "edges"\nhint = 2\nmutants = ["one", "two"]\n')
    assert symptoms.concepts(lab_at(toy), mutants, tmp_path) == CONCEPTS
    file.write_text('[[concept]]\ntodo = 2\nsays = "edges"\nhint = 2\nmutants = ["one"]\n')
    with pytest.raises(LabError, match="no mutant one of TODO 2"):
        symptoms.concepts(lab_at(toy), mutants, tmp_path)


def test_a_concept_is_in_the_area_that_names_one_of_its_mutants_and_in_no_second_one(tmp_path, toy):
    mutants = [one.mutant for one in BUGS]
    (tmp_path / "lab07").mkdir()
    file = tmp_path / "lab07" / "concepts.toml"
    concept = '[[concept]]\ntodo = 1\nsays = "edges"\nhint = 2\nmutants = ["one", "two"]\n'
    area = '[[area]]\ntodo = 1\nsays = "both"\nmutants = ["two", "three"]\n'
    file.write_text(concept + area)
    found = symptoms.concepts(lab_at(toy), mutants, tmp_path)
    both = dict.fromkeys(("one", "two", "three"), Area(1, "both", 1))
    assert {name: one.area for name, one in found.items()} == both | {"four": None}
    file.write_text(concept + area + area.replace("both", "more"))
    with pytest.raises(LabError, match="is in two areas"):
        symptoms.concepts(lab_at(toy), mutants, tmp_path)
    file.write_text(concept + area.replace("three", "four"))
    with pytest.raises(LabError, match="no mutant four of TODO 1"):
        symptoms.concepts(lab_at(toy), mutants, tmp_path)


def test_only_what_differs_in_functions_can_be_carried_over():
    solution = "LIMIT = 3\ndef f(a):\n    return a\ndef g(a, b=1):\n    return b\n"
    assert symptoms._changed(solution, solution.replace("return b", "return a")) == ["g"]
    assert symptoms._fits("def g(a, b=1):\n    pass\n", solution, ["g"])
    assert not symptoms._fits("def g(a, b=2):\n    pass\n", solution, ["g"])
    assert not symptoms._fits("def f(a):\n    pass\n", solution, ["g"])


# the labs' tables


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_the_table_is_current(lab):
    assert symptoms.is_current(lab), f"python -m grading symptoms {lab.id}"
    found = symptoms.concepts(lab, read_mutants(lab)).values()
    names = {(one.todo, one.says, one.hint, one.area and one.area.says) for one in found}
    for entry in diagnosis.read_table(lab):
        assert (entry.todo, entry.says, entry.hint, entry.area and entry.area.says) in names and entry.patterns
        assert entry.hint in (1, 2, 3) and "\n" not in entry.says


def test_what_a_table_was_made_from_shows(tmp_path, toy):
    lab, folder = lab_at(toy), tmp_path / "lab07" / "mutants"
    folder.mkdir(parents=True)
    digests = {symptoms.made_from(lab, tmp_path)}
    (folder / "todo_1.toml").write_text('[[mutant]]\nname = "slip"\nkind = "author"\n')
    digests.add(symptoms.made_from(lab, tmp_path))
    (folder / "todo_2.toml").write_text('[[mutant]]\nname = "other"\nkind = "blind"\n')
    digests.add(symptoms.made_from(lab, tmp_path))
    assert len(digests) == 2, "a blind one is not in the table"
    lab.tests.write_text(lab.tests.read_text().replace("test_todo_1_doubles_four", "test_todo_1_doubles_five"))
    assert symptoms.made_from(lab, tmp_path) not in digests


# as a learner meets it


WRONG = {"return 2 * number + 1": "One is added.", "raise ZeroDivisionError('oh')": "Something is divided."}


def make_table(workshop, toy) -> None:
    """A `symptoms.json` from runs on two wrong starters."""
    stub = 'raise TodoError("TODO 1: return twice the number", lab="07")'
    fresh, entries = (toy / "starter.py").read_text(), []
    for code, says in WRONG.items():
        (toy / "wrong.py").write_text(fresh.replace(stub, code))
        outcomes, _ = workshop.outcomes("lab07_toy/test_lab.py", "--impl", "lab07_toy/wrong.py", "-k", "todo_1")
        pattern = pattern_of([Outcome.from_json(facts) for facts in outcomes["07"]], 1)
        entries.append({"todo": 1, "says": says, "hint": 2, "patterns": [pattern], "speaks": True})
    (toy / "symptoms.json").write_text(json.dumps({"made_from": "", "symptoms": entries}))
    (toy / "starter.py").write_text(fresh.replace(stub, "return 2 * number + 1"))


@pytest.mark.proof
@pytest.mark.slow
def test_a_diagnosis_is_announced_given_when_asked_for_and_noted(workshop, toy):
    make_table(workshop, toy)
    run = workshop.pytest("lab07_toy/test_lab.py").stdout
    assert "A diagnosis is available: python -m labs diagnose 07 --todo 1\n" in run and "One is added" not in run
    assert Progress(workshop.home).diagnoses_used("07", 1) == 0
    assert "A diagnosis is" not in workshop.pytest("lab07_toy/test_lab.py", "-k", "doubles_four").stdout, (
        "not from a part of its tests"
    )
    said = workshop.labs("diagnose", "7").stdout
    assert ("Lab 07, TODO 1: 3 of 3 tests fail. Probably:\n  One is added.\n"
            "  Hint 2 fits; all hints: python -m labs hint 07 1 --all\n") in said
    assert "Lab 07, TODO 2: not started" in said and "Something is divided" not in said
    assert Progress(workshop.home).diagnoses_used("07", 1) == 1
    assert "diagnosed 1 time)" in workshop.labs("status").stdout


@pytest.mark.proof
@pytest.mark.slow
def test_an_unknown_mistake_is_not_named_and_the_most_telling_message_is_repeated(workshop, toy):
    make_table(workshop, toy)
    text = (toy / "starter.py").read_text()
    wrong = "raise RuntimeError(f'the number {number} is one that nobody ever thought of')"
    (toy / "starter.py").write_text(text.replace("return 2 * number + 1", wrong))
    said = workshop.labs("diagnose", "7", "--todo", "1")
    assert "3 of 3 tests fail, but not like a known mistake." in said.stdout and said.returncode == 0
    assert "  the number 4 is one that nobody ever thought of\n  Hints: python -m labs hint 07 1\n" in said.stdout
    assert Progress(workshop.home).diagnoses_used("07", 1) == 0
    (toy / "starter.py").write_text(text.replace("return 2 * number + 1", "return ("))
    broken = workshop.labs("diagnose", "7")
    assert broken.returncode == 2 and "starter.py line" in broken.stderr and broken.stderr.count("\n") == 1
    (toy / "symptoms.json").unlink()
    without = workshop.labs("diagnose", "7")
    assert without.returncode == 2 and "nothing to compare with" in without.stderr
