"""A scheduled batch → what came of it, whatever happens: the runner, and what is done when it fails.

Knows batches and errors; knows nothing of tensors. The engine's step has one line for all of this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from nano_qwen3_serving.interfaces import SampledTokens, ScheduledBatch

logger = logging.getLogger(__name__)

EndFailed = Callable[[Mapping[str, Exception]], None]


class Runner(Protocol):
    """What can compute a batch: the `ModelRunner`."""

    def execute(self, batch: ScheduledBatch) -> SampledTokens:
        """Computes the batch. Doing it twice must be harmless."""


class Executor:
    """Runs batches; a request that fails costs its neighbours time, and nothing else.

    Args:
        runner: computes a batch.
        end_failed: told the errors of the requests that failed, by id. It ends them, so that whoever gets the result
            meets only requests that have one.
    """

    def __init__(self, runner: Runner, end_failed: EndFailed) -> None:
        self.runner = runner
        self._end_failed = end_failed

    def execute(self, batch: ScheduledBatch) -> SampledTokens:
        """Runs the batch; if that fails, each of its requests alone, once.

        A request that fails again has an entry in `errors`, and has ended.
        """
        result = self._execute(batch) if batch.chunks else SampledTokens({})
        if result.prompt_logprobs:
            keep_prompt_logprobs(batch, result)
        if result.errors:
            self._end_failed(result.errors)
        return result

    def _execute(self, batch: ScheduledBatch) -> SampledTokens:
        try:
            return self.runner.execute(batch)
        except Exception as error:
            logger.warning("a step of %d requests failed and is computed again, request by request: %s: %s",
                           len(batch.chunks), type(error).__name__, error, extra={"failure": error})
        return self._one_by_one(batch)

    def _one_by_one(self, batch: ScheduledBatch) -> SampledTokens:
        """Each chunk as a batch of its own.

        Running a chunk twice is harmless: it writes the same keys and values into its own slots. But it is slow, so the
        log says why.
        """
        result = SampledTokens({})
        for chunk in batch.chunks:
            try:
                alone = self.runner.execute(ScheduledBatch([chunk]))
                result.token_ids.update(alone.token_ids)
                result.logprobs.update(alone.logprobs)
                result.prompt_logprobs.update(alone.prompt_logprobs)
            except Exception as error:
                result.errors[chunk.request.request_id] = error
        return result


def keep_prompt_logprobs(batch: ScheduledBatch, result: SampledTokens) -> None:
    """Puts the log-probabilities of prompts on their requests: those of a chunk belong to the tokens that follow its own."""
    for chunk in batch.chunks:
        for position, logprobs in enumerate(result.prompt_logprobs.get(chunk.request.request_id, ()), chunk.start + 1):
            chunk.request.prompt_logprobs[position] = logprobs
