"""Labs' `symptoms.json`: how runs fail on the mutants, for `labs diagnose`; and how often that is right.

Mutants that one sentence is true of are gathered in `grading/concepts/labNN.toml`; any other is a
concept of its own, with its own symptom and hint. Mutants of the kind `blind` stay out of the table:
with them it is scored.
"""

import ast
import functools
import hashlib
import itertools
import json
import random
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

from grading import kill
from grading.mutants import HERE, Mutant, read_alternatives, read_mutant
from labs.harness import regions
from labs.harness.catalog import Lab, LabError
from labs.harness.diagnosis import FILE, Pattern, Symptom, match, nearest, pattern_of
from labs.harness.regions import definitions
from labs.harness.results import Outcome

IN_TABLE = ("author",)
ENOUGH = 0.8
"""The share of answers about a concept that have to be right, or it does not speak."""
RIGHT_OF_SPOKEN, WRONG_OF_ALL = 0.8, 0.05
"""What is asked of all labs together: at least, and at most."""


@dataclass(frozen=True)
class Seen:
    """A mutant and how the tests of its TODO ended on it; no outcomes if they did not get to their end."""

    mutant: Mutant
    outcomes: tuple[Outcome, ...]

    @property
    def fails(self) -> bool:
        """Whether any test failed."""
        return any(not outcome.passed for outcome in self.outcomes)


@dataclass(frozen=True)
class Concept:
    """What is said of a mutant, and of others with the same mistake."""

    todo: int
    says: str
    hint: int


# making the table


def concepts(lab: Lab, mutants: Iterable[Mutant], home: Path = HERE) -> dict[str, Concept]:
    """Mutant -> its concept. Raises `LabError` for an entry that names no mutant of its TODO."""
    named = {mutant.name: mutant for mutant in mutants}
    found = {name: Concept(mutant.todo, mutant.symptom.strip(), mutant.hint or 1) for name, mutant in named.items()}
    path = home / "concepts" / f"lab{lab.id}.toml"
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("concept", []) if path.is_file() else []
    for entry in entries:
        for name in entry["mutants"]:
            if name not in named or named[name].todo != entry["todo"]:
                raise LabError(f"{path}: lab {lab.id} has no mutant {name} of TODO {entry['todo']}.")
            found[name] = Concept(entry["todo"], entry["says"], entry["hint"])
    return found


def symptoms_of(seen: Iterable[Seen], concept_of: dict[str, Concept]) -> list[Symptom]:
    """The table: concepts, the different patterns of their mutants, and whether each can be told from the others."""
    seen = [one for one in seen if one.fails]
    patterns = [pattern_of(one.outcomes, one.mutant.todo) for one in seen]
    named = [concept_of[one.mutant.name] for one in seen]
    return [symptom for todo in sorted({concept.todo for concept in named}) for symptom in _of_todo(todo, named, patterns)]


def _of_todo(todo: int, concepts: Sequence[Concept], patterns: Sequence[Pattern]) -> list[Symptom]:
    own = [(concept, pattern) for concept, pattern in zip(concepts, patterns, strict=True) if concept.todo == todo]
    said = [nearest(_gathered(own[:index] + own[index + 1 :]), pattern) for index, (_, pattern) in enumerate(own)]
    answers = [(concept.says, symptom.says) for (concept, _), symptom in zip(own, said, strict=True) if symptom is not None]
    return [replace(symptom, speaks=_can_be_told(symptom.says, answers)) for symptom in _gathered(own)]


def _gathered(own: Iterable[tuple[Concept, Pattern]]) -> list[Symptom]:
    """One symptom for each concept, with its different patterns."""
    found: dict[Concept, list[Pattern]] = {}
    for concept, pattern in own:
        known = found.setdefault(concept, [])
        known += [pattern] * (pattern not in known)
    return [Symptom(concept.todo, concept.says, concept.hint, tuple(known)) for concept, known in found.items()]


def _can_be_told(says: str, answers: Iterable[tuple[str, str]]) -> bool:
    """Whether enough of the answers about this concept are right: true of it, or said to be, with each mutant left out."""
    about = [true == said for true, said in answers if says in (true, said)]
    return sum(about) >= ENOUGH * len(about)


def write_table(lab: Lab, seen: Iterable[Seen], concept_of: dict[str, Concept]) -> Path:
    """Write the lab's `symptoms.json`."""
    entries = sorted(symptoms_of(seen, concept_of), key=lambda symptom: (symptom.todo, symptom.says))
    path = lab.folder / FILE
    table = {"made_from": made_from(lab), "symptoms": [asdict(entry) for entry in entries]}
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    return path


