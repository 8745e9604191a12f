"""Lab 05, TODO 5: the ceilings, with the judge as the clock."""

import random
import re
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from grading.judge.checks import check, expect, operators_seen, ours
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab05.clocks import Clock, Stopwatch, Timer
from grading.scenarios.lab05.quantities import DTYPES, close, number
from grading.scenarios.lab05.traffic import Traffic, products, unwritten

CEILINGS = "TODO 5: Measure the ceilings"


@check(todo=5, points=4, section=CEILINGS, concept="the median of calls")
def the_median_is_that_of_the_calls_after_the_first(lab: Remote, rng: random.Random) -> None:
    for repeats, warm_up in product((1, 3, 5, 7), (60, 0.25)):
        seconds = [quarters / 4 for quarters in rng.sample(range(2, 60), repeats)]
        seconds[rng.randrange(repeats)] += 25 if repeats > 1 else 0
        clock, right = Clock(rng, [warm_up, *seconds]), sorted(seconds)[repeats // 2]
        said = number(lab.median_seconds(ours(clock.work), repeats=repeats, clock=ours(clock.now)), "median_seconds")
        expect(clock.calls == repeats + 1, f"expected one call to warm up and {repeats} timed ones; there were {clock.calls}")
        expect(close(said, right),
               f"to warm up took {warm_up} seconds, the other calls {seconds}: their median is {right}, not {said:g}")


def check_all_was_read(traffic: Traffic, num_bytes: int) -> None:
    """At least so many bytes of floating numbers, by torch, and next to nothing was written."""
    read, asked = sum(traffic.memories().values()), f"a buffer of at least {num_bytes:,} bytes"
    expect(read > 0, "no operator of torch read anything in the timed function: read with torch, not with numpy or Python")
    expect(traffic.held >= num_bytes,
           f"{asked} was asked for; what torch read from has {traffic.held:,}: a smaller one stays in the cache")
    expect(read >= num_bytes, f"{asked} was to be read; it has {traffic.held:,}, and only {read:,} of them were read")
    expect(sum(traffic.memories(floating=True).values()) >= num_bytes,
           f"the buffer was read as {traffic.dtypes()}: take floating numbers. "
           "Many reductions of others take longer than reading does")
    expect(traffic.written <= read / 100, f"beside {read:,} bytes read, {traffic.written:,} were written in the timed function: "
           "make the buffer outside, and reduce it to one number")


@check(todo=5, points=3, section=CEILINGS, concept="bytes per second")
def bandwidth_is_the_bytes_that_were_read_by_the_seconds(lab: Remote, rng: random.Random) -> None:
    for num_bytes in (1 << 20, rng.randrange(2 * 10**4, 4 * 10**4) * 8 + 1, rng.randrange(10**6, 4 * 10**6) * 2 + 1):
        timer = Timer(lab, rng.randrange(1, 40) / 8)
        said = timer.rate(lab.read_bandwidth, num_bytes)
        traffic = Traffic(timer.log.events)
        check_all_was_read(traffic, num_bytes)
        # A small operand, such as a vector that the buffer is multiplied by, may be counted or not.
        memories = traffic.memories().values()
        buffer, read = sum(size for size in memories if size > max(memories) / 10), sum(memories)
        counted = said * timer.seconds
        why = f". That is the {num_bytes:,} bytes that were asked for: count those of the buffer" * close(counted, num_bytes)
        expect((1 - 1e-6) * buffer <= counted <= (1 + 1e-6) * read,
               f"{read:,} bytes in {timer.seconds:g} seconds are {read / timer.seconds:,.0f} bytes per second, "
               f"not {said:,.0f}{why}")


@check(todo=5, points=3, section=CEILINGS, concept="operations per second")
def matmul_rate_is_the_operations_of_a_product_by_the_seconds(lab: Remote, rng: random.Random) -> None:
    for dtype in (*DTYPES, *DTYPES, torch.float64):
        size, timer = rng.randrange(24, 64), Timer(lab, rng.randrange(1, 40) / 8)
        said, right = timer.rate(lab.matmul_rate, size, dtype), 2 * size**3
        events = timer.log.events
        flops, used = products(events)
        expect(flops == right,
               f"one product of {size} × {size} matrices has {right:,} FLOPs by torch's count; the timed function had {flops:,}")
        made = [event.name for event in events if re.search("rand|normal|ones|zeros|fill|_to_copy|empty", event.name)]
        expect(not made, f"the timed function also did {made}: make the matrices outside, in their dtype")
        expect(used == {str(dtype)}, f"the product was to be of {dtype}; it was of {', '.join(sorted(used))}")
        expect(close(said, right / timer.seconds),
               f"{right:,} FLOPs in {timer.seconds:g} seconds are {right / timer.seconds:,.0f} a second, not {said:,.0f}")


@check(todo=5, points=2, section=CEILINGS, concept="what the buffer was before it was read", hidden=True)
def the_buffer_was_written_before_it_is_read(lab: Remote, rng: random.Random) -> None:
    num_bytes, timer, log = rng.randrange(1 << 20, 1 << 21), Timer(lab, 1.0), operators_seen(lab)
    timer.rate(lambda *arguments: log.watch(lab.read_bandwidth, *arguments), num_bytes)
    read = Traffic(timer.log.events).memories()
    expect(sum(read.values()) >= num_bytes,
           f"a buffer of at least {num_bytes:,} bytes was to be read; {sum(read.values()):,} were")
    left = sum(max(size, 0) for memory, size in unwritten(log.events).items() if memory in read)
    expect(left <= num_bytes / 100,
           f"of the buffer that was read, {left:,} bytes were never written: memory that is only asked for is one page of "
           "zeros many times over, which stays in the cache. Fill it first, with torch")


@check(todo=5, points=1, section=CEILINGS, concept="what the usual clock counts", hidden=True)
def the_usual_clock_counts_seconds(lab: Remote, rng: random.Random) -> None:
    for nap in rng.sample([rng.uniform(0.001, 0.003), rng.uniform(0.1, 0.2)], 2):  # no one number is right for both
        with Stopwatch() as all_calls:
            said = number(lab.median_seconds(ours(lambda nap=nap: time.sleep(nap)), repeats=3), "median_seconds")
        expect(nap <= said <= all_calls.seconds,
               f"a call sleeps {nap} seconds, and all calls together took {all_calls.seconds:g}: the median cannot be {said:g}")


@check(todo=5, points=1, section=CEILINGS, concept="a real measurement", hidden=True)
def a_real_measurement_is_in_the_bounds_of_all_machines(lab: Remote, rng: random.Random) -> None:
    num_bytes, size = rng.randrange(1 << 21, 1 << 22), rng.randrange(64, 128)
    possible(lambda: lab.read_bandwidth(num_bytes), num_bytes, 1e14, "bytes")
    possible(lambda: lab.matmul_rate(size, torch.float32), 2 * size**3, 1e16, "FLOPs")


def possible(measure: Callable[[], Any], work: int, most: float, unit: str) -> None:
    """The rate is at least that of doing the work once in all the time it took, less than any processor's, and measured."""
    found = []
    for _ in range(3):
        with Stopwatch() as whole:
            found.append(number(measure(), "the measurement"))
        least = work / whole.seconds
        expect(least <= found[-1] <= most,
               f"between {least:g} and {most:g} {unit} a second are possible; it says {found[-1]:g}: is it in {unit}, and in "
               "seconds?")
    expect(len(set(found)) > 1, f"three measurements all came to {found[0]!r} {unit} a second, to the last digit")
