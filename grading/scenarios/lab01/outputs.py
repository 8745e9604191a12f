"""Lab 01, TODO 5: what is read from outputs made up here, and what the whole program prints."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

from grading.judge.checks import check, expect, ours, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import llm_beside, stdout_of
from labs.harness import loading
from labs.harness.catalog import find_lab
from labs.harness.scripted_engine.engines import scripted_llm
from labs.harness.scripted_engine.ledger import Ledger
from labs.harness.scripted_engine.own_engine import tokenizer, words
from labs.harness.suite.expecting import Here
from nano_qwen3_serving import CompletionOutput, RequestOutput
from nano_qwen3_serving.outputs import FinishReason, RequestMetrics

OUTPUTS = "TODO 5: Read the outputs"


def finished(rng: random.Random, tokens: int, reason: FinishReason = "stop", arrival: float | None = None) -> RequestOutput:
    """A finished output of a request that waited, and was cut into tokens before that."""
    times = [rng.uniform(0, 50) if arrival is None else arrival]
    for _ in range(4):
        times.append(times[-1] + rng.uniform(0.25, 2.0))
    if tokens == 1:
        times[4] = times[3]
    completion = CompletionOutput(0, words(rng, tokens + rng.randrange(1, 5)), [rng.randrange(2000) for _ in range(tokens)],
                                  finish_reason=reason)
    prompt = [rng.randrange(2000) for _ in range(rng.randrange(2, 9))]
    arrived, queued, scheduled, first, last = times
    metrics = RequestMetrics(arrived, queued, scheduled, first, last, num_generation_tokens=tokens)
    return RequestOutput(str(rng.randrange(99)), words(rng, 20), prompt, None, [completion], True, metrics)


def times_of(output: RequestOutput) -> RequestMetrics:
    """When a finished request arrived, and its tokens came."""
    assert output.metrics is not None  # as `finished` made it
    return output.metrics


def near(found: Any, right: float) -> bool:
    """Whether it is the right number, but for rounding."""
    return isinstance(found, int | float) and math.isclose(found, right, rel_tol=1e-6, abs_tol=1e-9)


def story_of(output: RequestOutput) -> str:
    """What is known of an output, for a message."""
    at, completion = times_of(output), output.outputs[0]
    return (f"{len(completion.token_ids)} tokens, {completion.finish_reason!r}, arrived at {at.arrival_time:.3f}, "
            f"queued {at.queued_ts:.3f}, scheduled {at.scheduled_ts:.3f}, first token {at.first_token_ts:.3f}, "
            f"last {at.last_token_ts:.3f}")


def expect_times(lab: Remote, output: RequestOutput) -> None:
    """TTFT, mean ITL and speed of a request, by its times."""
    m, at, count = lab.measure(output), times_of(output), len(output.outputs[0].token_ids)
    ttft, speed = at.first_token_ts - at.arrival_time, count / (at.last_token_ts - at.arrival_time)
    expect(near(m.ttft, ttft),
           f"{story_of(output)}: ttft is {ttft:.6f}, from arrival to the first token; measure() said {shown(m.ttft)}")
    if count == 1:
        expect(m.mean_itl is None,
               f"one token has no gap, and where there is no gap there is no mean: None; mean_itl is {shown(m.mean_itl)}")
    else:
        mean = (at.last_token_ts - at.first_token_ts) / len(range(1, count))
        expect(near(m.mean_itl, mean),
               f"{story_of(output)}: {count} tokens have {count - 1} gaps, {mean:.6f} each; mean_itl is {shown(m.mean_itl)}")
    expect(near(m.tokens_per_second, speed),
           f"{story_of(output)}: that is {speed:.6f} tokens per second, from arrival to the last; measure() said "
           f"{shown(m.tokens_per_second)}")
    counts, right = (m.prompt_tokens, m.tokens), (len(output.prompt_token_ids), count)
    expect(counts == right,
           f"prompt_tokens and tokens are {right}; measure() said {shown(counts)}: count tokens, not words or characters")


@check(todo=5, points=6, section=OUTPUTS, concept="tokens and times of a request")
def tokens_and_times_of_a_request(lab: Remote, rng: random.Random) -> None:
    for count in (2, rng.randrange(3, 9), rng.randrange(20, 60)):
        expect_times(lab, finished(rng, count))
    for zero in ("arrival_time", "first_token_ts", "last_token_ts"):  # of a clock only differences mean something
        output = finished(rng, rng.randrange(2, 9))
        output.metrics = sooner(times_of(output), getattr(times_of(output), zero))
        expect_times(lab, output)
    together = finished(rng, rng.randrange(2, 9))  # tokens that came at once: there are gaps, of 0.0 seconds
    together.metrics = replace(times_of(together), last_token_ts=times_of(together).first_token_ts)
    expect_times(lab, together)


def sooner(times: RequestMetrics, seconds: float) -> RequestMetrics:
    """The same on a clock that shows so many seconds less."""
    moments = ("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
    return replace(times, **{name: getattr(times, name) - seconds for name in moments})


@check(todo=5, points=3, section=OUTPUTS, concept="a request without a gap", hidden=True)
def a_single_token_has_no_gap(lab: Remote, rng: random.Random) -> None:
    expect_times(lab, finished(rng, 1, "length"))


@check(todo=5, points=3, section=OUTPUTS, concept="which end is a cut")
def only_length_means_cut_off(lab: Remote, rng: random.Random) -> None:
    for reason in rng.sample(get_args(FinishReason), 4):
        m = lab.measure(finished(rng, rng.randrange(2, 30), reason))
        expect(m.finish_reason == reason, f"the output's finish_reason is {reason!r}, not {shown(m.finish_reason)}")
        expect(m.cut_off == (reason == "length"),
               f"a request that ended with {reason!r} has cut_off {reason == 'length'}, not {shown(m.cut_off)}")


def expect_throughput(lab: Remote, outputs: list[RequestOutput]) -> None:
    """throughput() is the tokens of all outputs, divided by the seconds from the first arrival to the last token."""
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    seconds = max(times_of(output).last_token_ts for output in outputs) - min(times_of(output).arrival_time for output in outputs)
    found = lab.throughput(outputs)
    expect(near(found, tokens / seconds),
           f"{'; '.join(map(story_of, outputs))}: {tokens} tokens in {seconds:.3f} s are {tokens / seconds:.6f} "
           f"per second, one division for all; throughput() said {shown(found)}")


@check(todo=5, points=2, section=OUTPUTS, concept="the speed of all together")
def throughput_counts_the_time_once_for_all(lab: Remote, rng: random.Random) -> None:
    expect_throughput(lab, [finished(rng, rng.randrange(2, 40), arrival=10 + rng.random()) for _ in range(3)])
    expect_throughput(lab, [finished(rng, rng.randrange(2, 40))])
    for seconds in (0.0, rng.uniform(1, 9)):  # the last token at the clock's zero, and all of it before
        early = finished(rng, rng.randrange(2, 40))
        early.metrics = sooner(times_of(early), times_of(early).last_token_ts + seconds)
        expect_throughput(lab, [early])


@check(todo=5, points=2, section=OUTPUTS, concept="outputs in any order", hidden=True)
def throughput_does_not_depend_on_the_order(lab: Remote, rng: random.Random) -> None:
    outputs = [finished(rng, rng.randrange(2, 40), arrival=float(arrival)) for arrival in rng.sample(range(30), 4)]
    expect_throughput(lab, sorted(outputs, key=lambda output: times_of(output).arrival_time))
    expect_throughput(lab, sorted(outputs, key=lambda output: -times_of(output).arrival_time))
    long = finished(rng, rng.randrange(2, 40), arrival=0.0)  # arrives first, and its last token is the last of all
    long.metrics = replace(times_of(long), last_token_ts=rng.uniform(60, 90))
    expect_throughput(lab, [outputs[0], long, *outputs[1:]])


def script_of(salt: int) -> Callable[[list[int], dict[str, Any]], list[int]]:
    """Answers that depend on the prompt and, where tokens are drawn, on which of the seeds came, and on nothing else."""
    seeds: list[int | None] = []

    def script(prompt: list[int], params: dict[str, Any]) -> list[int]:
        drawn = params["temperature"] > 0 and params["top_k"] != 1
        seed = params["seed"] if drawn else None
        if seed not in seeds:
            seeds.append(seed)
        rng = random.Random(f"{salt} {prompt} {seeds.index(seed)}")
        return tokenizer().encode(f" {words(rng, rng.randrange(5, 9))}. {words(rng, rng.randrange(4, 9))}, {words(rng, 3)}.")

    return script


def solution() -> Any:
    """The lab's own, for the words that its program prints."""
    return loading.run_file(find_lab("01").solution, "_lab01_solution_of_the_judge")


