"""Asks a trained question in slightly different words, so that unseen phrasings are understood.

Knows English question forms; knows nothing about tokens or models. It never produces a question
of another entry, nor one that the corpus holds out.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict

from corpus import Entry

KEPT_AS_WRITTEN = 0.5
# Answers here repeat the question's words or its manner, so that hardly anything may change.
LITERAL_SOURCES = frozenset({"small_talk.txt"})
REQUESTS = frozenset(["Copy", "Count", "List", "Name", "Repeat", "Say", "Show", "Tell"])

DROPPABLE_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "do",
        "does",
        "to",
        "of",
        "in",
        "for",
        "on",
        "at",
        "me",
        "please",
        "can",
        "could",
        "you",
        "that",
        "it",
    ]
)

# A question that only names a topic, and other ways to name it.
TOPIC_FORMS = re.compile(
    r"(?:What(?: is| are|'s)|Explain|Describe|Define|Tell me about) (?P<topic>[^,.?]+)[.?]?"
)
TOPIC_REWRITES = (
    "What is {}?",
    "Explain {}.",
    "Describe {}.",
    "Define {}.",
    "Tell me about {}.",
    "What does {} mean?",
    "Could you explain {}?",
    "Can you tell me about {}?",
    "I would like to know what {} is.",
    "Do you know what {} is?",
    "Give me an explanation of {}.",
    "Please explain what {} is.",
)
WORK_FORMS = re.compile(r"How (?:does|do) (?P<topic>.+) work\?")
WORK_REWRITES = (
    "Explain how {} works.",
    "Could you explain how {} works?",
    "Tell me how {} works.",
    "In what way does {} work?",
)
LEAD_INS = (
    "Can you tell me: {}",
    "Please tell me: {}",
    "Quick question: {}",
    "I have a question. {}",
    "{} Please explain.",
    "{} Thanks!",
)


class Phrasings:
    """Varies the trained questions of a corpus; equal seeds give equal variations."""

    def __init__(self, entries: list[Entry], seed: int) -> None:
        self._random = random.Random(seed)
        self._written = {
            _normalised(question)
            for entry in entries
            for question in entry.questions + entry.held_out
        }
        self._as_written = {question for entry in entries for question in entry.questions}
        self._ambiguous_topics = _ambiguous_topics(entries)

    def vary(self, question: str, source: str) -> str:
        """The question itself about half of the time, else a variation that nobody wrote."""
        if self._random.random() < KEPT_AS_WRITTEN:
            return question
        varied = question
        if source in LITERAL_SOURCES:
            varied = self._ask_politely(varied)
        else:
            if self._random.random() < 0.6:
                varied = self._reword(varied)
            if self._random.random() < 0.6:
                varied = self._roughen(varied)
        is_new = _normalised(varied) not in self._written and not self._prolongs_another(
            varied, question
        )
        return varied if is_new or _normalised(varied) == _normalised(question) else question

    def _prolongs_another(self, varied: str, question: str) -> bool:
        """Whether it begins with some other trained question, after which a line break is due."""
        return any(
            varied.startswith(other)
            for other in self._as_written
            if other not in (varied, question)
        )

    def _ask_politely(self, question: str) -> str:
        """A request with "please" before it, or anything without its last sign."""
        if question.split()[0] in REQUESTS and self._random.random() < 0.6:
            return "Please " + question[0].lower() + question[1:]
        return question.rstrip("?.!") or question

    def _reword(self, question: str) -> str:
        for form, rewrites in ((WORK_FORMS, WORK_REWRITES), (TOPIC_FORMS, TOPIC_REWRITES)):
            match = form.fullmatch(question)
            if match and _normalised(match["topic"]) not in self._ambiguous_topics:
                return self._random.choice(rewrites).format(match["topic"])
        return self._random.choice(LEAD_INS).format(question)

    def _roughen(self, question: str) -> str:
        """What hurried typing does: small words go, capitals and the last sign may go."""
        words = [
            word
            for word in question.split()
            if word.lower() not in DROPPABLE_WORDS or self._random.random() > 0.25
        ]
        rough = " ".join(words)
        if self._random.random() < 0.5:
            rough = rough.lower()
        if self._random.random() < 0.5:
            rough = rough.rstrip("?.!")
        return rough or question


def _normalised(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.lower()))


def _ambiguous_topics(entries: list[Entry]) -> set[str]:
    """Topics that several entries name: a bare "Tell me about …" would have several answers."""
    owners = defaultdict(set)
    for index, entry in enumerate(entries):
        for question in entry.questions:
            for form in (WORK_FORMS, TOPIC_FORMS):
                if match := form.fullmatch(question):
                    owners[_normalised(match["topic"])].add(index)
    return {topic for topic, indices in owners.items() if len(indices) > 1}
