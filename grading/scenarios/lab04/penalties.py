"""Lab 04, TODO 4: penalties and logit bias."""

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import check, hold, kept
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab04.definitions import adjusted
from grading.scenarios.lab04.rows import INF, across, expect_logits, expect_untouched, random_logits, row
from nano_qwen3_serving.interfaces import SamplingRow

PENALTIES = "TODO 4: Penalties and logit bias"


def expect_penalties(lab: Remote, logits: Tensor, rows: list[SamplingRow], what: str) -> None:
    """apply_penalties() gives what the definition says, and leaves its input as it was."""
    held = hold(lab, logits)
    found = lab.apply_penalties(held, rows)
    expect_logits(found, [adjusted(scores, one) for scores, one in zip(logits.double().tolist(), rows, strict=True)], what)
    expect_untouched(held, logits, "apply_penalties()")


def eight(rng: random.Random, num_rows: int) -> Tensor:
    """Rows of eight logits of every sign, none of them near 0 but one that is 0."""
    return torch.tensor([rng.sample([4.0, 3.0, 1.5, 0.5, 0.0, -0.5, -2.0, -4.0], 8) for _ in range(num_rows)])


@check(todo=4, points=3, section=PENALTIES, concept="logit bias")
def a_bias_is_added_to_the_logit_and_to_no_other_row(lab: Remote, rng: random.Random) -> None:
    a, b, c = rng.sample(range(8), 3)
    biases = [None, {a: rng.uniform(1, 9), b: -100.0}, {c: -rng.uniform(0.1, 5)}]
    expect_penalties(lab, eight(rng, 3), [row(logit_bias=one) for one in biases], f"three rows with logit_bias {biases}")


@check(todo=4, points=3, section=PENALTIES, concept="the repetition penalty")
def repetition_makes_tokens_of_prompt_and_output_less_likely_once(lab: Remote, rng: random.Random) -> None:
    for penalty in (rng.uniform(1.2, 3), rng.uniform(0.3, 0.8)):
        a, b, c, d, e, f, *_ = rng.sample(range(8), 8)
        one = row(repetition_penalty=penalty, prompt=[a, b, a, c, d], output=[e, f, f, e, a])
        expect_penalties(
            lab, eight(rng, 1), [one],
            f"repetition_penalty={penalty:.3f}, prompt {one.prompt_token_ids}, output {one.output_token_ids}: logits "
            "above 0 are divided, others multiplied, once for each token that occurs in the prompt or the output")


@check(todo=4, points=2, section=PENALTIES, concept="the frequency penalty")
def frequency_counts_each_occurrence_in_the_output(lab: Remote, rng: random.Random) -> None:
    a, b, c, d, *_ = rng.sample(range(8), 8)
    one = row(frequency_penalty=rng.uniform(0.2, 1.5), prompt=[c, c, a], output=[a, b, a, d, d, d, a])
    expect_penalties(
        lab, eight(rng, 1), [one],
        f"frequency_penalty={one.params.frequency_penalty:.3f}, prompt {one.prompt_token_ids}, output {one.output_token_ids}: "
        "once for each occurrence in the output")


@check(todo=4, points=2, section=PENALTIES, concept="the presence penalty")
def presence_is_subtracted_once_for_tokens_of_the_output(lab: Remote, rng: random.Random) -> None:
    a, b, c, d, *_ = rng.sample(range(8), 8)
    one = row(presence_penalty=rng.uniform(0.2, 1.5), prompt=[c, c, a], output=[a, b, a, d, d, d, a])
    none = row(presence_penalty=rng.uniform(0.5, 1.5), prompt=[b])
    expect_penalties(
        lab, eight(rng, 2), [one, none],
        f"presence_penalty={one.params.presence_penalty:.3f}, prompt {one.prompt_token_ids}, output {one.output_token_ids}: "
        "once for each token of the output; in row 1 the output is empty, and nothing changes")


@check(todo=4, points=1, section=PENALTIES, concept="penalties below 0", hidden=True)
def penalties_below_zero_make_tokens_likelier(lab: Remote, rng: random.Random) -> None:
    rows = [row(output=[rng.randrange(8) for _ in range(6)], frequency_penalty=-rng.uniform(0.2, 1.5)),
            row(output=[rng.randrange(8) for _ in range(6)], presence_penalty=-rng.uniform(0.2, 1.5)),
            row(frequency_penalty=-1.0, presence_penalty=-1.0)]
    expect_penalties(lab, eight(rng, 3), rows, "rows with a frequency_penalty or presence_penalty below 0")


