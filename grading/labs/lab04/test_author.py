"""Lab 04's own promises: the README's example, the oracles of its suite, and what its draws can tell apart."""

import functools
import importlib.util
import inspect
import itertools
import math
import random
import re
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch

from grading.authoring.mutants import entries_of
from labs.harness.catalog import find_lab
from labs.harness.suite.expecting import Here
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.execution import sampler as reference
from nano_qwen3_serving.interfaces import SamplingRow

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[3]
LAB = find_lab("04", PROJECT / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")
FLAT = " ".join(README.split())
"""The README without its line breaks."""
LN2 = math.log(2)


def module(name: str) -> ModuleType:
    """A file of the lab's folder as a module."""
    spec = importlib.util.spec_from_file_location(f"lab04_own_{name}", LAB.folder / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def solution() -> ModuleType:
    return module("solution")


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    """The lab's tests, for their oracles and bounds."""
    return module("test_lab")


# The README's example

UNITS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -1.0]])
A = SamplingRow(
    SamplingParams(temperature=0.0, repetition_penalty=2.0, frequency_penalty=LN2 / 2, logit_bias={4: LN2}), [2, 5], [0, 0], 0)
B = SamplingRow(SamplingParams(temperature=0.5, top_k=3, top_p=0.95, logprobs=1), [1, 2, 3], [4, 0], 7)


