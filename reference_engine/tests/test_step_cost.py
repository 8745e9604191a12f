"""What a step costs beside the network: counted in calls and in bytes, never in seconds."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from nano_qwen3_serving.engine.async_llm_engine import WaitingRoom
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.testing.idle_network import BLOCK_SIZE, idle_engine

pytestmark = pytest.mark.slow

STEPS = 2 * BLOCK_SIZE  # in which every request fills two blocks


def calls(function: Callable[[], object]) -> int:
    """Calls of Python and of C functions that it makes."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def steps(engine: LLMEngine) -> None:
    for _ in range(STEPS):
        engine.step()


def most_bytes_of_a_step(engine: LLMEngine) -> int:
    """The most memory that a step asked for and gave back."""
    engine.step()
    tracemalloc.start()
    try:
        most = 0
        for _ in range(STEPS):
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            engine.step()
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return most


@pytest.fixture(scope="module")
def of_sixteen() -> int:
    """Calls of some steps of 16 requests with 64 tokens each."""
    engine = idle_engine(16, 64)
    return calls(lambda: steps(engine))


def test_a_step_is_linear_in_the_requests_that_it_schedules(of_sixteen):
    sixty_four = idle_engine(64, 64)
    assert 3.5 * of_sixteen < calls(lambda: steps(sixty_four)) <= 4 * of_sixteen


def test_a_step_calls_nothing_more_for_a_longer_context(of_sixteen):
    longer = idle_engine(16, 4096)
    assert calls(lambda: steps(longer)) == pytest.approx(of_sixteen, rel=0.01)


def test_a_step_copies_nothing_as_long_as_the_context():
    """But the block tables, 8 bytes for each block."""
    short, long = (most_bytes_of_a_step(idle_engine(4, context)) for context in (64, 8192))
    assert long - short < 4 * 8192 / BLOCK_SIZE * 8 * 3, f"{short} bytes with 64 tokens of context, {long} with 8,192"


def test_a_step_does_not_look_at_those_who_wait(of_sixteen):
    crowded = idle_engine(16, 64, waiting=1000)
    assert calls(lambda: steps(crowded)) == pytest.approx(of_sixteen, rel=0.01)


def test_a_step_does_not_look_at_blocks_that_nobody_needs(of_sixteen):
    large = idle_engine(16, 64, spare_blocks=50_000)
    assert calls(lambda: steps(large)) == pytest.approx(of_sixteen, rel=0.01)


def test_the_waiting_room_looks_only_at_who_comes_and_who_ran():
    def cost(waiting: int) -> int:
        room = WaitingRoom(limit=100_000)
        for i in range(waiting):
            room.enter(f"r{i}", [f"r{i}"])
        ran = SimpleNamespace(batch=SimpleNamespace(chunks=[
            SimpleNamespace(request=SimpleNamespace(request_id=f"r{i}")) for i in range(8)]))
        return calls(lambda: (room.on_step(ran), room.enter("new", ["new"]), room.leave("r9")))

    assert cost(10) == cost(10_000)
