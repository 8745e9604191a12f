"""`AsyncLLM`: what the dicts hold, and what happens when callers are many, slow or gone."""

import asyncio
import threading

import pytest
from safetensors import safe_open

from nano_qwen3_serving import AsyncLLM, RequestPriority, SamplingParams
from nano_qwen3_serving import async_llm as module
from nano_qwen3_serving.exceptions import (
    GenerationError,
    InvalidParametersError,
    QueueFullError,
    RequestTimeoutError,
)
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.testing.doubles import StepGate, continued_text, double_components, script

LIMIT = 30


def greedy(max_tokens=8, **kwargs):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **kwargs)


class Served:
    """An `AsyncLLM` of doubles under a time limit; after the test every block must be free."""

    def __init__(self, on_forward=None, on_encode=None, parts=None, **args):
        components = double_components(on_forward=on_forward, on_encode=on_encode, **(parts or {}))
        self.llm = AsyncLLM(**{"num_blocks": 33, "block_size": 4} | args, components=components)
        self.limit = asyncio.timeout(LIMIT)

    async def __aenter__(self):
        await self.limit.__aenter__()
        return await self.llm.__aenter__()

    async def __aexit__(self, *exc):
        try:
            if exc[0] is None:
                while True:
                    memory = (await self.llm.get_stats())["memory_stats"]
                    if memory["num_free_blocks"] == memory["num_blocks"]:
                        break
                    await asyncio.sleep(0.001)
                assert (await self.llm.get_stats())["queue_size"] == 0
        finally:
            await self.llm.__aexit__(*exc)
        await self.limit.__aexit__(*exc)
        left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        assert exc[0] is not None or not left, left


async def test_a_string_gives_a_dict_and_a_list_a_list_in_order():
    async with Served() as llm:
        one = await llm.generate("hello", greedy())
        assert one["generated_text"] == continued_text("hello", 8)
        assert (one["tokens_generated"], one["total_tokens"], one["finish_reason"]) == (8, 13, "length")
        assert len(one["block_indices"]) == 3  # 12 computed tokens in blocks of 4
        many = await llm.generate([f"prompt {i}" for i in range(9)], greedy())
        assert [r["generated_text"] for r in many] == [continued_text(f"prompt {i}", 8) for i in range(9)]
        assert await llm.generate([], greedy()) == []
        assert len(await llm.generate(["hello"], greedy())) == 1


async def test_a_slow_reader_gets_merged_chunks_and_the_same_text():
    gate = StepGate()
    async with Served(on_forward=lambda contexts: gate()) as llm:
        stream = llm.generate_stream("hello", greedy(20))
        first = asyncio.create_task(anext(stream))
        await gate.at_step(1)
        chunks = [await first]
        await gate.at_step(12)
        chunks.append(await anext(stream))
        gate.open()
        chunks += [c async for c in stream]
    assert len(chunks[0]["token_ids"]) == 1
    assert len(chunks[1]["token_ids"]) == 11
    assert chunks[1]["token_id"] == chunks[1]["token_ids"][-1]
    assert "".join(c["token"] for c in chunks) == chunks[-1]["text"] == continued_text("hello", 20)
    assert [c["finished"] for c in chunks].count(True) == 1 and chunks[-1]["finished"]


@pytest.mark.parametrize("answer", ["日本語 😀!", "plain STOP more", "abSTOcd"])
async def test_joined_tokens_are_the_text_and_what_generate_says(answer):
    async with Served(parts=script(answer)) as llm:
        params = greedy(60, stop="STOP")
        chunks = [c async for c in llm.generate_stream("|", params)]
        whole = await llm.generate("|", params)
    assert "".join(c["token"] for c in chunks) == chunks[-1]["text"] == whole["generated_text"]
    assert whole["generated_text"] == answer.split("STOP")[0]
    assert all(c["token"] for c in chunks[:-1])


async def test_a_batch_has_at_most_batch_size_requests_in_flight():
    most = []
    llm_box = []

    def watch(contexts):
        most.append(llm_box[0]._engine.engine.get_num_unfinished_requests())

    async with Served(on_forward=watch) as llm:
        llm_box.append(llm)
        prompts = [f"prompt {i}" for i in range(12)]
        results = await llm.generate_batch(prompts, greedy(), batch_size=3)
        assert [r["generated_text"] for r in results] == [continued_text(p, 8) for p in prompts]
        assert max(most) == 3
        assert await llm.generate_batch([], greedy()) == []


