"""Lab 04, TODO 6: log-probabilities, the order of the whole sampler, and the sampler in the engine."""

import random
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import check, expect, ours, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab04.definitions import chances, wishes_where_order_matters
from grading.scenarios.lab04.draws import NUM_DRAWS, called_with_rows, expect_frequencies, seeds_from
from grading.scenarios.lab04.rows import across, expect_untouched, numbers, random_logits, repeated, row, weather
from grading.scenarios.lab04.sampler import expect_logprobs, generated, prompts_from, sampled
from nano_qwen3_serving import SamplingParams

LOGPROBS = "TODO 6: Log-probabilities, and the sampler"


@check(todo=6, points=2, section=LOGPROBS, concept="which tokens have a log-probability")
def logprobs_are_log_softmax_of_the_chosen_token_and_the_best(lab: Remote, rng: random.Random) -> None:
    for count in (0, 1, 3, rng.randrange(4, 30), 40, 100, -1):
        logits = random_logits(rng, 1, 40)[0]
        order = logits.argsort(descending=True).tolist()
        for chosen in (order[0], order[2], order[rng.randrange(30, 40)]):
            expect_logprobs(lab.logprobs_of(logits, chosen, count), logits, chosen, count,
                            f"logprobs_of(40 logits, token_id={chosen}, count={count})")


@check(todo=6, points=2, section=LOGPROBS, concept="how ranks are counted")
def a_rank_is_one_plus_the_number_of_likelier_tokens(lab: Remote, rng: random.Random) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.tensor(rng.sample([1.0, 5.0, 3.0, 5.0, 2.0, 4.0, 2.0], 7)).to(dtype)
        for chosen in range(7):
            count = rng.choice([0, 2, 3, -1])
            # where equal tokens stand at the border of the best, any of them may be among these
            expect_logprobs(lab.logprobs_of(logits, chosen, count), logits, chosen, count,
                            f"logits {logits.tolist()}, {dtype}, token_id={chosen}, count={count}")
        expect_logprobs(lab.logprobs_of(logits, 3, -1), logits, 3, -1, f"logits {logits.tolist()}, {dtype}, token_id=3, count=-1")
    best, other = rng.sample(range(4), 2)
    close = torch.full((4,), rng.uniform(0.1, 0.2))
    close[best] = torch.nextafter(close[best], torch.tensor(1.0))  # larger by the last bit, which log_softmax rounds away
    expect_logprobs(lab.logprobs_of(close, other, 0), close, other, 0,
                    f"the logit of token {best} is larger than three equal ones by its last bit")
    closer = 1.0 + 2.0**-40 * torch.tensor(rng.sample(range(9), 9), dtype=torch.float64)
    expect_logprobs(lab.logprobs_of(closer, other, 4), closer, other, 4,
                    "logits of float64, from 1 on by steps of 2**-40; compare them in the float type they come in")


@check(todo=6, points=2, section=LOGPROBS, concept="which logits log-probabilities are of")
def the_samplers_logprobs_are_of_the_raw_logits(lab: Remote, rng: random.Random) -> None:
    logits, order = weather(rng)
    wishes: dict[str, Any] = {"temperature": rng.uniform(0.4, 0.7), "top_k": 3, "repetition_penalty": 1.7,
                              "presence_penalty": 1.0, "logit_bias": {order[4]: 9.0}}
    counts = [2] * 10 + [None, 0]
    rows = [row(rng.getrandbits(40), output=[order[0]] * 2, logprobs=count, **wishes) for count in counts] + [
        row(temperature=0.0, logprobs=1)]
    each = torch.stack([logits[rng.sample(range(6), 6)] for _ in rows])  # every row has its tokens in another order
    held = across(lab, each)
    tokens, logprobs = sampled(lab.Sampler(), held, rows)
    expect_untouched(held, each, "sample()")
    for token, found, one, own in zip(tokens, logprobs, rows, each, strict=True):
        wanted = one.params.logprobs
        if wanted is None:
            expect(found is None, f"a row with logprobs=None gets None, not {shown(found)}")
        else:
            expect(0 <= token < 6, f"sample() chose token {token} of six")
            expect_logprobs(found, own, token, wanted,
                            f"a row with logprobs={wanted}, its own logits before bias, penalties, temperature and filters")


