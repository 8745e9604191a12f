"""The engine: requests in, one `step()` at a time, outputs out. Synchronous, one thread.

Wires the parts together; each part does its own work. `make_requests` alone may be called from
other threads: it only reads.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from nano_qwen3_serving.arguments import invalid, names_unknown_arguments
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import INVARIANT_ROWS, EngineConfig
from nano_qwen3_serving.engine.arg_utils import EngineArgs, num_parameters
from nano_qwen3_serving.engine.input_processor import InputProcessor
from nano_qwen3_serving.engine.output_processor import OutputProcessor
from nano_qwen3_serving.engine.step_watch import Clock, StepWatch
from nano_qwen3_serving.exceptions import InvalidParametersError, shown
from nano_qwen3_serving.execution.drafting import Drafting
from nano_qwen3_serving.execution.executor import Executor
from nano_qwen3_serving.execution.model_runner import ModelRunner
from nano_qwen3_serving.interfaces import Scheduler, StoppedRequest
from nano_qwen3_serving.model.huge_pages import use_huge_pages
from nano_qwen3_serving.observe.metrics import EngineCounts, Metric
from nano_qwen3_serving.observe.observer import Observers
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.prompts import Prompt
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.scheduling.invariants import check_pool

SMALL_MODEL_BYTES = 32 << 20


@names_unknown_arguments
class LLMEngine:
    """The parts of one engine, and the loop's body.

    Args:
        config: what to build.
        components: which parts; the reference's by default.
        clock: engine time, in seconds.
        recorder: notes every step.

    Attributes:
        observers: who hears of its steps and of the ends of its requests.
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
        self.input_processor = InputProcessor(config, self.tokenizer, clock)
        attention = parts.attention(config)
        model = parts.model(config, attention)
        self.block_manager = parts.block_manager(config)
        self.scheduler = parts.scheduler(config, self.block_manager)
        self.model_runner = ModelRunner(
            model, attention, parts.verifier(config, parts.sampler(config)), config.cache.num_blocks,
            config.cache.block_size, config.device,
            row_multiple=INVARIANT_ROWS if config.batch_invariant else 1,
            num_threads=1 if is_small(config) else None)
        if config.device.type == "cpu" and not is_small(config):
            use_huge_pages()
        self._counts = EngineCounts()
        self.observers = Observers(self._counts, *filter(None, [recorder]))
        self.output_processor = OutputProcessor(
            self.tokenizer, parts.detokenizer, self.observers.on_end, config.stream_interval)
        self.executor = Executor(self.model_runner, partial(end_failed, self.output_processor, self.scheduler))
        self.drafting = Drafting(parts.drafter(config), config.scheduler.num_speculative_tokens)
        self._watch = StepWatch(config, clock, self.scheduler, self.block_manager, self.output_processor, self.observers)
        self._arrivals = itertools.count()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, components: Components | None = None, **kwargs: Any) -> LLMEngine:
        """Builds an engine; loads the checkpoint."""
        return cls(engine_args.create_engine_config(), components, **kwargs)

    @property
    def recorder(self) -> Recorder | None:
        """The observer that is a flight recorder. Another can take its place at any time, or None."""
        return next((observer for observer in self.observers if isinstance(observer, Recorder)), None)

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        if (old := self.recorder) is not None:
            self.observers.remove(old)
        if recorder is not None:
            self.observers.add(recorder)

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
        """Queues a request; it runs in the steps that follow.

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
        with self._watch as watch:
            batch = watch.scheduled(self.scheduler.schedule())
            result = watch.executed(self.executor.execute(batch))
            updates = watch.updated(self.scheduler.update(batch, result))
            outputs, stopped = self.output_processor.process(updates)
            self.scheduler.finish(stopped)
            self.drafting.prepare(updates)
            return outputs

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False, and nothing happens, while requests hold blocks."""
        return self.block_manager.reset_prefix_cache()

    def check_invariants(self) -> None:
        """Raises AssertionError if the block pool is inconsistent, or blocks are lost."""
        check_pool(self.block_manager, self.config.cache.num_blocks, idle=not self.has_unfinished_requests())

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
        return self._counts.metrics(
            now["num_requests_running"], now["num_requests_waiting"], now["kv_cache_usage"])


def end_failed(output_processor: OutputProcessor, scheduler: Scheduler, errors: Mapping[str, Exception]) -> None:
    """Ends the requests of `errors`, by id, and with each the other completions of its caller's request."""
    for request_id, error in errors.items():
        scheduler.finish([*output_processor.fail(request_id, error), StoppedRequest(request_id, "error")])


def ids_of(request_ids: Any) -> list[str]:
    """One id, or several, as a list; what is no string is no id of anything."""
    try:
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
    except Exception:
        raise invalid("request_id", request_ids, "an id, or several") from None
    return [request_id for request_id in ids if isinstance(request_id, str)]


def is_small(config: EngineConfig) -> bool:
    """Whether the weights fit into a processor's cache. Products so small are no faster with several
    threads, and on a busy machine many times slower, for each waits for the slowest."""
    return config.device.type == "cpu" and num_parameters(config.model) * config.dtype.itemsize <= SMALL_MODEL_BYTES
