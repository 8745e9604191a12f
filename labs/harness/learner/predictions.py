"""Questions that a learner answers before coding, and the right answers, which come from the reference engine.

A lab's `predict.toml` holds the questions; its `predict.py` has `case(random) -> dict`, the numbers
of this learner's case, and for each question a function of its name, `steps(case)`, that finds the
truth by running the engine. There are no stored answers.
"""

import hashlib
import json
import random
import tomllib
from dataclasses import dataclass
from types import ModuleType

from labs.harness import files, loading
from labs.harness.catalog import Lab, LabError

KINDS = ("int", "choice")
_QUESTIONS = "predict.toml"
FILE = "predictions.json"
"""The file of answers beside `starter.py`, handed in with it."""


@dataclass(frozen=True)
class Question:
    """One question with a case's numbers filled in."""

    id: str
    text: str
    kind: str
    choices: tuple[str, ...]
    why: str

    def read(self, answer: str) -> str | int:
        """`answer` as a value of this question's kind. Raises `LabError` if it is not of that kind."""
        answer = answer.strip()
        if self.kind == "int":
            try:
                return int(answer)
            except ValueError:
                raise LabError(f"{answer!r} is not a whole number.") from None
        for choice in self.choices:
            if answer.lower() == choice.lower():
                return choice
        raise LabError(f"{answer!r} is not one of {', '.join(self.choices)}.")


@dataclass(frozen=True)
class PredictionCase:
    """A lab's questions with the numbers that follow from one seed."""

    seed: int
    numbers: dict
    questions: list[Question]
    truths: ModuleType

    def truth(self, question: Question) -> str | int:
        """The right answer, from a run of the reference engine."""
        return getattr(self.truths, question.id)(self.numbers)


def has_questions(lab: Lab) -> bool:
    """Whether the lab has questions."""
    return (lab.folder / _QUESTIONS).is_file()


def make_case(lab: Lab, seed: int) -> PredictionCase:
    """The case of `seed`. Raises `LabError` if the lab has no questions."""
    if not has_questions(lab):
        raise LabError(f"Lab {lab.id} has no questions to predict.")
    truths = _load(lab)
    numbers = truths.case(random.Random(seed))
    asked = tomllib.loads((lab.folder / _QUESTIONS).read_text(encoding="utf-8"))["question"]
    return PredictionCase(seed, numbers, [_question(entry, numbers) for entry in asked], truths)


def seed_of(name: str, lab: Lab, attempt: int) -> int:
    """The seed of an attempt: the same for the same learner, lab and attempt, on every machine."""
    digest = hashlib.sha256(f"{name}/{lab.id}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def parse_answers(text: str, questions: list[Question]) -> dict[str, str | int]:
    """`"steps=4,reason=length"` as answers by question. Raises `LabError` naming what is wrong."""
    known = {question.id: question for question in questions}
    answers = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise LabError(f"{pair!r}: write question=answer, for example {next(iter(known))}=3.")
        if key.strip() not in known:
            raise LabError(f"There is no question {key.strip()!r}. The questions: {', '.join(known)}.")
        try:
            answers[key.strip()] = known[key.strip()].read(value)
        except LabError as error:
            raise LabError(f"{key.strip()}: {error}") from None
    return answers


def save_attempt(lab: Lab, seed: int, answers: dict[str, str | int]) -> None:
    """Add an attempt to the lab's `predictions.json`, whole or not at all. An unreadable file is replaced. Raises `LabError`."""
    path = lab.folder / FILE
    try:
        attempts = read_attempts(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        attempts = []
    attempts.append((seed, answers))
    text = json.dumps({"attempts": [{"seed": seed, "answers": answers} for seed, answers in attempts]}, indent=1)
    files.replace(path, f"{text}\n".encode())


def read_attempts(text: str) -> list[tuple[int, dict[str, str | int]]]:
    """Seed and answers of each attempt in a `predictions.json`. Raises `ValueError` that says what is wrong with it."""
    content = json.loads(text)
    attempts = content.get("attempts") if isinstance(content, dict) else None
    if not isinstance(attempts, list):
        raise ValueError('it has no list of "attempts"')
    checked = []
    for attempt in attempts:
        seed, answers = (attempt.get("seed"), attempt.get("answers")) if isinstance(attempt, dict) else (None, None)
        if type(seed) is not int or not isinstance(answers, dict) or not all(type(a) in (int, str) for a in answers.values()):
            raise ValueError("an attempt has a whole number as its seed, and answers that are numbers or words")
        checked.append((seed, answers))
    return checked


def _question(entry: dict, numbers: dict) -> Question:
    kind = entry.get("kind", "int")
    if kind not in KINDS:
        raise LabError(f"{_QUESTIONS}: question {entry['id']!r} has kind {kind!r}; there are {', '.join(KINDS)}.")
    return Question(
        id=entry["id"],
        text=" ".join(entry["ask"].format(**numbers).split()),
        kind=kind,
        choices=tuple(choice.format(**numbers) for choice in entry.get("choices", ())),
        why=" ".join(entry["why"].format(**numbers).split()),
    )


def _load(lab: Lab) -> ModuleType:
    return loading.run_file(lab.folder / "predict.py", f"_lab{lab.id}_predict")