async def test_one_failure_in_a_list_aborts_the_others_and_is_raised():
    def choke(contexts):
        if any(len(c) > 6 and c[:3] == list(b"bad") for c in contexts):
            raise RuntimeError("not this")

    async with Served(on_forward=choke) as llm:
        for call in (llm.generate, llm.generate_batch):
            with pytest.raises(GenerationError, match="not this"):
                await call(["A", "bad", "B"], greedy(500))
        stats = (await llm.get_stats())["async_stats"]
        assert stats["completed_async_requests"] == 0
        assert stats["failed_async_requests"] == stats["total_async_requests"]


async def test_cancelling_a_list_aborts_all_of_it():
    gate = StepGate()
    async with Served(on_forward=lambda contexts: gate()) as llm:
        task = asyncio.create_task(llm.generate([f"{i}" for i in range(5)], greedy(50)))
        await gate.at_step(2)
        task.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_breaking_out_of_a_stream_aborts_its_request():
    async with Served() as llm:
        for stream in (llm.generate_stream("hello", greedy(100)),
                       llm.chat_stream([{"role": "user", "content": "hello"}], greedy(100))):  # fmt: skip
            async for _ in stream:
                break
            await stream.aclose()
            stats = await llm.get_stats()  # taken after the abort, which went into the same inbox
            assert stats["scheduler_stats"] == {"num_requests_running": 0, "num_requests_waiting": 0}
            assert stats["memory_stats"]["num_free_blocks"] == stats["memory_stats"]["num_blocks"]
            assert stats["async_stats"]["completed_async_requests"] == 0


async def test_a_submitted_request_runs_by_itself_and_its_result_can_be_fetched_again():
    async with Served() as llm:
        ids = [await llm.submit_request(f"prompt {i}", greedy()) for i in range(4)]
        assert len(set(ids)) == 4
        results = await asyncio.gather(*(llm.get_result(i) for i in reversed(ids)))
        assert [r["generated_text"] for r in results] == [continued_text(f"prompt {i}", 8) for i in (3, 2, 1, 0)]
        again = await llm.get_result(ids[0])
        assert again == results[3] and again is not results[3]  # each caller's own


async def test_cancelling_the_wait_for_a_result_does_not_cancel_the_request():
    gate = StepGate()
    async with Served(on_forward=lambda contexts: gate()) as llm:
        request_id = await llm.submit_request("hello", greedy())
        waiter = asyncio.create_task(llm.get_result(request_id))
        await gate.at_step(1)
        waiter.cancel()
        await asyncio.wait([waiter])
        gate.open()
        assert (await llm.get_result(request_id))["generated_text"] == continued_text("hello", 8)


async def test_a_submitted_request_that_fails_raises_when_it_is_fetched_each_time():
    def choke(contexts):
        raise RuntimeError("broken")

    async with Served(on_forward=choke) as llm:
        request_id = await llm.submit_request("hello", greedy())
        for _ in range(2):
            with pytest.raises(GenerationError, match="broken"):
                await llm.get_result(request_id)


async def test_an_aborted_request_says_so():
    gate = StepGate()
    async with Served(on_forward=lambda contexts: gate()) as llm:
        request_id = await llm.submit_request("hello", greedy(50))
        await gate.at_step(3)
        await llm.abort(request_id)
        await llm.abort("nobody")
        gate.open()
        result = await llm.get_result(request_id)
        assert result["finish_reason"] == "abort"
        assert continued_text("hello", 50).startswith(result["generated_text"])


async def test_the_oldest_finished_result_expires_first(monkeypatch):
    monkeypatch.setattr(module, "RESULTS_KEPT", 3)
    async with Served() as llm:
        ids = []
        for i in range(5):
            ids.append(await llm.submit_request(f"{i}", greedy(1)))
            await llm.get_result(ids[-1])
        for request_id in ids[:2]:
            with pytest.raises(InvalidParametersError, match="expired"):
                await llm.get_result(request_id)
        assert [(await llm.get_result(i))["prompt"] for i in ids[2:]] == ["2", "3", "4"]


async def test_one_more_than_the_queue_holds_is_refused_at_once():
    gate = StepGate()
    async with Served(on_forward=lambda contexts: gate(), max_queue_size=2) as llm:
        first = await llm.submit_request("running", greedy(4))
        await gate.at_step(1)  # it left the queue
        while len(llm._engine.waiting_room):
            await asyncio.sleep(0)
        ids = [await llm.submit_request(n, greedy(4)) for n in ("A", "B")]
        for call in (llm.submit_request, llm.generate, lambda p: anext(llm.generate_stream(p))):
            with pytest.raises(QueueFullError, match="2 requests are waiting"):
                await call("C")
        gate.open()
        for request_id in [first, *ids]:
            assert (await llm.get_result(request_id))["tokens_generated"] == 4
        stats = (await llm.get_stats())["async_stats"]
        assert (stats["total_async_requests"], stats["failed_async_requests"]) == (6, 3)