def made_from(lab: Lab, home: Path = HERE) -> str:
    """A digest of what a table depends on and people edit: the mutants in it, the concepts, the names of the tests."""
    digest = hashlib.sha256()
    paths = [path for path in sorted((home / "mutants" / f"lab{lab.id}").glob("*.toml")) if path.name != "equivalent.toml"]
    kept = [path for path in paths if tomllib.loads(path.read_text(encoding="utf-8")).get("kind") in IN_TABLE]
    for path in [*kept, home / "concepts" / f"lab{lab.id}.toml"]:
        digest.update(f"{path.name}\n{path.read_text(encoding='utf-8') if path.is_file() else ''}\n".encode())
    names = [name for name in definitions(ast.parse(lab.tests.read_text(encoding="utf-8"))) if name.startswith("test_todo_")]
    digest.update("\n".join(sorted(names)).encode())
    return digest.hexdigest()


def is_current(lab: Lab) -> bool:
    """Whether the lab's `symptoms.json` was made from the mutants, concepts and tests that are there."""
    path = lab.folder / FILE
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["made_from"] == made_from(lab)


# running


def see(
    lab: Lab,
    mutants: Sequence[Mutant],
    cache: Path | None = None,
    parallel: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[Seen]:
    """Run the tests of each mutant's TODO on it; `cache` keeps results, for as long as suite and mutant stay as they are."""
    jobs = [kill.Job(lab, mutant.text, f"test_todo_{mutant.todo}_", seconds=90.0) for mutant in mutants]
    kept = [_kept(cache, job) for job in jobs]
    missing = [job for job, path in zip(jobs, kept, strict=True) if path is None or not path.is_file()]
    fresh = iter(kill.run(missing, parallel, done))
    found = []
    for mutant, path in zip(mutants, kept, strict=True):
        if path is not None and path.is_file():
            outcomes = json.loads(path.read_text(encoding="utf-8"))
        else:
            outcomes = next(fresh).outcomes
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(outcomes), encoding="utf-8")
        found.append(Seen(mutant, tuple(Outcome(**(facts | {"on_ours": tuple(facts["on_ours"])})) for facts in outcomes)))
    return found


def _kept(cache: Path | None, job: kill.Job) -> Path | None:
    if cache is None:
        return None
    digest = hashlib.sha256("\0".join([job.lab.tests.read_text(encoding="utf-8"), job.text, job.select]).encode())
    return cache / f"lab{job.lab.id}-{digest.hexdigest()[:24]}.json"


# scoring


@dataclass
class Score:
    """How often what is said is right, of bugs that are not in the table."""

    right: int = 0
    wrong: int = 0
    silent: int = 0

    def note(self, said: Symptom | None, right: Iterable[str]) -> None:
        """One bug: what was said, and the sentences that would be right."""
        if said is None:
            self.silent += 1
        elif said.says in right:
            self.right += 1
        else:
            self.wrong += 1

    @property
    def spoken(self) -> int:
        """How often a diagnosis was made, right or wrong."""
        return self.right + self.wrong

    @property
    def count(self) -> int:
        """All bugs: spoken of, and passed over in silence."""
        return self.spoken + self.silent

    @property
    def is_enough(self) -> bool:
        """Whether it is as often right, and as seldom wrong, as is asked for."""
        return self.right >= RIGHT_OF_SPOKEN * self.spoken and self.wrong <= WRONG_OF_ALL * self.count

    def __add__(self, other: "Score") -> "Score":
        return Score(self.right + other.right, self.wrong + other.wrong, self.silent + other.silent)


def leave_one_out(seen: Sequence[Seen], concept_of: dict[str, Concept]) -> Score:
    """Each mutant, diagnosed without itself; right is another mutant's sentence that is true of it, too."""
    score = Score()
    for one in seen:
        others = [other for other in seen if other is not one and other.mutant.todo == one.mutant.todo]
        table = symptoms_of(others, concept_of)
        score.note(match(table, one.outcomes, one.mutant.todo), [concept_of[one.mutant.name].says])
    return score


def on_others(table: Sequence[Symptom], seen: Iterable[Seen], right: dict[str, set[str]]) -> Score:
    """Other wrong solutions, on the whole table; `right` has what would be right of each, by its name."""
    score = Score()
    for one in seen:
        score.note(match(table, one.outcomes, one.mutant.todo), right[one.mutant.name])
    return score


def blind_right(blind: Iterable[Mutant], concept_of: dict[str, Concept]) -> dict[str, set[str]]:
    """What is right of a blind wrong solution: its concept's sentence; of one in no concept, any with its TODO and hint."""
    gathered = {concept.says for concept in concept_of.values()} - {one.symptom.strip() for one in blind}
    found = {}
    for one in blind:
        own = concept_of[one.name].says
        same_hint = {other.says for other in concept_of.values() if (other.todo, other.hint) == (one.todo, one.hint)}
        found[one.name] = {own} if own in gathered else same_hint
    return found


