"""nano_qwen3_serving: a serving engine for Qwen3, made of replaceable parts.

The names of vLLM's public surface, and `AsyncLLM`. Imported lazily: naming one part does not load
the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nano_qwen3_serving.async_llm import AsyncLLM, RequestPriority
    from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs, EngineArgs
    from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
    from nano_qwen3_serving.engine.llm_engine import LLMEngine
    from nano_qwen3_serving.llm import LLM
    from nano_qwen3_serving.outputs import CompletionOutput, RequestOutput
    from nano_qwen3_serving.prompts import TextPrompt, TokensPrompt
    from nano_qwen3_serving.sampling_params import SamplingParams

_HOMES = {
    "AsyncEngineArgs": "engine.arg_utils",
    "AsyncLLM": "async_llm",
    "AsyncLLMEngine": "engine.async_llm_engine",
    "CompletionOutput": "outputs",
    "EngineArgs": "engine.arg_utils",
    "LLM": "llm",
    "LLMEngine": "engine.llm_engine",
    "RequestOutput": "outputs",
    "RequestPriority": "async_llm",
    "SamplingParams": "sampling_params",
    "TextPrompt": "prompts",
    "TokensPrompt": "prompts",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
