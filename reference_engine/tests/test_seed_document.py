"""Every code block of the document on `AsyncLLM` runs as written, and every call has its shape."""

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest

from nano_qwen3_serving import AsyncLLM, RequestPriority, SamplingParams
from nano_qwen3_serving.outputs import RequestMetrics

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parent / "data" / "async_api.md"
BLOCKS = dict(re.findall(r"## (.+?)\n+```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL))
CONSTRUCTOR = BLOCKS.pop("The constructor: a signature.")

RESULT_KEYS = {
    "request_id", "prompt", "generated_text", "tokens_generated", "total_tokens", "block_indices",
    "finish_reason", "metrics"}  # fmt: skip
CHUNK_KEYS = {
    "token", "token_ids", "token_id", "text", "finished", "tokens_generated", "request_id", "total_tokens",
    "finish_reason"}  # fmt: skip
MESSAGES = [{"role": "user", "content": "What is machine learning?"}]


async def run_block(source, names):
    """Runs a block as a document shows it: with await at its top level, functions it defines called."""
    code = compile(source, str(DOCUMENT), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    known = set(names)
    async with asyncio.timeout(60):
        result = eval(code, names)
        if inspect.iscoroutine(result):
            await result
        for name in set(names) - known:
            if inspect.iscoroutinefunction(names[name]):
                await names[name]()
    return names


def test_the_document_has_the_blocks_that_this_file_runs():
    assert len(BLOCKS) == 8


def test_the_constructor_has_the_documents_parameters_in_its_order():
    call = ast.parse(re.sub(r"(\w+): \w+ = ", r"\1=", CONSTRUCTOR)).body[-1].value
    documented = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    found = inspect.signature(AsyncLLM).parameters
    positional = [p for p in found.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == list(documented)
    for name in ("max_queue_size", "num_blocks", "block_size", "max_seq_length", "worker_count"):
        assert found[name].default == documented[name]
    # These three are what a user on a Mac writes; left out, they suit the machine and need no network.
    assert found["model_name"].default is None
    assert found["device"].default == found["dtype"].default == "auto"


def test_the_documents_own_values_are_accepted_where_the_device_exists():
    import torch

    values = {"model_name": "Qwen/Qwen3-0.6B", "dtype": "float16", "max_queue_size": 1000, "num_blocks": 1024,
              "block_size": 16, "max_seq_length": 4096, "worker_count": 2}  # fmt: skip
    assert AsyncLLM(**values, device="cpu").model_name == "Qwen/Qwen3-0.6B"
    if torch.backends.mps.is_available():
        AsyncLLM(**values, device="mps")
    else:
        with pytest.raises(ValueError, match="'cpu', got 'mps'"):
            AsyncLLM(**values, device="mps")


@pytest.mark.parametrize("heading", BLOCKS)
async def test_every_code_block_runs_as_written(heading, capsys):
    async with AsyncLLM() as llm:
        names = await run_block(
            BLOCKS[heading],
            {"llm": llm, "AsyncLLM": AsyncLLM, "SamplingParams": SamplingParams, "asyncio": asyncio,
             "messages": MESSAGES})  # fmt: skip
    if isinstance(names.get("result"), dict):
        expected = CHUNK_KEYS if "token" in names["result"] else RESULT_KEYS
        assert set(names["result"]) == expected
    if heading in ("generate()", "concurrent requests", "batch processing"):
        assert capsys.readouterr().out.strip()


def check_result(result, prompt=None, max_tokens=8):
    """The shape of a result dict, key by key."""
    assert set(result) == RESULT_KEYS
    assert isinstance(result["request_id"], str) and result["request_id"]
    assert isinstance(result["prompt"], str)
    assert prompt is None or result["prompt"] == prompt
    assert isinstance(result["generated_text"], str)
    assert 1 <= result["tokens_generated"] <= max_tokens
    assert result["total_tokens"] > result["tokens_generated"]
    assert result["finish_reason"] in ("stop", "length")
    assert isinstance(result["metrics"], RequestMetrics)
    assert result["metrics"].num_generation_tokens == result["tokens_generated"]
    assert all(isinstance(b, int) and b > 0 for b in result["block_indices"])
    assert len(set(result["block_indices"])) == len(result["block_indices"]) >= 1


def check_chunks(chunks, max_tokens=8):
    """The shape of a stream, key by key."""
    assert all(set(c) == CHUNK_KEYS for c in chunks)
    assert [c["finished"] for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [c["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["finish_reason"] in ("stop", "length")
    text, tokens = "", []
    for chunk in chunks:
        text, tokens = text + chunk["token"], tokens + chunk["token_ids"]
        assert chunk["text"] == text
        assert chunk["tokens_generated"] == len(tokens)
        assert chunk["token_id"] == (chunk["token_ids"][-1] if chunk["token_ids"] else None)
        assert chunk["token"] or chunk["finished"]
    assert len({c["request_id"] for c in chunks}) == 1
    assert len({c["total_tokens"] - c["tokens_generated"] for c in chunks}) == 1
    assert len(tokens) <= max_tokens
    return text


async def test_every_call_of_the_document_has_the_shape_that_users_rely_on():
    greedy = SamplingParams(temperature=0, max_tokens=8)
    prompts = ["Question 1", "Question 2", "Question 3"]
    async with asyncio.timeout(60), AsyncLLM() as llm:
        result = await llm.generate("Hello, async world!", greedy)
        check_result(result, "Hello, async world!")

        results = await llm.generate(prompts, greedy, RequestPriority.HIGH)
        for prompt, result in zip(prompts, results, strict=True):
            check_result(result, prompt)

        chunks = [c async for c in llm.generate_stream("Tell me a story", greedy)]
        whole = await llm.generate("Tell me a story", greedy)
        assert check_chunks(chunks) == whole["generated_text"]
        assert chunks[-1]["total_tokens"] == whole["total_tokens"]

        answer = await llm.chat(MESSAGES, greedy)
        check_result(answer)
        chunks = [c async for c in llm.chat_stream(MESSAGES, greedy)]
        assert check_chunks(chunks) == answer["generated_text"]

        results = await llm.generate_batch(prompts, greedy, batch_size=2)
        for prompt, result in zip(prompts, results, strict=True):
            check_result(result, prompt)

        request_id = await llm.submit_request("Hello", greedy)
        assert isinstance(request_id, str)
        result = await llm.get_result(request_id)
        check_result(result, "Hello")
        assert result["request_id"] == request_id
        assert await llm.get_result(request_id) == result

        info = llm.get_model_info()
        assert set(info) == {"model_name", "device", "dtype", "num_parameters", "max_seq_length"}

        stats = await llm.get_stats()
        assert set(stats) == {
            "async_stats", "queue_size", "worker_count", "running", "scheduler_stats", "model_stats",
            "memory_stats"}  # fmt: skip
        assert set(stats["async_stats"]) == {
            "total_async_requests", "completed_async_requests", "failed_async_requests", "average_wait_time",
            "start_time"}  # fmt: skip
        assert stats["async_stats"]["total_async_requests"] == 12
        assert stats["async_stats"]["completed_async_requests"] == 12
        assert stats["async_stats"]["failed_async_requests"] == 0
        assert (stats["queue_size"], stats["worker_count"], stats["running"]) == (0, 2, True)

        await llm.clear_stats()
        assert (await llm.get_stats())["async_stats"]["total_async_requests"] == 0


async def test_without_parameters_the_checkpoints_own_and_a_hundred_tokens_are_used():
    async with asyncio.timeout(60), AsyncLLM() as llm:
        params = llm._params(None, 0)
        assert params.max_tokens == 100
        defaults = llm._engine.engine.config.model.generation_defaults
        assert defaults and {k: getattr(params, k) for k in defaults} == defaults
        assert (await llm.generate("Once upon a time"))["tokens_generated"] <= 100


async def test_start_and_shutdown_may_be_called_by_hand_and_twice():
    llm = AsyncLLM()
    async with asyncio.timeout(60):
        await llm.start()
        await llm.start()
        check_result(await llm.generate("Hello", SamplingParams(max_tokens=8)))
        await llm.shutdown()
        await llm.shutdown()