def table(*first_cells: str) -> list[list[str]]:
    """The README's table rows that begin with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")]
    return [next(row[1:] for row in rows if row[0] == first) for first in first_cells]


def units(logits: torch.Tensor) -> list[str]:
    """Logits as multiples of ln 2, as the README writes them."""
    return [f"{round(x / LN2, 3):g}".replace("-", "−") for x in logits[0].tolist()]


def shares(logits: torch.Tensor) -> list[str]:
    return [f"{p:.3f}" if p else "–" for p in logits.softmax(dim=-1)[0].tolist()]


def test_the_examples_row_has_the_probabilities_of_the_readme(solution):
    assert torch.equal(solution.LOGITS, UNITS * LN2)
    logit, probability = table("logit / ln 2", "probability")
    assert logit == units(solution.LOGITS)
    assert solution.LOGITS.softmax(dim=-1)[0].tolist() == pytest.approx([float(Fraction(p)) for p in probability])


def test_request_as_table_is_what_the_penalties_do(solution):
    def after(**changes):
        neutral = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "logit_bias": None}
        row = SamplingRow(A.params.clone(**neutral | changes), A.prompt_token_ids, A.output_token_ids, 0)
        return units(solution.apply_penalties(solution.LOGITS, [row]))

    bias, repetition = {"logit_bias": A.params.logit_bias}, {"repetition_penalty": A.params.repetition_penalty}
    found = [units(solution.LOGITS), after(**bias), after(**bias, **repetition),
             units(solution.apply_penalties(solution.LOGITS, [A]))]
    assert table("raw", "bias", "repetition", "frequency") == found
    assert f"`frequency_penalty={A.params.frequency_penalty:.3f}`" in FLAT
    assert solution.greedy_tokens(solution.LOGITS).item() == 0 and "Greedy (TODO 1) takes sun" in FLAT
    assert solution.greedy_tokens(solution.apply_penalties(solution.LOGITS, [A])).item() == 1 and "now takes rain" in FLAT


def test_request_bs_table_is_what_temperature_and_filters_do(solution):
    scaled = solution.apply_temperature(solution.LOGITS, [B])
    only_k = SamplingRow(B.params.clone(top_p=1.0), B.prompt_token_ids, B.output_token_ids, B.seed)
    all_after_k = solution.keep_top(scaled, [only_k])
    rows = table("temperature 0.5", "weight, 2 to that power", "top_k=3", "top_p=0.95")
    assert rows[0] == units(scaled)
    assert [float(weight) for weight in rows[1]] == pytest.approx([2 ** (x / LN2) for x in scaled[0].tolist()])
    assert rows[2] == shares(all_after_k)
    assert rows[3] == shares(solution.keep_top(scaled, [B]))
    probability_rows = re.findall(r"^\| probability \| (.*) \|$", README, re.MULTILINE)
    assert probability_rows[1].split(" | ") == shares(scaled)
    before, after = scaled.softmax(dim=-1)[0], all_after_k.softmax(dim=-1)[0]
    assert f"sun alone has {after[0]:.3f}, sun and rain {after[:2].sum():.3f}" in FLAT
    assert f"sun and rain had only {before[:2].sum():.3f}" in FLAT
    assert before[:2].sum() < 0.95 < before[:3].sum(), "with top_p first, wind would have been kept"
    assert f"Rain is {before[1] / before[0]:.2f} times" in FLAT


def test_request_b_draws_what_the_readme_says(solution):
    tokens, logprobs = solution.Sampler().sample(solution.LOGITS.repeat(2, 1), [A, B])
    assert tokens == [1, 1]
    found = {solution.WORDS[t]: (f"{lp.logprob:.3f}".replace("-", "−"), lp.rank) for t, lp in logprobs[1].items()}
    assert list(found) == ["rain", "sun"]
    assert f"rain has ln 1/4 = {found['rain'][0]} and rank {found['rain'][1]}" in FLAT
    assert f"sun has ln 1/2 = {found['sun'][0]} and rank {found['sun'][1]}" in FLAT
    # the number behind the draw: the share of draws below which the token would have been sun
    heights = torch.linspace(0, 1, 1002)[1:-1]
    two = torch.stack([heights.log(), (1 - heights).log()], dim=1)
    rains = solution.draw(two, [B] * 1000)  # token 0 as soon as its probability is above the number drawn
    assert f"Ours is {(rains == 1).double().mean():.3f}" in FLAT


def test_the_case_that_fails_fails_as_the_readme_says(solution):
    divided = solution.LOGITS / 0.0
    assert repr(divided) in README
    assert divided.argmax().item() == 3 and "at token 3, snow" in FLAT


# The suite's oracles, and the engine's


FILTERS = [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.8, "min_p": 0.05}]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_the_suites_filters_keep_what_transformers_keeps(suite, filters):
    import transformers

    warpers = {
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    for logits in suite.random_logits(random.Random(8), 100, 20):
        scores = logits.double()[None]
        for name, value in filters.items():
            scores = warpers[name](value)(None, scores)
        assert suite.kept_by_hand(logits.tolist(), **filters) == set(scores[0].isfinite().nonzero()[:, 0].tolist())


def test_the_solution_keeps_and_penalises_as_the_engine_does(solution, suite):
    logits = suite.random_logits(random.Random(9), 60, 50)
    rows = [suite.row(i, output=[i % 50, 3, 3], top_k=i % 7, top_p=0.5 + i / 200, repetition_penalty=1.2, frequency_penalty=0.3,
                      logit_bias={i % 50: 2.0}) for i in range(60)]
    kept = torch.cat([reference.keep_top(logits[i : i + 1], row.params.top_k, row.params.top_p) for i, row in enumerate(rows)])
    assert torch.equal(solution.keep_top(logits, rows), kept)
    torch.testing.assert_close(solution.apply_penalties(logits, rows), reference.apply_processors(logits, rows))


def cases_of(test) -> list[dict]:
    """The values of its one parameter, or nothing, once."""
    marks = [mark.args for mark in test.pytestmark if mark.name == "parametrize"]
    return [{name: value} for name, values in marks for value in values] or [{}]


def run_all(suite: ModuleType, solution: ModuleType, monkeypatch: pytest.MonkeyPatch, todos: str, seed: str) -> None:
    """All cases of the suite's tests of these TODOs, with inputs drawn from `seed`, as the judge runs them."""
    for name, test in vars(suite).items():
        if re.match(f"test_todo_[{todos}]_", name) and not any(mark.name == "practice" for mark in test.pytestmark):
            rng = random.Random(f"{seed}/{name}")
            for case in cases_of(test):
                with monkeypatch.context() as patch:
                    asked = {"lab": solution, "rng": rng, "there": Here(patch)}
                    test(**{one: value for one, value in asked.items() if one in inspect.signature(test).parameters}, **case)


@pytest.mark.proof
def test_no_test_of_filters_comes_closer_to_a_border_than_the_readme_says(solution, suite, monkeypatch):
    asked, keep_top = {}, solution.keep_top

    def watched(logits, rows):
        for scores, row in zip(logits.tolist(), rows, strict=True):
            p = row.params
            asked[tuple(scores), p.top_k, p.top_p, p.min_p] = None
        return keep_top(logits, rows)

    monkeypatch.setattr(solution, "keep_top", watched)
    for seed in "abc":
        run_all(suite, solution, monkeypatch, "36", seed)
    assert len(asked) > 600 and "closer than one part in 10,000" in FLAT
    for scores, top_k, top_p, min_p in asked:
        less, more = ({"top_p": top_p * part if top_p < 1 else 1.0, "min_p": min_p * part if min_p < 1 else 1.0}
                      for part in (0.9999, 1.0001))
        assert suite.kept_by_hand(scores, top_k, **less) == suite.kept_by_hand(scores, top_k, **more), (
            scores,
            top_k,
            top_p,
            min_p,
        )


