"""A copy with other names is found; honest solutions that are built differently are not.

What everybody was given does not count.
"""

import ast
import json
import re
from pathlib import Path

import pytest

from grading.authoring.alternatives import read_alternatives
from grading.cohort import similarity
from grading.cohort.similarity import ALIKE, Source, pairs
from labs.harness.catalog import all_labs, find_lab

pytest.importorskip("copydetect", reason="needs the extra `similarity`: pip install -e '.[similarity]'")

LAB = find_lab("06")
STARTER = LAB.starter.read_text(encoding="utf-8")
ALTERNATIVES = {one.name: one.text for one in read_alternatives(LAB)}
HEAP, QUEUE = ALTERNATIVES["heap_and_tuples"], ALTERNATIVES["queue_and_one_method"]


def renamed(text: str) -> str:
    """`text` with other names for all that it binds, other docstrings and no comments."""
    tree = ast.parse(text)
    bound = {one.arg for one in ast.walk(tree) if isinstance(one, ast.arg)} | {
        one.id for one in ast.walk(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    for name in sorted(bound - {"self"}):
        text = re.sub(rf"(?<![\w.]){name}(?!\w)", f"mine_{len(name)}_{name[::-1]}", text)
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M)
    return "# my own work\n\n" + text.replace('"""', '"""Indeed: ', 1)


def test_a_copy_with_other_names_is_found():
    copy = renamed(HEAP)
    assert copy != HEAP and ast.dump(ast.parse(copy)) != ast.dump(ast.parse(HEAP))
    found, = pairs([Source("ada", HEAP), Source("ben", copy)], STARTER)
    assert {found.one, found.other} == {"ada", "ben"} and found.share > 0.95
    assert all(1 <= first <= last <= len(HEAP.splitlines()) for first, last in found.lines[0]), "lines of ada's file"


def test_two_honest_solutions_are_not_listed():
    found = pairs([Source("ada", HEAP), Source("ben", QUEUE)], STARTER, least=0.0)
    assert len(found) == 1 and found[0].share < ALIKE - 0.2, f"they share {found[0].share:.0%}"


def test_a_copy_of_half_is_found_from_the_side_of_who_copied():
    functions = [node for node in ast.parse(HEAP).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    part = "\n".join(ast.unparse(node) for node in functions[: len(functions) // 2])
    found, = pairs([Source("ada", ast.unparse(ast.parse(HEAP))), Source("ben", part)], STARTER, least=0.0)
    shares = dict(zip((found.one, found.other), found.shares, strict=True))
    assert shares["ben"] > 0.9 > shares["ada"] and found.share == shares["ben"]


def test_what_everybody_was_given_does_not_count():
    found = pairs([Source("ada", STARTER), Source("ben", STARTER)], STARTER, least=0.0)
    assert [pair.share for pair in found] == [0.0]
    counted = pairs([Source("ada", STARTER), Source("ben", STARTER)], "", least=0.0)
    assert counted[0].share == 1.0, "and would count if it were not given"


def test_our_solution_and_the_engines_part_are_compared_too_but_not_with_each_other():
    ours = similarity.ours(LAB)
    engine = "nano_qwen3_serving.scheduling.block_manager"
    assert [one.name for one in ours] == ["the solution", engine] and all(one.ours for one in ours)
    solution, reference = (one.text for one in ours)
    found = pairs([Source("ada", renamed(solution)), Source("ben", reference), Source("cem", QUEUE), *ours], STARTER)
    assert {frozenset((pair.one, pair.other)) for pair in found} == {frozenset(("ada", "the solution")),
                                                                     frozenset(("ben", engine))}


def test_last_terms_submissions_are_compared_with_and_not_with_each_other(tmp_path):
    for name, text in {"2026/eva": HEAP, "2026/fay": renamed(HEAP), "2027/ada": renamed(HEAP), "2027/ben": QUEUE}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "starter.py").write_text(text, encoding="utf-8")
    old, (new, _) = similarity.earlier(tmp_path / "2026", LAB), similarity.read_sources(tmp_path / "2027", LAB)
    found = {frozenset((pair.one, pair.other)) for pair in pairs([*new, *old], STARTER)}
    assert found == {frozenset(("ada", "2026/eva")), frozenset(("ada", "2026/fay"))}


def test_an_own_line_that_our_short_function_has_too_makes_nobody_a_copier():
    """Beside our code counts what share of the submission is ours, not the other way round."""
    text = ("def size(rows, columns):\n    total = 0\n    for row in range(rows):\n"
            "        total += columns ** 2 - row * 3\n    return total // 7\n")
    short = Source("ours", text, ours=True)
    found, = pairs([Source("ada", QUEUE + "\n\n" + short.text), short], STARTER, least=0.0)
    assert max(found.shares) > 0.9 > 0.2 > found.share


@pytest.mark.parametrize("lab", all_labs(), ids=lambda lab: lab.id)
def test_every_lab_has_what_is_compared_with(lab):
    first, *engine = similarity.ours(lab)
    assert first.name == "the solution" and all(one.text.strip() for one in engine)
    assert bool(engine) == any(name.startswith("nano_qwen3_serving.") for name in lab.refuse)


def test_the_order_of_submissions_and_runs_changes_nothing():
    sources = [Source(name, text) for name, text in sorted(ALTERNATIVES.items())]
    found = pairs(sources, STARTER, least=0.0)
    again = pairs(sources[::-1], STARTER, least=0.0)
    assert [frozenset((one.one, one.other)) for one in found] == [frozenset((one.one, one.other)) for one in again]
    assert sorted(round(one.share, 9) for one in found) == sorted(round(one.share, 9) for one in again)


def test_submissions_are_read_as_they_are_for_grading(tmp_path):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "starter.py").write_text(HEAP)
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben" / "notes.txt").write_text("nothing yet")
    (tmp_path / "cem.py").write_text("this is ( no Python")
    sources, unusable = similarity.read_sources(tmp_path, LAB)
    assert [one.name for one in sources] == ["ada", "cem"]
    assert len(unusable) == 1 and unusable[0].startswith("ben: there is no starter.py")
    pairs(sources, STARTER)
    with pytest.raises(ValueError, match="no folder"):
        similarity.read_sources(tmp_path / "nowhere", LAB)


def test_who_handed_in_the_same_predictions_is_named(tmp_path: Path):
    mine, other = ({"seed": seed, "answers": {"peak": 3}} for seed in (1, 2))
    handed_in = {"ada": [mine], "ben": [other, mine], "cem": [other | {"answers": {"peak": 4}}], "dee": None,
                 "eve": [{"seed": 1, "answers": {}}], "fay": [{"seed": 1, "answers": {}}]}
    for student, attempts in handed_in.items():
        (tmp_path / student).mkdir()
        (tmp_path / student / "starter.py").write_text("x = 1\n", encoding="utf-8")
        content = "no JSON" if attempts is None else json.dumps({"attempts": attempts})
        (tmp_path / student / "predictions.json").write_text(content, encoding="utf-8")
    assert similarity.same_predictions(tmp_path, LAB) == [("ada", "ben")]
