"""Who looks on: observers hear of every step and every end, cost nothing that they do not ask for, and harm nobody."""

from __future__ import annotations

import gc
import weakref

import pytest

from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.observe.observer import EngineObserver, LastStep
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.scheduling.scheduler import Scheduler
from nano_qwen3_serving.testing.doubles import ManualClock, continued_text, double_components


class Notes(EngineObserver):
    """What was heard, in order."""

    name = "notebook"

    def __init__(self) -> None:
        self.steps, self.ends = [], []

    def on_step(self, step):
        self.steps.append([chunk.request.request_id for chunk in step.batch.chunks])

    def on_end(self, output, finish_reasons):
        self.ends.append((output.request_id, finish_reasons))


class Failing(Notes):
    """Writes to a disk that is full."""

    def on_step(self, step):
        super().on_step(step)
        raise OSError(28, "No space left on device")


def make(components: Components | None = None, **kwargs) -> LLMEngine:
    args = EngineArgs(model="course", num_gpu_blocks_override=33, block_size=4, check_invariants=True)
    return LLMEngine.from_engine_args(args, components or double_components(), **kwargs)


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens)


def run(engine: LLMEngine) -> dict[str, str]:
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return {output.request_id: output.outputs[0].text for output in outputs if output.finished}


def test_an_observer_hears_of_every_step_and_every_end_once_aborts_between_steps_too():
    engine, notes = make(), Notes()
    engine.observers.add(notes)
    engine.add_request("A", "first", greedy(3))
    engine.add_request("B", "second", SamplingParams(max_tokens=9, n=2))
    engine.step()
    engine.abort_request("B")
    engine.abort_request("B")
    run(engine)
    assert notes.steps == [["A", "0_B"], ["A"], ["A"]]  # 1_B waits for the block that 0_B computes
    assert notes.ends == [("B", ["abort", "abort"]), ("A", ["length"])]


def test_a_request_that_fails_is_heard_of_as_well():
    def broken(contexts: list[list[int]]) -> None:
        if any(ord("!") in tokens for tokens in contexts):
            raise RuntimeError("the '!' is too much")

    engine, notes = make(double_components(on_forward=broken)), Notes()
    engine.observers.add(notes)
    for name, prompt in (("A", "good"), ("B", "bad!")):
        engine.add_request(name, prompt, greedy(2))
    failed, *_ = engine.step()
    assert (failed.request_id, failed.outputs[0].finish_reason) == ("B", "error")
    assert notes.ends == [("B", ["error"])] and notes.steps == [["A", "B"]]
    assert run(engine) == {"A": continued_text("good", 2)}


def test_an_observer_that_fails_is_put_away_and_the_others_hear_everything(caplog: pytest.LogCaptureFixture):
    engine, failing, notes = make(), Failing(), Notes()
    engine.observers.add(failing)
    engine.observers.add(notes)
    engine.add_request("A", "hello", greedy(4))
    assert run(engine) == {"A": continued_text("hello", 4)}
    assert (len(failing.steps), len(notes.steps), notes.ends) == (1, 4, [("A", ["length"])])
    assert [r.getMessage() for r in caplog.records] == ["the notebook failed, and notes nothing more"]


def test_a_step_that_raises_is_not_heard_of():
    class Broken(Scheduler):
        def update(self, batch, result):
            raise RuntimeError("update is broken")

    engine, last = make(double_components(scheduler=lambda config, blocks: Broken(config.scheduler, blocks))), LastStep()
    engine.observers.add(last)
    engine.add_request("A", "hello", greedy(2))
    with pytest.raises(RuntimeError, match="update is broken"):
        engine.step()
    assert last.record is None


def test_a_record_has_the_borders_of_the_steps_phases_on_the_engines_clock():
    clock, last = ManualClock(100), LastStep()

    class Slow(Scheduler):
        def schedule(self):
            clock.advance(1)
            return super().schedule()

        def finish(self, stopped):
            clock.advance(4)
            super().finish(stopped)

    components = double_components(
        on_forward=lambda contexts: clock.advance(2), scheduler=lambda config, blocks: Slow(config.scheduler, blocks))
    engine = make(components, clock=clock)
    engine.observers.add(last)
    engine.add_request("A", "hello", greedy(2))
    engine.step()
    step = last.record
    assert (step.started, step.scheduled, step.executed, step.ended) == (100, 101, 103, 107)
    assert [c.request.metrics.first_token_ts for c in step.batch.chunks] == [103]


def test_queues_are_listed_only_for_an_observer_that_reads_them():
    class Shy(Scheduler):
        """Counts who asks who waits."""

        asked = 0

        @property
        def waiting(self):
            Shy.asked += 1
            return self._waiting

        @waiting.setter
        def waiting(self, requests):
            self._waiting = requests

    def asked(recorder: Recorder | None) -> int:
        engine = make(double_components(scheduler=lambda config, blocks: Shy(config.scheduler, blocks)), recorder=recorder)
        engine.observers.add(Notes())
        engine.add_request("A", "hello", greedy(3))
        Shy.asked = 0
        run(engine)
        return Shy.asked

    assert asked(Recorder()) == asked(None) + 3  # once a step


def test_the_recorder_can_be_exchanged_between_two_steps():
    first, second = Recorder(), Recorder()
    engine = make(recorder=first)
    engine.add_request("A", "hello", greedy(3))
    engine.step()
    engine.recorder = second
    engine.step()
    engine.recorder = None
    engine.step()
    assert engine.recorder is None and (len(first.steps), len(second.steps)) == (1, 1)


def test_an_engine_that_is_dropped_gives_its_cache_back_at_once():
    """No part of it may refer back to the engine: the cache would wait for the garbage collector, gigabytes of it."""
    engine = make(recorder=Recorder())
    engine.add_request("A", "hello", greedy(2))
    run(engine)
    runner = weakref.ref(engine.model_runner)
    gc.disable()
    try:
        del engine
        assert runner() is None
    finally:
        gc.enable()
