"""Lab 04: from logits to tokens, for a batch in which every row has its own wishes.

Read README.md first; it has the contract of each TODO. Check your work: pytest test_lab.py
Everywhere here, `logits` are [num_rows, vocab_size] and are not changed, and `rows[i]` says whose row
i is: its `params`, `prompt_token_ids`, `output_token_ids`, `seed`, `sample_index` and `position`.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from labs.harness.todo import run_lab
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.outputs import Logprob

WORDS = ["sun", "rain", "wind", "snow", "hail", "fog"]
LOGITS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -1.0]]) * math.log(2)
"""Of one row. Each step of ln 2 doubles a probability: they are 1/2, 1/4, 1/8, 1/16, 1/32, 1/32."""


def greedy_tokens(logits: Tensor) -> Tensor:
    """The token with the largest logit in each row, of equals the one with the smallest id.

    Returns [num_rows], int64.
    """
    # TODO 1: take the position of each row's largest logit
    ### BEGIN SOLUTION
    return logits.argmax(dim=-1)
    ### END SOLUTION


def apply_temperature(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Each row's logits divided by its temperature; a greedy row (temperature 0) keeps its own.

    Returns [num_rows, vocab_size], float32.
    """
    # TODO 2: divide each row by its own temperature, in float32, and never by 0
    ### BEGIN SOLUTION
    divisors = [row.params.temperature or 1.0 for row in rows]
    return logits.float() / torch.tensor(divisors, device=logits.device)[:, None]
    ### END SOLUTION


def keep_top(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The logits, with -inf for the tokens that a row's top_k, top_p or min_p removes, in this order.

    Equal logits are kept or removed alike. Kept ones stay as they are. Returns [num_rows,
    vocab_size], float32.
    """
    # TODO 3: find the smallest logit that each row keeps, and put -inf where logits are below it
    ### BEGIN SOLUTION
    def column(numbers: list) -> Tensor:
        return torch.tensor(numbers, device=logits.device)[:, None]

    logits = logits.float()
    vocab_size = logits.shape[-1]
    top_k = column([p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in (row.params for row in rows)])
    top_p = column([row.params.top_p for row in rows])
    min_p = column([row.params.min_p for row in rows])

    values = logits.sort(dim=-1, descending=True).values
    removed = values < values.gather(-1, top_k - 1)
    probs = values.masked_fill(removed, -math.inf).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs  # what the likelier tokens already have; 0 for the first
    removed |= (before >= top_p) & (top_p < 1.0)  # 1.0 is off: rounded sums reach 1 too early
    removed |= probs < min_p * probs[:, :1]
    lowest = values.masked_fill(removed, math.inf).amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < lowest, -math.inf)
    ### END SOLUTION


def apply_penalties(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The logits after logit_bias, then repetition, then frequency and presence penalty.

    Repetition looks at prompt and output, frequency and presence at the output alone. Returns
    [num_rows, vocab_size], float32.
    """
    # TODO 4: change the logits of the tokens that a row's bias and penalties name
    ### BEGIN SOLUTION
    logits = logits.to(torch.float32, copy=True)
    for scores, row in zip(logits, rows, strict=True):  # scores is a view: what changes, changes in logits
        p = row.params
        for token, bias in (p.logit_bias or {}).items():
            scores[token] += bias
        if p.repetition_penalty != 1.0:
            seen = sorted({*row.prompt_token_ids, *row.output_token_ids})
            old = scores[seen]
            scores[seen] = torch.where(old > 0, old / p.repetition_penalty, old * p.repetition_penalty)
        if p.frequency_penalty or p.presence_penalty:
            for token, count in Counter(row.output_token_ids).items():
                scores[token] -= p.frequency_penalty * count + p.presence_penalty
    return logits
    ### END SOLUTION


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """One token per row, drawn with the probabilities softmax(logits).

    The draw depends on the row's (seed, sample_index, position) and on its own logits, and on nothing
    else: not on its token ids and parameters, its neighbours, its place in the batch or a generator that
    others share, such as torch's global one, which stay as they are. Returns [num_rows], int64.
    """
    # TODO 5: draw each row's token from a random number that only its seed, index and position decide
    ### BEGIN SOLUTION
    numbers = []
    for row in rows:
        text = f"{row.seed} {row.sample_index} {row.position}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        numbers.append((int.from_bytes(digest, "big") >> 12) / 2**52)  # 52 bits: exact, and below 1
    cumulated = logits.cpu().double().softmax(dim=-1).cumsum(dim=-1)  # the same on every device
    heights = torch.tensor(numbers, dtype=torch.float64)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, heights, right=True).squeeze(-1).to(logits.device)
    ### END SOLUTION


