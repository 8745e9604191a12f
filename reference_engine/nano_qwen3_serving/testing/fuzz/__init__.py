"""The engine fuzzer: random requests and accidents on the real `AsyncLLMEngine`.

    run_fuzz(10_000, seed=1)      raises FuzzFailure, or returns what happened

A run is cut into episodes of one engine each. An episode is drawn from the seed and is plain JSON:
a configuration and a list of operations (`episode.py`, `params.py`). It is lived through with the
clock and the steps in the fuzzer's hands (`driver.py`), so it always runs the same way. Every output
is compared with what the same request says alone (`oracles.py`, `checks.py`), every refusal with the
places that were taken (`places.py`). A failing episode is made as short as possible (`shrink.py`) and
written down to be replayed (`run.py`).
"""

from nano_qwen3_serving.testing.fuzz.command import fuzz_command
from nano_qwen3_serving.testing.fuzz.report import FuzzReport
from nano_qwen3_serving.testing.fuzz.run import FuzzFailure, live, replay, run_fuzz

__all__ = ["FuzzFailure", "FuzzReport", "fuzz_command", "live", "replay", "run_fuzz"]
