"""Row by row: groups of equal logits for top_p, dense counts for penalties, Gumbel noise from a hashed generator, a sampler loop per row."""

from labs.harness.todo import TodoError


def mixed(*numbers: int) -> int:
    """64 bits that depend on each of the numbers (of up to 64 bits, signed or not)."""
    key = b"".join(number.to_bytes(16, "big", signed=True) for number in numbers)
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big")


def greedy_tokens(logits: Tensor) -> Tensor:
    """The token with the largest logit in each row, of equals the one with the smallest id.

    Returns [num_rows], int64.
    """
    largest = logits.amax(dim=-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape)
    return torch.where(logits == largest, ids, logits.shape[-1]).amin(dim=-1)


def apply_temperature(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Each row's logits divided by its temperature; a greedy row (temperature 0) keeps its own.

    Returns [num_rows, vocab_size], float32.
    """
    result = logits.to(torch.float32, copy=True)
    for values, row in zip(result, rows, strict=True):
        if row.params.temperature != 0:
            values.div_(row.params.temperature)
    return result


def keep_top(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The logits, with -inf for the tokens that a row's top_k, top_p or min_p removes, in this order.

    Equal logits are kept or removed alike. Kept ones stay as they are. Returns [num_rows,
    vocab_size], float32.
    """
    result = logits.to(torch.float32, copy=True)
    for values, row in zip(result, rows, strict=True):
        params = row.params
        if 0 < params.top_k < values.numel():
            border = torch.topk(values, params.top_k).values[-1].clone()
            values[values < border] = -math.inf
        if params.top_p < 1.0:
            # groups of equal logits, from the likeliest down
            logits_there, times = torch.unique(values, return_counts=True)      # ascending
            weights = torch.exp(logits_there.double() - logits_there[-1].double()) * times
            goal, total = params.top_p * weights.sum().item(), 0.0
            border = -math.inf
            for logit, weight in zip(reversed(logits_there.tolist()), reversed(weights.tolist()), strict=True):
                total += weight
                border = logit
                if total >= goal:
                    break
            values[values < border] = -math.inf
        if params.min_p > 0:
            values[values.double() < values.max().double() + math.log(params.min_p)] = -math.inf
    return result


def apply_penalties(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The logits after logit_bias, then repetition, then frequency and presence penalty.

    Repetition looks at prompt and output, frequency and presence at the output alone. Returns
    [num_rows, vocab_size], float32.
    """
    num_rows, vocab_size = logits.shape
    bias = torch.zeros(num_rows, vocab_size)
    in_prompt = torch.zeros(num_rows, vocab_size, dtype=torch.long)
    in_output = torch.zeros(num_rows, vocab_size, dtype=torch.long)
    for i, row in enumerate(rows):
        for token, number in (row.params.logit_bias or {}).items():
            bias[i, token] = number
        in_prompt[i] = torch.bincount(torch.tensor(row.prompt_token_ids, dtype=torch.long), minlength=vocab_size)
        in_output[i] = torch.bincount(torch.tensor(row.output_token_ids, dtype=torch.long), minlength=vocab_size)
    bias, in_prompt, in_output = (t.to(logits.device) for t in (bias, in_prompt, in_output))
    column = lambda name: torch.tensor([getattr(row.params, name) for row in rows], device=logits.device)[:, None]
    r, f, q = map(column, ("repetition_penalty", "frequency_penalty", "presence_penalty"))
    result = logits.float() + bias
    factor = torch.where(in_prompt + in_output > 0, r, torch.ones_like(r))
    result = torch.where(result > 0, result / factor, result * factor)
    return result - (in_output * f + (in_output > 0) * q)


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """One token per row, drawn with the probabilities softmax(logits).

    The draw depends on the row's (seed, sample_index, position) and on its own logits, and on nothing
    else: not on its neighbours, its place in the batch or torch's global generator, which stays as it
    is. Returns [num_rows], int64.
    """
    tokens = []
    for values, row in zip(logits, rows, strict=True):
        generator = torch.Generator().manual_seed(mixed(row.seed, row.sample_index, row.position))
        noise = -(-torch.rand(values.shape[-1], dtype=torch.float64, generator=generator).log()).log()
        tokens.append(int((values.double().cpu() + noise).argmax()))
    return torch.tensor(tokens, dtype=torch.long, device=logits.device)


def logprobs_of(logits: Tensor, token_id: int, count: int) -> dict[int, Logprob]:
    """Log-probabilities of `token_id`, which comes first, and of the `count` likeliest tokens (-1: all).

    `logits` are one row, [vocab_size], of any float type. A rank is 1 plus the number of tokens with
    a larger logit.
    """
    values = logits.tolist()
    normal = logits.float().logsumexp(dim=-1)
    down = sorted(range(len(values)), key=lambda token: -values[token])
    ranks, rank = {}, 0
    for place, token in enumerate(down):
        if place == 0 or values[token] < values[down[place - 1]]:
            rank = place + 1
        ranks[token] = rank
    wanted = down if count == -1 else down[:count]
    result = {}
    for token in [token_id] + [token for token in wanted if token != token_id]:
        result[token] = Logprob((logits[token].float() - normal).item(), ranks[token])
    return result


class Sampler:
    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        """One token per row, and its log-probabilities for the rows that ask for them.

        `draw` is given only rows with a temperature above 0, and is not called when there are none.
        Log-probabilities are of the logits as they came, before bias, penalties and temperature.
        """
        tokens, logprobs = [], []
        for i, row in enumerate(rows):
            mine, me = logits[i : i + 1], [row]
            adjusted = apply_penalties(mine, me)
            if row.params.temperature == 0:
                token = greedy_tokens(adjusted)
            else:
                token = draw(keep_top(apply_temperature(adjusted, me), me), me)
            tokens.append(token.item())
            wanted = row.params.logprobs
            logprobs.append(logprobs_of(mine[0], tokens[-1], wanted) if wanted is not None else None)
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