def logprobs_of(logits: Tensor, token_id: int, count: int) -> dict[int, Logprob]:
    """Log-probabilities of `token_id`, which comes first, and of the `count` likeliest tokens.

    `logits` are one row, [vocab_size], of any float type. A count of -1, or of more than there are, means
    all of them. A rank is 1 plus the number of tokens with a larger logit.
    """
    # TODO 6: take log_softmax in float32; the chosen token first, then the best in their order
    ### BEGIN SOLUTION
    logprobs = logits.float().log_softmax(dim=-1)
    best = logits.topk(len(logits) if count == -1 else min(count, len(logits))).indices.tolist()
    wanted = dict.fromkeys([token_id, *best])
    return {token: Logprob(float(logprobs[token]), int((logits > logits[token]).sum()) + 1) for token in wanted}
    ### END SOLUTION


class Sampler:
    """Logits to tokens, as the engine calls it. Keeps nothing from one call to the next."""

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        """One token per row, and its log-probabilities for the rows that ask for them.

        `draw` is given only rows with a temperature above 0, and is not called when there are none.
        Log-probabilities are of the logits as they came, before bias, penalties and temperature.
        """
        # TODO 6: put TODOs 1 to 5 together, and take the log-probabilities of the raw logits
        ### BEGIN SOLUTION
        adjusted = apply_penalties(logits, rows)
        tokens = greedy_tokens(adjusted)
        drawing = [i for i, row in enumerate(rows) if row.params.temperature > 0]
        if drawing:
            their_rows = [rows[i] for i in drawing]
            tokens[drawing] = draw(keep_top(apply_temperature(adjusted[drawing], their_rows), their_rows), their_rows)
        chosen = tokens.tolist()
        return chosen, [
            None if row.params.logprobs is None else logprobs_of(logits[i], chosen[i], row.params.logprobs)
            for i, row in enumerate(rows)
        ]
        ### END SOLUTION


def main() -> None:
    """Sample from six words, then let the engine write with this sampler."""
    print("=== Lab 04: sampling ===\n")
    show_filters()
    show_penalties()
    show_draws()
    llm = LLM("course", components=Components().using(sampler=lambda config: Sampler()), batch_invariant=True)
    show_engine(llm)
    show_temperatures(llm)
    show_cost()


def show_filters() -> None:
    """What temperature and the filters leave of one row."""
    print("Six words and their probabilities")
    show_bars(LOGITS)
    row = SamplingRow(SamplingParams(temperature=0.5, top_k=3, top_p=0.95), [1, 2, 3], [4, 0], seed=7)
    print(f"Greedy takes: {WORDS[greedy_tokens(LOGITS).item()]}\n")
    print("Temperature 0.5")
    sharper = apply_temperature(LOGITS, [row])
    show_bars(sharper)
    print("... then top_k=3, then top_p=0.95")
    show_bars(keep_top(sharper, [row]))


def show_bars(logits: Tensor) -> None:
    """The probabilities of one row as bars."""
    for word, prob in zip(WORDS, logits.softmax(dim=-1)[0].tolist(), strict=True):
        print(f"  {word:5} {prob:.3f} {'#' * round(40 * prob)}".rstrip())