def test_no_prediction_stands_on_a_border():
    predict = module("predict")
    for seed in range(500):
        case = predict.case(random.Random(seed))
        shares = [Fraction(number) / 100 for number in case["percents"].split(", ")]
        sums = {sum(shares[: n + 1]) for n in range(len(shares))}
        assert Fraction(str(case["top_p"])) not in sums, case
        assert Fraction(str(case["min_p"])) not in {share / shares[0] for share in shares}, case


# What the draws can tell apart: both numbers of every test that draws


def power(gap: float, distance: float, num_draws: int) -> float:
    """A lower bound of the probability that a sampler whose distribution is off by `distance` is noticed."""
    return 1 - 2 * math.exp(-2 * num_draws * (distance - gap) ** 2) if distance > gap else 0.0


def test_a_right_sampler_is_rejected_with_a_probability_under_1e_9(suite, solution, monkeypatch):
    alarms = []  # of each comparison of TODOs 5 and 6, the probability that it rejects a right sampler

    def watched(drawn, probabilities, what):
        alarms.append(2 * math.exp(-2 * len(drawn) * suite.allowed_gap(len(drawn)) ** 2))

    monkeypatch.setattr(suite, "assert_frequencies", watched)
    run_all(suite, solution, monkeypatch, "56", "any")
    assert 18 <= len(alarms) <= suite.COMPARISONS and f"at most {suite.COMPARISONS} such comparisons" in FLAT
    assert sum(alarms) <= 1e-9
    gap = f"{suite.allowed_gap(suite.NUM_DRAWS):.3f}"
    assert f"gap = {gap} the right side is {2 * math.exp(-2 * suite.NUM_DRAWS * float(gap) ** 2) * 1e11:.0f} × 10⁻¹¹" in FLAT


def test_places_of_pairs_are_all_different(suite):
    for seed, name in itertools.product(range(20), [*suite.STEPS, *suite.ALIKE]):
        pairs = suite.pairs_of_places(random.Random(seed), name)
        assert len(pairs) == suite.NUM_PAIRS and len({place for pair in pairs for place in pair}) == 2 * len(pairs), name


def test_places_with_the_same_digits_have_them_in_every_order(suite):
    ways = {"seed first": ["sip", "isp", "spi"], "position first": ["psi", "pis", "ips"]}
    for name, orders in ways.items():
        for pair in suite.pairs_of_places(random.Random(0), f"places with the same digits, {name}"):
            for order in orders:
                assert len({"".join(str(place["sip".index(one)]) for one in order) for place in pair}) == 1, (pair, order)
    assert "seed 7, index 1, position 13 and seed 71, index 1, position 3 both read `7113`" in FLAT
    assert hash(-1) == hash(-2) and hash(2**61 - 1) == hash(0), "the README says so of Python's own hash"


def test_the_smallest_distance_that_is_noticed_is_the_one_in_the_readme(suite):
    gap = suite.allowed_gap(suite.NUM_DRAWS)
    smallest = gap + math.sqrt(math.log(2000) / (2 * suite.NUM_DRAWS))
    assert power(gap, smallest, suite.NUM_DRAWS) == pytest.approx(0.999)
    assert smallest <= 0.055 and "is off by 0.055 somewhere" in FLAT


def wrong_draws(suite) -> dict[str, torch.Tensor]:
    """Mutants of TODO 5 whose single draws have another distribution than the README's row, and which."""
    right = suite.weather().double().softmax(dim=0)
    return {
        "any_token_alike": torch.full((6,), 1 / 6),
        "noise_that_is_not_gumbel": largest_with_uniform_noise(suite.weather().double()),
        "one_too_far": torch.cat([torch.zeros(1), right[:4], right[4:].sum()[None]]),
        "seed_forgotten": torch.eye(6)[0],  # all first draws are one token; the likeliest is the hardest to notice
    }


