"""Draws from one generator, one number after the other, and remembers what it drew for each place.

lab = "04"
base = "solution"
worth = 83
todos = [5]
"""

import random

DREW = {}
NUMBERS = random.Random(0)


def draw(logits, rows):
    chances = logits.float().softmax(dim=-1)
    tokens = []
    for row, weights in zip(rows, chances, strict=True):
        place = row.seed, row.index, len(row.prompt_token_ids) + len(row.output_token_ids)
        if place not in DREW:
            DREW[place] = NUMBERS.random()
        tokens.append(min(int((weights.double().cumsum(0) < DREW[place]).sum()), int(weights.nonzero().max())))
    return torch.tensor(tokens)
