"""Labs' `symptoms.json`: how runs fail on the mutants, for `labs diagnose`; and how often that is right.

`grading/labs/labNN/concepts.toml` groups mutants that one sentence describes into a concept; any other mutant is
a concept of its own, with its own symptom and hint. The same file groups concepts into areas, each with a
coarser sentence that is used where the concept cannot be recognised. Mutants of the kind `blind` stay out of the
table, because they are used to score it.
"""

import ast
import functools
import hashlib
import itertools
import json
import random
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rich.table import Table

from grading.authoring import suite_runner
from grading.authoring.alternatives import read_alternatives
from grading.authoring.mutants import Mutant, entries_of, mutant_of
from grading.labs import HOME, authors_folder
from labs.harness import files, regions
from labs.harness.catalog import Lab, LabError
from labs.harness.learner.diagnosis import FILE, Area, Pattern, Symptom, match, nearest, pattern_of, table_of
from labs.harness.learner.results import Outcome
from labs.harness.regions import definitions

IN_TABLE = ("author",)
ENOUGH = {Symptom: 0.8, Area: 0.6}
"""The share of answers about a concept, or an area, that have to be right; otherwise the table never gives that answer."""
SPOKEN_OF_ALL, RIGHT_OF_SPOKEN, FALSE_OF_ALL = 0.6, 0.85, 0.03
"""Bounds for single mistakes, all labs together: at least, at least, and at most; false means a wrong concept."""
SINGLE = ("left out", "blind")
"""The kinds of bugs that are a single mistake and that the table was not made from."""


@dataclass(frozen=True)
class MutantRun:
    """A mutant and how the tests of its TODO ended on it; no outcomes if the run did not get to its end."""

    mutant: Mutant
    outcomes: tuple[Outcome, ...]

    @property
    def fails(self) -> bool:
        """Whether any test failed."""
        return any(not outcome.passed for outcome in self.outcomes)


@dataclass(frozen=True)
class Concept:
    """The sentence about a mutant and all others with the same mistake."""

    todo: int
    says: str
    hint: int
    area: Area | None = None


# making the table


def concepts(lab: Lab, mutants: Iterable[Mutant], home: Path = HOME) -> dict[str, Concept]:
    """Mutant -> its concept. Raises `LabError` for an entry that names no mutant of its TODO."""
    named = {mutant.name: mutant for mutant in mutants}
    concept_of = {name: Concept(mutant.todo, mutant.symptom.strip(), mutant.hint or 1) for name, mutant in named.items()}
    path = authors_folder(lab, home) / "concepts.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for entry in tables.get("concept", []):
        for name in entry["mutants"]:
            if name not in named or named[name].todo != entry["todo"]:
                raise LabError(f"{path}: lab {lab.id} has no mutant {name} of TODO {entry['todo']}.")
            concept_of[name] = Concept(entry["todo"], entry["says"], entry["hint"])
    return _with_areas(concept_of, tables.get("area", []), path)


def _with_areas(concept_of: dict[str, Concept], entries: Iterable[dict], path: Path) -> dict[str, Concept]:
    """The concepts with their areas. An area lists one or more mutants of each of its concepts; its hint is their lowest."""
    area_of: dict[Concept, Area] = {}
    for entry in entries:
        if strange := [name for name in entry["mutants"] if name not in concept_of or concept_of[name].todo != entry["todo"]]:
            raise LabError(f"{path}: there is no mutant {strange[0]} of TODO {entry['todo']}.")
        gathered = {concept_of[name] for name in entry["mutants"]}
        if twice := gathered & area_of.keys():
            raise LabError(f"{path}: {twice.pop().says!r} is in two areas.")
        area_of |= dict.fromkeys(gathered, Area(entry["todo"], entry["says"], min(concept.hint for concept in gathered)))
    return {name: replace(concept, area=area_of.get(concept)) for name, concept in concept_of.items()}


def symptoms_of(seen: Iterable[MutantRun], concept_of: dict[str, Concept]) -> list[Symptom]:
    """The table: concepts, the different patterns of their mutants, and whether each can be told from the others."""
    seen = [bug for bug in seen if bug.fails]
    patterns = [pattern_of(bug.outcomes, bug.mutant.todo) for bug in seen]
    named = [concept_of[bug.mutant.name] for bug in seen]
    return [symptom for todo in sorted({concept.todo for concept in named}) for symptom in _of_todo(todo, named, patterns)]


