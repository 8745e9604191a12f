"""The fork holds block by block; sharing holds first and lets go when the rest does not fit; the oldest is the first key."""


class BlockManager:
    def release(self, block: int) -> None:
        if self.ref_counts[block] > 1:
            self.ref_counts[block] -= 1
        else:
            self.ref_counts[block] = 0
            self.retire(block)

    def fork(self, parent_id: str, child_id: str, num_tokens: int) -> list[tuple[int, int]] | None:
        parent, child = self.requests[parent_id], Holding(self.requests[parent_id].salt)
        copies = []
        for index in range(self.blocks_for(num_tokens)):
            if (index + 1) * self.block_size <= num_tokens:
                child.table.append(parent.table[index])
            elif self.num_free_blocks == 0:
                return None
            else:
                child.table.append(self.new_block())
                copies.append((parent.table[index], child.table[index]))
        for block in child.table[: num_tokens // self.block_size]:
            self.hold(block)
        child.chain = parent.chain[: num_tokens // self.block_size]
        self.requests[child_id] = child
        return copies

    def share(self, request_id: str, num_tokens: int, cached_prefix: Sequence[int], salt: str) -> bool:
        evictable = list(self.evictable)
        holding = Holding(salt, [], self.match(cached_prefix, salt))
        for entry in holding.chain:
            self.hold(entry.block_id)
            holding.table.append(entry.block_id)
        missing = self.blocks_for(num_tokens) - len(holding.table)
        if self.num_free_blocks < missing:
            for block in holding.table:
                self.ref_counts[block] -= 1
            self.evictable.clear()
            self.evictable.update(dict.fromkeys(evictable))
            return False
        for _ in range(missing):
            holding.table.append(self.new_block())
        self.requests[request_id] = holding
        return True

    def evict(self) -> int:
        oldest = next(iter(self.evictable))
        del self.evictable[oldest]
        entry = self.cached.pop(oldest)
        self.by_hash.pop(entry.key)
        self.num_evictions = self.num_evictions + 1
        return oldest

    def find_cached_prefix(self, request_id: str, token_ids: Sequence[int], salt: str = "") -> int:
        most = (len(token_ids) - 1) // self.block_size
        return min(most, len(self.match(token_ids, salt))) * self.block_size