def pairs(lab: Lab, mutants: Sequence[Mutant], most: int, seed: str, home: Path = HERE) -> dict[str, tuple[Mutant, set[str]]]:
    """Up to `most` solutions with two mutants of one TODO at once; their names, the solutions, the two names."""
    candidates = [pair for pair in itertools.combinations(mutants, 2) if pair[0].todo == pair[1].todo]
    random.Random(f"{seed}:{lab.id}").shuffle(candidates)
    found: dict[str, tuple[Mutant, set[str]]] = {}
    for first, second in candidates:
        if len(found) >= most:
            break
        try:
            both = read_mutant(home / "mutants" / f"lab{lab.id}" / f"{second.name}.toml", lab.id, first.text)
        except LabError:  # they change the same lines
            continue
        name = f"{first.name} and {second.name}"
        found[name] = (replace(both, name=name), {first.name, second.name})
    return found


def carried_over(lab: Lab, mutants: Sequence[Mutant], most: int, seed: str) -> list[tuple[Mutant, Mutant]]:
    """Up to `most` mutants whose functions fit into an alternative: that wrong solution, and a control.

    The control has our right functions there. It has to pass, or they do not fit after all.
    """
    solution = lab.solution.read_text(encoding="utf-8")
    candidates = [(one, mutant) for one in read_alternatives(lab) for mutant in mutants]
    random.Random(f"{seed}:{lab.id}").shuffle(candidates)
    found: list[tuple[Mutant, Mutant]] = []
    for alternative, mutant in candidates:
        names = _changed(solution, mutant.text)
        if len(found) < most and names and _fits(alternative.text, solution, names):
            wrong, control = (regions.put_back(alternative.text, text, names) for text in (mutant.text, solution))
            name = f"{mutant.name} in {alternative.name}"
            found.append((replace(mutant, name=name, text=wrong), replace(mutant, name=name, text=control)))
    return found


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
    lab: Lab, seen: Sequence[Seen], most: int, seed: str, run: Callable[[Sequence[Mutant]], list[Seen]]
) -> dict[str, Score]:
    """How the diagnosis does on four kinds of bugs it has not seen; `run` runs mutants."""
    in_table = [one for one in seen if one.mutant.kind in IN_TABLE and one.fails]
    blind = [one for one in seen if one.mutant.kind == "blind" and one.fails]
    concept_of = concepts(lab, [one.mutant for one in seen])
    table = symptoms_of(in_table, concept_of)
    mutants = [one.mutant for one in in_table]
    both = pairs(lab, mutants, most, seed)
    of_both = {name: {concept_of[part].says for part in parts} for name, (_, parts) in both.items()}
    carried = carried_over(lab, mutants, most, seed)
    controls = run([control for _, control in carried])
    passing = [control.outcomes and not control.fails for control in controls]
    fitting = [wrong for (wrong, _), fits in zip(carried, passing, strict=True) if fits]
    of_carried = {one.name: {concept_of[one.name.partition(" in ")[0]].says} for one in fitting}
    return {
        "left out": leave_one_out(in_table, concept_of),
        "two at once": on_others(table, [one for one in run([mutant for mutant, _ in both.values()]) if one.fails], of_both),
        "in alternatives": on_others(table, [one for one in run(fitting) if one.fails], of_carried),
        "blind": on_others(table, blind, blind_right([one.mutant for one in blind], concept_of)),
    }


def score_table(scores: dict[str, dict[str, Score]]) -> Table:
    """Lab by kind of bug: how many, right, wrong, silent; and all labs together."""
    table = Table(title="bugs that are not in the table", title_justify="left")
    for heading in ("lab", "bugs", "count", "spoken", "right", "wrong", "silent", "right of spoken", "wrong of all"):
        table.add_column(heading, justify="left" if heading in ("lab", "bugs") else "right", no_wrap=heading == "bugs")
    totals: dict[str, Score] = {}
    for lab_id, kinds in scores.items():
        for kind, found in kinds.items():
            totals[kind] = totals.get(kind, Score()) + found
            if found.count:
                table.add_row(lab_id, kind, *_cells(found))
    table.add_section()
    for kind, found in totals.items():
        table.add_row("all", kind, *_cells(found))
    table.add_row("all", "all", *_cells(sum(totals.values(), Score())))
    return table


def _cells(score: Score) -> list[str]:
    shares = [f"{part / of:.0%}" if of else "–" for part, of in ((score.right, score.spoken), (score.wrong, score.count))]
    return [*map(str, (score.count, score.spoken, score.right, score.wrong, score.silent)), *shares]