def _of_todo(todo: int, concepts: Sequence[Concept], patterns: Sequence[Pattern]) -> list[Symptom]:
    """The table of one TODO. Concepts, and then areas, that cannot be told from others never become an answer."""
    own = [(concept, pattern) for concept, pattern in zip(concepts, patterns, strict=True) if concept.todo == todo]
    quiet: set[str] = set()
    for level in (Symptom, Area):
        diagnoses = [nearest(_gathered(own[:index] + own[index + 1 :], quiet), pattern) for index, (_, pattern) in enumerate(own)]
        answers = [
            (concept.says if level is Symptom else concept.area.says if concept.area else "", answer.says)
            for (concept, _), answer in zip(own, diagnoses, strict=True) if isinstance(answer, level)]
        quiet |= {says for pair in answers for says in pair if not _is_right_often_enough(says, answers, ENOUGH[level])}
    return _gathered(own, quiet)


def _gathered(own: Iterable[tuple[Concept, Pattern]], quiet: Collection[str]) -> list[Symptom]:
    """One symptom for each concept, with its different patterns."""
    patterns_of: dict[Concept, list[Pattern]] = {}
    for concept, pattern in own:
        known = patterns_of.setdefault(concept, [])
        known += [pattern] * (pattern not in known)
    return [
        Symptom(concept.todo, concept.says, concept.hint, tuple(known), concept.says not in quiet,
                replace(concept.area, speaks=concept.area.says not in quiet) if concept.area else None)
        for concept, known in patterns_of.items()]


def _is_right_often_enough(says: str, answers: Iterable[tuple[str, str]], enough: float) -> bool:
    """Whether enough answers that involve `says` are right, each mutant being diagnosed by a table made without it."""
    about = [true == answer for true, answer in answers if says in (true, answer)]
    return sum(about) >= enough * len(about)


