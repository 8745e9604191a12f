"""Lab 06: blocks counted one by one, and what answers and messages hold."""

import re


def blocks_for(num_tokens: int, block_size: int) -> int:
    """What `num_tokens` tokens take, counted block by block and not divided."""
    return len(range(0, num_tokens, block_size))


def whole(value: object) -> bool:
    """An int, and no bool."""
    return type(value) is int


def wholes(values: object) -> bool:
    """A list of ints."""
    return isinstance(values, list) and all(map(whole, values))


def names(word: str | int, said: str, *others: int) -> bool:
    """Whether a message names this number or name, and not just as much each of several `others`, of which it might be."""
    there, *elsewhere = (len(re.findall(rf"(?<![\w-]){one}(?!\w)", said)) for one in (word, *others))
    return there > 0 and not (len(others) > 1 and min(elsewhere) >= there)
