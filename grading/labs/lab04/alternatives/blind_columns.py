"""All rows at once: one descending sort, columns of parameters, a hashed u against the cumulated sums."""

from labs.harness.todo import TodoError


def greedy_tokens(logits: Tensor) -> Tensor:
    """The token with the largest logit in each row, of equals the one with the smallest id.

    Returns [num_rows], int64.
    """
    return torch.argmax(logits, dim=-1)


def apply_temperature(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Each row's logits divided by its temperature; a greedy row (temperature 0) keeps its own.

    Returns [num_rows, vocab_size], float32.
    """
    temperatures = torch.tensor([row.params.temperature or 1.0 for row in rows], device=logits.device)[:, None]
    return logits.float() / temperatures


def keep_top(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The logits, with -inf for the tokens that a row's top_k, top_p or min_p removes, in this order.

    Equal logits are kept or removed alike. Kept ones stay as they are. Returns [num_rows,
    vocab_size], float32.
    """
    logits = logits.float()
    num_rows, vocab_size = logits.shape

    def column(values, dtype):
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    top_k = column([row.params.top_k or vocab_size for row in rows], torch.long).clamp(max=vocab_size)
    top_p = column([row.params.top_p for row in rows], torch.float64)
    min_p = column([row.params.min_p for row in rows], torch.float64)

    ordered = logits.sort(dim=-1, descending=True).values
    ordered = ordered.masked_fill(ordered < ordered.gather(1, top_k - 1), -math.inf)
    probs = ordered.double().softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    keep = (before < top_p) | (top_p >= 1)
    keep[:, :1] = True
    keep &= probs >= min_p * probs[:, :1]
    keep &= ordered > -math.inf
    smallest = ordered.masked_fill(~keep, math.inf).amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < smallest, -math.inf)


def apply_penalties(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The logits after logit_bias, then repetition, then frequency and presence penalty.

    Repetition looks at prompt and output, frequency and presence at the output alone. Returns
    [num_rows, vocab_size], float32.
    """
    logits = logits.to(torch.float32, copy=True)
    for i, row in enumerate(rows):
        params = row.params
        for token, bias in (params.logit_bias or {}).items():
            logits[i, token] += bias
        if params.repetition_penalty != 1.0:
            seen = sorted(set(row.prompt_token_ids) | set(row.output_token_ids))
            seen = torch.tensor(seen, dtype=torch.long, device=logits.device)
            values = logits[i, seen]
            r = params.repetition_penalty
            logits[i, seen] = torch.where(values > 0, values / r, values * r)
        for token, times in Counter(row.output_token_ids).items():
            logits[i, token] -= params.frequency_penalty * times + params.presence_penalty
    return logits


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """One token per row, drawn with the probabilities softmax(logits).

    The draw depends on the row's (seed, sample_index, position) and on its own logits, and on nothing
    else: not on its neighbours, its place in the batch or torch's global generator, which stays as it
    is. Returns [num_rows], int64.
    """
    numbers = []
    for row in rows:
        key = f"{row.seed},{row.sample_index},{row.position}".encode()
        number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        numbers.append((number >> 11) / 2**53)
    u = torch.tensor(numbers, dtype=torch.float64, device=logits.device)[:, None]
    cumulated = logits.double().softmax(dim=-1).cumsum(dim=-1)
    return torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)[:, 0]


def logprobs_of(logits: Tensor, token_id: int, count: int) -> dict[int, Logprob]:
    """Log-probabilities of `token_id`, which comes first, and of the `count` likeliest tokens (-1: all).

    `logits` are one row, [vocab_size], of any float type. A rank is 1 plus the number of tokens with
    a larger logit.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    count = logits.numel() if count < 0 else min(count, logits.numel())
    best = logits.sort(descending=True, stable=True).indices[:count].tolist()
    return {
        token: Logprob(logprobs[token].item(), 1 + int((logits > logits[token]).sum()))
        for token in [token_id, *best]
    }


class Sampler:
    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        """One token per row, and its log-probabilities for the rows that ask for them.

        `draw` is given only rows with a temperature above 0, and is not called when there are none.
        Log-probabilities are of the logits as they came, before bias, penalties and temperature.
        """
        adjusted = apply_penalties(logits, rows)
        tokens = greedy_tokens(adjusted)
        drawing = [i for i, row in enumerate(rows) if row.params.temperature > 0]
        if drawing:
            chosen_rows = [rows[i] for i in drawing]
            hot = apply_temperature(adjusted[drawing], chosen_rows)
            tokens[drawing] = draw(keep_top(hot, chosen_rows), chosen_rows)
        tokens = tokens.tolist()
        logprobs = [
            None if row.params.logprobs is None else logprobs_of(logits[i], tokens[i], row.params.logprobs)
            for i, row in enumerate(rows)
        ]
        return tokens, logprobs


def main() -> None:
    """Sample from six words, then let the engine write with this sampler."""
    print("=== Lab 04: sampling ===\n")
    show_filters()
    show_penalties()
    show_draws()
    show_engine()


def show_engine() -> None:
    """The engine's text with this sampler: greedy, with two seeds, and a seed beside other requests."""
    print("The engine with this sampler")
    llm = LLM("course", components=Components().using(sampler=lambda config: Sampler()), batch_invariant=True)
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