def printed_here(salt: int) -> str:
    """What our program prints if the model says what the script says."""
    script = script_of(salt)
    ours_, lines = solution(), []
    ours_.load_llm = lambda: scripted_llm(Here(), Ledger(random.Random(0), script))
    ours_.print = lambda *said: lines.append(" ".join(map(str, said)))
    ours_.main()
    return "\n".join(lines)


def without_times(text: str) -> list[str]:
    """Its lines, every time and speed as a sign, spaces in a row as one."""
    return [" ".join(re.sub(r"\d+\.\d+", "#", line).split()) for line in text.strip().splitlines()]


@check(todo=5, points=4, section=OUTPUTS, concept="the whole program")
def the_whole_program_loads_once_and_prints_what_the_readme_shows(lab: Remote, rng: random.Random) -> None:
    salt, loads = rng.randrange(10**9), []
    script = script_of(salt)

    def load() -> Remote:
        loads.append(llm_beside(lab, Ledger(rng, script)))
        return loads[-1]

    lab.load_llm = ours(load)
    found, right = without_times(stdout_of(lab, lambda: lab.main())), without_times(printed_here(salt))
    expect(len(loads) == 1,
           f"the program loaded {len(loads)} models in main(); expected exactly one, for everything it does")
    for place, line in enumerate(right):
        there = found[place] if place < len(found) else "nothing"
        expect(there == line,
               f"README.md, Expected Output, shows how main() prints. With this model, whose words are not the course model's, "
               f"line {place + 1} should be {line!r} (times as #), and it is {there!r}")
    expect(len(found) == len(right),
           f"main() should print {len(right)} lines, and it printed {len(found)}; the next is "
           f"{shown(found[len(right):][:1])}")
