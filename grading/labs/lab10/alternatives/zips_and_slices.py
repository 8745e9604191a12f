"""The chain is zipped with slices; commit and match share a walk; waiting compares prefixes found in a set."""


def is_coming(token_ids: Sequence[int], num_cached: int, computing: Sequence[Sequence[int]], block_size: int) -> bool:
    end = num_cached + block_size
    beginnings = {tuple(tokens[:end]) for tokens in computing if len(tokens) >= end}
    return end < len(token_ids) and tuple(token_ids[:end]) in beginnings


class BlockManager:
    def pieces(self, token_ids: Sequence[int], salt: str) -> list[tuple[bytes, tuple[int, ...]]]:
        size = self.block_size
        slices = [tuple(token_ids[start : start + size]) for start in range(0, len(token_ids), size)]
        return list(zip(self.keys_of(token_ids, salt), slices, strict=False))

    def match(self, token_ids: Sequence[int], salt: str = "") -> list[CachedBlock]:
        chain: list[CachedBlock] = []
        last = None
        for key, tokens in self.pieces(token_ids, salt):
            if key not in self.by_hash or not is_content(self.by_hash[key], tokens, last, salt):
                return chain
            last = self.by_hash[key]
            chain.append(last)
        return chain

    def commit(self, request_id: str, token_ids: Sequence[int]) -> None:
        holding = self.requests[request_id]
        pieces = self.pieces(token_ids, holding.salt)
        while len(holding.chain) < min(len(pieces), len(holding.table)):
            index, last = len(holding.chain), holding.chain[-1] if holding.chain else None
            key, tokens = pieces[index]
            block = holding.table[index]
            if key not in self.by_hash:
                if block in self.cached:
                    break
                self.cached[block] = self.by_hash[key] = CachedBlock(block, key, tokens, last, holding.salt)
            if not is_content(self.by_hash[key], tokens, last, holding.salt):
                break
            holding.chain.append(self.by_hash[key])
