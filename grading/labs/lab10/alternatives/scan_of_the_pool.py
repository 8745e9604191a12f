"""Nothing but loops: the oldest block is rotated to the front, shares are counted one by one, roots are hex text."""


def root_of(salt: str) -> bytes:
    return hashlib.sha512(salt.encode("utf-16")).hexdigest().encode()


def is_coming(token_ids: Sequence[int], num_cached: int, computing: Sequence[Sequence[int]], block_size: int) -> bool:
    for tokens in computing:
        same = 0
        while same < min(len(tokens), len(token_ids)) and tokens[same] == token_ids[same]:
            same += 1
        if same >= num_cached + block_size and len(token_ids) > num_cached + block_size:
            return True
    return False


class BlockManager:
    def evict(self) -> int:
        order = list(self.evictable)
        self.evictable.pop(order[0])
        for key, entry in list(self.by_hash.items()):
            if entry.block_id == order[0]:
                del self.by_hash[key]
        del self.cached[order[0]]
        self.num_evictions += 1
        return order[0]

    def find_cached_prefix(self, request_id: str, token_ids: Sequence[int], salt: str = "") -> int:
        found = len(self.match(token_ids, salt)) * self.block_size
        return found - self.block_size if found == len(token_ids) and found else found
