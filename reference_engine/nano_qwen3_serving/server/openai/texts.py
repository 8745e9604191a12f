"""`/tokenize` and `/detokenize`, in vLLM's shapes.

Knows the tokenizer; the work is done in text threads.
"""

from __future__ import annotations

from typing import Any

from nano_qwen3_serving.exceptions import InvalidParametersError, shown
from nano_qwen3_serving.server.errors import ApiError
from nano_qwen3_serving.server.openai.chat import templated
from nano_qwen3_serving.server.openai.conversation import render
from nano_qwen3_serving.server.openai.protocol import DetokenizeRequest, TokenizeRequest
from nano_qwen3_serving.server.serving import Serving

OF_CONVERSATIONS = ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")


async def tokenized(serving: Serving, request: TokenizeRequest) -> dict[str, Any]:
    """The tokens of a prompt, or of a conversation as its answer would see it."""
    engine, tokenizer = serving.engine, serving.engine.get_tokenizer()
    text = await text_of(serving, request)
    tokens = await engine.run_text(tokenizer.encode, text)
    strings = [tokenizer.token_text(token) for token in tokens] if request.return_token_strs else None
    return {"count": len(tokens), "max_model_len": engine.engine.config.scheduler.max_model_len,
            "tokens": tokens, "token_strs": strings}


async def text_of(serving: Serving, request: TokenizeRequest) -> str:
    """The prompt that is asked about."""
    if (request.prompt is None) == (request.messages is None):
        raise ApiError(400, "give one of prompt and messages", "invalid_value", "prompt")
    if request.messages is not None:
        return await render(serving.engine, templated(request, request.messages, request.tools or []))
    for name in OF_CONVERSATIONS:
        if getattr(request, name) is not None:
            raise ApiError(400, f"{name} needs messages; a prompt is taken as it stands", "invalid_value", name)
    assert request.prompt is not None
    return request.prompt


async def detokenized(serving: Serving, request: DetokenizeRequest) -> dict[str, Any]:
    """The text of tokens, special ones among them."""
    size = serving.engine.engine.config.model.vocab_size
    bad = next((token for token in request.tokens if not 0 <= token < size), None)
    if bad is not None:
        raise InvalidParametersError(f"tokens has {shown(bad)}; token ids are in [0, {size - 1}]", parameter="tokens", value=bad)
    return {"prompt": await serving.engine.run_text(
        serving.engine.get_tokenizer().decode, request.tokens, skip_special_tokens=False)}
