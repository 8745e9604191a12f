"""The film at the top of the course's README: the engine answers four questions, step by step.

    python -m nano_qwen3_serving.pictures.at_work reference_engine/at_work.svg   # runs the engine and draws it anew

Every letter and every block in it is from a run on the course's model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.pictures.card import FAINT, POINTS, WIDTH, Card, wrapped
from nano_qwen3_serving.pictures.film import Film, colour_of
from nano_qwen3_serving.sampling_params import SamplingParams

QUESTIONS = {  # question, and the step before which it comes
    "A": ("What is continuous batching?", 0),
    "B": ("Why does a server batch requests?", 1),
    "C": ("Who are you?", 2),
    "D": ("Tell me a joke", 4),
}
SEATS, BLOCK_SIZE, BLOCKS = 3, 8, 21  # requests in a batch; tokens in a block; blocks, the null block among them
SECONDS, CLOSING = 0.35, 9  # a frame lasts; frames after the last step
LETTERS, LEFT, LINE = 12.0, 42.0, 16.0  # points: of answers, where they begin, from line to line
REGULAR = 0.89  # as wide as bold letters


@dataclass(frozen=True)
class Run:
    """What the engine did.

    Attributes:
        steps: the flight recorder's.
        texts: by request, the piece of text that each step added: (step, piece).
        questions: by request.
    """

    steps: Sequence[Mapping[str, Any]]
    texts: Mapping[str, Sequence[tuple[int, str]]]
    questions: Mapping[str, str]

    @property
    def frames(self) -> int:
        """One for each step, and the closing ones."""
        return len(self.steps) + CLOSING

    def each(self, of_step: Iterable[Any], closing: Any) -> list[Any]:
        """A value for each frame: those of the steps, then `closing`."""
        return [*of_step, *[closing] * CLOSING]

    @property
    def alone(self) -> int:
        """The number of steps if the answers are generated one after the other: one for each token."""
        return sum(len(tokens) for step in self.steps for tokens in step["sampled"].values())


def run() -> Run:
    """Answers QUESTIONS greedily."""
    engine = LLMEngine.from_engine_args(EngineArgs(
        model="course", dtype="float32", device="cpu", block_size=BLOCK_SIZE, num_gpu_blocks_override=BLOCKS, max_num_seqs=SEATS,
        enable_prefix_caching=False), recorder=Recorder())
    assert engine.recorder is not None
    steps, texts = engine.recorder.steps, {name: [(0, "")] for name in QUESTIONS}
    params, known = SamplingParams(temperature=0.0, max_tokens=100), dict.fromkeys(QUESTIONS, "")
    coming = {name: when for name, (_, when) in QUESTIONS.items()}
    while coming or engine.has_unfinished_requests():
        for name in [name for name, when in coming.items() if when <= len(steps)]:
            del coming[name]
            message = {"role": "user", "content": QUESTIONS[name][0]}
            engine.add_request(name, engine.tokenizer.apply_chat_template([message]), params)
        for output in engine.step():
            name, text = output.request_id, output.outputs[0].text
            texts[name].append((len(steps) - 1, text[len(known[name]) :]))
            known[name] = text
    return Run(steps, texts, {name: question for name, (question, _) in QUESTIONS.items()})


def film(of: Run) -> Card:
    """The run as a film: questions and answers, under them the step, under it the KV cache."""
    answers = {name: wrapped("".join(piece for _, piece in of.texts[name]), REGULAR * LETTERS, WIDTH * POINTS - LEFT - 14)
               for name in of.questions}
    tops = [12.0]
    for lines in answers.values():
        tops.append(tops[-1] + LINE * len(lines) + 26)
    drawn = Film(
        f"Film of an engine at work: {len(of.questions)} questions come one after the other, answers grow by a token a step, "
        f"at most {SEATS} at a time, and a KV cache of {BLOCKS - 1} blocks fills and empties.",
        tops[-1] + 112, of.frames, SECONDS, still=len(of.steps) * 2 // 3)
    for (name, lines), top in zip(answers.items(), tops, strict=False):
        _answer(drawn, of, name, lines, top)
    _captions(drawn, of, tops[-1] + 4)
    _pool(drawn, of, tops[-1] + 28)
    return drawn.says(
        f"Every step serves the whole batch: {len(of.questions)} answers in {len(of.steps)} steps instead of {of.alone}.",
        all({chunk["request"] for chunk in step["chunks"]} == set(step["running"]) for step in of.steps))


def _answer(drawn: Film, of: Run, name: str, lines: Sequence[str], top: float) -> None:
    """A request's letter, question and state, and its growing answer; nothing is shown before the request arrives."""
    states = of.each((_state(step, name, of.texts[name][-1][0]) for step in of.steps), "done")
    there, colour = [bool(state) for state in states], colour_of(list(of.questions), name)
    drawn.box(8, top - 9, 24, 24, "none", colour, when=there)
    seated = of.each((name in step["running"] for step in of.steps), False)
    drawn.tile(8, top - 9, 24, 24, colour, name, when=seated)
    drawn.text(20, top + 3, name, when=[is_there and not sits for is_there, sits in zip(there, seated, strict=True)])
    drawn.text(LEFT, top, of.questions[name], anchor="start", size=LETTERS, bold=True, when=there)
    drawn.texts(WIDTH * POINTS - 8, top, states, anchor="end", size=10)
    letters = [(letter, step) for step, piece in of.texts[name] for letter in piece]
    text, after = "".join(letter for letter, _ in letters), 0
    for row, line in enumerate(lines, 1):
        start = text.index(line, after)
        after = start + len(line)
        pieces = [("".join(letter for letter, _ in same), [frame >= step for frame in range(of.frames)])
                  for step, same in groupby(letters[start:after], lambda pair: pair[1])]
        drawn.typed(LEFT, top + LINE * row + 2, pieces, size=LETTERS)