def write_table(lab: Lab, seen: Iterable[MutantRun], concept_of: dict[str, Concept]) -> Path:
    """Write the lab's `symptoms.json`."""
    entries = sorted(symptoms_of(seen, concept_of), key=lambda symptom: (symptom.todo, symptom.says))
    path = lab.folder / FILE
    table = {"made_from": made_from(lab), **table_of(entries)}
    files.replace(path, (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def made_from(lab: Lab, home: Path = HOME) -> str:
    """A digest of the edited sources of a table: its mutants, the concepts, the names of the tests."""
    kept = {name: entry for name, entry in entries_of(lab, home).items() if entry.get("kind") in IN_TABLE}
    path = authors_folder(lab, home) / "concepts.toml"
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    digest.update(path.read_bytes() if path.is_file() else b"")
    names = [name for name in definitions(ast.parse(lab.tests.read_text(encoding="utf-8"))) if name.startswith("test_todo_")]
    digest.update("\n".join(sorted(names)).encode())
    return digest.hexdigest()


def is_current(lab: Lab) -> bool:
    """Whether the lab's `symptoms.json` was made from the present mutants, concepts and tests."""
    path = lab.folder / FILE
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["made_from"] == made_from(lab)


# running


def see(
    lab: Lab,
    mutants: Sequence[Mutant],
    cache: Path | None = None,
    parallel: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[MutantRun]:
    """Run the tests of each mutant's TODO on it; `cache` keeps results, for as long as suite and mutant stay as they are."""
    jobs = [suite_runner.Job(lab, mutant.text, f"test_todo_{mutant.todo}_", seconds=90.0) for mutant in mutants]
    kept = [_kept(cache, job) for job in jobs]
    missing = [job for job, path in zip(jobs, kept, strict=True) if path is None or not path.is_file()]
    fresh = iter(suite_runner.run(missing, parallel, done))
    seen = []
    for mutant, path in zip(mutants, kept, strict=True):
        if path is not None and path.is_file():
            outcomes = json.loads(path.read_text(encoding="utf-8"))
        else:
            outcomes = next(fresh).outcomes
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(outcomes), encoding="utf-8")
        seen.append(MutantRun(mutant, tuple(map(Outcome.from_json, outcomes))))
    return seen


def _kept(cache: Path | None, job: suite_runner.Job) -> Path | None:
    if cache is None:
        return None
    digest = hashlib.sha256("\0".join([job.lab.tests.read_text(encoding="utf-8"), job.text, job.select]).encode())
    return cache / f"lab{job.lab.id}-{digest.hexdigest()[:24]}.json"


# scoring


@dataclass(frozen=True)
class Score:
    """How often a diagnosis is right for bugs that are not in the table."""

    right_kinds: int = 0
    right_areas: int = 0
    wrong_kinds: int = 0
    wrong_areas: int = 0
    silent: int = 0

    @property
    def right(self) -> int:
        """How often a diagnosis, concept or area, was right."""
        return self.right_kinds + self.right_areas

    @property
    def spoken(self) -> int:
        """How often a diagnosis was made, right or wrong."""
        return self.right + self.wrong_kinds + self.wrong_areas

    @property
    def count(self) -> int:
        """All bugs, with and without a diagnosis."""
        return self.spoken + self.silent

    @property
    def is_enough(self) -> bool:
        """Whether diagnoses are frequent enough, right often enough, and rarely enough false."""
        often = self.spoken >= SPOKEN_OF_ALL * self.count and self.right >= RIGHT_OF_SPOKEN * self.spoken
        return often and self.wrong_kinds <= FALSE_OF_ALL * self.count

    def __add__(self, other: "Score") -> "Score":
        return Score(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def scored(diagnosis: Symptom | Area | None, true: Iterable[Concept]) -> Score:
    """The score of one bug, from the diagnosis and the concepts that are true of it."""
    if diagnosis is None:
        return Score(silent=1)
    if isinstance(diagnosis, Area):
        is_right = any(concept.area is not None and concept.area.says == diagnosis.says for concept in true)
        return Score(right_areas=is_right, wrong_areas=not is_right)
    is_right = any(concept.says == diagnosis.says for concept in true)
    return Score(right_kinds=is_right, wrong_kinds=not is_right)


def without(seen: Sequence[MutantRun], name: str, concept_of: dict[str, Concept], todo: int) -> list[Symptom]:
    """The table of a TODO, made of all mutants but one."""
    return symptoms_of([bug for bug in seen if bug.mutant.name != name and bug.mutant.todo == todo], concept_of)


def leave_one_out(seen: Sequence[MutantRun], concept_of: dict[str, Concept]) -> Score:
    """Each mutant, diagnosed without itself."""
    return family_left_out(seen, [(bug, bug.mutant.name) for bug in seen], concept_of)


def family_left_out(seen: Sequence[MutantRun], bugs: Iterable[tuple[MutantRun, str]], concept_of: dict[str, Concept]) -> Score:
    """Wrong solutions, each derived from a mutant, diagnosed without that mutant."""
    score = Score()
    for bug, name in bugs:
        table = without(seen, name, concept_of, bug.mutant.todo)
        score += scored(match(table, bug.outcomes, bug.mutant.todo), [concept_of[name]])
    return score


def score_others(table: Sequence[Symptom], seen: Iterable[MutantRun], true: dict[str, list[Concept]]) -> Score:
    """Other wrong solutions, on the whole table; `true` has the concepts that are true of each, by its name."""
    return sum((scored(match(table, bug.outcomes, bug.mutant.todo), true[bug.mutant.name]) for bug in seen), Score())


def pairs(lab: Lab, mutants: Sequence[Mutant], most: int, seed: str, home: Path = HOME) -> dict[str, tuple[Mutant, set[str]]]:
    """Up to `most` solutions with two mutants of one TODO at once; their names, the solutions, the two names."""
    candidates = [pair for pair in itertools.combinations(mutants, 2) if pair[0].todo == pair[1].todo]
    random.Random(f"{seed}:{lab.id}").shuffle(candidates)
    entries, both_at_once = entries_of(lab, home), dict[str, tuple[Mutant, set[str]]]()
    for first, second in candidates:
        if len(both_at_once) >= most:
            break
        try:
            both = mutant_of(entries[second.name], lab.id, first.text)
        except LabError:  # they change the same lines
            continue
        name = f"{first.name} and {second.name}"
        both_at_once[name] = (replace(both, name=name), {first.name, second.name})
    return both_at_once


def carried_over(lab: Lab, mutants: Sequence[Mutant], most: int, seed: str) -> list[tuple[Mutant, Mutant]]:
    """Up to `most` mutants whose functions fit into an alternative: that wrong solution, and a control.

    The control has our right functions in that place. It has to pass; otherwise the functions do not fit after all.
    """
    solution = lab.solution.read_text(encoding="utf-8")
    candidates = [(alternative, mutant) for alternative in read_alternatives(lab) for mutant in mutants]
    random.Random(f"{seed}:{lab.id}").shuffle(candidates)
    carried: list[tuple[Mutant, Mutant]] = []
    for alternative, mutant in candidates:
        names = _changed(solution, mutant.text)
        if len(carried) < most and names and _fits(alternative.text, solution, names):
            wrong, control = (regions.put_back(alternative.text, text, names) for text in (mutant.text, solution))
            name = f"{mutant.name} in {alternative.name}"
            carried.append((replace(mutant, name=name, text=wrong), replace(mutant, name=name, text=control)))
    return carried


def _changed(solution: str, text: str) -> list[str]:
    """The functions in which a mutant differs; none if it differs outside of functions too."""
    before, after = _meanings(solution), _meanings(text)
    return [name for name in before if before[name] != after.get(name)] if before.keys() == after.keys() else []


@functools.cache
def _meanings(text: str) -> dict[str, str]:
    return {name: ast.dump(node) for name, node in definitions(ast.parse(text)).items()}


def _fits(alternative: str, solution: str, names: Sequence[str]) -> bool:
    """Whether the alternative has these functions, with the same arguments."""
    there, ours = definitions(ast.parse(alternative)), definitions(ast.parse(solution))
    return all(name in there and ast.dump(there[name].args) == ast.dump(ours[name].args) for name in names)


def score(
    lab: Lab, seen: Sequence[MutantRun], most: int, seed: str, run: Callable[[Sequence[Mutant]], list[MutantRun]]
) -> dict[str, Score]:
    """Scores the diagnosis on bugs it has not seen; `run` runs mutants.

    A bug derived from a mutant in the table is diagnosed without that mutant. In a pair of mutants, both are in the table,
    but never together.
    """
    in_table = [bug for bug in seen if bug.mutant.kind in IN_TABLE and bug.fails]
    blind = [bug for bug in seen if bug.mutant.kind == "blind" and bug.fails]
    concept_of = concepts(lab, [bug.mutant for bug in seen])
    table = symptoms_of(in_table, concept_of)
    mutants = [bug.mutant for bug in in_table]
    both = pairs(lab, mutants, most, seed)
    of_both = {name: [concept_of[part] for part in parts] for name, (_, parts) in both.items()}
    carried = carried_over(lab, mutants, most, seed)
    controls = run([control for _, control in carried])
    passing = [control.outcomes and not control.fails for control in controls]
    fitting = [wrong for (wrong, _), fits in zip(carried, passing, strict=True) if fits]
    of_carried = [(bug, bug.mutant.name.partition(" in ")[0]) for bug in run(fitting) if bug.fails]
    return {
        "left out": leave_one_out(in_table, concept_of),
        "blind": score_others(table, blind, {bug.mutant.name: [concept_of[bug.mutant.name]] for bug in blind}),
        "in alternatives": family_left_out(in_table, of_carried, concept_of),
        "two at once": score_others(table, [bug for bug in run([mutant for mutant, _ in both.values()]) if bug.fails], of_both),
    }


def single(scores: dict[str, dict[str, Score]]) -> Score:
    """The score on single mistakes, all labs together: the bounds for the diagnosis apply to these."""
    return sum((of_kind for kinds in scores.values() for kind, of_kind in kinds.items() if kind in SINGLE), Score())


def score_table(scores: dict[str, dict[str, Score]]) -> Table:
    """For each lab and kind of bug: how many there are, the diagnoses, and how many were right; then all labs together."""
    table = Table(title="bugs that are not in the table", title_justify="left")
    for heading in ("lab", "bugs", "count", "kind", "area", "wrong kind", "wrong area", "spoken", "right of spoken", "false"):
        table.add_column(heading, justify="left" if heading in ("lab", "bugs") else "right", no_wrap=heading == "bugs")
    totals: dict[str, Score] = {}
    for lab_id, kinds in scores.items():
        for kind, of_kind in kinds.items():
            totals[kind] = totals.get(kind, Score()) + of_kind
            if of_kind.count:
                table.add_row(lab_id, kind, *_cells(of_kind))
    table.add_section()
    for kind, of_kind in totals.items():
        table.add_row("all", kind, *_cells(of_kind))
    table.add_row("all", "single mistakes", *_cells(single(scores)))
    table.add_row("all", "all", *_cells(sum(totals.values(), Score())))
    return table


def _cells(score: Score) -> list[str]:
    parts = ((score.spoken, score.count), (score.right, score.spoken), (score.wrong_kinds, score.count))
    shares = [f"{part / of:.0%}" if of else "–" for part, of in parts]
    counts = (score.count, score.right_kinds, score.right_areas, score.wrong_kinds, score.wrong_areas)
    return [*map(str, counts), *shares]
