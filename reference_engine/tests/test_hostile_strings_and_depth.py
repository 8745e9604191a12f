"""Whatever a caller writes is looked at before it is queued: what cannot be encoded, what is nested without end."""

import asyncio
import json

import pytest

from nano_qwen3_serving import LLM, AsyncLLM, EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.arguments import MAX_DEPTH, own_copy
from nano_qwen3_serving.exceptions import EngineError, InvalidParametersError, shown
from nano_qwen3_serving.interfaces import StoppedRequest
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import StructuredOutputsParams
from nano_qwen3_serving.scheduling.block_manager import BlockManager
from nano_qwen3_serving.testing.doubles import StepGate, continued_text, double_components, serving

pytestmark = pytest.mark.slow

HALF = "half an emoji \ud83d"
GREEDY = SamplingParams(temperature=0, max_tokens=6)
LONG = "x" * 12  # three full blocks: its salt is hashed


def nested(depth, leaf="x"):
    value = leaf
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def itself():
    value = []
    value.append(value)
    return value


REQUESTS = {
    "the prompt": (HALF, "A"),
    "the prompt's text": ({"prompt": HALF}, "A"),
    "the text of tokens": ({"prompt": HALF, "prompt_token_ids": [1, 2]}, "A"),
    "the salt": ({"prompt": LONG, "cache_salt": HALF}, "A"),
    "the request's name": (LONG, HALF),
}


@pytest.mark.parametrize("where", REQUESTS)
async def test_half_a_surrogate_pair_is_refused_to_its_caller_and_the_neighbour_goes_on(where):
    prompt, name = REQUESTS[where]
    gate = StepGate()
    async with serving(gate=gate) as engine:
        neighbour = await engine.add_request("neighbour", "hello", GREEDY)
        await gate.at_step(2)
        with pytest.raises(InvalidParametersError, match=r"half of a surrogate pair, '\\ud83d' at position 14"):
            await anext(engine.generate(prompt, GREEDY, name))
        gate.open()
        outputs = [output async for output in neighbour]
        assert outputs[-1].outputs[0].text == continued_text("hello", 6)
        assert not engine.errored


@pytest.mark.parametrize(("name", "value"), [
    ("stop", HALF), ("stop", ["fine", HALF]), ("bad_words", [HALF]),
    ("regex", HALF), ("choice", ["a", HALF]), ("grammar", HALF), ("json", HALF),
    ("json", {"type": HALF}), ("json", {HALF: 1}), ("json", {"enum": ["a", {"b": [HALF]}]}),
])  # fmt: skip
def test_half_a_surrogate_pair_is_refused_in_every_string_of_the_parameters(name, value):
    kind = StructuredOutputsParams if name in ("regex", "choice", "grammar", "json") else SamplingParams
    with pytest.raises(InvalidParametersError, match="half of a surrogate pair"):
        kind(**{name: value})


@pytest.fixture(scope="module")
def llm():
    return LLM("course", num_gpu_blocks_override=64)


