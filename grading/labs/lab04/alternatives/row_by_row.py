"""Every function is a loop over rows; a draw is torch.multinomial with a generator of its own.

The filters walk through the sorted tokens one after the other, as the definitions read.
"""

import random


def greedy_tokens(logits):
    best = []
    for scores in logits.unbind():
        best.append(int((scores == scores.max()).nonzero()[0, 0]))
    return torch.tensor(best, dtype=torch.int64)


def apply_temperature(logits, rows):
    out = []
    for scores, row in zip(logits.float(), rows):
        t = row.params.temperature
        out.append(scores.clone() if t == 0 else scores * (1 / t))
    return torch.stack(out)


def keep_top(logits, rows):
    out = []
    for scores, row in zip(logits.float(), rows):
        p = row.params
        if not p.top_k and p.top_p == 1.0 and not p.min_p:
            out.append(scores.clone())
            continue
        out.append(_filtered(scores, p.top_k, p.top_p, p.min_p))
    return torch.stack(out)


def _filtered(scores, top_k, top_p, min_p):
    values = sorted(scores.tolist(), reverse=True)
    if top_k > 0:
        border = values[min(top_k, len(values)) - 1]
        values = [v for v in values if v >= border and v > -math.inf]
    weights = [math.exp(v - values[0]) for v in values]
    border = values[-1]
    if top_p < 1:
        total, reached = sum(weights), 0.0
        for value, weight in zip(values, weights):
            reached += weight
            if reached >= top_p * total:
                border = value
                break
    if min_p:
        border = max(border, min(v for v, w in zip(values, weights) if w >= min_p))
    return torch.where(scores >= border, scores, torch.tensor(-math.inf))


def apply_penalties(logits, rows):
    result = torch.empty(logits.shape, dtype=torch.float32)
    for i, row in enumerate(rows):
        p, scores = row.params, logits[i].tolist()
        for token, bias in (p.logit_bias or {}).items():
            scores[token] += bias
        for token in set(row.prompt_token_ids) | set(row.output_token_ids):
            if scores[token] > 0:
                scores[token] /= p.repetition_penalty
            else:
                scores[token] *= p.repetition_penalty
        for token in row.output_token_ids:
            scores[token] -= p.frequency_penalty
        for token in set(row.output_token_ids):
            scores[token] -= p.presence_penalty
        result[i] = torch.tensor(scores)
    return result


def draw(logits, rows):
    chosen = []
    for probs, row in zip(logits.softmax(dim=-1), rows):
        # random.Random hashes a string with SHA-512; the generator is given 32 bits of it
        mixed = random.Random(f"{row.seed}/{row.sample_index}/{row.position}").getrandbits(32)
        generator = torch.Generator().manual_seed(mixed)
        chosen.append(torch.multinomial(probs, 1, generator=generator).item())
    return torch.tensor(chosen)


def logprobs_of(logits, token_id, count):
    values = logits.float().log_softmax(dim=-1).tolist()
    exact = logits.tolist()
    order = sorted(range(len(values)), key=lambda t: -exact[t])
    wanted = [token_id] + [t for t in (order if count < 0 else order[:count]) if t != token_id]
    return {t: Logprob(values[t], 1 + sum(other > exact[t] for other in exact)) for t in wanted}


class Sampler:
    def sample(self, logits, rows):
        tokens, logprobs = [], []
        for i, row in enumerate(rows):
            one, mine = logits[i : i + 1], [row]
            adjusted = apply_penalties(one, mine)
            if row.params.temperature == 0:
                token = greedy_tokens(adjusted)
            else:
                token = draw(keep_top(apply_temperature(adjusted, mine), mine), mine)
            tokens.append(token.item())
            wanted = row.params.logprobs
            logprobs.append(None if wanted is None else logprobs_of(logits[i], tokens[-1], wanted))
        return tokens, logprobs


def main():
    """Nothing to show: the lab's own program is in solution.py."""
