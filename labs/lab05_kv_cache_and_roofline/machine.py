"""Given: what the measurement needs of this machine, and a model that is too large for its cache.

Knows how to make such a model and how to run one decode step of the course's engine; knows nothing of
rooflines. The size of the cache is what the system says.
"""

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.ceilings import CacheSize, last_level_cache
from nano_qwen3_serving.model.products import OneDNNProduct
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.testing.checkpoints import Shape, write_random_checkpoint

__all__ = ["CacheSize", "DecodeBench", "fast_dtype", "generated_checkpoint", "last_level_cache", "shape_beyond"]

TIMES_THE_CACHE = 4


def fast_dtype() -> torch.dtype:
    """bfloat16 where this processor has products for it, else float32."""
    return torch.bfloat16 if OneDNNProduct.takes(torch.empty(1, 1, dtype=torch.bfloat16)) else torch.float32


def shape_beyond(cache_bytes: int, dtype: torch.dtype, hidden_size: int = 1024) -> Shape:
    """Layers like Qwen3-0.6B's (at hidden size 1024), just so many that their matrices are four caches."""
    one = Shape(
        vocab_size=2048, hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=1,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128)
    layer = hidden_size * (2 * one.num_attention_heads + 2 * one.num_key_value_heads) * one.head_dim
    layer += 3 * hidden_size * one.intermediate_size
    layers = -(-TIMES_THE_CACHE * cache_bytes // (layer * dtype.itemsize))
    return Shape(**(vars(one) | {"num_hidden_layers": layers}))


@contextlib.contextmanager
def generated_checkpoint(shape: Shape, dtype: torch.dtype, folder: Path | None = None) -> Iterator[Path]:
    """A checkpoint with random weights, removed at the end: in `folder`, or the system's place for such files.

    Speed does not depend on the values of weights.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lab05-", dir=folder) as temporary:
        yield write_random_checkpoint(Path(temporary) / "checkpoint", shape, dtype=dtype)


class DecodeBench:
    """The course's engine, ready to do one decode step of any number of sequences.

    Args:
        checkpoint: its folder.
        dtype: to compute in.
        context: tokens of each sequence before the first step.
        max_batch: the most sequences.
        max_steps: the most steps of one batch.

    Attributes:
        config: the shape of the checkpoint's network.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype, context: int, max_batch: int, max_steps: int = 32) -> None:
        self.context, self.max_steps = context, max_steps
        self.recorder = Recorder()
        args = EngineArgs(
            model=str(checkpoint), dtype=str(dtype).removeprefix("torch."), device="cpu", max_num_seqs=max_batch,
            max_model_len=context + max_steps + 1, enable_prefix_caching=False)
        self._engine: LLMEngine | None = LLMEngine.from_engine_args(args, recorder=self.recorder)
        self.config = self._engine.config.model
        self._running: list[str] = []

    def prepare(self, batch: int) -> Callable[[], object]:
        """Start `batch` sequences, their prompts computed; what is returned does one step: one token for each.

        The sequences of an earlier call are ended.
        """
        for request_id in self._running:
            self._engine.abort_request(request_id)
        params = SamplingParams(temperature=0.0, max_tokens=self.max_steps + 1, ignore_eos=True)
        self._running = [f"{batch}-{i}" for i in range(batch)]
        for i, request_id in enumerate(self._running):
            prompt = [(7 * i + j) % 2000 for j in range(self.context)]
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        while not self._all_decode():
            self._engine.step()
        return self._engine.step

    def close(self) -> None:
        """Let go of the engine and of the checkpoint's file, which some systems do not remove while it is in use."""
        self._engine = None
        gc.collect()

    def _all_decode(self) -> bool:
        """Whether every sequence has sampled its first token."""
        sampled = {request for step in self.recorder.steps for request in step["sampled"]}
        return sampled >= set(self._running)

    def share_outside_the_network(self, batch: int) -> float:
        """Of the last step of `batch` sequences: the share of its time that was not spent in the model runner."""
        step = next(s for s in reversed(self.recorder.steps) if len(s["chunks"]) == batch)
        seconds = step["seconds"]
        return 1 - seconds["execute"] / sum(seconds.values())
