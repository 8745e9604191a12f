"""Draws by the hash of a text, which is another in every run of Python, and the same in all forks of one.

lab = "04"
base = "solution"
worth = 83
todos = [5]
"""


def draw(logits, rows):
    chances = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    numbers = [hash(f"{row.seed} {row.sample_index} {row.position}") % 2**53 / 2**53 for row in rows]
    found = torch.searchsorted(chances, torch.tensor(numbers, dtype=torch.float64)[:, None] * chances[:, -1:], right=True)
    return found[:, 0].clamp(max=logits.shape[-1] - 1)
