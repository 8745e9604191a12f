"""Offline inference: give prompts, get completions. vLLM's `LLM`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from nano_qwen3_serving.arguments import check_bool, check_text, invalid, names_unknown_arguments, own_copy, refuse_unknown
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.exceptions import EngineDeadError, GenerationError, InvalidParametersError
from nano_qwen3_serving.observe.metrics import Metric
from nano_qwen3_serving.observe.progress import progress_bar
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.prompts import Prompt
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams


class LLM:
    """An engine for batches of prompts.

    Args:
        model: "course" (bundled), a folder, or a Hugging Face id; None is $NANO_QWEN3_MODEL or "course".
        components: which parts the engine is made of.
        recorder: notes every step.
        engine_args: anything `EngineArgs` takes, such as `dtype`, `device`, `max_model_len`,
            `max_num_seqs`, `gpu_memory_utilization`.

    Raises:
        InvalidParametersError, UnknownArgumentError: an argument is not acceptable.
        ModelLoadError: the checkpoint cannot be used.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        components: Components | None = None,
        recorder: Recorder | None = None,
        **engine_args: Any,
    ) -> None:
        refuse_unknown("LLM()", [f.name for f in fields(EngineArgs)], engine_args)
        self._engine: LLMEngine | None = LLMEngine.from_engine_args(
            EngineArgs(model=model, **engine_args), components, recorder=recorder)
        self._ids = itertools.count()
        self._one_at_a_time = threading.Lock()

    def get_tokenizer(self) -> Any:
        """The engine's tokenizer."""
        return self.llm_engine.get_tokenizer()

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes; False, and nothing happens, while requests hold blocks."""
        with self._one_at_a_time:
            return self.llm_engine.reset_prefix_cache()

    def get_metrics(self) -> list[Metric]:
        """The engine's metrics: `Counter`s and `Gauge`s with vLLM's names, labels and a value."""
        return self.llm_engine.get_metrics()

    def shutdown(self) -> None:
        """Frees the engine's memory as soon as no other reference holds it. Every later call raises an `EngineDeadError`."""
        with self._one_at_a_time:
            self._engine = None

    @property
    def llm_engine(self) -> LLMEngine:
        """The engine. Raises `EngineDeadError` after `shutdown()`."""
        if self._engine is None:
            raise EngineDeadError("this LLM was shut down; make a new one")
        return self._engine

    def get_default_sampling_params(self) -> SamplingParams:
        """The parameters used where a call gives none: those of the checkpoint's generation_config.json."""
        return SamplingParams(**self.llm_engine.config.model.generation_defaults)

    @names_unknown_arguments
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Completes all prompts, batched; outputs in the order of the prompts.

        Args:
            prompts: one, or a list.
            sampling_params: for all of them, or one for each.
            use_tqdm: show a progress bar if standard error is a terminal.
            priority: one for each prompt, with scheduling_policy="priority".

        Raises:
            InvalidParametersError: some prompt or parameter is not acceptable; nothing was run.
            GenerationError: a request failed; `outputs` on the error has all of them.

        An interrupted call (Ctrl-C) leaves nothing behind in the engine. Calls from several threads run one after the other.
        """
        check_bool("use_tqdm", use_tqdm)
        many = prompts if isinstance(prompts, (list, tuple)) else [prompts]
        params = self._spread(
            "sampling_params", self.get_default_sampling_params() if sampling_params is None else sampling_params, len(many))
        for p in params:
            if not isinstance(p, SamplingParams):
                raise invalid("sampling_params", p, "a SamplingParams, or one for each prompt")
        priorities = self._spread("priority", 0 if priority is None else priority, len(many))
        groups = [
            self.llm_engine.make_requests(
                str(next(self._ids)), prompt, p.clone(output_kind=RequestOutputKind.FINAL_ONLY), priority=order)
            for prompt, p, order in zip(many, params, priorities, strict=True)
        ]
        with self._one_at_a_time:
            done = self._run(groups, use_tqdm)
        outputs = [done[i] for i in range(len(groups))]
        failed = next((o.error for o in outputs if o.error), None)
        if isinstance(failed, GenerationError):
            failed.outputs = outputs
            raise failed
        return outputs

    @names_unknown_arguments
    def chat(
        self,
        messages: list[dict[str, Any]] | list[list[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation, or a list of them, through the checkpoint's own chat template."""
        if not isinstance(messages, (list, tuple)) or not messages:
            raise invalid("messages", messages, "a non-empty list")
        messages, tools = own_copy("messages", messages), own_copy("tools", tools)
        if chat_template is not None:
            check_text("chat_template", chat_template)
        switches = {} if chat_template_kwargs is None else own_copy("chat_template_kwargs", chat_template_kwargs)
        if not isinstance(switches, dict) or not all(isinstance(name, str) for name in switches):
            raise invalid("chat_template_kwargs", switches, "a dict whose keys are strings, or None")
        many = messages if isinstance(messages[0], (list, tuple)) else [messages]
        prompts = [
            self.get_tokenizer().apply_chat_template(
                conversation, add_generation_prompt=add_generation_prompt, tools=tools, chat_template=chat_template,
                continue_final_message=continue_final_message, **switches)
            for conversation in many
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def _run(self, groups: list[list[Request]], show: bool) -> dict[int, RequestOutput]:
        """Feeds the engine and steps it until every group is done: outputs by position."""
        engine = self.llm_engine
        position = {self._group_id(g): i for i, g in enumerate(groups)}
        todo: Iterator[list[Request]] = iter(groups)
        done: dict[int, RequestOutput] = {}
        try:
            with progress_bar(show) as bar:
                task = bar.add_task("Generating", total=len(groups), note="")
                while len(done) < len(groups):
                    room = 2 * engine.config.scheduler.max_num_seqs - engine.get_num_unfinished_requests()
                    for group in itertools.islice(todo, max(room, 0)):
                        engine.add(group)
                    for output in engine.step():
                        if output.request_id in position:  # other requests were added through `llm_engine`
                            done[position[output.request_id]] = output
                            bar.advance(task)
        finally:
            engine.abort_request(list(position))
        return done

    @staticmethod
    def _group_id(group: list[Request]) -> str:
        first = group[0].request_id
        return first if len(group) == 1 else first.removeprefix("0_")

    @staticmethod
    def _spread(name: str, value: Any, count: int) -> list[Any]:
        """`value` for each of `count` prompts; a list must have that length."""
        if not isinstance(value, (list, tuple)):
            return [value] * count
        if len(value) != count:
            raise InvalidParametersError(
                f"{name} has {len(value)} entries for {count} prompts; give one, or one for each",
                parameter=name, value=value)
        return list(value)
