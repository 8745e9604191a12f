"""What must hold of a scheduler's event log, whatever the policy. A judgement is a sentence, or None.

Knows logs as `play` or the engine's `Recorder` writes them, and the workload; asks no scheduler, so that nothing rests on
what the part says of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from labs.harness.event_log.play import Arrival, Step


def first_fault(*judgements: str | None) -> str | None:
    """The first judgement that is a sentence; None if all is well."""
    return next((judgement for judgement in judgements if judgement is not None), None)


def within_budgets(log: Sequence[Step], max_num_seqs: int, max_num_batched_tokens: int) -> str | None:
    """No step computes more tokens, or runs more requests, than it may."""
    for step in log:
        tokens = sum(chunk["num_tokens"] for chunk in step["chunks"])
        if tokens > max_num_batched_tokens:
            return f"{at(step)}: {tokens} tokens are computed; max_num_batched_tokens is {max_num_batched_tokens}"
        if len(seated := {*step["running"], *names(step)}) > max_num_seqs:
            return f"{at(step)}: {len(seated)} requests run ({listed(seated)}); max_num_seqs is {max_num_seqs}"
    return None


def chunks_fit(log: Sequence[Step], workload: Sequence[Arrival]) -> str | None:
    """Every chunk goes on where the request's last one ended, computes tokens that exist, and samples with the last.

    A request has at most one chunk in a step, none before it has arrived, and none after it has ended.
    """
    known = {arrival["request"]: arrival["prompt"] for arrival in workload}
    computed = dict.fromkeys(known, 0)
    here: set[str] = set()
    for step in log:
        here = (here | set(step["arrived"])) - set(step["aborted"])
        computed.update(dict.fromkeys(step["preempted"], 0))
        if twice := {name for name in names(step) if names(step).count(name) > 1}:
            return f"{at(step)}: {listed(twice)} is in the batch twice"
        for chunk in step["chunks"]:
            name, start, end = chunk["request"], chunk["start"], chunk["start"] + chunk["num_tokens"]
            if name not in here:
                return f"{at(step)}: {name} is in the batch, and has ended or not arrived yet"
            if start != computed[name]:
                return f"{at(step)}: the chunk of {name} starts at {start}; {computed[name]} of its tokens are computed"
            if not start < end <= known[name]:
                return f"{at(step)}: {name} has {known[name]} tokens; its chunk is of tokens {start} to {end - 1}"
            if chunk["samples"] != (end == known[name]):
                return (f"{at(step)}: {name} has {known[name]} tokens and its chunk ends after {end}; "
                        f"it {'must not sample' if chunk['samples'] else 'has to sample'}")
            computed[name], known[name] = end, known[name] + chunk["samples"]
        here -= set(step["finished"])
    return None


def everyone_decodes(log: Sequence[Step]) -> str | None:
    """A request that has given a token gets one in every step until it ends, unless it is preempted."""
    decoding: dict[str, int] = {}
    for step in log:
        for name in (*step["aborted"], *step["preempted"]):
            decoding.pop(name, None)
        if idle := [name for name in decoding if name not in names(step)]:
            return (f"{at(step)}: {listed(idle)} has given tokens and runs, and gets none in this step; "
                    "everyone who runs decodes in each step")
        decoding.update({chunk["request"]: step["step"] for chunk in step["chunks"] if chunk["samples"]})
        for name in step["finished"]:
            decoding.pop(name, None)
    return None


def in_order(log: Sequence[Step], workload: Sequence[Arrival]) -> str | None:
    """Nobody is admitted while one that goes before it waits: by priority, then by arrival."""
    order = {arrival["request"]: (arrival.get("priority", 0), place) for place, arrival in enumerate(workload)}
    for step, waiting in waiting_before(log):
        left = [name for name in waiting if name not in names(step)]
        for name in step["admitted"]:
            if passed := [other for other in left if order[other] < order[name]]:
                return f"{at(step)}: {name} is admitted, and {listed(passed)}, before it in order, still waits"
    return None


def fair_within(log: Sequence[Step], workload: Sequence[Arrival], bound: int) -> str | None:
    """At most `bound` requests that arrived later are admitted before a request is."""
    place = {arrival["request"]: number for number, arrival in enumerate(workload)}
    passed_by: dict[str, set[str]] = {}
    for step, waiting in waiting_before(log):
        for other in waiting:
            if other not in names(step):
                later = {name for name in step["admitted"] if place[name] > place[other]}
                passed_by.setdefault(other, set()).update(later)
                if len(passed_by[other]) > bound:
                    return (f"{at(step)}: {len(passed_by[other])} requests that came after {other} were admitted before it "
                            f"({listed(passed_by[other])}); the bound is {bound}")
    return None


def everyone_ends(log: Sequence[Step], workload: Sequence[Arrival]) -> str | None:
    """Every request ends, with as many tokens as it is to generate, or is aborted."""
    given: dict[str, int] = {}
    reasons: dict[str, str | None] = {}
    for step in log:
        for name, tokens in step["sampled"].items():
            given[name] = given.get(name, 0) + len(tokens)
        reasons.update(step["finished"])
        reasons.update({name: reasons.get(name, "abort") for name in step["aborted"]})
    for arrival in workload:
        name, wanted = arrival["request"], arrival["output"]
        if name not in reasons:
            return (f"{name} never ended: {given.get(name, 0)} of its {wanted} tokens after {len(log)} steps; "
                    f"{idle_steps(log)}")
        right = "abort" if reasons[name] == "abort" and "abort" in arrival else reason_of(arrival)
        if reasons[name] != right:
            return f"{name} ended with finish_reason {reasons[name]!r}; expected {right!r}"
        if right != "abort" and given.get(name, 0) != wanted:
            return f"{name} ended after {given.get(name, 0)} tokens; expected {wanted}"
    return None


def makes_progress(log: Sequence[Step]) -> str | None:
    """While requests are there, no step computes nothing."""
    here: set[str] = set()
    for step in log:
        here = (here | set(step["arrived"])) - set(step["aborted"])
        if here and not step["chunks"]:
            return f"{at(step)}: nothing is computed, and {listed(here)} is there"
        here -= set(step["finished"])
    return None


def no_block_is_lost(log: Sequence[Step], num_blocks: int) -> str | None:
    """At the end every usable block is free; and no step's batch has a block in two tables, or the null block."""
    for step in log:
        held = [block for table in step["block_tables"].values() for block in table]
        if len(set(held)) < len(held) or 0 in held:
            return f"{at(step)}: a block is in two block tables, or the null block is in one: {step['block_tables']}"
    if log and log[-1]["free_blocks"] != num_blocks - 1:
        return f"all requests have ended and {log[-1]['free_blocks']} of {num_blocks - 1} blocks are free: the rest is lost"
    return None