@check(todo=4, points=2, section=PENALTIES, concept="bias and penalties together", hidden=True)
def all_together_in_the_right_order_for_every_row(lab: Remote, rng: random.Random) -> None:
    rows = []
    for _ in range(40):
        prompt, output = ([rng.randrange(16) for _ in range(rng.randrange(low, 12))] for low in (1, 0))
        rows.append(row(prompt=prompt, output=output, logit_bias={rng.randrange(16): rng.uniform(-6, 6) for _ in range(3)},
                        repetition_penalty=rng.choice([0.7, 1.0, 1.8]), frequency_penalty=rng.uniform(-2, 2),
                        presence_penalty=rng.uniform(-2, 2)))
    logits = random_logits(rng, 40, 16)
    right = [adjusted(scores, one) for scores, one in zip(logits.double().tolist(), rows, strict=True)]
    order = "first the bias, then repetition, then frequency and presence"
    expect_logits(lab.apply_penalties(across(lab, logits), rows), right, order)
    i = rng.randrange(40)
    expect_logits(lab.apply_penalties(logits[i : i + 1], rows[i : i + 1]), right[i : i + 1], f"a batch of one row: {order}")


@check(todo=4, points=1, section=PENALTIES, concept="an output that grows", hidden=True)
def what_was_generated_since_the_last_step_counts(lab: Remote, rng: random.Random) -> None:
    """The engine's rows are made anew for each step, around the request's own lists, which grow."""
    wishes = row(frequency_penalty=rng.uniform(0.3, 1), presence_penalty=rng.uniform(0.3, 1), repetition_penalty=1.5)
    rows_there, written = lab._peer.root.package("nano_qwen3_serving.interfaces").SamplingRow, [rng.randrange(8)]
    held, logits = hold(lab, written), eight(rng, 1)
    for _ in range(4):
        one = kept(rows_there, hold(lab, wishes.params), wishes.prompt_token_ids, held, 0, 0)
        right = adjusted(logits[0].double().tolist(), replace(wishes, output_token_ids=written))
        expect_logits(lab.apply_penalties(logits, [one]), [right], f"the same request, whose output has grown to {written}")
        written = [*written, rng.randrange(8)]
        held.append(written[-1])
    prompt = hold(lab, wishes.prompt_token_ids)
    for first, second in (rng.sample(range(8), 2), rng.sample(range(8), 2)):  # other requests', where the first one's lists lay
        written, read = [first] * len(written), [second] * len(wishes.prompt_token_ids)
        for there, tokens in ((held, written), (prompt, read)):
            kept(there.clear)
            kept(there.extend, tokens)
        one = kept(rows_there, hold(lab, wishes.params), prompt, held, 0, 0)
        now = replace(wishes, prompt_token_ids=read, output_token_ids=written)
        expect_logits(lab.apply_penalties(logits, [one]), [adjusted(logits[0].double().tolist(), now)],
                      f"lists as long as before, with other tokens: prompt {read}, output {written}. Of a list that is gone the "
                      "next one may have the place, so what is kept by a list, or by its length, is out of date")


@check(todo=4, points=1, section=PENALTIES, concept="tokens that were removed, and the input", hidden=True)
def removed_tokens_stay_removed_and_nothing_is_changed_in_place(lab: Remote, rng: random.Random) -> None:
    wishes: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": 1.0}
    logits, (gone, seen) = eight(rng, 2), rng.sample(range(8), 2)
    logits[:, gone] = -INF
    rows = [row(output=[gone, seen], logit_bias={gone: 50.0, seen: 1.0}, **wishes), row()]
    expect_penalties(lab, logits, rows, f"token {gone} has -inf and stays removed; row 1 wants nothing changed")
    for dtype in (torch.bfloat16, torch.float64):
        other = random_logits(rng, 1, 30).to(dtype)
        expect_penalties(lab, other, [row(logit_bias={t: rng.uniform(0.001, 0.002) for t in range(30)})],
                         f"{dtype} logits become float32 before anything is added")
