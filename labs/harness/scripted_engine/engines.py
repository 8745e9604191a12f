"""Engines beside the part under test, wherever it lives, whose tokens the test's ledger chooses."""

from collections.abc import Sequence
from typing import Any

from labs.harness.scripted_engine.ledger import Ledger
from labs.harness.scripted_engine.own_engine import SMALL
from labs.harness.suite import beside
from labs.harness.suite.expecting import Here
from nano_qwen3_serving import LLM, AsyncEngineArgs, AsyncLLMEngine
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine import arg_utils

POOL_BYTES = 16 << 20
"""The pool of an engine that a part builds: more than the longest request of a model needs."""


def components(there: Here, ledger: Ledger) -> Any:
    """Components for an engine beside the part, with the ledger's sampler."""
    return there.of(Components)(sampler=there.of(beside.asking_sampler)(there.lend(ledger.choose)))


def scripted_llm(there: Here, ledger: Ledger) -> Any:
    """An `LLM` beside the part that generates what the ledger chooses."""
    return there.of(LLM)("course-draft", components=components(there, ledger), **SMALL)


def scripted_async_engine(there: Here, ledger: Ledger | None = None, max_num_seqs: int = 128) -> Any:
    """An `AsyncLLMEngine` beside the part that generates what the ledger chooses, or without a ledger the draft model."""
    args = there.of(AsyncEngineArgs)(model="course-draft", max_num_seqs=max_num_seqs, **SMALL)
    parts = None if ledger is None else components(there, ledger)
    engine = there.of(AsyncLLMEngine).from_engine_args(args, components=parts)
    there.at_end(engine.shutdown)
    return engine


def spare_memory(there: Here) -> None:
    """Gives every engine that the part builds a small pool, unless the part sets its size."""
    there.put(arg_utils, "DEFAULT_POOL_BYTES", POOL_BYTES)


def read_outputs(there: Here, outputs: Sequence[Any]) -> list[dict[str, Any]]:
    """The content of outputs that live beside the part, see `beside.output_dicts`."""
    return there.of(beside.output_dicts)(list(outputs))
