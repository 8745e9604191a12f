"""What a fuzzed engine goes through: a configuration and a list of operations, all plain JSON.

Knows random numbers; knows nothing of engines. An operation names its request by a key, never by
its place in the list, so that any operation can be left out and the others still mean the same.

    submit  key id prompt text salt params priority timeout eager via second_loop broken held doomed
    release key            a held tokenisation goes on
    step    count          that many engine steps, if there is work
    fetch   key            a slow consumer takes one output
    abort   id
    vanish  key how        "cancel" its task, "close" its stream, or "drop" it without a word
    advance seconds        the clock
    fault   kind           the next model call fails; see `Faults`
    reset                  the prefix cache
    stop    how            "shutdown", or "die"; the last operation if there is one
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from nano_qwen3_serving.testing.fuzz.params import letter, make_params

Operation = dict[str, Any]
HELD_AT_ONCE = 3
SEEDS_PER_REQUEST = 1000  #: request k draws with seeds from k * 1000, one for each completion


@dataclass(frozen=True)
class Episode:
    """One engine's life: how it is built, and what happens to it."""

    model: str
    config: dict[str, Any]
    operations: list[Operation]
    seed: int = 0
    number: int = 0

    def with_operations(self, operations: list[Operation]) -> Episode:
        """The same engine with other operations."""
        return Episode(self.model, self.config, operations, self.seed, self.number)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def make_episode(seed: int, number: int, requests: int, model: str) -> Episode:
    """The episode of that seed and number: always the same."""
    maker = Maker(random.Random(f"{seed}/{number}"))
    return Episode(model, maker.config, maker.operations(requests), seed, number)


class Maker:
    """Draws one episode."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.config = self._config()
        self.two_loops = rng.random() < 0.2
        self.stems = [self._tokens(self.config["max_model_len"]) for _ in range(rng.randint(1, 3))]
        self.held: list[int] = []

    def operations(self, requests: int) -> list[Operation]:
        """Submissions, and between them anything else."""
        ops: list[Operation] = []
        pace = self.rng.choice([0.3, 0.5, 0.7])
        for key in range(requests):
            ops.append(self._submit(key))
            while self.rng.random() < pace:
                ops.append(self._other_operation(key))
        ops += [self._other_operation(requests - 1) for _ in range(self.rng.randint(0, 10))]
        if self.rng.random() < 0.2:
            ops.append({"op": "stop", "how": self.rng.choice(["shutdown", "die"])})
        return ops

    def _config(self) -> dict[str, Any]:
        rng = self.rng
        size = rng.choice([1, 2, 3, 4, 8])
        longest = rng.choice([8, 16, 24, 40, 64])
        seqs = rng.randint(1, 8)
        chunked = rng.random() < 0.8
        budget = seqs + rng.choice([0, 1, 5, 16, 64])
        fitting = -(-longest // size)
        return {
            "block_size": size,
            "num_blocks": 1 + max(int(fitting * rng.choice([1, 1, 1.3, 2])), 1),
            "max_model_len": longest,
            "max_num_seqs": seqs,
            "max_num_batched_tokens": budget if chunked else max(budget, longest),
            "enable_chunked_prefill": chunked,
            "long_prefill_token_threshold": rng.choice([0, 0, 1, 5]) if chunked else 0,
            "scheduling_policy": rng.choice(["fcfs", "priority"]),
            "enable_prefix_caching": rng.random() < 0.85,
            "weak_hash": rng.random() < 0.3,
            "stream_interval": rng.choice([1, 1, 1, 3]),
            "max_num_queued_reqs": rng.choice([None, None, rng.randint(1, 16)]),
            "num_speculative_tokens": rng.choice([0, 0, 1, 4]),
        }

    def _submit(self, key: int) -> Operation:
        rng = self.rng
        held = len(self.held) < HELD_AT_ONCE and rng.random() < 0.06
        if held:
            self.held.append(key)
        broken = not held and rng.random() < 0.02
        params = make_params(rng, key * SEEDS_PER_REQUEST)
        return {
            "op": "submit", "key": key, "id": self._id(key), "prompt": self._prompt(),
            "text": held or broken or rng.random() < 0.3, "salt": rng.choice(["", "", "x", "y"]), "params": params,
            "priority": rng.choice([0, 0, 0, -1, 1, 2]), "timeout": rng.choice([None] * 4 + [rng.randint(1, 30)]),
            "eager": rng.random() < 0.6, "via": rng.choice(["generate", "add_request"]),
            "second_loop": self.two_loops and rng.random() < 0.5, "broken": broken, "held": held, "doomed": self._doom(params),
        }

    def _doom(self, params: dict[str, Any]) -> list[Any] | None:
        """[part, after how many tokens] for a fault of the request's own; mostly None."""
        if self.rng.random() >= 0.05:
            return None
        parts = ["sampler", "detokenizer"] if params.get("detokenize", True) else ["sampler"]
        return [self.rng.choice(parts), self.rng.randint(0, 6)]

    def _id(self, key: int) -> str:
        """Mostly its own; else one that was used before, or looks like one of the engine's own."""
        earlier = f"r{self.rng.randint(max(0, key - 4), key)}"
        return self.rng.choice([f"r{key}"] * 12 + [earlier, earlier, f"0_{earlier}", f"{earlier}#2"])

    def _prompt(self) -> list[int]:
        """Often the beginning of another, often ending near the edge of a block, rarely too long."""
        rng, longest, size = self.rng, self.config["max_model_len"], self.config["block_size"]
        if rng.random() < 0.03:
            return self._tokens(longest + rng.randint(0, 3))
        length = rng.randint(1, longest - 1)
        if rng.random() < 0.5:
            length = max(1, min(longest - 1, size * rng.randint(1, -(-longest // size)) + rng.randint(-1, 1)))
        shared = self.stems[rng.randrange(len(self.stems))][: rng.randint(0, length)]
        tail = length - len(shared) if rng.random() < 0.7 else 0
        return (shared + self._tokens(tail)) or self._tokens(1)

    def _tokens(self, count: int) -> list[int]:
        return [ord(letter(self.rng)) for _ in range(count)]

    def _other_operation(self, latest: int) -> Operation:
        """Anything but a submission."""
        rng = self.rng
        key = rng.randint(max(0, latest - 6), latest)
        kind = rng.choices(
            ["step", "fetch", "abort", "vanish", "advance", "fault", "reset", "release"],
            [12, 3, 1, 1.2, 2, 0.6, 0.3, 1])[0]
        if kind == "release" and self.held:
            return {"op": "release", "key": self.held.pop(rng.randrange(len(self.held)))}
        drawn: dict[str, Operation] = {
            "step": {"op": "step", "count": rng.choice([1, 1, 1, 2, 5])},
            "fetch": {"op": "fetch", "key": key},
            "abort": {"op": "abort", "id": rng.choice([f"r{key}"] * 5 + [f"0_r{key}", "nobody"])},
            "vanish": {"op": "vanish", "key": key, "how": rng.choice(["cancel", "close", "drop"])},
            "advance": {"op": "advance", "seconds": rng.randint(1, 20)},
            "fault": {"op": "fault", "kind": rng.choice(["before", "between", "after", "oom", "step"])},
            "reset": {"op": "reset"},
        }
        return drawn.get(kind, {"op": "step", "count": 1})
