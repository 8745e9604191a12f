"""Among victims of equal tax the first, not the last; blocks counted by slots; a policy with other numbers that reach the targets."""


class Scheduler:
    def victim_for(self, request: Request) -> Request:
        chosen = None
        for other in self.running:
            if other.order <= request.order:
                continue
            if chosen is None or self.policy.victim == "last" or other.priority > chosen.priority:
                chosen = other
            elif other.priority == chosen.priority and other.num_computed < chosen.num_computed:
                chosen = other
        return request if chosen is None else chosen

    def growth(self, request: Request) -> int:
        room = request.num_blocks * self.block_size
        wanted = max(request.num_tokens, min(request.num_tokens + self.policy.lookahead, request.most_tokens))
        return -(-(wanted - room) // self.block_size) if wanted > room else 0


def policy_for(workload: str) -> Policy:
    lookaheads = {"documents": 0, "essays": 200, "mixed": 64}
    return Policy(1000 if workload == "documents" else 400, lookaheads[workload], "cheapest")
