"""What an event log comes to: steps, occupancy, recomputed tokens, and latencies that need no clock.

Knows logs; has no opinion on them.
"""

from __future__ import annotations

from collections.abc import Sequence

from labs.harness.event_log.play import Step


def steps(log: Sequence[Step]) -> int:
    """Steps that computed something."""
    return sum(bool(step["chunks"]) for step in log)


def occupancy(log: Sequence[Step], max_num_seqs: int) -> float:
    """The share of a step's seats whose request samples a token, over the steps that compute something; in [0, 1]."""
    sampled = sum(chunk["samples"] for step in log for chunk in step["chunks"])
    return sampled / (steps(log) * max_num_seqs) if steps(log) else 0.0


def computed_tokens(log: Sequence[Step]) -> int:
    """Tokens computed, those included that were computed before."""
    return sum(chunk["num_tokens"] for step in log for chunk in step["chunks"])


def recomputed_tokens(log: Sequence[Step]) -> int:
    """Tokens computed again, because their request had been preempted."""
    furthest: dict[str, int] = {}
    again = 0
    for step in log:
        for chunk in step["chunks"]:
            end, before = chunk["start"] + chunk["num_tokens"], furthest.get(chunk["request"], 0)
            again += max(min(end, before) - chunk["start"], 0)
            furthest[chunk["request"]] = max(end, before)
    return again


def ttft_in_steps(log: Sequence[Step]) -> dict[str, int]:
    """Id → steps from arrival to the first token, both included: 1 if it came in the first step."""
    arrived: dict[str, int] = {}
    found: dict[str, int] = {}
    for step in log:
        arrived.update(dict.fromkeys(step["arrived"], step["step"]))
        for name in step["sampled"]:
            found.setdefault(name, step["step"] - arrived[name] + 1)
    return found


def itl_in_tokens(log: Sequence[Step]) -> dict[str, int]:
    """Id → the most tokens computed, its own included, between two of its tokens; without a second token, not there.

    A step's time grows with its tokens, so this is inter-token latency without a clock.
    """
    computed = 0
    last: dict[str, int] = {}
    worst: dict[str, int] = {}
    for step in log:
        computed += sum(chunk["num_tokens"] for chunk in step["chunks"])
        for name in step["sampled"]:
            if name in last:
                worst[name] = max(worst.get(name, 0), computed - last[name])
            last[name] = computed
    return worst


def keys_read(log: Sequence[Step]) -> int:
    """Keys that decodes read: for each chunk of one token, all tokens up to it. A prompt's own keys are in cache."""
    return sum(
        chunk["start"] + 1 for step in log for chunk in step["chunks"] if chunk["num_tokens"] == 1)
