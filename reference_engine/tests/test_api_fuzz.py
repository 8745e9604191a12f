"""The fuzzer of the public API: two thousand calls with hostile arguments, and proof that it sees what is wrong."""

from __future__ import annotations

from random import Random

import pytest

from nano_qwen3_serving import prompts
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.scheduling.block_manager import BlockManager
from nano_qwen3_serving.testing.api_fuzz import ApiFuzzFailure, api_fuzz_command, run_api_fuzz
from nano_qwen3_serving.testing.api_fuzz.calls import CALLS, make_call

pytestmark = pytest.mark.slow


@pytest.mark.share(2)
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_five_hundred_calls_end_in_a_result_or_our_error_and_disturb_no_neighbour(seed: int) -> None:
    totals = run_api_fuzz(500, seed)
    assert sum(totals.values()) == 500
    assert totals["result"] + totals["elsewhere"] > 100 and totals["InvalidParametersError"] > 100


def test_every_public_call_is_among_those_that_are_made() -> None:
    made = {make_call(Random(f"all {i}")).name for i in range(3000)}
    assert len(made) >= 30 and len(CALLS) >= 12
    assert {"LLM.generate", "LLM.chat", "LLMEngine.add_request", "AsyncLLMEngine.generate", "AsyncLLMEngine.add_request",
            "AsyncLLMEngine.abort", "AsyncLLM.generate", "AsyncLLM.generate_stream", "AsyncLLM.chat", "AsyncLLM.chat_stream",
            "AsyncLLM.generate_batch", "AsyncLLM.submit_request", "AsyncLLM.get_result", "AsyncLLM.abort", "AsyncLLM",
            "SamplingParams", "SamplingParams.clone", "StructuredOutputsParams", "EngineArgs", "AsyncEngineArgs"} <= made


def test_a_call_is_drawn_from_its_seed_and_number_alone() -> None:
    once, again = ([make_call(Random(f"0:{i}:call")) for i in range(50)] for _ in range(2))
    assert [(c.name, list(c.arguments), [type(v) for v in c.arguments.values()]) for c in once] == [
        (c.name, list(c.arguments), [type(v) for v in c.arguments.values()]) for c in again]


def test_an_error_that_is_not_ours_is_a_failure_that_names_seed_and_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "check_text", lambda parameter, text: None)
    with pytest.raises(ApiFuzzFailure, match=r"run_api_fuzz\(seed=33, only=\d+\)") as caught:
        run_api_fuzz(100, 33)
    assert caught.value.number is not None
    with pytest.raises(ApiFuzzFailure):
        run_api_fuzz(1, 33, only=caught.value.number)


def test_a_block_that_is_lost_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    free, lost = BlockManager.free, []

    def lose_one_block(self: BlockManager, request_id: str) -> None:
        if not lost and request_id in self._holdings:
            lost.append(self._holdings[request_id].table.pop())
        free(self, request_id)

    monkeypatch.setattr(BlockManager, "free", lose_one_block)
    with pytest.raises(ApiFuzzFailure):
        run_api_fuzz(40, 7)


def test_a_neighbour_that_gets_another_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    step = LLMEngine.step

    def wrong(self: LLMEngine) -> list:
        outputs = step(self)
        for output in outputs:
            if output.finished and output.outputs and output.outputs[0].token_ids:
                output.outputs[0].token_ids[-1] += 1
        return outputs

    monkeypatch.setattr(LLMEngine, "step", wrong)
    with pytest.raises(ApiFuzzFailure, match="neighbour"):
        run_api_fuzz(16, 8)


def test_the_command_says_what_happened(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_fuzz_command(10, [1, 2]) == 0
    assert capsys.readouterr().out.startswith("10 calls. ")
    monkeypatch.setattr(SamplingParams, "clone", lambda self, **changes: 1 / 0)
    assert api_fuzz_command(40, [1]) == 1
    said = capsys.readouterr().out
    assert said.startswith("FAILED: ") and "ZeroDivisionError" in said and "seed" in said