@pytest.mark.parametrize("given", [
    {"messages": [{"role": "user", "content": HALF}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
    {"messages": [{"role": "user", "content": "x", "name": HALF}]},
    {"messages": [{"role": "user", "content": "x"}], "tools": [{"description": HALF}]},
    {"messages": [{"role": "user", "content": "x"}], "chat_template": HALF},
    {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"enable_thinking": HALF}},
    {"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ '\\ud83d' }}"},
])  # fmt: skip
def test_half_a_surrogate_pair_is_refused_everywhere_in_a_conversation(llm, given):
    with pytest.raises(InvalidParametersError, match="half of a surrogate pair"):
        llm.chat(**given, sampling_params=GREEDY)
    assert not llm.llm_engine.has_unfinished_requests()


async def test_half_a_surrogate_pair_is_refused_by_every_call_of_async_llm():
    message = [{"role": "user", "content": HALF}]
    async with asyncio.timeout(30), AsyncLLM(num_blocks=33, block_size=4, components=double_components()) as llm:
        for call in (lambda: llm.generate(HALF), lambda: llm.generate(["fine", HALF]), lambda: llm.chat(message),
                     lambda: llm.submit_request(HALF), lambda: llm.get_result(HALF), lambda: llm.generate_batch([HALF]),
                     lambda: anext(llm.generate_stream(HALF)), lambda: anext(llm.chat_stream(message))):
            with pytest.raises(InvalidParametersError, match="half of a surrogate pair"):
                await call()
        await llm.abort(HALF)  # an unknown id
        assert (await llm.generate("x", GREEDY))["generated_text"] == continued_text("x", 6)


@pytest.mark.parametrize("value", [nested(100_000), nested(MAX_DEPTH + 2), itself()], ids=["deep", "a little deep", "in itself"])
def test_what_is_nested_too_deep_is_refused_by_name_wherever_it_is_given(llm, value):
    user = {"role": "user", "content": "x"}
    calls = {
        "structured_outputs.json": lambda: StructuredOutputsParams(json={"a": value}),
        "messages": lambda: llm.chat([user | {"extra": value}], GREEDY),
        "tools": lambda: llm.chat([user], GREEDY, tools=[value]),
        "chat_template_kwargs": lambda: llm.chat([user], GREEDY, chat_template_kwargs={"enable_thinking": value}),
        "prompt": lambda: llm.generate({"prompt": value}, GREEDY),
        "prompt_token_ids": lambda: llm.generate({"prompt_token_ids": [value]}, GREEDY),
        "stop_token_ids": lambda: SamplingParams(stop_token_ids=[value]),
        "temperature": lambda: SamplingParams(temperature=value),
    }
    for name, call in calls.items():
        with pytest.raises(InvalidParametersError) as caught:
            call()
        assert caught.value.parameter == name
        assert len(str(caught.value)) < 2000


def test_a_schema_as_deep_as_people_write_them_is_taken():
    schema = nested(MAX_DEPTH - 1)
    assert StructuredOutputsParams(json={"a": schema}).json == {"a": schema}


def test_a_structure_that_names_one_part_a_million_times_is_refused_in_finite_time():
    value = "x"
    for _ in range(40):
        value = [value, value]
    with pytest.raises(InvalidParametersError, match="1,000,000 parts"):
        own_copy("tools", value)


def test_a_schemas_text_may_be_nested_to_any_depth_and_never_kills_the_engine():
    pytest.importorskip("llguidance")
    engine = LLMEngine.from_engine_args(EngineArgs("course", num_gpu_blocks_override=16))
    schema = json.dumps({"type": "object"})[:-1] + ', "properties": ' + '{"a":' * 50_000 + "{}" + "}" * 50_000 + "}"
    with pytest.raises(EngineError):
        engine.add_request("A", "x", SamplingParams(structured_outputs=StructuredOutputsParams(json=schema)))
    assert not engine.has_unfinished_requests()


class Rude:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value", [10**5000, Rude(), [Rude(), 1], {"a": [10**5000]}, "x" * 10**6, list(range(10**6)), nested(10**5)],
    ids=["long int", "rude", "rude inside", "int inside", "text", "list", "deep"])
def test_every_value_can_be_named_in_an_error_and_none_fills_the_screen(value):
    assert 0 < len(shown(value)) < 1500
    with pytest.raises(InvalidParametersError, match="temperature"):
        SamplingParams(temperature=value)


@pytest.mark.parametrize("value", [
    pytest.param(10**5000, id="huge"), pytest.param(-10**5000, id="-huge"), float("nan"), float("inf"),
    "1", [], {}, None, True, 1j, b"1"])  # fmt: skip
@pytest.mark.parametrize(
    "name", ["presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p"])
