"""Whole batches at once: filters on probabilities in sorted order, penalties by counting matrices, and
draws by Gumbel noise: of logits plus noise the largest wins. The sampler draws first and falls back on
greedy rows by place.
"""

import random
from torch.nn.functional import one_hot


def _per_row(rows, name):
    return torch.tensor([float(getattr(row.params, name)) for row in rows])[:, None]


def greedy_tokens(logits):
    best = logits.amax(dim=-1, keepdim=True)
    places = torch.arange(logits.shape[-1]).expand(logits.shape)
    return places.masked_fill(logits != best, logits.shape[-1]).amin(dim=-1)


def apply_temperature(logits, rows):
    temperature = _per_row(rows, "temperature")
    return torch.where(temperature == 0, logits.float(), logits.float() / temperature.clamp(min=1e-9))


def keep_top(logits, rows):
    logits = logits.float()
    top_k, top_p, min_p = (_per_row(rows, name) for name in ("top_k", "top_p", "min_p"))
    # how many tokens are strictly above each one, from the sorted row; equals get the same number
    ascending = logits.contiguous().sort(dim=-1).values
    above = logits.shape[-1] - torch.searchsorted(ascending, logits.contiguous(), right=True)
    result = logits.masked_fill((above >= top_k) & (top_k > 0), -math.inf)
    probs = result.double().softmax(dim=-1)
    ordered = probs.sort(dim=-1, descending=True).values
    sums = torch.nn.functional.pad(ordered.cumsum(dim=-1), (1, 0))
    # the probability of all that are likelier: a token stays while that is under top_p
    likelier = sums.gather(-1, above)
    result = result.masked_fill((likelier >= top_p.double()) & (top_p < 1), -math.inf)
    limit = result.amax(dim=-1, keepdim=True) + min_p.log()
    return result.masked_fill(result < limit, -math.inf)


def apply_penalties(logits, rows):
    logits, vocab_size = logits.float(), logits.shape[-1]

    def counted(lists):
        empty = torch.zeros(vocab_size, dtype=torch.int64)
        return torch.stack([one_hot(torch.tensor(ids), vocab_size).sum(0) if ids else empty for ids in lists])

    written = counted([row.output_token_ids for row in rows])
    seen = (written + counted([row.prompt_token_ids for row in rows])) > 0
    bias = torch.zeros(logits.shape)
    for i, row in enumerate(rows):
        for token, value in (row.params.logit_bias or {}).items():
            bias[i, token] = value
    logits = logits + bias
    repetition = _per_row(rows, "repetition_penalty")
    penalised = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen, penalised, logits)
    return logits - written * _per_row(rows, "frequency_penalty") - (written > 0) * _per_row(rows, "presence_penalty")


def draw(logits, rows):
    noise = torch.empty(logits.shape, dtype=torch.float64)
    for i, row in enumerate(rows):
        mixed = random.Random(repr((row.seed, row.sample_index, row.position))).getrandbits(64)
        generator = torch.Generator().manual_seed(mixed)
        uniform = torch.rand(logits.shape[-1], dtype=torch.float64, generator=generator).clamp(min=1e-300)
        noise[i] = -(-uniform.log()).log()
    return (logits.double() + noise).argmax(dim=-1)


def logprobs_of(logits, token_id, count):
    logprobs = logits.float() - logits.float().logsumexp(dim=0)
    values, order = logits.sort(descending=True, stable=True)
    tokens = order.tolist() if count == -1 else order[:count].tolist()
    ascending = values.flip(0).contiguous()
    found = {}
    for token in [token_id, *tokens]:
        rank = len(logits) - int(torch.searchsorted(ascending, logits[token], right=True)) + 1
        found.setdefault(token, Logprob(logprobs[token].item(), rank))
    return found


class Sampler:
    def sample(self, logits, rows):
        kept = logits.float().clone()
        adjusted = apply_penalties(kept, rows)
        hot = [i for i, row in enumerate(rows) if row.params.temperature]
        tokens = dict(enumerate(greedy_tokens(adjusted).tolist()))
        if hot:
            mine = [rows[i] for i in hot]
            scaled = apply_temperature(adjusted[hot], mine)
            tokens |= dict(zip(hot, draw(keep_top(scaled, mine), mine).tolist(), strict=True))
        asked = {i: row.params.logprobs for i, row in enumerate(rows) if row.params.logprobs is not None}
        return [tokens[i] for i in range(len(rows))], [
            logprobs_of(kept[i], tokens[i], asked[i]) if i in asked else None for i in range(len(rows))
        ]


def main():
    """Nothing to show: the lab's own program is in solution.py."""
