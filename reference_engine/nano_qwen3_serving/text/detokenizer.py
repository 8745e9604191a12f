"""Tokens of one request to text, a piece at a time, and where the text has to stop.

Knows bytes and strings; knows nothing of requests or queues. Two things make this hard:

- A character can be spread over several tokens. Tokens become bytes, and an incremental UTF-8
  decoder keeps an incomplete character back until the rest of it came.
- A stop string can be spread over several tokens. Text that could still turn into one is kept back:

      stop "END"   text so far "…the E"   shown "…the"   kept " E"   (at most len("END") - 1)
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from nano_qwen3_serving.interfaces import TextDelta, Tokenizer
from nano_qwen3_serving.sampling_params import SamplingParams


def make_detokenizer(tokenizer: Tokenizer, params: SamplingParams) -> IncrementalDetokenizer:
    """The detokenizer of one request."""
    return IncrementalDetokenizer(
        tokenizer,
        stop=params.stop_strings,
        min_tokens=params.min_tokens,
        include_stop=params.include_stop_str_in_output,
        skip_special_tokens=params.skip_special_tokens,
    )


class IncrementalDetokenizer:
    """Turns tokens into text as they come. The joined pieces are the decoded whole.

    Args:
        tokenizer: says which bytes a token is.
        stop: strings that end the text.
        min_tokens: stop strings count only after this many tokens.
        include_stop: keep the stop string.
        skip_special_tokens: special tokens add no text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = list(stop)
        self._hold = max((len(s) for s in self._stop), default=1) - 1
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._skip_special = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_tokens = 0
        self._pending = ""  # decoded, and not shown yet
        self._stopped = False

    def add(self, token_ids: Sequence[int]) -> TextDelta:
        """Takes the next tokens; returns the text that is safe to show now.

        When a stop string is complete the text ends there, and what follows it is dropped, tokens and all.
        """
        for count, token_id in enumerate(token_ids, start=1):
            self._num_tokens += 1
            if self._skip_special and self._tokenizer.is_special(token_id):
                continue
            new = self._utf8.decode(self._tokenizer.token_bytes(token_id))
            self._pending += new
            if new and self._stop and self._num_tokens > self._min_tokens:
                stop = self._find_stop(len(new), count)
                if stop is not None:
                    return stop
        held = self._held() if self._stop else 0
        return TextDelta(self._cut(len(self._pending) - held))

    def finish(self) -> TextDelta:
        """Ends the tokens; returns the text that was kept back. An incomplete character becomes U+FFFD."""
        if self._stopped:
            return TextDelta("")
        self._pending += self._utf8.decode(b"", final=True)
        return TextDelta(self._cut(len(self._pending)))

    def _find_stop(self, num_new: int, num_tokens: int) -> TextDelta | None:
        """The stop string that is complete first, if one ends in the last `num_new` characters, the text of token `num_tokens`.

        One that ended earlier did so within `min_tokens`, and may still be in the pending text.
        """
        matches = []
        for stop in self._stop:
            start = self._pending.find(stop, max(0, len(self._pending) - num_new - len(stop) + 1))
            if start >= 0:
                matches.append((start + len(stop), -len(stop), stop))
        if not matches:
            return None
        end, _, stop = min(matches)
        self._stopped = True
        text = self._cut(end if self._include_stop else end - len(stop))
        return TextDelta(text, stop, num_tokens)

    def _held(self) -> int:
        """The number of characters at the end of the pending text with which a stop string begins."""
        for count in range(min(self._hold, len(self._pending)), 0, -1):
            end = self._pending[-count:]
            if any(stop.startswith(end) for stop in self._stop):
                return count
        return 0

    def _cut(self, count: int) -> str:
        """Takes the first `count` characters off the pending text."""
        count = max(count, 0)
        text, self._pending = self._pending[:count], self._pending[count:]
        return text