def certain(order: list[int], rng: random.Random) -> list[tuple[dict, int]]:
    """Wishes of rows with the README's logits for the tokens in `order`, and the token that alone they can get."""
    a, b, c, d, e, _ = order
    return [
        ({"temperature": 0.0}, a),
        ({"temperature": 0.0, "logit_bias": {e: rng.uniform(6, 12)}}, e),
        ({"temperature": 0.0, "output": [a, a], "frequency_penalty": rng.uniform(0.5, 1)}, b),
        ({"temperature": 0.0, "prompt": [a], "repetition_penalty": rng.uniform(2, 5)}, b),
        ({"temperature": rng.uniform(1, 2), "top_k": 1}, a),
        ({"temperature": rng.uniform(1, 2), "top_p": 0.01}, a),
        ({"temperature": 1.0, "min_p": 1.0, "output": [a], "presence_penalty": rng.uniform(1, 2)}, b),
        ({"temperature": 0.01, "logit_bias": {c: 2.0}}, c),  # the second best is behind by 0.6 / 0.01: e**-60
        ({"temperature": 1.0, "logit_bias": {d: 100.0}}, d),  # by 98: e**-98
    ]


@check(todo=6, points=2, section=LOGPROBS, concept="rows of all kinds in one batch")
def in_a_mixed_batch_each_row_gets_what_it_wants(lab: Remote, rng: random.Random) -> None:
    logits, order = weather(rng)
    cases, sampler = certain(order, rng), lab.Sampler()
    for _ in range(3):
        rng.shuffle(cases)
        tokens, logprobs = sampled(sampler, logits.repeat(len(cases), 1),
                                   [row(rng.getrandbits(40), **wishes) for wishes, _ in cases])
        for (wishes, wanted), token in zip(cases, tokens, strict=True):
            expect(token == wanted, f"logits {numbers(logits)}: a row with {wishes} can only get token {wanted}; it got {token}")
        expect(logprobs == [None] * len(cases), f"no row asked for log-probabilities, and sample() returned {shown(logprobs)}")
    for wishes, wanted in cases:
        tokens, _ = sampled(sampler, logits.bfloat16()[None], [row(**wishes)])
        expect(tokens == [wanted],
               f"alone, logits {numbers(logits)} in bfloat16, a row with {wishes} can only get token {wanted}; it got {tokens}")
    tokens, _ = sampled(sampler, torch.zeros(64, 4), [row(rng.getrandbits(40), temperature=0.01) for _ in range(64)])
    expect(len(set(tokens)) > 1,  # by chance they are the same once in 4**63
           "of four equal tokens 64 rows with temperature 0.01 all got the same: only temperature 0 is greedy")


@check(todo=6, points=2, section=LOGPROBS, concept="the order of the steps", hidden=True)
def bias_penalties_temperature_filters_draw_in_this_order(lab: Remote, rng: random.Random) -> None:
    for everything in (True, False):
        logits, _ = weather(rng)
        one = wishes_where_order_matters(rng, logits.tolist(), everything)
        places = [(seed, 0, 6) for seed, _, _ in seeds_from(rng, NUM_DRAWS)]
        answer = called_with_rows(lab, lab.Sampler().sample, repeated(lab, logits, NUM_DRAWS), places, one)
        expect(isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], list) and len(answer[0]) == NUM_DRAWS,
               f"sample() of {NUM_DRAWS} rows returned {shown(answer)}; expected a token per row, and log-probabilities")
        expect_frequencies(answer[0], list(chances(logits.tolist(), one).values()),
                           f"rows with {one.params}, output {one.output_token_ids}")


