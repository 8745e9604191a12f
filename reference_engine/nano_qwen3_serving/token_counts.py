"""How often a request has generated each token, kept up as it goes.

Knows token ids; knows nothing of penalties. A penalty of token 4,000 must not look at the 3,999 before it again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class TokenCounts:
    """The tokens that a request has seen, each once, with how often it generated them.

    Args:
        prompt_token_ids: seen, and generated 0 times.
    """

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self._place = {token: i for i, token in enumerate(dict.fromkeys(prompt_token_ids))}
        self._ids = np.fromiter(self._place, np.int64, len(self._place))
        self._counts = np.zeros(len(self._place), np.int64)
        self._counted = 0

    def upto(self, output_token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(token ids, counts), each [tokens seen] int64 on the CPU, of the prompt and this output.

        The output may only have grown since the last call. To be read only.
        """
        for token in output_token_ids[self._counted :]:
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._ids):
                self._ids, self._counts = (np.pad(a, (0, max(16, len(a)))) for a in (self._ids, self._counts))
            self._ids[place] = token
            self._counts[place] += 1
        self._counted = len(output_token_ids)
        seen = len(self._place)
        return torch.from_numpy(self._ids[:seen]), torch.from_numpy(self._counts[:seen])
