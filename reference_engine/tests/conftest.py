"""What the engine's tests share.

    course_llm       an `LLM` of the course checkpoint in float32, one for the whole session;
                     it is idle and its prefix cache is empty when a test gets it
    make_llm         an `LLM` with any arguments, its invariants checked after every step
    random_checkpoint  a folder with a Qwen3 of random weights, by its shape
    course_server    the course checkpoint behind a real socket, for the whole session
    oracle           transformers on the course checkpoint, float32
    corpus           the module that reads the course corpus
    note             adds a line to what the run says at its end: numbers a reader may ask for

One thread: the networks here are so small that two of them mostly wait for each other.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nano_qwen3_serving import LLM, AsyncEngineArgs, AsyncLLMEngine
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.testing.checkpoints import Shape, write_random_checkpoint
from nano_qwen3_serving.testing.oracle import Oracle

TOOLS = Path(__file__).parent.parent / "tools"
NOTES = pytest.StashKey[list[str]]()

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def course_folder() -> Path:
    """Where the bundled course checkpoint lies."""
    return BUNDLED / "course"


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., LLM]:
    """`make_llm(model, **engine_args)`: an `LLM` that checks its invariants after every step."""

    def make(model: str | Path = "course", **arguments: Any) -> LLM:
        return LLM(str(model), **{"dtype": "float32", "device": "cpu", "check_invariants": True, **arguments})

    return make


@pytest.fixture(scope="session")
def shared_course_llm(make_llm: Callable[..., LLM]) -> LLM:
    """The session's one `LLM`; tests ask for `course_llm`."""
    return make_llm()


@pytest.fixture
def course_llm(shared_course_llm: LLM) -> LLM:
    """The session's `LLM` of the course checkpoint, idle and with an empty prefix cache."""
    engine = shared_course_llm.llm_engine
    engine.abort_request(engine.output_processor.request_ids)
    assert engine.reset_prefix_cache(), "an earlier test left requests behind"
    return shared_course_llm


@dataclass(frozen=True)
class RunningServer:
    """A server for tests: its address, and the engine behind it."""

    url: str
    engine: AsyncLLMEngine


@pytest.fixture(scope="session")
def course_server() -> Iterator[RunningServer]:
    """The bundled checkpoint, served on a loopback port with the model's name "course"."""
    from nano_qwen3_serving.server.app import create_app
    from nano_qwen3_serving.testing.loopback import served

    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(
        model="course", dtype="float32", device="cpu", check_invariants=True, max_num_queued_reqs=200))
    with served(create_app(engine)) as url:
        yield RunningServer(url, engine)
    engine.shutdown()


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`random_checkpoint(shape, **how)`: the folder of such a checkpoint, written once a session."""
    folders: dict[Any, Path] = {}

    def find(shape: Shape | None = None, **how: Any) -> Path:
        key = (shape, *sorted(how.items(), key=str))
        if key not in folders:
            folders[key] = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), shape, **how)
        return folders[key]

    return find


@pytest.fixture(scope="session")
def oracle(course_folder: Path) -> Oracle:
    """transformers on the course checkpoint."""
    return Oracle(course_folder)


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    """`reference_engine/tools/corpus.py`, which is no part of the package."""
    return module_of_tools("corpus")


@pytest.fixture(scope="session")
def tool_use() -> ModuleType:
    """`reference_engine/tools/tool_use.py`, likewise."""
    return module_of_tools("tool_use")


def module_of_tools(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"course_{name}", TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOTES] = []


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """`note(line)`: shown at the end of the run."""
    return pytestconfig.stash[NOTES].append


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With pytest-xdist this process may be one of several, and another one writes the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["notes"] = session.config.stash[NOTES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[NOTES] += getattr(node, "workeroutput", {}).get("notes", [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash[NOTES]
    if lines:
        terminalreporter.section("measured against the oracle")
        for line in lines:
            terminalreporter.write_line(line)