def largest_with_uniform_noise(logits: torch.Tensor, cells: int = 20_000) -> torch.Tensor:
    """With which probability logit + uniform noise is the largest, integrated over that sum."""
    height = torch.linspace(float(logits.min()), float(logits.max()) + 1, cells, dtype=torch.float64)
    below = (height[:, None] - logits).clamp(0, 1)  # P(noise < height - logit)
    found = []
    for token in range(len(logits)):
        others = below[:, [t for t in range(len(logits)) if t != token]].prod(dim=1)
        inside = ((height >= logits[token]) & (height <= logits[token] + 1)).double()
        found.append(torch.trapezoid(others * inside, height))
    return torch.stack(found) / torch.stack(found).sum()


@pytest.mark.parametrize("name", ["any_token_alike", "noise_that_is_not_gumbel", "one_too_far", "seed_forgotten"])
def test_a_sampler_with_a_wrong_distribution_is_noticed_with_probability_0_999(suite, name):
    assert name in entries_of(LAB)
    right, wrong = suite.weather().double().softmax(dim=0), wrong_draws(suite)[name]
    assert wrong.sum() == pytest.approx(1.0, abs=1e-6)
    assert power(suite.allowed_gap(suite.NUM_DRAWS), suite.distance(wrong.tolist(), right.tolist()), suite.NUM_DRAWS) >= 0.999


def test_draws_of_two_places_that_are_one_are_noticed_with_probability_0_999(suite):
    """Pairs of equal tokens, 1/4 each, where all 16 pairs should be alike: seed_plus_position and its kin."""
    equal = torch.zeros(16)
    equal[[0, 5, 10, 15]] = 1 / 4
    assert power(suite.allowed_gap(suite.NUM_PAIRS), suite.distance(equal.tolist(), [1 / 16] * 16), suite.NUM_PAIRS) >= 0.999


@pytest.mark.parametrize(
    "name", ["filters_before_temperature", "penalties_after_temperature", "without_filters", "without_temperature"]
)
def test_a_sampler_put_together_wrongly_is_noticed_with_probability_0_999(solution, suite, name):
    def probabilities(wishes: dict) -> torch.Tensor:
        rows, logits = [suite.row(**wishes)], suite.weather(1)
        scaled, adjusted = solution.apply_temperature(logits, rows), solution.apply_penalties(logits, rows)
        wrong = {
            "filters_before_temperature": lambda: solution.apply_temperature(solution.keep_top(adjusted, rows), rows),
            "penalties_after_temperature": lambda: solution.keep_top(solution.apply_penalties(scaled, rows), rows),
            "without_filters": lambda: solution.apply_temperature(adjusted, rows),
            "without_temperature": lambda: solution.keep_top(adjusted, rows),
        }
        return wrong[name]().softmax(dim=-1)[0]

    powers = []
    for wishes in suite.WISHES.values():
        right = suite.probabilities_by_hand(suite.weather().tolist(), suite.row(**wishes))
        off = suite.distance(probabilities(wishes).tolist(), right)
        powers.append(power(suite.allowed_gap(suite.NUM_DRAWS), off, suite.NUM_DRAWS))
    assert max(powers) >= 0.999, powers


# The seam


MASKED = SamplingParams(temperature=1.0, seed=3, max_tokens=6, min_tokens=6, allowed_token_ids=list(range(300, 340)), logprobs=2)


def test_through_the_seam_masks_hold_and_logprobs_stay_raw(solution):
    def serve(components, params) -> tuple:
        (output,) = LLM("course-draft", components=components).generate({"prompt_token_ids": [5, 6, 7]}, params, use_tqdm=False)
        return output.outputs[0].token_ids, output.outputs[0].logprobs

    mine = Components().using(sampler=functools.partial(module("seam").sampler, solution))
    tokens, logprobs = serve(mine, MASKED)
    assert len(tokens) == 6 and set(tokens) <= set(MASKED.allowed_token_ids)
    assert any(found[token].rank > 40 for token, found in zip(tokens, logprobs, strict=True)), "the rank among all tokens"
    # greedy draws nothing, so the engine's own sampler must say the same
    greedy = MASKED.clone(temperature=0.0)
    (tokens, mine_said), (theirs, they_said) = serve(mine, greedy), serve(None, greedy)
    assert tokens == theirs
    for a, b in zip(mine_said, they_said, strict=True):
        assert list(a) == list(b)
        assert [x.logprob for x in a.values()] == pytest.approx([x.logprob for x in b.values()], abs=1e-5)
        assert [x.rank for x in a.values()] == [x.rank for x in b.values()]