def test_every_number_that_is_none_is_refused_by_name(name, value):
    with pytest.raises(InvalidParametersError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name


@pytest.mark.parametrize("arrival_time", ["now", float("nan"), float("inf"), True, [1]])
async def test_an_arrival_time_is_a_finite_number(arrival_time):
    async with serving() as engine:
        with pytest.raises(InvalidParametersError, match="arrival_time"):
            await engine.add_request("A", "x", GREEDY, arrival_time=arrival_time, timeout=1.0)


# --- chains as long as prompts


def chain_manager(blocks):
    """Two equal prompts of `blocks` blocks, computed in one step; the first one's blocks were taken by another since."""
    manager = BlockManager(2 * blocks + 2, 1)
    tokens = [5 + i % 7 for i in range(blocks)]
    for name in ("A", "B"):
        assert manager.allocate(name, blocks)
    for name in ("A", "B"):
        manager.commit(name, tokens)
    manager.free("A")
    assert manager.allocate("X", blocks + 1) and manager.num_evictions >= blocks - 1
    manager.commit("X", [300 + i % 11 for i in range(blocks)])
    return manager, tokens


def test_a_chain_of_equal_blocks_may_be_as_long_as_any_prompt():
    blocks = 5000
    manager, tokens = chain_manager(blocks)
    manager.free("X")
    manager.allocate("B", 2 * blocks)
    longer = tokens + [9] * blocks
    manager.commit("B", longer)
    manager.free("B")
    manager.check_integrity()
    assert manager.allocate("C", blocks) and manager.find_cached_prefix("asks", longer) >= 0
    manager.commit("C", tokens)
    manager.free("C")
    assert manager.find_cached_prefix("asks", longer) == 2 * blocks - 1


def test_two_equal_chains_become_one_so_that_comparing_them_costs_a_step_a_block():
    """Each comparison up to the root would make a prompt of n blocks cost n squared."""
    from nano_qwen3_serving.scheduling import block_manager as module

    def chain(length, top=None):
        entries = []
        for i in range(length):
            top = module.CachedBlock(i, bytes([i % 250]), (i,), top, "")
            entries.append(top)
        return entries

    old, new = chain(3000), chain(3000)
    child = module.CachedBlock(9, b"c", (9,), old[-1], "")
    assert module.has_parent(child, new[-1])
    assert child.parent is new[-1]
    assert all(a.parent is (new[i - 1] if i else None) for i, a in enumerate(old))
    strange = chain(3000, module.CachedBlock(1, b"other", (77,), None, ""))
    assert not module.has_parent(module.CachedBlock(9, b"c", (9,), strange[-1], ""), new[-1])


# --- the step thread


async def test_a_recorder_that_fails_is_put_away_and_requests_go_on(caplog):
    class Full(Recorder):
        def on_step(self, step):
            raise OSError(28, "No space left on device")

    async with serving(recorder=Full()) as engine:
        outputs = [output async for output in engine.generate("hello", GREEDY, "A")]
        assert outputs[-1].outputs[0].text == continued_text("hello", 6)
    assert [r.getMessage() for r in caplog.records].count("the recorder failed, and notes nothing more") == 1


async def test_a_command_that_fails_on_the_step_thread_fails_alone():
    """Three commands between the same two steps: the second, an abort that breaks, ends the stream of who waits for it."""
    gate = StepGate()
    async with serving(gate=gate) as engine:
        stream, neighbour = [await engine.add_request(name, "hello", GREEDY) for name in "AN"]
        await gate.at_step(1)
        [known], scheduler = engine._steps.streams_of("A"), engine.engine.scheduler
        finish, scheduler.finish = scheduler.finish, lambda stopped: stopped and 1 / 0

        def mend() -> None:
            scheduler.finish = finish
            finish([StoppedRequest(known.request_id, "abort")])

        broken = engine._steps.call(lambda: 1 / 0)
        await engine.abort("A")
        mended = engine._steps.call(mend)
        gate.open()
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(broken)
        with pytest.raises(ZeroDivisionError):
            async for _ in stream:
                pass
        await asyncio.wrap_future(mended)
        assert not engine.errored
        assert [o async for o in neighbour][-1].outputs[0].text == continued_text("hello", 6)
        assert [o async for o in engine.generate("x", GREEDY, "B")][-1].outputs[0].text == continued_text("x", 6)
