"""Lab 05, TODO 6: the ridge, and the measured curve."""

import math
import random
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from grading.judge.checks import check, expect, kept, ours, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab05.costs import attention_counted, matrices_counted
from grading.scenarios.lab05.network import a_shape, words
from grading.scenarios.lab05.quantities import DTYPES, SIZES, close, number, of_any_dtype
from nano_qwen3_serving.config import ModelConfig

RIDGE = "TODO 6: The ridge, and the measured curve"


def ceilings(lab: Remote, bandwidth: float, rate: float) -> Remote:
    """The submission's `Ceilings`."""
    return kept(lab.Ceilings, bytes_per_second=bandwidth, flops_per_second=rate)


def predicts(
    lab: Remote, config: ModelConfig, batch: int, context: int, dtype: torch.dtype, bandwidth: float, rate: float
) -> None:
    """The step takes as long as the slower of computing and reading: of the matrices, and of attention."""
    answer = of_any_dtype(lab.predict_step_seconds, config, batch, context, dtype, ceilings(lab, bandwidth, rate))
    said = number(answer, "predict_step_seconds")
    parts = matrices_counted(config, batch, dtype), attention_counted(config, batch, context, dtype)
    (m_compute, m_read), (a_compute, a_read) = [(flops / rate, num_bytes / bandwidth) for flops, num_bytes in parts]
    right = max(m_compute, m_read) + max(a_compute, a_read)
    expect(close(said, right),
           f"{words(config)}; batch {batch}, context {context}, {dtype}: computing with the matrices takes {m_compute:.6g} s, "
           f"reading them {m_read:.6g} s; attention {a_compute:.6g} s and {a_read:.6g} s. "
           f"The slower of each pair, added: {right:.6g} s; you say {said:.6g} s")


@check(todo=6, points=3, section=RIDGE, concept="how long a step takes")
def a_step_takes_as_long_as_its_parts_each_at_its_ceiling(lab: Remote, rng: random.Random) -> None:
    for dtype, balance in product(SIZES, (0.1, 3, 30, 1000)):  # FLOPs in the time of reading a byte
        bandwidth = rng.uniform(1e9, 1e12)
        predicts(lab, a_shape(rng), rng.choice((1, 8, 64, 256)), rng.randrange(20, 2000), dtype, bandwidth,
                 bandwidth * balance)


@check(todo=6, points=3, section=RIDGE, concept="the ridge")
def at_the_ridge_matrices_take_as_long_to_read_as_to_compute_with(lab: Remote, rng: random.Random) -> None:
    for dtype in (*DTYPES, *DTYPES):
        is_the_ridge(lab, dtype, rng.uniform(1e9, 1e12), rng.uniform(1e10, 1e14))


def is_the_ridge(lab: Remote, dtype: torch.dtype, bandwidth: float, rate: float) -> None:
    """At the batch that `ridge_batch` says, reading a matrix takes as long as computing with it."""
    said = number(of_any_dtype(lab.ridge_batch, dtype, ceilings(lab, bandwidth, rate)), "ridge_batch")
    numbers = 1_000_000  # of a matrix: any
    compute, read = 2 * numbers * said / rate, numbers * dtype.itemsize / bandwidth
    expect(close(compute, read),
           f"{bandwidth:.3g} bytes and {rate:.3g} FLOPs a second: at batch {said:g} a matrix of a million {dtype} takes "
           f"{compute:.2e} s to compute with and {read:.2e} s to read; at the ridge both take as long")