def _state(step: Mapping[str, Any], name: str, last: int) -> str:
    """A request's state in a step; empty until the request arrives."""
    if name in step["waiting"]:
        return f"waits: {SEATS} of {SEATS} seats are taken"
    chunk = next((chunk for chunk in step["chunks"] if chunk["request"] == name), None)
    if chunk is None:
        return "done" if step["step"] > last else ""
    return "one token a step" if chunk["start"] else f"prompt, {chunk['num_tokens']} tokens in one step"


def _captions(drawn: Film, of: Run, y: float) -> None:
    """What each step computes, and who is done after it."""
    captions = []
    for step in of.steps:
        prompts = [f"the prompt of {chunk['request']}" for chunk in step["chunks"] if not chunk["start"]]
        tokens = [chunk["request"] for chunk in step["chunks"] if chunk["start"]]
        computed = prompts + [f"one token{' each' * (len(tokens) > 1)} for {_listed(tokens)}"] * bool(tokens)
        nexts = [f", {name} takes its seat" for name in step["waiting"][:1]]
        ends = "".join(f"; {name} is done{''.join(nexts)}" for name in step["finished"])
        captions.append(f"Step {step['step'] + 1} computes {_listed(computed)}{ends}")
    drawn.texts(8, y, of.each(captions, f"Done after {len(of.steps)} steps; one after the other: {of.alone}"), anchor="start",
                size=LETTERS, bold=True)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _pool(drawn: Film, of: Run, top: float) -> None:
    """The KV cache in two rows of blocks, the null block left out; a block fills in its holder's colour, token by token."""
    drawn.text(8, top, f"KV cache: blocks of {BLOCK_SIZE} tokens, taken as answers grow, free again when they end",
               anchor="start", size=10)
    half = (BLOCKS - 1) // 2
    wide = (WIDTH * POINTS - 16 + 4) / half
    for block in range(1, BLOCKS):
        x, y = 8 + wide * ((block - 1) % half), top + 12 + 35 * ((block - 1) // half)
        held = [_held(step, block) for step in of.steps]
        for name in sorted({name for name, _ in held if name}):
            share = of.each((kept if holder == name else 0.0 for holder, kept in held), 0.0)
            drawn.box(x, y, wide - 4, 18, colour_of(list(of.questions), name), grown=share)
        drawn.box(x, y, wide - 4, 18, "none", FAINT)
        drawn.texts(x + wide / 2 - 2, y + 26, of.each((name for name, _ in held), ""), size=9)


def _held(step: Mapping[str, Any], block: int) -> tuple[str, float]:
    """Which request holds a block after a step, and which share of the block is filled; None and 0 if no request does."""
    for chunk in step["chunks"]:
        table = step["block_tables"][chunk["request"]]
        if block in table:
            kept = chunk["start"] + chunk["num_tokens"] - BLOCK_SIZE * table.index(block)
            return chunk["request"], min(kept, BLOCK_SIZE) / BLOCK_SIZE
    return "", 0.0


def main(path: str) -> None:
    """Writes the film to a file, whole or not at all."""
    write_atomically(Path(path), film(run()).svg() + "\n", mode=0o644)


if __name__ == "__main__":
    main(sys.argv[1])
