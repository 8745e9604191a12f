"""An engine of the judge's that has a submission's attention in place of its own, and what it generates.

The caches stay where the submission is; queries, keys, values and results cross, and the judge compares logits.
"""

import functools
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from grading.judge.checks import expect, hold, shown
from grading.sandbox.worker.peer import Remote, kept
from labs.harness.catalog import find_lab
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.first_fault import FirstFault, first_fault
from nano_qwen3_serving.config import ModelConfig


class AttentionThere:
    """A `PagedAttention` for an engine of the judge: its caches stay there, and a step's metadata go there once.

    Args:
        fault: gets the first exception.
    """

    def __init__(
        self, lab: Remote, fault: FirstFault, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._lab, self._fault, self._layers = lab, fault, config.num_hidden_layers
        self._package = lab._peer.root.package
        self._part = lab.PagedAttention(config, block_size, dtype, kept(self._package("torch").device, device.type))
        self._slots: tuple = (None, None)
        self._metadata: tuple = (None, None)

    @property
    def bytes_per_block(self) -> int:
        return self._part.bytes_per_block

    def make_cache(self, num_blocks: int) -> list[Remote]:
        cache, item = kept(self._part.make_cache, num_blocks), self._package("operator").getitem
        expect(len(cache) == self._layers, f"{self._layers} layers, and make_cache made {len(cache)} pairs of keys and values")
        return [kept(item, cache, layer) for layer in range(self._layers)]

    def slots(self, block_table: Sequence[int], positions: range) -> list[int]:
        return self._fault.call(self._slots_of, block_table, positions)

    def write(self, layer_cache: Remote, k: Tensor, v: Tensor, slots: Tensor) -> None:
        self._fault.call(self._write, layer_cache, k, v, slots)

    def forward(self, q: Tensor, layer_cache: Remote, metadata: Any) -> Tensor:
        return self._fault.call(self._forward, q, layer_cache, metadata)

    def _slots_of(self, block_table: Sequence[int], positions: range) -> list[int]:
        slots = self._part.slots(block_table, positions)
        slots = slots.tolist() if isinstance(slots, Tensor) else list(slots) if isinstance(slots, tuple) else slots
        expect(isinstance(slots, list) and len(slots) == len(positions),
               f"slots of {positions} in the engine: {shown(slots)} came")
        return slots

    def _write(self, layer_cache: Remote, k: Tensor, v: Tensor, slots: Tensor) -> None:
        if slots is not self._slots[0]:
            self._slots = slots, hold(self._lab, slots)
        self._part.write(layer_cache, k, v, self._slots[1])

    def _forward(self, q: Tensor, layer_cache: Remote, metadata: Any) -> Tensor:
        if metadata is not self._metadata[0]:
            fields = {**vars(metadata), "slot_mapping": self._slots[1]}
            self._metadata = metadata, self._package("nano_qwen3_serving.interfaces").AttentionMetadata(**fields)
        rows = self._part.forward(q, layer_cache, self._metadata[1])
        expect(isinstance(rows, Tensor) and rows.shape == q.shape and rows.dtype == q.dtype,
               f"forward in the engine: q is {shown(q)}, and so is the result; {shown(rows)} came")
        return rows


def keeps_logits() -> Any:
    """The engine's sampler; its `rows` are the logits, under the tokens that they follow."""
    from nano_qwen3_serving.execution.sampler import Sampler

    class KeepsLogits(Sampler):
        rows: dict[tuple[int, ...], Tensor]

        def sample(self, logits: Tensor, rows: Sequence[Any]) -> Any:
            for row, numbers in zip(rows, logits, strict=True):
                self.rows[(*row.prompt_token_ids, *row.output_token_ids)] = numbers.clone()
            return super().sample(logits, rows)

    sampler = KeepsLogits()
    sampler.rows = {}
    return sampler


def generated(
    model: str, prompts: Sequence[Any], max_tokens: int, lab: Remote | None = None, **arguments: Any
) -> tuple[list[Any], dict]:
    """Greedy outputs and all rows of logits of the judge's engine; with the submission's attention if `lab` is given."""
    from nano_qwen3_serving import LLM, SamplingParams
    from nano_qwen3_serving.components import Components

    sampler = keeps_logits()
    components = Components(sampler=lambda config: sampler)
    greedy = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    with first_fault() as fault:
        if lab is not None:
            classes = SimpleNamespace(PagedAttention=functools.partial(AttentionThere, lab, fault))
            components = components.using(attention=functools.partial(load_seam(find_lab("07")).attention, classes))
        llm = LLM(model, components=components, dtype="float32", device="cpu", cpu_kernels=False, check_invariants=True,
                  num_gpu_blocks_override=512 // arguments.get("block_size", 16) + 8, **{"max_num_seqs": 4, **arguments})
        return llm.generate(prompts, greedy, use_tqdm=False), sampler.rows


def expect_same_tokens(mine: tuple[list[Any], dict], engines: tuple[list[Any], dict], how: str) -> None:
    """The same logits to one part in ten thousand, and the same tokens, but for a tie that such logits leave open."""
    for output, expected in zip(mine[0], engines[0], strict=True):
        tokens, expected_tokens = output.outputs[0].token_ids, expected.outputs[0].token_ids
        before = tuple(expected.prompt_token_ids)
        for count, (token, expected_token) in enumerate(zip(tokens, expected_tokens, strict=True)):
            where = f"{how}: prompt of {len(expected.prompt_token_ids)} tokens, logits after {count} generated"
            logits, reference = mine[1][before], engines[1][before]
            expect(bool(logits.isfinite().all()), f"{where}: NaN or infinity, with your attention in all layers")
            error = ((logits - reference).abs().max() / reference.abs().max()).item()
            expect(error < 1e-4, (
                f"{where}: off by {error:.1e} of the largest; float32 in another order explains 1e-4 at most. With your "
                f"attention the engine generated {tokens}, with its own {expected_tokens}. "
                "See 'All right alone, wrong in the engine' in the README."))
            if token != expected_token:
                break
            before += (token,)


@contextmanager
def random_network(rng: random.Random) -> Iterator[str]:
    """The folder of a Qwen3 of three layers with random weights, in which a wrong layer cannot hide."""
    from nano_qwen3_serving.model.checkpoint import BUNDLED
    from nano_qwen3_serving.testing.checkpoints import random_weight

    layers, generator = 3, torch.Generator().manual_seed(rng.randrange(1 << 30))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "random")
        shutil.copytree(BUNDLED / "course-draft", folder)
        weights = {
            key.replace("layers.0.", f"layers.{layer}."): random_weight(key, like.shape, generator).float()
            for key, like in load_file(folder / "model.safetensors").items()
            for layer in range(layers if "layers.0." in key else 1)}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"num_hidden_layers": layers, "layer_types": config["layer_types"] * layers, "dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield str(folder)