class Decoding:
    """What is measured: `prepare`, the steps it makes, and a timer. In which order batches are measured is not judged.

    Args:
        seconds: batch size → what the timer says of a step.
        naps: batch size → what a step really takes, in seconds; nothing where it is not there.

    Attributes:
        log: what happened, in order.
        late: what happened when it was too late, in words: a step of a batch that was no longer there, prompts on the clock.
        since: batch size → when its first step began, and when the last had ended, by the judge's clock.
    """

    def __init__(self, seconds: dict[int, float], naps: dict[int, float] | None = None) -> None:
        self.log: list[tuple[str, int]] = []
        self.late: list[str] = []
        self.naps = naps or {}
        self.since: dict[int, tuple[float, float]] = {}
        self._seconds, self._there = seconds, 0
        self._timed: list[int] | None = None  # of the steps on the clock

    def prepare(self, batch: int) -> Any:
        """As the lab's: what it returns does one step."""
        if self._timed is not None:
            self.late.append(f"the prompts of batch {batch} were computed while the timer ran")
        self.log.append(("prepare", batch))
        self._there = batch
        return ours(lambda: self._step(batch))

    def _step(self, batch: int) -> None:
        if batch != self._there:
            self.late.append(f"a step of batch {batch} was done after prepare({self._there}), which had ended it")
        if self._timed is not None:
            self._timed.append(batch)
        self.log.append(("step", batch))
        began = time.perf_counter()
        time.sleep(self.naps.get(batch, 0.0))
        self.since[batch] = self.since.get(batch, (began, began))[0], time.perf_counter()

    def seconds_of(self, work: Callable[[], Any]) -> float:
        """As the lab's timer, by a clock that only steps move."""
        if not callable(work):
            raise TypeError(f"seconds_of gets the function that does a step, not {shown(work)}")
        self._timed = []
        work()
        timed, self._timed = self._timed, None
        expect(timed != [], "what was timed did no step")
        return sum(self._seconds.get(batch, 1.0) for batch in timed)

    def expect_in_time(self) -> None:
        """No step and no prompt came too late."""
        expect(not self.late,
               f"{''.join(self.late[:1])}. Prompts are computed before the timer starts, and a batch is measured before another "
               f"is prepared, which ends it. What happened: {self.log}")


def throughput(answer: Any, batches: Sequence[int]) -> dict[int, float]:
    """A number for each batch size."""
    expect(isinstance(answer, dict) and set(answer) == set(batches),
           f"expected a dict with a throughput for each of {list(batches)}; {shown(answer)} came")
    return {batch: number(answer[batch], f"measure_throughput, for batch {batch},") for batch in batches}


@check(todo=6, points=3, section=RIDGE, concept="tokens per second")
def throughput_is_the_tokens_of_a_step_by_its_seconds(lab: Remote, rng: random.Random) -> None:
    took = {batch: rng.randrange(1, 40) / 8 for batch in rng.sample(range(1, 65), 4)}
    decoding = Decoding(took)
    said = throughput(lab.measure_throughput(ours(decoding.prepare), list(took), ours(decoding.seconds_of)), list(took))
    decoding.expect_in_time()
    for batch, seconds in took.items():
        expect(close(said[batch], batch / seconds),
               f"a step of {batch} sequences took {seconds} seconds: {batch / seconds:g} tokens/s, not {said[batch]:g}")


@check(todo=6, points=2, section=RIDGE, concept="where the slower job is not the same for both parts", hidden=True)
def one_part_may_compute_while_the_other_reads(lab: Remote, rng: random.Random) -> None:
    for dtype, computing in product(DTYPES, ("matrices", "attention")):
        config = a_shape(rng)
        sharing = config.num_attention_heads // config.num_key_value_heads
        batch = rng.randrange(16, 65) if computing == "matrices" else 1
        bandwidth = rng.uniform(1e9, 1e12)
        balance = 2 * math.sqrt(batch * sharing) / dtype.itemsize  # between the two intensities
        predicts(lab, config, batch, rng.randrange(100, 1000), dtype, bandwidth, bandwidth * balance)


@check(todo=6, points=1, section=RIDGE, concept="what the ridge depends on", hidden=True)
def the_ridge_is_right_for_every_size_of_a_number(lab: Remote, rng: random.Random) -> None:
    for dtype in (torch.float16, *SIZES):
        is_the_ridge(lab, dtype, rng.uniform(1e9, 1e12), rng.uniform(1e9, 1e12))


@check(todo=6, points=2, section=RIDGE, concept="measuring as the program does", hidden=True)
def by_default_steps_are_timed_with_median_seconds(lab: Remote, rng: random.Random) -> None:
    batches = rng.sample(range(1, 65), 3)
    naps = dict(zip(batches, rng.sample([rng.uniform(0.001, 0.003), rng.uniform(0.02, 0.04), rng.uniform(0.1, 0.2)], 3),
                    strict=True))  # no one number of seconds is right for all
    decoding = Decoding({}, naps)
    said = throughput(lab.measure_throughput(ours(decoding.prepare), tuple(batches)), batches)
    decoding.expect_in_time()
    for batch, rate in said.items():
        expect(batch in decoding.since, f"no step of {batch} sequences was done")
        began, ended = decoding.since[batch]
        steps, least, most = decoding.log.count(("step", batch)), batch / (ended - began), batch / naps[batch]
        expect(least <= rate <= most,
               f"a step of {batch} sequences sleeps {naps[batch]} seconds, and all its steps together took {ended - began:g}: "
               f"between {least:g} and {most:g} tokens/s are possible, not {rate:g}")
        expect(steps > 1, f"a step of {batch} was done {steps} times: once to warm up, and then timed")
