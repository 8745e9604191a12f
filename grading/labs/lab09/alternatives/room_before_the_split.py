"""The step planned on paper first: how many tokens each would get and how many blocks that takes, then it is done."""


def split_budget(budget: int, to_go: list[int]) -> list[int]:
    decoding = [place for place, tokens in enumerate(to_go) if tokens == 1]
    prompts = [place for place, tokens in enumerate(to_go) if tokens != 1]
    sizes = dict.fromkeys(range(len(to_go)), 0)
    for place in decoding + prompts:
        sizes[place] = max(0, min(to_go[place], budget - sum(sizes.values())))
    return list(sizes.values())


class Scheduler:
    def schedule(self) -> tuple[dict[str, int], list[str]]:
        preempted = []
        while (plan := self._plan())[1] is not None:
            victim = self.victim_for(plan[1])
            self.preempt(victim)
            preempted += [victim.name]
        chunks = {}
        for request, size in plan[0]:
            self.grow(request, request.num_computed + size)
            if size > 0:
                chunks[request.name] = size
        if preempted:
            return chunks, preempted
        for request in list(self.waiting):
            left = self.policy.token_budget - sum(chunks.values())
            if not self.admits(request, left):
                break
            chunks[request.name] = self.start(request, left)
        return chunks, []

    def _plan(self) -> tuple[list[tuple[Request, int]], Request | None]:
        """The split, and the first request for which too few blocks are free if those before it get theirs."""
        sizes = split_budget(self.policy.token_budget, [request.to_go for request in self.running])
        free, plan = self.free_blocks, list(zip(self.running, sizes, strict=True))
        for request, size in plan:
            free -= max(0, self.blocks_for(request.num_computed + size) - request.num_blocks)
            if free < 0:
                return plan, request
        return plan, None
