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


def names(word: str | int, said: str) -> bool:
    """Whether a message has this number or name in it, alone."""
    return re.search(rf"(?<![\w-]){word}(?!\w)", said) is not None