@pytest.mark.parametrize("call", ["generate", "generate_stream", "chat", "chat_stream", "generate_batch", "submit"])
async def test_a_timeout_is_raised_by_every_call(call):
    gate = StepGate()
    message = [{"role": "user", "content": "hello"}]
    async with Served(on_forward=lambda contexts: gate()) as llm:
        now = [1000.0]
        llm._engine.engine.clock = lambda: now[0]

        read: list[str] = []  # of a stream the error has only what was not read before

        async def drain(stream):
            async for chunk in stream:
                read.append(chunk["token"])

        async def submit(prompt, params, timeout):
            return await llm.get_result(await llm.submit_request(prompt, params, timeout=timeout))

        run = {
            "generate": lambda: llm.generate("hello", greedy(50), timeout=2),
            "generate_stream": lambda: drain(llm.generate_stream("hello", greedy(50), timeout=2)),
            "chat": lambda: llm.chat(message, greedy(50), timeout=2),
            "chat_stream": lambda: drain(llm.chat_stream(message, greedy(50), timeout=2)),
            "generate_batch": lambda: llm.generate_batch(["hello"], greedy(50), timeout=2),
            "submit": lambda: submit("hello", greedy(50), timeout=2),
        }[call]
        task = asyncio.create_task(run())
        await gate.at_step(3)
        now[0] += 2
        gate.open()
        with pytest.raises(RequestTimeoutError, match="timeout of 2 s") as caught:
            await task
        generated = "".join(read) + caught.value.partial.outputs[0].text
        assert continued_text("hello\n" if "chat" in call else "hello", 50).startswith(generated)


async def test_chat_renders_in_a_text_thread_and_not_on_the_event_loop():
    threads = []
    async with Served(on_encode=lambda text: threads.append(threading.current_thread().name)) as llm:
        result = await llm.chat([{"role": "user", "content": "hello"}], greedy())
        assert result["generated_text"] == continued_text("hello\n", 8)
        assert result["prompt"] == "hello\n"
    assert threads and all(name.startswith("engine-text") for name in threads)


async def test_priorities_have_the_documented_numbers():
    assert {p.name: int(p) for p in RequestPriority} == {"LOW": 0, "NORMAL": 1, "HIGH": 2, "URGENT": 3}


async def test_stats_count_what_happened_and_can_be_cleared():
    async with Served() as llm:
        before = (await llm.get_stats())["async_stats"]["start_time"]
        await llm.generate(["a", "b", "c"], greedy())
        with pytest.raises(InvalidParametersError):
            await llm.generate("")
        stats = await llm.get_stats()
        counts = stats["async_stats"]
        assert (counts["total_async_requests"], counts["completed_async_requests"]) == (4, 3)
        assert counts["failed_async_requests"] == 1
        assert counts["average_wait_time"] >= 0 and counts["start_time"] == before
        assert stats["memory_stats"]["num_blocks"] == 32 and stats["memory_stats"]["block_size"] == 4
        assert stats["model_stats"] == llm.get_model_info()
        await llm.clear_stats()
        assert (await llm.get_stats())["async_stats"]["total_async_requests"] == 0


def test_the_model_can_be_asked_about_before_it_is_loaded():
    info = AsyncLLM(max_seq_length=100).get_model_info()
    assert info["model_name"] == "course" and info["dtype"] == "float32" and info["max_seq_length"] == 100
    assert 1_000_000 < info["num_parameters"] < 10_000_000


async def test_the_length_of_a_request_is_never_more_than_the_model_was_trained_for():
    async with asyncio.timeout(LIMIT), AsyncLLM(num_blocks=1024) as llm:
        info = llm.get_model_info()
        assert info["max_seq_length"] == llm._engine.engine.config.model.max_position_embeddings
    with safe_open(BUNDLED / "course" / "model.safetensors", framework="pt") as file:
        assert info["num_parameters"] == sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (it is no dict)


def test_one_object_after_the_other_in_event_loops_of_their_own():
    async def main():
        async with Served() as llm:
            return (await llm.generate("hello", greedy()))["generated_text"]

    assert [asyncio.run(main()) for _ in range(3)] == [continued_text("hello", 8)] * 3


async def test_calls_before_the_start_start_the_engine_once():
    made = []

    def tokenizer(config):
        made.append(config)
        return double_components().tokenizer(config)

    llm = AsyncLLM(components=double_components(tokenizer=tokenizer))
    async with asyncio.timeout(LIMIT):
        results = await asyncio.gather(*(llm.generate(f"{i}", greedy()) for i in range(6)))
        await llm.shutdown()
    assert [r["generated_text"] for r in results] == [continued_text(f"{i}", 8) for i in range(6)]
    assert len(made) == 1
