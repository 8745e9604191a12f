"""The engine: requests in, one `step()` at a time, outputs out. Synchronous, one thread.

Wires the parts together; each part does its own work. `make_requests` alone may be called from
other threads: it only reads.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from nano_qwen3_serving.arguments import invalid, names_unknown_arguments
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import INVARIANT_ROWS, EngineConfig
from nano_qwen3_serving.engine.arg_utils import EngineArgs, num_parameters
from nano_qwen3_serving.engine.input_processor import InputProcessor
from nano_qwen3_serving.engine.output_processor import OutputProcessor
from nano_qwen3_serving.exceptions import EngineDeadError, InvalidParametersError, shown
from nano_qwen3_serving.execution.model_runner import ModelRunner
from nano_qwen3_serving.interfaces import RequestUpdate, SampledTokens, ScheduledBatch, StoppedRequest
from nano_qwen3_serving.model.huge_pages import use_huge_pages
from nano_qwen3_serving.observe.metrics import Metric
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.prompts import Prompt
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.scheduling.invariants import check_schedule

Clock = Callable[[], float]

logger = logging.getLogger(__name__)

SMALL_MODEL_BYTES = 32 << 20


@names_unknown_arguments
class LLMEngine:
    """The parts of one engine, and the loop's body.

    Args:
        config: what to build.
        components: which parts; the reference's by default.
        clock: engine time, in seconds.
        recorder: notes every step.
    """

    def __init__(
        self,
        config: EngineConfig,
        components: Components | None = None,
        *,
        clock: Clock = time.monotonic,
        recorder: Recorder | None = None,
    ) -> None:
        parts = components or Components()
        self.tokenizer = parts.tokenizer(config)
        config = replace(config, model=config.model.with_eos(getattr(self.tokenizer, "eos_token_id", None)))
        self.config = config
        self.clock = clock
        self.recorder = recorder
        self.input_processor = InputProcessor(config, self.tokenizer, clock)
        attention = parts.attention(config)
        model = parts.model(config, attention)
        self.block_manager = parts.block_manager(config)
        self.scheduler = parts.scheduler(config, self.block_manager)
        self.model_runner = ModelRunner(
            model, attention, parts.sampler(config), config.cache.num_blocks, config.cache.block_size, config.device,
            row_multiple=INVARIANT_ROWS if config.batch_invariant else 1,
            num_threads=1 if is_small(config) else None)
        if config.device.type == "cpu" and not is_small(config):
            use_huge_pages()
        self.output_processor = OutputProcessor(self.tokenizer, parts.detokenizer, config.stream_interval)
        self.last_batch: ScheduledBatch | None = None  # what the last step ran, for observers
        self._arrivals = itertools.count()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, components: Components | None = None, **kwargs: Any) -> LLMEngine:
        """Builds an engine; loads the checkpoint."""
        return cls(engine_args.create_engine_config(), components, **kwargs)

    def get_tokenizer(self) -> Any:
        """The engine's tokenizer."""
        return self.tokenizer

    @names_unknown_arguments
    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        arrival_time: float | None = None,
        priority: int = 0,
    ) -> None:
        """Takes a request in; it runs in the steps that follow.

        Raises:
            InvalidParametersError: the prompt or a parameter is not acceptable, or a request with
                this id is in flight. Nothing was added.
        """
        self.add(self.make_requests(request_id, prompt, params, arrival_time, priority))

    def make_requests(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        arrival_time: float | None = None,
        priority: int = 0,
    ) -> list[Request]:
        """Checks and tokenises a request: one `Request` for each of its n completions.

        Adds nothing, and may be called from any thread. Raises like `add_request`.
        """
        return self.input_processor.make_requests(request_id, prompt, params, arrival_time, priority)

    def add(self, requests: Sequence[Request]) -> None:
        """Queues what `make_requests` made; if that fails nothing of it stays."""
        first = requests[0]
        request_id = first.request_id if len(requests) == 1 else first.request_id.removeprefix("0_")
        if any(i in self.output_processor for i in (request_id, *(r.request_id for r in requests))):
            raise InvalidParametersError(
                f"a request {shown(request_id)} is in flight; choose another id or wait for it",
                parameter="request_id", value=request_id)
        try:
            self.output_processor.add(request_id, requests)
            for request in requests:
                request.arrival_number = next(self._arrivals)
                request.metrics.queued_ts = self.clock()
                self.scheduler.add(request)
        except BaseException:
            self.abort_request(request_id)
            raise

    def abort_request(self, request_ids: str | Iterable[str]) -> list[RequestOutput]:
        """Ends requests as aborted and frees their blocks; returns their last outputs.

        Unknown ids, finished requests among them, are no-ops.
        """
        outputs = []
        for request_id in ids_of(request_ids):
            output, stopped = self.output_processor.abort(request_id)
            self.scheduler.finish(stopped)
            if output is not None:
                outputs.append(output)
        return outputs

    def has_unfinished_requests(self) -> bool:
        """Whether `step()` has something to do."""
        return len(self.output_processor) > 0

    def get_num_unfinished_requests(self) -> int:
        """Requests in flight."""
        return len(self.output_processor)

    def step(self) -> list[RequestOutput]:
        """Schedules, computes, samples; returns what there is to show.

        A request that fails is shown with finish_reason "error"; its neighbours go on.

        Raises:
            EngineDeadError: a part broke its contract, so that the requests in flight cannot go on.
        """
        started = self.clock()
        batch = self.scheduler.schedule()
        if self.config.check_invariants:
            check_schedule(batch, self.scheduler.running, self.block_manager, self.config.scheduler)
        if not (batch.chunks or batch.preempted) and self.has_unfinished_requests():
            raise EngineDeadError(
                f"the scheduler scheduled nothing, and {len(self.output_processor)} requests are in flight: they would "
                "wait for ever; schedule() must advance the first in order")
        self.last_batch = batch
        scheduled = self.clock()
        who = self._who() if self.recorder else ((), ())
        result = self.execute(batch)
        executed = self.clock()
        failed = self._end_failed(result)
        updates = self.scheduler.update(batch, result)
        self._note(batch, result, updates, scheduled, executed)
        outputs, stopped = self.output_processor.process(updates)
        self.scheduler.finish(stopped)
        self._record(batch, result, who, (started, scheduled, executed, self.clock()))
        if self.config.check_invariants:
            self.check_invariants()
        return failed + outputs

    def execute(self, batch: ScheduledBatch) -> SampledTokens:
        """Runs the batch; if that fails, each of its requests alone, once.

        A request that fails again has an entry in `errors`. Running a chunk twice is harmless: it
        writes the same keys and values into its own slots. But it is slow, so the log says why.
        """
        if not batch.chunks:
            return SampledTokens({})
        try:
            return self.model_runner.execute(batch)
        except Exception as error:
            logger.warning("a step of %d requests failed and is computed again, request by request: %s: %s",
                           len(batch.chunks), type(error).__name__, error, extra={"failure": error})
            result = SampledTokens({})
        for chunk in batch.chunks:
            request_id = chunk.request.request_id
            try:
                alone = self.model_runner.execute(ScheduledBatch([chunk]))
                result.token_ids.update(alone.token_ids)
                result.logprobs.update(alone.logprobs)
                result.prompt_logprobs.update(alone.prompt_logprobs)
            except Exception as error:
                result.errors[request_id] = error
        return result

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False, and nothing happens, while requests hold blocks."""
        return self.block_manager.reset_prefix_cache()

    def check_invariants(self) -> None:
        """Raises AssertionError if the block pool is inconsistent, or blocks are lost."""
        self.block_manager.check_integrity()
        if not self.has_unfinished_requests():
            free = self.block_manager.num_free_blocks
            assert free == self.config.cache.num_blocks - 1, f"idle, and only {free} blocks are free"

    def stats(self) -> dict[str, Any]:
        """Numbers of this moment: requests, blocks, pool use in [0, 1]."""
        usable = self.config.cache.num_blocks - 1
        free = self.block_manager.num_free_blocks
        return {
            "num_requests_running": len(self.scheduler.running),
            "num_requests_waiting": len(self.scheduler.waiting),
            "num_free_blocks": free,
            "num_total_blocks": usable,
            "kv_cache_usage": 1.0 - free / usable,
        }

    def get_metrics(self) -> list[Metric]:
        """Counters of the requests that ended, and gauges of this moment, under vLLM's names."""
        now = self.stats()
        return self.output_processor.counts.metrics(
            now["num_requests_running"], now["num_requests_waiting"], now["kv_cache_usage"])

    def _end_failed(self, result: SampledTokens) -> list[RequestOutput]:
        """Ends the requests of `result.errors`; what their callers are shown."""
        shown: list[RequestOutput] = []
        for request_id, error in result.errors.items():
            outputs, stopped = self.output_processor.fail(request_id, error)
            self.scheduler.finish([*stopped, StoppedRequest(request_id, "error")])
            shown += outputs
        return shown

    def _note(
        self, batch: ScheduledBatch, result: SampledTokens, updates: list[RequestUpdate],
        scheduled: float, executed: float,
    ) -> None:
        """Puts on the requests what the step says of them: times, blocks, the prompt's logprobs."""
        for chunk in batch.chunks:
            request = chunk.request
            request.block_indices = chunk.block_table
            request.metrics.scheduled_ts = request.metrics.scheduled_ts or scheduled
            for i, logprobs in enumerate(result.prompt_logprobs.get(request.request_id, [])):
                request.prompt_logprobs[chunk.start + 1 + i] = logprobs
        for update in updates:
            metrics = update.request.metrics
            metrics.first_token_ts = metrics.first_token_ts or executed
            metrics.last_token_ts = executed
            metrics.num_generation_tokens = len(update.request.output_token_ids)

    def _record(self, batch: ScheduledBatch, result: SampledTokens, who: Any, times: tuple[float, float, float, float]) -> None:
        """Has the recorder note the step. One that fails, as on a full disk, is put away: nobody's request depends on it."""
        try:
            if self.recorder:
                self.recorder.record(batch, result, self.block_manager, who, times)
        except Exception:
            logger.exception("the recorder failed, and notes nothing more")
            self.recorder = None

    def _who(self) -> tuple[list[str], list[str]]:
        running = [r.request_id for r in self.scheduler.running]
        return running, [r.request_id for r in self.scheduler.waiting]


def ids_of(request_ids: Any) -> list[str]:
    """One id, or several, as a list; what is no string is no id of anything."""
    try:
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
    except Exception:
        raise invalid("request_id", request_ids, "an id, or several") from None
    return [one for one in ids if isinstance(one, str)]


def is_small(config: EngineConfig) -> bool:
    """Whether the weights fit into a processor's cache. Products so small are no faster with several
    threads, and on a busy machine many times slower, for each waits for the slowest."""
    return config.device.type == "cpu" and num_parameters(config.model) * config.dtype.itemsize <= SMALL_MODEL_BYTES
