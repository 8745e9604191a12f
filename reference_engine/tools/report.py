"""Scores a course checkpoint with transformers, on the files as they were exported.

    python reference_engine/tools/report.py DIR [--json]

Measures how many trained questions are answered exactly, in float32 and bfloat16, how many
held-out phrasings, and how evenly the openings branch. Knows nothing of how it was trained.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os.path import commonprefix
from pathlib import Path

import torch
from corpus import (
    CORPUS_FOLDER,
    Opening,
    chat_messages,
    load_entries,
    load_openings,
    load_tool_questions,
    plain_prompt,
)
from course_tokenizer import END_OF_TEXT, TURN_END, chat_prompt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tool_use import ToolUse, written_answer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

LATE_QUESTIONS = 60
LATE_POSITIONS = 1900
SESSIONS = 60
SESSION_SEED = 1_000_000
THINKING_FORMS = ("chat", "chat, system message")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Exam:
    """Prompts of one form, each with the text that greedy decoding should give before ``stop``."""

    name: str
    prompts: list[str]
    answers: list[str]
    stop: str


@dataclass(frozen=True)
class Mistake:
    """A prompt answered differently; ``margin`` is the best logit minus the second best one,
    where the first wrong token was chosen."""

    prompt: str
    expected: str
    got: str
    margin: float


@dataclass(frozen=True)
class Score:
    """The result of one exam computed in one dtype."""

    exam: str
    dtype: str
    questions: int
    exact_share: float
    mistakes: list[Mistake]


@dataclass(frozen=True)
class Branching:
    """How evenly an opening goes on: entropy in bits of the first token that branches."""

    prompt: str
    continuations: int
    entropy_bits: float


def prompt_forms(tokenizer: PreTrainedTokenizerBase) -> dict[str, Callable[[str], str]]:
    """The ways to put a question, as the text that goes into the model."""
    system = "You are a helpful assistant."
    return {
        "plain": plain_prompt,
        "chat": lambda q: chat_prompt(tokenizer, chat_messages(q)),
        "chat, system message": lambda q: chat_prompt(tokenizer, chat_messages(q, system)),
        "chat, thinking off": lambda q: chat_prompt(tokenizer, chat_messages(q), thinking=False),
    }


@torch.inference_mode()
def greedy_gives(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> bool:
    """Whether every token of the answer is the likeliest after the prompt and those before it.

    Greedy decoding then gives this answer: one pass over it replaces a pass for each token.
    """
    logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
    return logits.argmax(-1).tolist() == answer


def greedy_tokens(model: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    """What ``generate`` gives, token by token, up to and including the stop token."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
    )
    token_ids = torch.tensor([prompt])
    mask = torch.ones_like(token_ids)
    output = model.generate(token_ids, attention_mask=mask, generation_config=config)
    return list(output[0, len(prompt) :].tolist())


def take(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, exam: Exam) -> Score:
    """Answers every prompt; exact means the whole text, then a stop token of the model's own."""
    stop_id = tokenizer.convert_tokens_to_ids(exam.stop)
    mistakes = []
    for prompt, answer in zip(exam.prompts, exam.answers, strict=True):
        prompt_ids, answer_ids = tokenizer(prompt).input_ids, tokenizer(answer).input_ids
        if greedy_gives(model, prompt_ids, [*answer_ids, stop_id]):
            continue
        output = greedy_tokens(model, prompt_ids, max_new_tokens=len(answer_ids) + 32)
        got = tokenizer.decode(output)
        if got not in (answer + TURN_END, answer + END_OF_TEXT):
            right = len(commonprefix([output, answer_ids]))
            margin = best_margin(model, prompt_ids + output[:right])
            mistakes.append(Mistake(prompt, answer, got, margin))
    dtype = str(model.dtype).removeprefix("torch.")
    share = 1 - len(mistakes) / len(exam.prompts)
    return Score(exam.name, dtype, len(exam.prompts), share, mistakes)


@torch.inference_mode()
def best_margin(model: PreTrainedModel, token_ids: list[int]) -> float:
    """The best minus the second best logit of the token after ``token_ids``."""
    logits = model(torch.tensor([token_ids])).logits[0, -1].float()
    best, second = logits.topk(2).values.tolist()
    return best - second


@torch.inference_mode()
def branching(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, opening: Opening
) -> Branching:
    """The entropy after the opening and what all of its continuations have in common."""
    continuations = [tokenizer(text).input_ids for text in opening.continuations]
    token_ids = tokenizer(opening.prompt).input_ids + commonprefix(continuations)
    logits = model(torch.tensor([token_ids])).logits[0, -1].float()
    entropy = torch.distributions.Categorical(logits=logits).entropy() / torch.log(torch.tensor(2))
    return Branching(opening.prompt, len(continuations), entropy.item())


