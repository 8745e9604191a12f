"""`/v1/completions`: prompts as they stand.

Knows OpenAI's shape of it; knows nothing of connections.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.interfaces import Tokenizer
from nano_qwen3_serving.outputs import CompletionOutput, RequestOutput
from nano_qwen3_serving.prompts import Prompt
from nano_qwen3_serving.server.openai.generation import Order, Running, begin
from nano_qwen3_serving.server.openai.logprobs import completion_logprobs
from nano_qwen3_serving.server.openai.protocol import CompletionRequest
from nano_qwen3_serving.server.openai.sampling import completion_params
from nano_qwen3_serving.server.serving import Serving


def prompts_of(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    """The prompts, in whichever of its forms the field has them."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidParametersError("prompt is an empty list; give at least one prompt", parameter="prompt", value=prompt)
    if isinstance(prompt[0], int):
        return [{"prompt_token_ids": prompt}]
    return [item if isinstance(item, str) else {"prompt_token_ids": item} for item in prompt]


async def begin_completion(serving: Serving, request: CompletionRequest, request_id: str) -> CompletionCall:
    """Queues the request. Raises an error that names the field that is wrong."""
    params = completion_params(request, serving.engine.engine.config.model.generation_defaults)
    order = Order(request_id, params, request.priority, request.cache_salt, serving.limits.request_seconds)
    running = await begin(serving.engine, prompts_of(request.prompt), order)
    return CompletionCall(request, running, serving, request_id)


@dataclass
class CompletionCall:
    """One call, its requests in flight.

    Attributes:
        request: as the client sent it.
        running: its requests; to be left when the call is over.
        serving: the app's.
        request_id: of the answer.
        created: when it began, in seconds since the epoch.
    """

    request: CompletionRequest
    running: Running
    serving: Serving
    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    async def answer(self) -> dict[str, Any]:
        """The whole answer at once."""
        choices = []
        async for number, output in self.running.outputs():
            choices += [self._choice(number, output, new, Shown()) for new in output.outputs]
        choices.sort(key=lambda choice: choice["index"])
        return self._body(choices) | {"usage": self.running.usage.as_dict()}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it is generated."""
        options = self.request.stream_options
        usage = self.running.usage
        shown: dict[tuple[int, int], Shown] = {}
        async for number, output in self.running.outputs():
            for new in output.outputs:
                choice = self._choice(number, output, new, shown.setdefault((number, new.index), Shown()))
                chunk = self._body([choice])
                if options is not None and options.include_usage:
                    chunk["usage"] = usage.as_dict() if options.continuous_usage_stats else None
                yield chunk
        if options is not None and options.include_usage:
            yield self._body([]) | {"usage": usage.as_dict()}

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.request_id, "object": "text_completion", "created": self.created,
                "model": self.request.model or self.serving.names[0], "choices": choices}

    def _choice(self, number: int, output: RequestOutput, new: CompletionOutput, shown: Shown) -> dict[str, Any]:
        """The new part of one completion, after the prompt if the client asked for that."""
        tokenizer = self.serving.engine.get_tokenizer()
        pieces = [piece_of(new)]
        if self.request.echo and not shown.begun:
            pieces.insert(0, prompt_piece(output, tokenizer))
        shown.begun = True
        choice: dict[str, Any] = {
            "index": number * (self.request.n or 1) + new.index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": None,
            "finish_reason": new.finish_reason,
            "stop_reason": new.stop_reason,
        }
        if self.request.logprobs is not None:
            choice["logprobs"] = self._logprobs(pieces, shown.length, tokenizer)
        if self.request.return_token_ids:
            choice |= {"prompt_token_ids": output.prompt_token_ids, "token_ids": new.token_ids}
        shown.length += len(choice["text"])
        return choice

    @staticmethod
    def _logprobs(pieces: Sequence[Piece], offset: int, tokenizer: Tokenizer) -> dict[str, Any]:
        token_ids = list(itertools.chain.from_iterable(piece.token_ids for piece in pieces))
        logprobs = list(itertools.chain.from_iterable(piece.logprobs for piece in pieces))
        return completion_logprobs(token_ids, logprobs, tokenizer, offset)


@dataclass
class Shown:
    """How much of a completion its client has seen: whether it began, and how many characters."""

    begun: bool = False
    length: int = 0


@dataclass(frozen=True)
class Piece:
    """A part of a text with its tokens."""

    text: str
    token_ids: list[int]
    logprobs: list[Any]


def piece_of(new: CompletionOutput) -> Piece:
    """What was generated."""
    return Piece(new.text, new.token_ids, new.logprobs or [])


def prompt_piece(output: RequestOutput, tokenizer: Any) -> Piece:
    """The prompt."""
    text = output.prompt if output.prompt is not None else tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)
    return Piece(text, output.prompt_token_ids, output.prompt_logprobs or [None] * len(output.prompt_token_ids))