def tables_cover(log: Sequence[Step], block_size: int) -> str | None:
    """A chunk's block table has room for the tokens up to the chunk's end."""
    for step in log:
        for chunk in step["chunks"]:
            table, end = step["block_tables"][chunk["request"]], chunk["start"] + chunk["num_tokens"]
            if len(table) * block_size < end:
                return f"{at(step)}: {chunk['request']} has {len(table)} blocks of {block_size} for {end} tokens"
    return None


def waiting_before(log: Sequence[Step]) -> Iterator[tuple[Step, list[str]]]:
    """Each step, and who waited before its admissions: arrived or preempted, not admitted since, not ended."""
    waiting: dict[str, None] = {}
    for step in log:
        waiting.update(dict.fromkeys((*step["arrived"], *step["preempted"])))
        for name in step["aborted"]:
            waiting.pop(name, None)
        yield step, list(waiting)
        for name in (*names(step), *step["finished"]):
            waiting.pop(name, None)


def names(step: Step) -> list[str]:
    """Ids of a batch's requests."""
    return [chunk["request"] for chunk in step["chunks"]]


def reason_of(arrival: Arrival) -> str:
    """The finish reason of a request that is not aborted."""
    return "length" if arrival.get("ends", "length") == "length" else "stop"


def idle_steps(log: Sequence[Step]) -> str:
    """How the log ends, in words."""
    idle = 0
    for step in reversed(log):
        if step["chunks"]:
            break
        idle += 1
    return f"the last {idle} of them computed nothing" if idle else "every step computed something"


def at(step: Step) -> str:
    """`step 3`"""
    return f"step {step['step']}"


def listed(ids: set[str] | Sequence[str]) -> str:
    """`A, B and C`; of many, the first."""
    few = sorted(ids)
    if len(few) > 5:
        return f"{', '.join(few[:4])} and {len(few) - 4} more"
    return " and ".join(filter(None, [", ".join(few[:-1]), *few[-1:]]))
