"""The public calls: their arguments, right and hostile, and how each is made to its end."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

from nano_qwen3_serving.async_llm import AsyncLLM, RequestPriority
from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs, EngineArgs
from nano_qwen3_serving.exceptions import shown
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from nano_qwen3_serving.testing.api_fuzz.values import hostile, mixed
from nano_qwen3_serving.testing.api_fuzz.world import NEIGHBOUR, World, check_neighbour

Arguments = dict[str, Any]

CHAT_SWITCHES = ["enable_thinking", "chat_template", "add_generation_prompt", "continue_final_message", "tools"]
JSON_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
RIGHT_PARAMS: dict[str, Callable[[Random], Any]] = {
    "n": lambda r: r.randint(1, 3),
    "presence_penalty": lambda r: r.uniform(-2, 2),
    "frequency_penalty": lambda r: r.uniform(-2, 2),
    "repetition_penalty": lambda r: r.uniform(0.5, 2),
    "temperature": lambda r: r.choice([0, 0.7, 1.0, 2]),
    "top_p": lambda r: r.choice([0.1, 0.9, 1.0]),
    "top_k": lambda r: r.choice([-1, 0, 1, 50]),
    "min_p": lambda r: r.choice([0.0, 0.1, 1.0]),
    "seed": lambda r: r.choice([None, 1, -5, 2**70]),
    "stop": lambda r: r.choice([None, "qq", ["a", "bc"]]),
    "stop_token_ids": lambda r: [r.randrange(300)],
    "ignore_eos": lambda r: r.random() < 0.5,
    "max_tokens": lambda r: r.randint(1, 5),
    "min_tokens": lambda r: 1,
    "logprobs": lambda r: r.choice([None, 0, 3]),
    "prompt_logprobs": lambda r: r.choice([None, 0, 2]),
    "detokenize": lambda r: True,
    "skip_special_tokens": lambda r: r.random() < 0.5,
    "spaces_between_special_tokens": lambda r: True,
    "include_stop_str_in_output": lambda r: r.random() < 0.5,
    "output_kind": lambda r: r.choice(list(RequestOutputKind)),
    "structured_outputs": lambda r: None,
    "logit_bias": lambda r: {r.randrange(300): 1.5},
    "allowed_token_ids": lambda r: [97, 98, 99],
    "bad_words": lambda r: ["bad"],
}
RIGHT_STRUCTURED: dict[str, Callable[[Random], Any]] = {
    "json": lambda r: r.choice([copy.deepcopy(JSON_SCHEMA), '{"type": "integer"}']),
    "regex": lambda r: "[ab]+",
    "choice": lambda r: ["yes", "no"],
    "grammar": lambda r: 'start: "a" | "b"',
    "json_object": lambda r: True,
}


@dataclass
class Call:
    """One call of the API.

    Attributes:
        name: what is called.
        arguments: by name.
        run: makes it in a world, and reads its answer to the end.
        in_fork: whether it can be made in a forked child, where torch may not compute.
    """

    name: str
    arguments: Arguments
    run: Callable[[World, Arguments], Awaitable[Any]]
    in_fork: bool = field(default=True)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={shown(v)}' for k, v in self.arguments.items())})"


def make_call(random: Random) -> Call:
    """A call with one to three hostile arguments, or none."""
    return random.choice(CALLS)(random)


def spoiled(random: Random, right_values: dict[str, Callable[[Random], Any]], count: int) -> Arguments:
    """Some arguments, `count` of them hostile."""
    names = random.sample(list(right_values), min(len(right_values), random.randint(1, 5)))
    wrong = set(random.sample(names, min(count, len(names))))
    return {n: mixed(random, lambda n=n: right_values[n](random)) if n in wrong else right_values[n](random) for n in names}  # type: ignore[misc]


def how_many(random: Random) -> int:
    """How many arguments of a call are hostile: mostly one, because two hide each other."""
    return random.choice([0, 1, 1, 1, 2, 3])


def params(random: Random) -> Any:
    """Right parameters, right ones changed after they were checked, or something else."""
    rng = random.random()
    made = SamplingParams(temperature=random.choice([0, 1.0]), max_tokens=random.randint(1, 5), seed=random.randrange(99))
    if rng < 0.65:
        return made
    if rng < 0.75:
        arguments = spoiled(random, {k: v for k, v in RIGHT_PARAMS.items() if k not in ("temperature", "n")}, 0)
        return made.clone(**arguments)
    if rng < 0.93:
        setattr(made, random.choice(list(RIGHT_PARAMS)), hostile(random))
        return made
    return hostile(random)


def prompt(random: Random) -> Any:
    """A prompt, right or not."""
    makers = [lambda: "Hello there", lambda: {"prompt": "Hello", "cache_salt": "salt"},
             lambda: {"prompt_token_ids": [random.randrange(300) for _ in range(random.randint(1, 30))]}]
    return mixed(random, random.choice(makers)) if random.random() < 0.35 else random.choice(makers)()


def messages(random: Random) -> Any:
    """A conversation, right or not, in one message or around it."""
    message: dict[str, Any] = {"role": "user", "content": random.choice(["Hello", [{"type": "text", "text": "Hello"}]])}
    if random.random() < 0.5:
        message = mixed(random, lambda: message)
    return mixed(random, lambda: [message]) if random.random() < 0.2 else [message]


def constructor(kind: Any, right_values: dict[str, Callable[[Random], Any]]) -> Callable[[Random], Call]:
    """Calls that make one object."""

    async def run(world: World, arguments: Arguments) -> Any:
        made = kind(**arguments)
        return made.create_engine_config() if isinstance(made, EngineArgs) else made

    return lambda random: Call(kind.__qualname__, spoiled(random, right_values, how_many(random)), run)


def engine_arguments() -> dict[str, Callable[[Random], Any]]:
    """Each argument of an engine with its default for a right value."""
    return {f.name: always(f.default) for f in fields(EngineArgs)}


def always(value: Any) -> Callable[[Random], Any]:
    """A maker that always returns the same right value."""
    return lambda random: value


def async_llm_arguments() -> dict[str, Callable[[Random], Any]]:
    """Each argument of `AsyncLLM` with its default for a right value."""
    parameters = inspect.signature(AsyncLLM).parameters.values()
    return {p.name: always(p.default) for p in parameters if p.name not in ("components", "recorder")}


def clone(random: Random) -> Call:
    """`SamplingParams.clone`, and the presets."""
    source = random.choice([SamplingParams().clone, SamplingParams.greedy, SamplingParams.balanced, SamplingParams.creative])

    async def run(world: World, arguments: Arguments) -> Any:
        return source(**arguments)

    return Call(f"SamplingParams.{source.__name__}", spoiled(random, RIGHT_PARAMS, how_many(random)), run)


def async_llm_object(random: Random) -> Call:
    """`AsyncLLM.get_model_info` of an object that was never started."""

    async def run(world: World, arguments: Arguments) -> Any:
        return AsyncLLM(**arguments).get_model_info()

    return Call("AsyncLLM", spoiled(random, async_llm_arguments(), how_many(random)), run)


def engine_stream(random: Random) -> Call:
    """`AsyncLLMEngine.generate` and `add_request`, read to the end or given up in the middle."""
    adds = random.random() < 0.5
    arguments: Arguments = {
        "request_id": hostile(random) if random.random() < 0.2 else f"r{random.randrange(5)}", "prompt": prompt(random),
        "params" if adds else "sampling_params": params(random)}
    for name in ("priority", "timeout", *(["arrival_time"] if adds else [])):
        if random.random() < 0.2:
            arguments[name] = hostile(random)
    leaves = random.random() < 0.2

    async def run(world: World, arguments: Arguments) -> Any:
        stream = await world.engine.add_request(**arguments) if adds else world.engine.generate(**arguments)
        async with aclosing(stream):
            async for output in stream:
                if leaves:
                    break
        return output

    return Call("AsyncLLMEngine." + ("add_request" if adds else "generate"), arguments, run)


def other_engine_calls(random: Random) -> Call:
    """The other calls of `AsyncLLMEngine`."""
    name = random.choice(["abort", "get_stats", "reset_prefix_cache", "check_health", "do_log_stats"])
    arguments = {"request_id": hostile(random)} if name == "abort" else {}

    async def run(world: World, arguments: Arguments) -> Any:
        return await getattr(world.engine, name)(**arguments)

    return Call(f"AsyncLLMEngine.{name}", arguments, run)


def async_llm(random: Random) -> Call:
    """The calls of a running `AsyncLLM` that generate."""
    name = random.choice(["generate", "generate_stream", "chat", "chat_stream", "generate_batch", "submit_request"])
    many = name == "generate_batch" or (name == "generate" and random.random() < 0.3)
    arguments: Arguments = (
        {"messages": messages(random)} if "chat" in name else
        {"prompts": mixed(random, lambda: [prompt(random), "right"]) if many else prompt(random)} if name.startswith("generate")
        and name != "generate_stream" else {"prompt": prompt(random)})
    if random.random() < 0.8:
        arguments["sampling_params"] = params(random)
    for extra in ("priority", "timeout", *(["batch_size"] if name == "generate_batch" else []),
                  *(CHAT_SWITCHES if "chat" in name else [])):
        if random.random() < 0.2:
            arguments[extra] = random.choice([RequestPriority.HIGH, 1, hostile(random)])

    async def run(world: World, arguments: Arguments) -> Any:
        made = getattr(world.async_llm, name)(**arguments)
        if not inspect.isasyncgen(made):
            answer = await made
            return await world.async_llm.get_result(answer) if name == "submit_request" else answer
        async with aclosing(made):
            return [chunk async for chunk in made]

    return Call(f"AsyncLLM.{name}", arguments, run)


def other_async_llm_calls(random: Random) -> Call:
    """The calls of a running `AsyncLLM` that generate nothing."""
    name = random.choice(["get_result", "abort", "get_stats", "clear_stats", "start"])
    arguments = {"request_id": hostile(random)} if name in ("get_result", "abort") else {}

    async def run(world: World, arguments: Arguments) -> Any:
        return await getattr(world.async_llm, name)(**arguments)

    return Call(f"AsyncLLM.{name}", arguments, run)


def llm_generate(random: Random) -> Call:
    """`LLM.generate` of a hostile prompt beside a right one."""
    beside = random.random() < 0.7
    arguments: Arguments = {
        "prompts": [NEIGHBOUR.prompt(), prompt(random)] if beside else mixed(random, lambda: prompt(random)),
        "sampling_params": [NEIGHBOUR.params(), params(random)] if beside else params(random)}
    for name in ("use_tqdm", "priority"):
        if random.random() < 0.2:
            arguments[name] = hostile(random)

    async def run(world: World, arguments: Arguments) -> Any:
        outputs = world.llm.generate(**arguments)
        if beside:
            check_neighbour(outputs[0])
        return outputs

    return Call("LLM.generate", arguments, run, in_fork=False)


def llm_chat(random: Random) -> Call:
    """`LLM.chat`."""
    arguments: Arguments = {"messages": messages(random), "sampling_params": params(random)}
    for name in ("use_tqdm", "chat_template_kwargs", *CHAT_SWITCHES[1:]):
        if random.random() < 0.15:
            arguments[name] = hostile(random)

    async def run(world: World, arguments: Arguments) -> Any:
        return world.llm.chat(**arguments)

    return Call("LLM.chat", arguments, run, in_fork=False)


def llm_engine(random: Random) -> Call:
    """`LLMEngine.add_request`, stepped to its end, and `abort_request`."""
    arguments: Arguments = {
        "request_id": hostile(random) if random.random() < 0.2 else "r", "prompt": prompt(random), "params": params(random)}
    for name in ("arrival_time", "priority"):
        if random.random() < 0.2:
            arguments[name] = hostile(random)
    gone = hostile(random)

    async def run(world: World, arguments: Arguments) -> Any:
        return world.step_through(arguments, gone)

    return Call("LLMEngine.add_request", arguments, run, in_fork=False)


CALLS: list[Callable[[Random], Call]] = [
    constructor(SamplingParams, RIGHT_PARAMS), constructor(StructuredOutputsParams, RIGHT_STRUCTURED),
    constructor(EngineArgs, engine_arguments()), constructor(AsyncEngineArgs, engine_arguments()),
    clone, async_llm_object, engine_stream, engine_stream, other_engine_calls, async_llm, async_llm, async_llm,
    other_async_llm_calls, llm_generate, llm_generate, llm_chat, llm_engine,
]
