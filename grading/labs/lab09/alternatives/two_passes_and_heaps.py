"""The budget in two passes; a queue that is sorted anew; the victim by a key; growth by slots; a policy from another table."""


def split_budget(budget: int, to_go: list[int]) -> list[int]:
    sizes = [0 for _ in to_go]
    for decoding in (True, False):
        for place, tokens in enumerate(to_go):
            if (tokens == 1) is decoding and budget > 0:
                sizes[place] = tokens if tokens < budget else budget
                budget -= sizes[place]
    return sizes


class Scheduler:
    def preempt(self, request: Request) -> None:
        self.waiting = sorted([*self.waiting, request], key=lambda one: (one.priority, one.arrival))
        self.running = [other for other in self.running if other is not request]
        self.free_blocks, request.num_blocks = self.free_blocks + request.num_blocks, 0
        request.num_computed = 0

    def victim_for(self, request: Request) -> Request:
        place = self.running.index(request)
        if self.policy.victim == "last":
            return self.running[-1]
        candidates = self.running[place + 1 :] or [request]
        return sorted(candidates, key=lambda one: (-one.priority, one.num_computed, -one.arrival))[0]

    def growth(self, request: Request) -> int:
        wanted = request.num_tokens
        for _ in range(self.policy.lookahead):
            if wanted >= request.most_tokens:
                break
            wanted += 1
        blocks = 0
        while (request.num_blocks + blocks) * self.block_size < wanted:
            blocks += 1
        return blocks


def policy_for(workload: str) -> Policy:
    if workload == "essays":
        return Policy(1024, 150, "last")
    return Policy(token_budget=300, lookahead=70, victim="cheapest")