@check(todo=6, points=1, section=LOGPROBS, concept="what greedy rows need", hidden=True)
def greedy_rows_draw_nothing(lab: Remote, rng: random.Random) -> None:
    given = []

    def watched(logits: Tensor, rows: Any) -> Tensor:
        """Takes the largest, by which each of these rows is known."""
        given.append(logits)
        return logits.argmax(dim=-1)

    peaks = rng.sample(range(6), 6)
    temperatures = [0.0, 0.0, 0.0, *(rng.uniform(0.5, 1.5) for _ in range(3))]
    rng.shuffle(temperatures)
    logits, rows = 9 * torch.eye(6)[peaks], [row(temperature=t) for t in temperatures]
    lab.draw = ours(watched)
    sampled(lab.Sampler(), logits, rows)
    for_whom = {peaks.index(int(scores.argmax())) for call in given for scores in call}
    wrong = sorted(i for i in for_whom if temperatures[i] == 0)
    expect(not wrong, f"temperatures {shown(temperatures)}: draw() was given the greedy rows {wrong}, which need none")
    given.clear()
    alone = [i for i, t in enumerate(temperatures) if t == 0]
    sampled(lab.Sampler(), logits[alone], [rows[i] for i in alone])
    expect(not given, "a batch of greedy rows alone has nothing to draw, and draw() was called")


@check(todo=6, points=2, section=LOGPROBS, concept="seeds in the engine", hidden=True)
def in_the_engine_a_seed_gives_the_same_text_alone_in_a_batch_and_in_chunks(lab: Remote, rng: random.Random) -> None:
    lab.Sampler().sample(torch.zeros(1, 4), [row()])
    prompts = prompts_from(rng)
    params = [SamplingParams(temperature=2.0, seed=rng.getrandbits(40), n=2, max_tokens=8, ignore_eos=True) for _ in prompts]

    def written(which: slice, **options: Any) -> list[list[list[int]]]:
        return [[one.token_ids for one in outputs]
                for outputs in generated(lab, prompts[which], params[which], batch_invariant=True, **options)]

    together = written(slice(None), block_size=16)
    alone = [text for i in range(3) for text in written(slice(i, i + 1), block_size=16)]
    expect(together == alone, f"three requests with seeds wrote together {shown(together)}, one after the other {shown(alone)}")
    chunked = written(slice(None), block_size=4, long_prefill_token_threshold=2)
    expect(chunked == alone, f"with prompts in chunks of two tokens they wrote {shown(chunked)}, in one piece {shown(alone)}")


@check(todo=6, points=2, section=LOGPROBS, concept="greedy in the engine")
def in_the_engine_greedy_tokens_and_logprobs_are_those_of_its_own_sampler(lab: Remote, rng: random.Random) -> None:
    lab.Sampler().sample(torch.zeros(1, 4), [row(temperature=0.0)])
    prompts = prompts_from(rng)
    params = [SamplingParams(temperature=0.0, max_tokens=8, logprobs=count, ignore_eos=True) for count in (None, 3, 5)]
    for found, right in zip(generated(lab, prompts, params), generated(None, prompts, params), strict=True):
        expect(found[0].token_ids == right[0].token_ids,
               f"greedy in the engine: expected the tokens {right[0].token_ids}, got {found[0].token_ids}")
        for mine, theirs in zip(found[0].logprobs or [], right[0].logprobs or [], strict=True):
            expect(set(mine) == set(theirs),
                   f"log-probabilities in the engine: expected those of the tokens {sorted(theirs)}, got {sorted(mine)}")
            for token, value in theirs.items():
                # log_softmax of logits of size 20 over the whole vocabulary, in two ways
                got, want = mine[token].logprob, value.logprob
                expect(abs(got - want) <= 1e-4,
                       f"log-probability of token {token} in the engine: expected {want:.5f}, got {got:.5f}")
