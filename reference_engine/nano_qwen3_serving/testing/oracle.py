"""transformers as the oracle: what logits and greedy tokens a checkpoint should give.

Knows transformers and nothing of this engine. Two correct programs add numbers in different orders,
so the last bits of their logits differ, and where the two best tokens are that close, so may the
tokens. The margin rule: tokens may differ only where the oracle's margin between the best two is
under `MARGIN`; such places are counted, and what follows them is judged on the oracle's logits for
the engine's own text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

MARGIN = 1e-4  # logits
BATCH_SIZE = 64


@dataclass(frozen=True)
class Continuation:
    """Greedy tokens, and for each the best logit minus the second best at its place."""

    token_ids: list[int]
    margins: list[float]


@dataclass(frozen=True)
class CloseCall:
    """A place where the engine chose another token than the oracle, and was allowed to."""

    prompt: int  # its index
    position: int  # in the output
    margin: float

    def __str__(self) -> str:
        return f"prompt {self.prompt}, output token {self.position}, margin {self.margin:.1e}"


class Oracle:
    """A checkpoint in transformers.

    Args:
        folder: of the checkpoint.
        dtype: to compute in.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForCausalLM

        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        eos = self.network.generation_config.eos_token_id
        self.eos_token_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """The logits after each token, [len(token_ids), vocab_size], in float32."""
        return self.network(torch.tensor([list(token_ids)])).logits[0].float()

    def greedy(self, prompts: Sequence[list[int]], max_tokens: int) -> list[Continuation]:
        """`transformers.generate` for each prompt, in batches of like length, padded on the left."""
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        continuations: dict[int, Continuation] = {}
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = by_length[start : start + BATCH_SIZE]
            continuations.update(zip(batch, self._generate([prompts[i] for i in batch], max_tokens), strict=True))
        return [continuations[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], max_tokens: int) -> list[Continuation]:
        longest = max(map(len, prompts))
        padding = [longest - len(p) for p in prompts]
        result = self.network.generate(
            torch.tensor([[0] * n + p for n, p in zip(padding, prompts, strict=True)]),
            attention_mask=torch.tensor([[0] * n + [1] * len(p) for n, p in zip(padding, prompts, strict=True)]),
            max_new_tokens=max_tokens, do_sample=False, temperature=None, top_k=None, top_p=None, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True)
        best = torch.stack([step.float().topk(2).values for step in result.logits], dim=1)  # [prompts, steps, 2]
        margins = (best[..., 0] - best[..., 1]).tolist()
        outputs = [self._through_eos(row) for row in result.sequences[:, longest:].tolist()]
        return [Continuation(ids, row[: len(ids)]) for ids, row in zip(outputs, margins, strict=True)]

    def _through_eos(self, token_ids: list[int]) -> list[int]:
        ends = [i for i, token in enumerate(token_ids, start=1) if token in self.eos_token_ids]
        return token_ids[: ends[0]] if ends else token_ids

    def compare(
        self, prompts: Sequence[list[int]], expected: Sequence[Continuation], outputs: Sequence[list[int]]
    ) -> list[CloseCall]:
        """Applies the margin rule to the engine's `outputs`.

        Raises:
            AssertionError: tokens differ where the oracle was sure.
        """
        calls: list[CloseCall] = []
        for i, (prompt, want, output) in enumerate(zip(prompts, expected, outputs, strict=True)):
            if output == want.token_ids:
                continue
            place = next((j for j, (a, b) in enumerate(zip(want.token_ids, output, strict=False)) if a != b), None)
            assert place is not None, f"prompt {i}: {len(output)} tokens, the oracle has {len(want.token_ids)}"
            close_calls = self._close_calls(i, prompt, output)
            if all(call.position != place for call in close_calls):  # padding alone made generate() choose otherwise
                assert want.margins[place] < MARGIN, (
                    f"prompt {i}, output token {place}: the engine chose {output[place]}, the oracle "
                    f"{want.token_ids[place]} by a margin of {want.margins[place]:.2e}")
                close_calls.append(CloseCall(i, place, want.margins[place]))
            calls += close_calls
        return calls

    def _close_calls(self, index: int, prompt: list[int], output: list[int]) -> list[CloseCall]:
        """The places where `output` has another token than the oracle's best; a margin of `MARGIN` or more raises."""
        logits = self.logits([*prompt, *output[:-1]])[len(prompt) - 1 :]
        behind = logits.amax(dim=-1) - logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        calls = [CloseCall(index, j, margin) for j, margin in enumerate(behind.tolist()) if margin > 0]
        for call in calls:
            assert call.margin < MARGIN, f"{call}: token {output[call.position]} is not the oracle's best"
        return calls
