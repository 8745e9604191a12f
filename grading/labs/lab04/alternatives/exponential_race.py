"""A token stays or goes by how much lies strictly above it, in groups of equals; draws are races of exponential waiting
times, each token's random number mixed from the hash by integer arithmetic, without a generator. What has nothing to do
gives back what it was given, rows are taken last to first, and the sampler sorts them into warm and cold ones.
"""


def greedy_tokens(logits):
    return (logits == logits.amax(dim=-1, keepdim=True)).byte().argmax(dim=-1)


def apply_temperature(logits, rows):
    wide = logits.float()
    changed = [i for i, row in enumerate(rows) if row.params.temperature not in (0.0, 1.0)]
    if not changed:
        return wide
    each = torch.tensor([[rows[i].params.temperature] for i in changed], dtype=torch.float64)
    return wide.index_copy(0, torch.tensor(changed), (wide[changed].double() / each).float())


def _above(scores: Tensor, weights: Tensor) -> Tensor:
    """For each token the weights of all that have a larger score, added up."""
    _, group = scores.unique(return_inverse=True)
    of_group = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, weights)
    return (of_group.sum() - of_group.cumsum(0))[group]


def keep_top(logits, rows):
    wide = logits.float()
    gone = torch.zeros(wide.shape, dtype=torch.bool)
    for i in reversed(range(len(rows))):
        p, scores = rows[i].params, wide[i].double()
        if p.top_k > 0:
            gone[i] |= _above(scores, torch.ones_like(scores)) >= p.top_k
        if p.top_p < 1:
            shares = scores.masked_fill(gone[i], -math.inf).softmax(dim=0)
            gone[i] |= _above(scores, shares) >= p.top_p
        if p.min_p > 0:
            gone[i] |= (scores - scores.max()).exp() < p.min_p
    return wide.masked_fill(gone, -math.inf) if gone.any() else wide


def apply_penalties(logits, rows):
    out = logits.float()
    for i in reversed(range(len(rows))):
        p = rows[i].params
        if not (p.logit_bias or p.repetition_penalty != 1 or p.frequency_penalty or p.presence_penalty):
            continue
        scores, size = out[i].clone(), out.shape[1]
        for token, number in (p.logit_bias or {}).items():
            scores[token] = scores[token] + number
        written = torch.bincount(torch.tensor(rows[i].output_token_ids, dtype=torch.long), minlength=size)
        read = torch.bincount(torch.tensor(rows[i].prompt_token_ids, dtype=torch.long), minlength=size)
        factor = torch.where(written + read > 0, p.repetition_penalty, 1.0)
        scores = scores.clamp(min=0) / factor + scores.clamp(max=0) * factor  # one of the two is 0
        scores = scores - p.frequency_penalty * written - p.presence_penalty * written.sign()
        out = torch.cat([out[:i], scores[None], out[i + 1 :]])
    return out


def _mixed(numbers: Tensor) -> Tensor:
    """The last steps of splitmix64. int64 wraps around; >> keeps the sign, hence the masks."""
    numbers = (numbers ^ (numbers >> 30 & 2**34 - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    numbers = (numbers ^ (numbers >> 27 & 2**37 - 1)) * (0x94D049BB133111EB - 2**64)
    return numbers ^ (numbers >> 31 & 2**33 - 1)


def draw(logits, rows):
    keys = []
    for row in reversed(rows):
        three = (row.position, row.sample_index, row.seed)
        digest = hashlib.sha256(b"".join(number.to_bytes(12, "little", signed=True) for number in three)).digest()
        keys.append([int.from_bytes(digest[k : k + 8], "little", signed=True) for k in (0, 8)])
    first, second = torch.tensor(keys, dtype=torch.long).flip(0)[:, :, None].unbind(1)
    steps = torch.arange(logits.shape[1]) * (0x9E3779B97F4A7C15 - 2**64)
    bits = _mixed(_mixed(steps + first) ^ second)
    uniform = ((bits >> 12 & 2**52 - 1).double() + 0.5) / 2**52
    return (-uniform.log() / logits.double().softmax(dim=-1)).argmin(dim=-1)  # who has no chance waits forever


def logprobs_of(logits, token_id, count):
    order = logits.argsort(descending=True, stable=True).tolist()
    logprobs, (_, group) = logits.float().log_softmax(dim=0), logits.unique(return_inverse=True)
    groups = group.bincount()
    larger = len(logits) - groups.cumsum(0)
    tokens = dict.fromkeys([token_id, *(order if count < 0 else order[:count])])
    return {token: Logprob(logprobs[token].item(), int(larger[group[token]]) + 1) for token in tokens}


class Sampler:
    def sample(self, logits, rows):
        warm = [i for i, row in enumerate(rows) if row.params.temperature != 0]
        cold = [i for i, row in enumerate(rows) if row.params.temperature == 0]
        answers = {}
        for places in filter(None, (warm, cold)):
            mine = [rows[i] for i in places]
            scores = apply_penalties(logits.index_select(0, torch.tensor(places)), mine)
            if places is warm:
                chosen = draw(keep_top(apply_temperature(scores, mine), mine), mine)
            else:
                chosen = greedy_tokens(scores)
            answers |= zip(places, chosen.tolist(), strict=True)
        said = [None] * len(rows)
        for i, row in enumerate(rows):
            if row.params.logprobs is not None:
                said[i] = logprobs_of(logits[i], answers[i], row.params.logprobs)
        return [answers[i] for i in range(len(rows))], said


def main():
    """Nothing to show: the lab's own program is in solution.py."""