def show_penalties() -> None:
    """What penalties do to the same row."""
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0, frequency_penalty=0.5 * math.log(2),
                            logit_bias={4: math.log(2)})
    row = SamplingRow(params, [2, 5], [0, 0], seed=0)
    adjusted = apply_penalties(LOGITS, [row])
    print(f"\nAfter 'sun sun', with penalties, greedy takes: {WORDS[greedy_tokens(adjusted).item()]}\n")


def show_draws(num_draws: int = 10_000) -> None:
    """How often each word is drawn, and what the sampler says of one draw."""
    params = SamplingParams(temperature=0.5, top_k=3, top_p=0.95, logprobs=1)
    rows = [SamplingRow(params, [1, 2, 3], [4, 0], seed) for seed in range(num_draws)]
    tokens, logprobs = Sampler().sample(LOGITS.expand(num_draws, -1), rows)
    counts = Counter(tokens)
    print(f"{num_draws} draws, each with its own seed")
    for token in sorted(counts):
        print(f"  {WORDS[token]:5} {counts[token] / num_draws:.3f}")
    example = logprobs[tokens.index(1)]
    said = ", ".join(f"{WORDS[token]} {lp.logprob:.3f} (rank {lp.rank})" for token, lp in example.items())
    print(f"Log-probabilities of a draw of rain: {said}\n")


def show_engine(llm: LLM) -> None:
    """The engine's text with this sampler: greedy, with three seeds, and a seed beside other requests."""
    print("The engine with this sampler")
    wishes = {"greedy": SamplingParams(temperature=0.0, max_tokens=24)}
    wishes |= {f"seed {seed}": SamplingParams(temperature=0.7, seed=seed, max_tokens=24) for seed in (1, 2, 3)}

    def write(*params: SamplingParams) -> list[str]:
        outputs = llm.generate(["Once upon a time"] * len(params), list(params), use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    alone = [write(params)[0] for params in wishes.values()]
    for name, text in zip(wishes, alone, strict=True):
        print(f"  {name}: Once upon a time{text}")
    together = write(*wishes.values())
    print(f"All in one batch: {sum(map(str.__eq__, together, alone))} of {len(alone)} texts are the same")


def show_temperatures(llm: LLM, seed: int = 2) -> None:
    """One seed at three temperatures, with all tokens and with those that have 90 % of the probability."""
    print("\nOne seed, three temperatures")
    for temperature in (0.3, 1.0, 2.0):
        for top_p in (1.0, 0.9):
            params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed, max_tokens=24)
            [output] = llm.generate("Once upon a time", params, use_tqdm=False)
            text = " ".join(output.outputs[0].text.split())
            print(f"  temperature {temperature}, top_p {top_p}: {text}")


def show_cost(num_rows: int = 8, vocab_size: int = 151_936) -> None:
    """What your keep_top costs on Qwen3's vocabulary, and what it costs on the 50 largest logits that topk finds."""
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0))
    rows = [SamplingRow(SamplingParams(top_k=50, top_p=0.95), [1], [], seed) for seed in range(num_rows)]

    def milliseconds(filtered) -> float:
        started = time.perf_counter()
        filtered()
        return 1000 * (time.perf_counter() - started)

    def by_topk() -> Tensor:
        largest, tokens = logits.topk(50)
        return torch.full_like(logits, -math.inf).scatter(1, tokens, keep_top(largest, rows))

    all_of_them, fifty = (min(milliseconds(way) for _ in range(3)) for way in (lambda: keep_top(logits, rows), by_topk))
    print(f"\nFiltering {num_rows} rows of {vocab_size} logits, top_k=50, top_p=0.95")
    print(f"  your keep_top on all logits: {all_of_them:.1f} ms; on the 50 that topk finds: {fifty:.1f} ms")


if __name__ == "__main__":
    run_lab(main)
