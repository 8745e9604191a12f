"""Lab 02, TODO 2: ids that look like ids, and never repeat."""

import random
import re
from typing import Any

from grading.judge.checks import check, expect, kept, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab02.streams import parts

ID = r"req-[0-9A-Za-z-]{4,}"

IDS = "TODO 2: Generate Request ID"


def ids_of(lab: Remote, count: int) -> list[str]:
    """What so many calls return."""
    package = lab._peer.root.package
    calls = package("itertools").repeat((), count)
    return package("builtins").list(package("itertools").starmap(lab.new_request_id, calls))


def expect_ids(ids: list[Any]) -> None:
    """Each is an id as the README describes it."""
    for one in ids:
        expect(isinstance(one, str) and re.fullmatch(ID, one) is not None,
               f"{shown(one)} is not 'req-' followed by at least four letters, digits or hyphens")


def repeated(ids: list[Any]) -> int:
    """How many have been there before."""
    return len(ids) - len(set(map(str, ids)))


@check(todo=2, points=1, section=IDS, concept="how an id looks")
def ids_look_like_ids(lab: Remote, rng: random.Random) -> None:
    expect_ids([lab.new_request_id() for _ in range(3)])


@check(todo=2, points=2, section=IDS, concept="ids that never come again")
def ten_thousand_calls_give_ten_thousand_ids(lab: Remote, rng: random.Random) -> None:
    """Of random ids of 48 bits two are the same once in five million times, so who repeats himself is asked again."""
    count = rng.randrange(10_100, 11_000)
    again = repeated(ids_of(lab, count)) and repeated(ids_of(lab, count))
    expect(not again,
           f"{count} calls should give {count} different ids; in both of two tries some came again, {again} in the second. "
           "Four random digits repeat after about a hundred calls; a clock may show the same time in two of them.")


@check(todo=2, points=1, section=IDS, concept="how an id looks, later", hidden=True)
def ids_look_like_ids_after_many_calls(lab: Remote, rng: random.Random) -> None:
    expect_ids(ids_of(lab, rng.randrange(1100, 1200))[-50:])


@check(todo=2, points=1, section=IDS, concept="ids and seeded random numbers", hidden=True)
def no_id_comes_again_when_random_numbers_are_seeded_again(lab: Remote, rng: random.Random) -> None:
    package, seed, each, ids = lab._peer.root.package, rng.getrandbits(31), rng.randrange(5, 20), []
    for _ in range(2):  # as programs do that want the same numbers in each run
        for seeding in (package("random").seed, package("numpy").random.seed, package("torch").manual_seed):
            kept(seeding, seed)
        ids += ids_of(lab, each)
    again = repeated(ids)
    expect(again == 0,
           f"random.seed({seed}), {each} ids, random.seed({seed}) again, {each} ids: all should differ; {again} came twice. All "
           "code shares the generators of random, numpy and torch, and any of it may seed them again")


@check(todo=2, points=1, section=IDS, concept="ids and the clock", hidden=True)
def two_calls_at_the_same_time_of_the_clock_differ(lab: Remote, rng: random.Random) -> None:
    count = rng.randrange(100, 200)
    parts(lab).stop_the_clocks(lab)
    again = repeated(ids_of(lab, count))
    expect(not again,
           f"{count} calls at the same time of the clock should give {count} different ids; they gave {count - again}. However "
           "fine a clock is, two threads or two servers can read the same time.")


@check(todo=2, points=2, section=IDS, concept="who may ask for an id", hidden=True)
def threads_never_get_the_same_id(lab: Remote, rng: random.Random) -> None:
    each = rng.randrange(110, 130)
    ids = [one for mine in parts(lab).called_by_threads(lab.new_request_id, lab_file(lab), 4, each) for one in mine]
    expect(len(ids) == 4 * each and repeated(ids) == 0,
           f"4 threads asked for {each} ids each, and all {4 * each} should differ; {len(set(map(str, ids)))} did. "
           "After you read a counter and before you raise it, another thread may read it too.")


def lab_file(lab: Remote) -> str:
    """Where the submission's code says that it is from."""
    return lab._peer.root.package("builtins").getattr(lab, "__file__")