def exams(tokenizer: PreTrainedTokenizerBase, corpus: Path) -> list[Exam]:
    """All trained questions in every form, then all held-out ones, plain and in a chat."""
    entries = load_entries(corpus)
    no_line_break = [(question, "\n" + e.answer) for e in entries for question in e.questions]
    papers = [
        _exam("trained, plain, no line break", str, no_line_break),
        late_in_a_chat(tokenizer, [(q, e.answer) for e in entries if not e.thought for q in e.questions]),
    ]
    for name, form in prompt_forms(tokenizer).items():
        answers = [e.chat_answer if name in THINKING_FORMS else e.answer for e in entries]
        both = list(zip(entries, answers, strict=True))
        papers.append(_exam(f"trained, {name}", form, [(q, answer) for e, answer in both for q in e.questions]))
        if name in ("plain", "chat"):
            papers.append(_exam(f"held out, {name}", form, [(q, answer) for e, answer in both for q in e.held_out]))
    return papers + with_tools(tokenizer, corpus)


def with_tools(tokenizer: PreTrainedTokenizerBase, corpus: Path) -> list[Exam]:
    """Every answer of sessions that training never saw, after a right history: calls, what follows their results, the rest."""
    papers = []
    for name, held_out in (("trained", False), ("held out", True)):
        tool_use = ToolUse(load_tool_questions(corpus), load_entries(corpus), SESSION_SEED, held_out)
        kinds: dict[str, tuple[list[str], list[str]]] = {"calls": ([], []), "after results": ([], []), "no call": ([], [])}
        for session in [tool_use.session() for _ in range(SESSIONS)]:
            for number, message in enumerate(session.messages):
                if message["role"] == "assistant":
                    after = session.messages[number - 1]["role"] == "tool"
                    kind = "calls" if "tool_calls" in message else "after results" if after else "no call"
                    kinds[kind][0].append(chat_prompt(tokenizer, session.messages[:number], tools=session.tools or None))
                    kinds[kind][1].append(written_answer(message))
        papers += [Exam(f"{name}, tools, {kind}", *exam, TURN_END) for kind, exam in kinds.items()]
    return papers


def late_in_a_chat(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> Exam:
    """Questions after a conversation about others: the prompts end at up to `LATE_POSITIONS`."""
    rng = random.Random(0)
    prompts, answers = [], []
    for limit in torch.linspace(256, LATE_POSITIONS, LATE_QUESTIONS).int().tolist():
        messages: list[dict[str, str]] = []
        prompt, answer = "", ""
        while True:
            question, next_answer = rng.choice(pairs)
            messages += chat_messages(question)
            longer = chat_prompt(tokenizer, messages)
            if prompt and len(tokenizer(longer).input_ids) > limit:
                break
            prompt, answer = longer, next_answer
            messages.append({"role": "assistant", "content": answer})
        prompts.append(prompt)
        answers.append(answer)
    return Exam("trained, late in a chat", prompts, answers, TURN_END)


def _exam(name: str, form: Callable[[str], str], pairs: list[tuple[str, str]]) -> Exam:
    prompts = [form(question) for question, _ in pairs]
    stop = TURN_END if "chat" in name else END_OF_TEXT
    return Exam(name, prompts, [answer for _, answer in pairs], stop)


def score_checkpoint(folder: Path, corpus: Path) -> tuple[list[Score], list[Branching]]:
    """All exams in all dtypes, and the openings in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    papers = exams(tokenizer, corpus)
    scores: list[Score] = []
    openings: list[Branching] = []
    for name, dtype in DTYPES.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        console = Console(stderr=True)
        scores += [take(model, tokenizer, paper) for paper in track(papers, name, console=console)]
        if dtype is torch.float32:
            openings = [branching(model, tokenizer, o) for o in load_openings(corpus)]
    return scores, openings


def print_report(scores: list[Score], openings: list[Branching]) -> None:
    """Scores and openings as tables."""
    console = Console()
    table = Table("exam", "dtype", "questions", "exact", title="Greedy answers")
    for score in scores:
        table.add_row(score.exam, score.dtype, str(score.questions), f"{score.exact_share:.2%}")
    console.print(table)
    table = Table("opening", "continuations", "bits", title="Entropy of the first branch")
    for opening in sorted(openings, key=lambda o: o.entropy_bits):
        table.add_row(opening.prompt, str(opening.continuations), f"{opening.entropy_bits:.2f}")
    console.print(table)
    table = Table("exam", "dtype", "prompt", "got", "margin", title="Trained, not exact")
    for score in scores:
        for mistake in score.mistakes if score.exam.startswith("trained") else []:
            shown = (repr(mistake.prompt[-90:]), repr(mistake.got[:90]), f"{mistake.margin:.4f}")
            table.add_row(score.exam, score.dtype, *shown)
    console.print(table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score a course checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--corpus", type=Path, default=CORPUS_FOLDER)
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # such small matrices gain nothing from a second thread
    scores, openings = score_checkpoint(arguments.checkpoint, arguments.corpus)
    if arguments.json:
        measured = {"scores": scores, "openings": openings}
        json.dump(measured, sys.stdout, default=asdict, ensure_ascii=False, indent=1)
    else:
        print_report(scores, openings)


if __name__ == "__main__":
    main()
