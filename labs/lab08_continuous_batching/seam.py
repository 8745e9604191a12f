"""How the engine uses this lab's part: `Components.scheduler`.

The lab's scheduler computes whole prompts and takes all blocks at once. What the engine expects besides is added here.
"""

from collections.abc import Sequence
from types import ModuleType

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.interfaces import (
    BlockManager,
    RequestUpdate,
    SampledTokens,
    ScheduledBatch,
    Scheduler,
    StoppedRequest,
)
from nano_qwen3_serving.request import Request


def scheduler(lab: ModuleType, config: EngineConfig, block_manager: BlockManager) -> Scheduler:
    """The lab's `Scheduler` for this engine."""
    return WholeScheduler(lab.Scheduler(config.scheduler, block_manager), config.scheduler.max_num_batched_tokens)


class WholeScheduler:
    """Hands everything on to the lab's part; refuses prompts that no step has room for."""

    def __init__(self, part, max_num_batched_tokens: int) -> None:
        self._part = part
        self._most = max_num_batched_tokens

    @property
    def waiting(self) -> list[Request]:
        return self._part.waiting

    @property
    def running(self) -> list[Request]:
        return self._part.running

    def add(self, request: Request) -> None:
        """Queues a request; nothing of it will be found in a cache.

        Raises:
            InvalidParametersError: its prompt does not fit into a step.
        """
        if request.num_prompt_tokens > self._most:
            raise InvalidParametersError(
                f"the prompt has {request.num_prompt_tokens} tokens and max_num_batched_tokens is {self._most}: Lab 08's "
                "scheduler computes a prompt in one step; raise max_num_batched_tokens",
                parameter="prompt", value=request.num_prompt_tokens)
        request.num_cached_tokens = 0
        self._part.add(request)

    def abort(self, request_id: str) -> None:
        self._part.abort(request_id)

    def schedule(self) -> ScheduledBatch:
        return self._part.schedule()

    def update(self, batch: ScheduledBatch, result: SampledTokens) -> list[RequestUpdate]:
        return self._part.update(batch, result)

    def finish(self, stopped: Sequence[StoppedRequest]) -> None:
        self._part.finish(stopped)
