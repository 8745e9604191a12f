"""Hashes by blake2b over the whole beginning's text; contents compared as lists; counts by a loop that takes back."""


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    text = parent.hex() + ":" + ",".join(map(str, token_ids))
    return hashlib.blake2b(text.encode(), digest_size=24).digest()


def block_hashes(
    token_ids: Sequence[int], block_size: int, root: bytes = b"", hash_function: HashFunction = hash_block
) -> list[bytes]:
    keys: list[bytes] = []
    for index in range(len(token_ids) // block_size):
        before = keys[index - 1] if index else root
        keys.append(hash_function(before, list(token_ids[index * block_size : (index + 1) * block_size])))
    return keys


def is_content(entry: CachedBlock, token_ids: Sequence[int], parent: CachedBlock | None, salt: str) -> bool:
    def before(last: CachedBlock | None) -> list[tuple[tuple[int, ...], str]]:
        found = []
        while last is not None:
            found.append((tuple(last.token_ids), last.salt))
            last = last.parent
        return found

    return list(entry.token_ids) == list(token_ids) and entry.salt == salt and before(entry.parent) == before(parent)


def root_of(salt: str) -> bytes:
    return b"tenant " + salt.encode()


def read_prefix(ttft: Callable[[list[int]], int], guesses: Sequence[list[int]], num_blocks: int) -> list[int]:
    found: list[int] = []
    while len(found) < num_blocks * len(guesses[0]):
        times = sorted((ttft(found + list(guess) + [1]), number) for number, guess in enumerate(guesses))
        if times[0][0] == times[-1][0]:
            return found
        found = found + list(guesses[times[0][1]])
    return found


def working_set(prompts: Sequence[Sequence[int]], block_size: int) -> int:
    beginnings = set()
    for prompt in prompts:
        for end in range(block_size, len(prompt) + 1, block_size):
            beginnings.add(tuple(prompt[:end]))
    return len(beginnings)
