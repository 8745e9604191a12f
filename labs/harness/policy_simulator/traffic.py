"""Traffic: who arrives when, with how long a prompt, and for how long an answer.

Knows seconds and tokens; knows nothing of schedulers. A trace is drawn, so that a grade can rest on one that nobody has seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Arrival:
    """A request on its way.

    Attributes:
        name: unique in a trace.
        seconds: when it arrives.
        prompt, answer: tokens; nobody knows the answer's length before it ends.
        max_tokens: at most so many tokens will be generated; the scheduler knows this.
        priority: the smaller number goes first.
    """

    name: str
    seconds: float
    prompt: int
    answer: int
    max_tokens: int
    priority: int = 0


@dataclass(frozen=True)
class Limits:
    """What users put up with, in seconds: to the first token, and between any two tokens."""

    ttft: float
    itl: float


@dataclass(frozen=True)
class Pool:
    """What an engine has room for: blocks that can be held, tokens in each, and requests that run at once."""

    num_blocks: int
    block_size: int
    max_seqs: int


@dataclass(frozen=True)
class Workload:
    """A kind of traffic.

    Attributes:
        says: what it is like.
        rate: arrivals per second.
        pool, limits: what the engine has room for, and what its users put up with.
        draw: of the request with this number, the tokens of the prompt and of the answer, and the most that it asks for.
    """

    says: str
    rate: float
    pool: Pool
    limits: Limits
    draw: Callable[[random.Random, int], tuple[int, int, int]]


def documents(rng: random.Random, number: int) -> tuple[int, int, int]:
    """Chats, and every tenth request brings a long document."""
    prompt = rng.randint(3000, 8000) if number % 10 == 5 else rng.randint(40, 300)
    return prompt, rng.randint(60, 160), 200


def essays(rng: random.Random, number: int) -> tuple[int, int, int]:
    """Short questions and long answers; each may be as long as its caller allows."""
    return rng.randint(30, 120), rng.randint(250, 600), 600


def mixed(rng: random.Random, number: int) -> tuple[int, int, int]:
    """Long prompts with answers that grow, beside short ones that were there a little longer."""
    if number % 3 == 0:
        return rng.randint(1500, 2500), rng.randint(200, 400), 400
    return rng.randint(20, 200), rng.randint(200, 400), 400


WORKLOADS = {
    "documents": Workload("chats, and now and then a long document", 30, Pool(8000, 16, 128), Limits(0.5, 0.025), documents),
    "essays": Workload("short questions, long answers", 40, Pool(900, 16, 128), Limits(8.0, 0.100), essays),
    "mixed": Workload("long and short prompts in a small pool", 10, Pool(800, 16, 64), Limits(8.0, 0.300), mixed),
}


def traffic(name: str, rng: random.Random, count: int) -> list[Arrival]:
    """`count` arrivals of the workload, in order, at random times.

    Times between arrivals are those of a Poisson process, stretched so that every trace has the workload's mean rate: a trace
    that is busier than another by chance would be a harder exam.
    """
    workload = WORKLOADS[name]
    gaps = [rng.expovariate(1.0) for _ in range(count)]
    stretch, now, arrivals = count / workload.rate / sum(gaps), 0.0, []
    for number, gap in enumerate(gaps):
        now += gap * stretch
        prompt, answer, most = workload.draw(rng, number)
        arrivals.append(Arrival(f"r{number}", now, prompt, answer, most))
    return arrivals
