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
    numbers = []
    for row in rows:
        place = row.seed, row.sample_index, row.position
        if place not in DREW:
            DREW[place] = NUMBERS.random()
        numbers.append(DREW[place])
    cumulated = logits.double().softmax(dim=-1).cumsum(dim=-1)
    heights = torch.tensor(numbers, dtype=torch.float64)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, heights, right=True).squeeze(-1)
