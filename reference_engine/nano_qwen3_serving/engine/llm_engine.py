"""The engine: requests in, one `step()` at a time, outputs out. Synchronous, one thread.

Wires the parts together; each part does its own work. `make_requests` alone may be called from
other threads: it only reads.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nano_qwen3_serving.arguments import names_unknown_arguments
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.output_processor import OutputProcessor
from nano_qwen3_serving.exceptions import InvalidParametersError, PromptTooLongError
from nano_qwen3_serving.execution.model_runner import ModelRunner
from nano_qwen3_serving.interfaces import RequestUpdate, SampledTokens, ScheduledBatch, StoppedRequest
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestMetrics, RequestOutput
from nano_qwen3_serving.prompts import Prompt, parse_prompt
from nano_qwen3_serving.request import Request, member_ids
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.scheduling.invariants import check_schedule

Clock = Callable[[], float]

INVARIANT_ROWS = 16  # with batch_invariant


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
        self.config = config
        self.clock = clock
        self.recorder = recorder
        self.tokenizer = parts.tokenizer(config)
        attention = parts.attention(config)
        model = parts.model(config, attention)
        self.block_manager = parts.block_manager(config)
        self.scheduler = parts.scheduler(config, self.block_manager)
        self.model_runner = ModelRunner(
            model, attention, parts.sampler(config), config.cache.num_blocks, config.cache.block_size, config.device,
            row_multiple=INVARIANT_ROWS if config.batch_invariant else 1)
        self.output_processor = OutputProcessor(self.tokenizer, parts.detokenizer, config.stream_interval)
        self.last_batch: ScheduledBatch | None = None  # what the last step ran, for observers
        self._arrivals = itertools.count()
        self._seeds = random.Random(config.seed)

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

        Adds nothing, and may be called from any thread.
        """
        if not isinstance(request_id, str) or not request_id:
            raise InvalidParametersError(
                f"request_id must be a non-empty string, got {request_id!r}", parameter="request_id", value=request_id)
        if not isinstance(params, SamplingParams):
            raise InvalidParametersError(
                f"sampling_params must be a SamplingParams, got {params!r}", parameter="sampling_params", value=params)
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise InvalidParametersError(f"priority must be an int, got {priority!r}", parameter="priority", value=priority)
        text, tokens, salt = parse_prompt(prompt)
        if tokens is None:
            tokens = self.tokenizer.encode(text)
        limit = self.config.scheduler.max_model_len
        self._check_tokens(tokens, params)
        room = limit - len(tokens)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        now = self.clock() if arrival_time is None else arrival_time
        return [
            Request(
                request_id=member_id,
                prompt=text,
                prompt_token_ids=tokens,
                params=params,
                seed=seed + i,
                max_total_tokens=len(tokens) + min(room, params.max_tokens or room),
                priority=priority,
                sample_index=i,
                eos_token_ids=frozenset() if params.ignore_eos else frozenset(self.config.model.eos_token_ids),
                bad_words_token_ids=self._bad_words(params),
                cache_salt=salt,
                metrics=RequestMetrics(arrival_time=now),
            )
            for i, member_id in enumerate(member_ids(request_id, params.n))
        ]

    def add(self, requests: Sequence[Request]) -> None:
        """Queues what `make_requests` made; if that fails nothing of it stays."""
        first = requests[0]
        request_id = first.request_id if len(requests) == 1 else first.request_id.removeprefix("0_")
        if any(i in self.output_processor for i in (request_id, *(r.request_id for r in requests))):
            raise InvalidParametersError(
                f"a request {request_id!r} is in flight; choose another id or wait for it",
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
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        outputs = []
        for request_id in ids:
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
        """
        started = self.clock()
        batch = self.scheduler.schedule()
        if self.config.check_invariants:
            check_schedule(batch, self.scheduler.running, self.block_manager, self.config.scheduler)
        self.last_batch = batch
        scheduled = self.clock()
        who = self._who() if self.recorder else ((), ())
        result = self.execute(batch)
        executed = self.clock()
        failed = self._end_failed(result)
        updates = self.scheduler.update(batch, result)
        self._note_times(batch, updates, scheduled, executed)
        outputs, stopped = self.output_processor.process(updates)
        self.scheduler.finish(stopped)
        if self.recorder:
            self.recorder.record(batch, result, self.scheduler, who, (started, scheduled, executed, self.clock()))
        if self.config.check_invariants:
            self.check_invariants()
        return failed + outputs

    def execute(self, batch: ScheduledBatch) -> SampledTokens:
        """Runs the batch; if that fails, each of its requests alone, once.

        A request that fails again has an entry in `errors`. Running a chunk twice is harmless: it
        writes the same keys and values into its own slots.
        """
        if not batch.chunks:
            return SampledTokens({})
        try:
            return self.model_runner.execute(batch)
        except Exception:
            result = SampledTokens({})
        for chunk in batch.chunks:
            request_id = chunk.request.request_id
            try:
                alone = self.model_runner.execute(ScheduledBatch([chunk]))
                result.token_ids.update(alone.token_ids)
                result.logprobs.update(alone.logprobs)
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

    def _check_tokens(self, tokens: list[int], params: SamplingParams) -> None:
        vocab, limit = self.config.model.vocab_size, self.config.scheduler.max_model_len
        if not tokens:
            raise InvalidParametersError("the prompt is empty; give at least one token", parameter="prompt", value=tokens)
        if len(tokens) >= limit:
            raise PromptTooLongError(
                f"the prompt has {len(tokens)} tokens; this engine holds at most {limit} of prompt and output "
                f"(max_model_len, which the KV pool of {self.config.cache.capacity} tokens bounds): shorten it, or "
                "start the engine with more", parameter="prompt", value=len(tokens))
        groups = {
            "prompt_token_ids": tokens, "stop_token_ids": params.stop_token_ids or [],
            "logit_bias": params.logit_bias or {}, "allowed_token_ids": params.allowed_token_ids or []}
        for name, ids in groups.items():
            bad = [t for t in ids if not 0 <= t < vocab]
            if bad:
                raise InvalidParametersError(
                    f"{name} has {bad[0]}; token ids are in [0, {vocab - 1}]", parameter=name, value=bad[0])
        most = self.config.max_logprobs
        if most != -1 and params.logprobs is not None and not 0 <= params.logprobs <= most:
            raise InvalidParametersError(
                f"logprobs must be in [0, {most}], the engine's max_logprobs, got {params.logprobs}",
                parameter="logprobs", value=params.logprobs)
        if params.prompt_logprobs is not None:
            raise InvalidParametersError(
                f"prompt_logprobs={params.prompt_logprobs} is not supported; leave it out",
                parameter="prompt_logprobs", value=params.prompt_logprobs)

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Tokens of each bad word, at the beginning of a text and after a space."""
        words = [w for word in params.bad_words or () for w in (word, " " + word.lstrip())]
        return tuple(dict.fromkeys(tuple(self.tokenizer.encode(word)) for word in words))

    def _end_failed(self, result: SampledTokens) -> list[RequestOutput]:
        """Ends the requests of `result.errors`; what their callers are shown."""
        shown: list[RequestOutput] = []
        for request_id, error in result.errors.items():
            outputs, stopped = self.output_processor.fail(request_id, error)
            self.scheduler.finish([*stopped, StoppedRequest(request_id, "error")])
            shown += outputs
        return shown

    def _note_times(
        self, batch: ScheduledBatch, updates: list[RequestUpdate], scheduled: float, executed: float
    ) -> None:
        for chunk in batch.chunks:
            chunk.request.block_indices = chunk.block_table
            metrics = chunk.request.metrics
            metrics.scheduled_ts = metrics.scheduled_ts or scheduled
        for update in updates:
            metrics = update.request.metrics
            metrics.first_token_ts = metrics.first_token_ts or executed
            metrics.last_token_ts = executed
            metrics.num_generation_tokens = len(update.request.output_token_ids)

    def _who(self) -> tuple[list[str], list[str]]:
        running = [r.request_id for r in self.scheduler.running]
        return running, [r.request_id for r in self.scheduler.waiting]
