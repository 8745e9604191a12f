"""A step that calls itself after a preemption; room taken one request at a time; admission with a running sum."""


class Scheduler:
    def admits(self, request: Request, left: int) -> bool:
        if left == 0 or len(self.running) == self.max_seqs:
            return False
        room = self.free_blocks - self.growth(request)
        if self.policy.lookahead > 0:
            for other in self.running:
                room -= self.growth(other)
        return room >= 0

    def schedule(self) -> tuple[dict[str, int], list[str]]:
        chunks = {}
        sizes = split_budget(self.policy.token_budget, [request.to_go for request in self.running])
        for request, size in zip(tuple(self.running), sizes, strict=True):
            if size and not self.grow(request, request.num_computed + size):
                victim = self.victim_for(request)
                self.preempt(victim)
                later, more = self.schedule_without_newcomers()
                return later, [victim.name, *more]
            if size:
                chunks[request.name] = size
        left = self.policy.token_budget - sum(chunks.values())
        while self.waiting:
            first = self.waiting[0]
            if not self.admits(first, left):
                break
            chunks[first.name] = size = self.start(first, left)
            left -= size
        return chunks, []

    def schedule_without_newcomers(self) -> tuple[dict[str, int], list[str]]:
        waiting, self.waiting = self.waiting, []
        chunks, preempted = self.schedule()
        self.waiting = sorted([*waiting, *self.waiting], key=lambda one: one.order)
        return chunks, preempted
