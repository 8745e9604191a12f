"""Lab 05's one suite. Caches are judged by tokens and by counts, measurements by their method, never by speed.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import collections
import functools
import math
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from labs.harness.suite.expecting import kinds_of, refusal, shown
from labs.harness.suite.operators import Log
from labs.lab05_kv_cache_and_roofline.machine import CacheSize
from labs.lab05_kv_cache_and_roofline.network import Network, threads
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.testing.checkpoints import Shape, write_random_checkpoint

TEXTS = ["What is a KV cache?", "Why does a server batch requests?", "Hi"]
TWO_DTYPES = (torch.float32, torch.bfloat16)
DTYPES = (*TWO_DTYPES, torch.float64, torch.float16, torch.float8_e4m3fn, torch.int8)
"""Numbers of 4, 2, 8 and 1 bytes, and ints, in which caches and weights are kept, too."""
NEW = 16  # the model ends its answer to the last of TEXTS sooner; the lab's functions go on

ODD = Shape(
    vocab_size=300, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=16, tie_word_embeddings=False)
"""Nothing equals anything else: 6 query heads, 2 KV heads, and head_dim is not hidden_size / heads (8)."""


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    """Small products are faster in one thread."""
    with threads(1):
        yield


@functools.cache
def odd_folder() -> tempfile.TemporaryDirectory:
    """A checkpoint with random weights of the shape `ODD`; it is there as long as this."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    write_random_checkpoint(Path(folder.name), ODD, seed=5)
    return folder


@functools.cache
def network_of(name: str, dtype: torch.dtype = torch.float32) -> Network:
    """The course's network; or "odd", with random weights: whatever is wrong shows in its logits."""
    return Network("course" if name == "course" else odd_folder().name, dtype)


@functools.cache
def oracle():
    """transformers with the course's checkpoint."""
    from nano_qwen3_serving.testing.oracle import Oracle

    return Oracle(BUNDLED / "course")


def any_shape(rng: random.Random) -> ModelConfig:
    """A small network's: query heads share KV heads, head_dim is not hidden_size / heads, the MLP is not twice as wide."""
    kv_heads, sharing, head_dim = rng.choice((2, 3)), rng.choice((2, 3)), 2 * rng.randrange(5, 12)
    heads = kv_heads * sharing
    hidden = heads * (head_dim + rng.choice((-2, 2, 4))) + 1
    return ModelConfig(
        vocab_size=rng.randrange(100, 200), hidden_size=hidden, intermediate_size=2 * hidden + rng.randrange(1, 50),
        num_hidden_layers=rng.choice((5, 7)), num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        max_position_embeddings=512, tie_word_embeddings=rng.random() < 0.5)


def qwen(**fields) -> ModelConfig:
    """Qwen3-0.6B's shape, with some fields replaced."""
    shape = {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
             "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960}
    return ModelConfig(**(shape | fields))


def in_words(config: ModelConfig) -> str:
    """The numbers that costs depend on."""
    return (f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} query heads and "
            f"{config.num_key_value_heads} KV heads of {config.head_dim}, an MLP of {config.intermediate_size}, "
            f"a vocabulary of {config.vocab_size}")


def seeded(rng: random.Random) -> torch.Generator:
    """A generator of torch's that the test's rng seeds."""
    return torch.Generator().manual_seed(rng.getrandbits(60))


def story(value, expected, *known: tuple[float, str]) -> str:
    """What `value` is in place of what is `expected`, in a sentence after a full stop; nothing if it is nothing that is known.

    known: numbers, and what they are; all that fit are told.
    """
    fits = dict.fromkeys(what for number, what in known if value == pytest.approx(number, rel=1e-6) and value != expected)
    return f". That is {', or '.join(fits)}" if fits else ""


def of_any_dtype(call, *arguments):
    """What `call` answers, one of whose arguments is a dtype; where it has none for ints, a failure that says where it is."""
    __tracebackhide__ = True
    [dtype] = [one for one in arguments if isinstance(one, torch.dtype)]
    try:
        return call(*arguments)
    except (TypeError, ValueError, KeyError) as error:
        if dtype.is_floating_point:
            raise
        raised = f"{kinds_of(error)[0]}: {getattr(error, 'text', error)}"
    pytest.fail(
        f"{dtype} raised {raised}. Caches and weights are kept in ints, too: dtype.itemsize is the bytes of a number of any "
        f"dtype, here {dtype.itemsize}", pytrace=False)


def number(value, what: str) -> float:
    """A finite number."""
    __tracebackhide__ = True
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if type(value) not in (int, float) or not math.isfinite(value):
        pytest.fail(f"{what} returned {shown(value)}; expected a number", pytrace=False)
    return float(value)


def close(value: float, expected: float) -> bool:
    """Whether two ways to compute a number agree: to what float32 keeps of it, a little more than 6e-8 a step."""
    return math.isclose(value, expected, rel_tol=1e-6)


# A network that the test plays.


class PlayedNetwork:
    """A network of random numbers, which knows what it computed.

    Whatever `append` returns is compared with the keys and values that were handed out for these positions, new random
    ones in every pass. The logits, whole numbers below zero of which each is there once, depend on all tokens so far.

    Attributes:
        passes: the first position and the tokens of each.
        fault: the first thing that was wrong with the keys and values, if it was not a shape.
    """

    def __init__(self, rng: random.Random, dtype: torch.dtype = torch.float32, all_end: bool = False) -> None:
        self.config, self.dtype = any_shape(rng), dtype
        if all_end:
            self.config = replace(self.config, eos_token_ids=tuple(range(self.config.vocab_size)))
        self.passes: list[tuple[int, list[int]]] = []
        self.fault = ""
        self._secret, self._random = rng.getrandbits(60), seeded(rng)
        self._text: list[int] = []
        self._held = [(self._new(0), self._new(0)) for _ in range(self.config.num_hidden_layers)]

    def __call__(self, token_ids: Iterable[int], start: int, append: Callable) -> Tensor:
        tokens, start = [int(token) for token in token_ids], int(start)
        self.passes.append((start, tokens))
        if not tokens:
            raise ValueError("the network was called without tokens; it computes at least one")
        if not 0 <= start <= len(self._text):
            raise ValueError(f"a pass was to begin at position {start}, and {len(self._text)} positions were computed before")
        self._text[start:] = tokens
        for layer in range(self.config.num_hidden_layers):
            self._attend(layer, start, append)
        return self._logits(self._text)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The positions that each pass computed, (first, end)."""
        return [(start, start + len(tokens)) for start, tokens in self.passes]

    def continuation(self, prompt: Sequence[int], count: int) -> list[int]:
        """The tokens that greedy generation comes to."""
        text = list(prompt)
        for _ in range(count):
            text.append(int(self._logits(text).argmax()))
        return text[len(prompt) :]

    def _logits(self, text: list[int]) -> Tensor:
        order, vocabulary = seeded(random.Random(f"{self._secret}/{text}")), self.config.vocab_size
        return (torch.randperm(vocabulary, generator=order) - vocabulary).to(self.dtype)

    def _new(self, count: int) -> Tensor:
        return torch.randn(count, self.config.num_key_value_heads, self.config.head_dim, generator=self._random).to(self.dtype)

    def _attend(self, layer: int, start: int, append: Callable) -> None:
        last = len(self._text) - 1
        fresh = self._new(last + 1 - start), self._new(last + 1 - start)
        self._held[layer] = tuple(torch.cat([old[:start], new]) for old, new in zip(self._held[layer], fresh, strict=True))
        pair = append(layer, *(new.clone() for new in fresh))
        for name, tensor, expected in zip(("keys", "values"), pair, self._held[layer], strict=True):
            if not isinstance(tensor, Tensor) or tensor.shape != expected.shape or tensor.dtype != expected.dtype:
                raise ValueError(
                    f"layer {layer}: append returned, as {name}, {shown(tensor)}; this call computes positions {start} to "
                    f"{last}, so attention needs {shown(expected)}")
            if wrong := others(tensor, expected):
                self.fault = self.fault or (
                    f"layer {layer}, when positions {start} to {last} were computed: append returned other {name} than those "
                    f"of positions 0 to {last}: they differ at {shown(wrong)}")


def others(tensor: Tensor, expected: Tensor) -> list[int]:
    """The positions of which two tensors have other numbers."""
    return [] if torch.equal(tensor, expected) else [i for i, row in enumerate(expected) if not torch.equal(tensor[i], row)]


def generated(there, generate, network: PlayedNetwork, prompt, count: int) -> list[int]:
    """What a generation returns, which must be so many ints; with keys and values that were right all the time."""
    __tracebackhide__ = True
    try:
        tokens = generate(there.lend(network, "config", "dtype"), prompt, count)
    except Exception as error:
        if "TodoError" not in kinds_of(error) and network.fault:
            raise AssertionError(network.fault) from error
        raise
    assert not network.fault, network.fault
    check_new_tokens(tokens, count)
    return tokens


def check_new_tokens(tokens, count: int) -> None:
    """A list of so many ints."""
    __tracebackhide__ = True
    assert isinstance(tokens, list) and all(type(token) is int for token in tokens), (
        f"expected a list of ints, the new tokens; got {shown(tokens)}")
    assert len(tokens) == count, (
        f"{count} new tokens were asked for: without the prompt, and going on after an end-of-sequence token; "
        f"{len(tokens)} came: {tokens}")


def any_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(100) for _ in range(length)]


LENGTHS = [(6, 3), (1, 4), (5, 1), ("any", 9)]
"""Tokens of a prompt, and new ones."""


def check_passes(there, generate, rng, length, count: int, starts: Callable[[int, int], list[int]], why: str) -> None:
    """The passes begin at `starts(length, count)` and go on to the last token there is; each token has the largest logit."""
    __tracebackhide__ = True
    length = rng.randrange(5, 9) if length == "any" else length
    network, prompt = PlayedNetwork(rng), any_prompt(rng, length)
    tokens = generated(there, generate, network, prompt, count)
    expected = [(start, length + i) for i, start in enumerate(starts(length, count))]
    assert network.spans == expected, (
        f"{length} tokens of prompt, {count} new: expected passes over positions {expected} (first, end), "
        f"got {network.spans}. {why}")
    text = prompt + tokens
    wrong = [start for start, computed in network.passes if computed != text[start : start + len(computed)]]
    assert not wrong, f"the passes that begin at {wrong} were given other tokens than prompt and answer have there"
    best = network.continuation(prompt, count)
    assert tokens == best, f"after the prompt {prompt} the tokens with the largest logits are {best}; got {tokens}"


def check_leaves_the_prompt_alone(there, generate, network: PlayedNetwork, prompt: list[int]) -> None:
    """A list is left as it was, a tuple will do; the second time as much is computed as the first."""
    __tracebackhide__ = True
    held, expected = there.hold(list(prompt)), network.continuation(prompt, 4)
    for given in (held, tuple(prompt)):
        network.passes.clear()
        tokens = generated(there, generate, network, given, 4)
        assert len(network.passes) == 4, (
            f"4 tokens are 4 passes, every time; for a prompt that was answered before there were {len(network.passes)}")
        assert tokens == expected, f"after the prompt {prompt}, the second time as a tuple, expected {expected}; got {tokens}"
    after = there.look(held)
    assert after == prompt, f"the caller's prompt {prompt} was changed to {shown(after)}"
    network.passes.clear()
    nothing = generated(there, generate, network, prompt, 0)
    assert nothing == [] and not network.passes, (
        f"0 tokens were asked for: the answer is [], and still there were passes over positions {network.spans}")


def check_against_transformers(generate) -> None:
    """Tokens as transformers', except where its two best are closer than 1e-4 (its margin rule)."""
    network = network_of("course")
    prompts = [network.tokenizer.encode(text) for text in TEXTS]
    outputs = [generate(network, list(prompt), NEW) for prompt in prompts]
    for output in outputs:
        check_new_tokens(output, NEW)
    expected = oracle().greedy(prompts, NEW)
    cut = [output[: len(best.token_ids)] for output, best in zip(outputs, expected, strict=True)]
    oracle().compare(prompts, expected, cut)


# TODO 1: generate without a cache


@pytest.mark.practice
@pytest.mark.todo(1, points=6)
def test_todo_1_tokens_are_those_of_transformers(lab):
    check_against_transformers(lab.generate_uncached)


@pytest.mark.todo(1, points=4)
@pytest.mark.parametrize("length, count", LENGTHS)
def test_todo_1_each_pass_computes_all_tokens_so_far(lab, rng, there, length, count):
    check_passes(there, lab.generate_uncached, rng, length, count, lambda length, count: [0] * count,
                 "Every pass begins at 0, and there is one for each new token.")


@pytest.mark.todo(1, points=2)
def test_todo_1_leaves_the_prompt_alone_and_may_generate_nothing(lab, rng, there):
    check_leaves_the_prompt_alone(there, lab.generate_uncached, PlayedNetwork(rng), any_prompt(rng, 3))


# TODO 2: a contiguous cache


def new_keys(config, count: int, first: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """k and v of `count` tokens: all numbers of token i's key are i, of its value 1000 + i."""
    shape = (count, config.num_key_value_heads, config.head_dim)
    k, v = ((start + torch.arange(first, first + count)).to(dtype)[:, None, None] for start in (0, 1000))
    return k.expand(shape).contiguous(), v.expand(shape).contiguous()


class Ledger:
    """A cache, there, and what each of its layers was given."""

    def __init__(self, lab, there, rng, room: int, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.room, self.dtype = any_shape(rng), room, dtype
        self.cache = lab.ContiguousCache(self.config, room, dtype)
        self.layers = range(self.config.num_hidden_layers)
        self._there, self._random = there, seeded(rng)
        self._held = {layer: self.new(0) for layer in self.layers}

    def new(self, count: int, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Keys and values of so many tokens, random."""
        shape = (2, count, self.config.num_key_value_heads, self.config.head_dim)
        return list(torch.randn(shape, generator=self._random).to(self.dtype).to(dtype or self.dtype))

    def holds(self, layer: int) -> int:
        """How many tokens a layer was given."""
        return len(self._held[layer][0])

    def append(self, layer: int, count: int, strided: bool = False) -> None:
        """Appends new tokens; all that the layer then holds must come back."""
        __tracebackhide__ = True
        pair = self.new(count)
        arguments = [self._strided(tensor) for tensor in pair] if strided else [tensor.clone() for tensor in pair]
        self.check(layer, pair, self.cache.append(layer, *arguments))

    def check(self, layer: int, pair: Sequence[Tensor], answer) -> None:
        """`answer` is all that the layer holds, after `pair` was appended."""
        __tracebackhide__ = True
        self._held[layer] = [torch.cat(both) for both in zip(self._held[layer], pair, strict=True)]
        tensors = answer if isinstance(answer, tuple | list) and len(answer) == 2 else (answer, answer)
        for name, tensor, expected in zip(("keys", "values"), tensors, self._held[layer], strict=True):
            what = f"layer {layer}, which held {len(expected) - len(pair[0])} tokens, was given {len(pair[0])}"
            if not isinstance(tensor, Tensor) or tensor.shape != expected.shape or tensor.dtype != expected.dtype:
                pytest.fail(f"{what}: expected, as {name}, {shown(expected)}; got {shown(tensor)}", pytrace=False)
            wrong = others(tensor, expected)
            assert not wrong, f"{what}: the {name} that came back are not those that were stored, at positions {shown(wrong)}"

    def refuses(self, layer: int, count: int) -> None:
        """`count` more tokens are too many, and the cache says so."""
        __tracebackhide__ = True
        refused(self.cache, layer, self.new(count), self.room, self.holds(layer))

    def _strided(self, tensor: Tensor):
        """The same numbers, there, laid out so that tokens do not follow each other."""
        return self._there.kept(self._there.hold(tensor.permute(1, 2, 0).contiguous()).permute, 2, 0, 1)


def refused(cache, layer: int, pair: Sequence[Tensor], room: int, holds: int) -> None:
    """Appending raises ValueError, and nothing else."""
    __tracebackhide__ = True
    what = f"layer {layer} of a cache of {room} holds {holds} and was given {len(pair[0])}"
    why = "max_tokens says what fits, also where the memory has more"
    try:
        refusal("ValueError", lambda: cache.append(layer, *pair), f"{what}. {why}")
    except Exception as error:
        if {"TodoError", "AssertionError"} & set(kinds_of(error)):
            raise
        raise AssertionError(f"{what}: expected ValueError, got {kinds_of(error)[0]}. {why}") from error


@pytest.mark.todo(2, points=4)
def test_todo_2_append_returns_all_keys_and_values_of_its_layer_oldest_first(lab, rng, there):
    config = network_of("odd").config
    cache = lab.ContiguousCache(config, 12, torch.float32)
    for first, count in ((0, 5), (5, 1), (6, 3), (9, 1)):
        for layer in range(config.num_hidden_layers):
            pair, whole = cache.append(layer, *new_keys(config, count, first + 100 * layer)), (first + count, 100 * layer)
            for name, tensor, expected in zip(("keys", "values"), pair, new_keys(config, *whole), strict=True):
                assert tensor.shape == expected.shape, (
                    f"layer {layer} holds {first + count} tokens: expected {name} {list(expected.shape)}, got {shown(tensor)}")
                assert torch.equal(tensor, expected), (
                    f"layer {layer} holds tokens {100 * layer} to {100 * layer + first + count - 1}; "
                    f"its {name} are those of {tensor[:, 0, 0].tolist()}")
    for strided in (False, True):
        ledger = Ledger(lab, there, rng, room=16)
        for count in (rng.randrange(3, 7), 1, rng.randrange(2, 6), 1):
            for layer in ledger.layers:
                ledger.append(layer, count, strided)


@pytest.mark.todo(2, points=3)
def test_todo_2_a_full_cache_refuses_and_keeps_what_it_holds(lab, rng, there):
    for room in (5, rng.randrange(4, 10)):  # what is made in powers of two, or in blocks, has room for more than 5
        ledger = Ledger(lab, there, rng, room)
        ledger.append(0, room - 1)
        for count in (2, rng.randrange(3, 9)):
            ledger.refuses(0, count)
        ledger.append(0, 1)  # exactly full
        ledger.refuses(0, 1)
        ledger.append(1, room)  # layer 1 has room of its own
        ledger.refuses(1, 1)


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_todo_2_caches_share_nothing_and_keep_copies_in_their_own_dtype(lab, rng, there, dtype):
    seed, room = rng.getrandbits(30), rng.randrange(4, 9)
    first, second = (Ledger(lab, there, random.Random(seed), room, dtype) for _ in range(2))
    pair = first.new(2)
    k, v = (there.hold(tensor.clone()) for tensor in pair)
    first.check(0, pair, first.cache.append(0, k, v))
    second.append(0, 3)
    k.zero_(), v.zero_()  # the network's memory may be used for something else
    first.append(0, 1)
    second.append(0, 1)


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("own, given", [
    (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float32)], ids=str)
def test_todo_2_keys_of_another_dtype_are_kept_in_the_caches_or_refused(lab, rng, there, own, given):
    ledger = Ledger(lab, there, rng, 7, own)
    for count in (rng.randrange(1, 4), 1, 2):
        pair = ledger.new(count, given)
        try:
            answer = ledger.cache.append(0, *(tensor.clone() for tensor in pair))
        except Exception as error:
            if "TodoError" in kinds_of(error) or not {"RuntimeError", "TypeError", "ValueError"} & set(kinds_of(error)):
                raise
            break  # refused, so nobody can take them for numbers of the cache's dtype
        ledger.check(0, [tensor.to(own) for tensor in pair], answer)


@pytest.mark.todo(2, points=3)
def test_todo_2_old_tokens_are_never_copied(lab, rng, there):
    steps = rng.randrange(350, 400)
    ledger, log = Ledger(lab, there, rng, steps + 1), there.operators()
    pair = keys, values = ledger.new(steps)
    size = keys.nbytes + values.nbytes
    calls = there.kept(map, ledger.cache.append, [0] * steps, keys.split(1), values.split(1))
    there.kept(log.watch, there.of(collections.deque), calls, 0)  # makes all calls, in order, and keeps nothing
    written = Traffic(log.events).written
    assert written >= size, (
        f"{steps} tokens have {size:,} bytes of keys and values, and torch wrote {written:,} to keep them: write with torch")
    # Each byte once would be `size`. Copying all old ones in each step is 175 times as much. Memory that doubles, the last
    # time just before the end, is zeroed (4 times `size` in all), and the old tokens are copied to it (2); with a copy of k
    # and v on the way that is 8.
    assert written <= 10 * size, (
        f"{steps} tokens have {size:,} bytes of keys and values, but {written:,} were written to append them one by one: "
        "write into the memory set aside in the beginning, and return views of it")
    last = ledger.new(1)
    ledger.check(0, [torch.cat(both) for both in zip(pair, last, strict=True)], ledger.cache.append(0, *last))


@pytest.mark.practice
@pytest.mark.todo(2, points=4)
def test_todo_2_tokens_are_those_of_transformers(lab):
    check_against_transformers(lab.generate_cached)


@pytest.mark.todo(2, points=2)
@pytest.mark.parametrize("length, count", LENGTHS)
def test_todo_2_every_token_is_computed_exactly_once(lab, rng, there, length, count):
    check_passes(there, lab.generate_cached, rng, length, count,
                 lambda length, count: [0, *range(length, length + count - 1)],
                 "The last new token is never computed: nobody asks what follows it.")


@pytest.mark.todo(2, points=1)
def test_todo_2_a_generation_leaves_nothing_for_the_next(lab, rng, there):
    network, prompt, other = PlayedNetwork(rng), any_prompt(rng, 3), any_prompt(rng, 5)
    check_leaves_the_prompt_alone(there, lab.generate_cached, network, prompt)
    for text in (other, prompt):
        tokens, expected = generated(there, lab.generate_cached, network, text, 5), network.continuation(text, 5)
        assert tokens == expected, f"after other generations, and the prompt {text}, expected {expected}; got {tokens}"


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_todo_2_the_cache_of_a_generation_has_the_networks_dtype(lab, rng, there, dtype):
    network, prompt = PlayedNetwork(rng, dtype), any_prompt(rng, 3)
    tokens, expected = generated(there, lab.generate_cached, network, prompt, 3), network.continuation(prompt, 3)
    assert tokens == expected, f"a network of {dtype}, after the prompt {prompt}: expected {expected}; got {tokens}"


# TODO 3: bytes per token


def check_bytes_per_token(lab, config: ModelConfig, dtype: torch.dtype, expected: float, why: str) -> None:
    """`kv_bytes_per_token` says so many; `why` says whence."""
    __tracebackhide__ = True
    count = of_any_dtype(lab.kv_bytes_per_token, config, dtype)
    layers, heads, kv_heads = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    numbers = 2 * layers * kv_heads * config.head_dim
    assert count == expected, f"{why}; kv_bytes_per_token says {shown(count)}" + story(
        count, expected, (expected / 2, "the keys alone"), (expected / layers, "one layer's"), (numbers, "numbers, not bytes"),
        (expected * heads / kv_heads, "what query heads would leave: keys and values have KV heads"),
        (expected / config.head_dim * (config.hidden_size // heads), "right for a head_dim of hidden_size / heads"),
        (4 * numbers, "right for numbers of 4 bytes"), (2 * numbers, "right for numbers of 2 bytes"))
    assert type(count) is int, f"bytes are an int, got {shown(count)}"


def engines_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """What the engine sets aside for so many tokens."""
    return TorchPagedAttention(config, tokens, dtype, torch.device("cpu")).bytes_per_block


@pytest.mark.todo(3, points=5)
@pytest.mark.parametrize("dtype", TWO_DTYPES, ids=str)
def test_todo_3_is_what_a_pass_of_the_network_hands_to_its_cache(lab, rng, dtype):
    for network in (network_of("odd", dtype), PlayedNetwork(rng, dtype)):
        handed, count = [], rng.randrange(2, 9)

        def append(layer, k, v, handed=handed):
            handed.append(k.nbytes + v.nbytes)
            return k, v

        network(list(range(10, 10 + count)), 0, append)
        each = sum(handed) / count
        check_bytes_per_token(lab, network.config, dtype, each, f"{count} tokens brought {each:g} bytes each in {dtype}")


@pytest.mark.todo(3, points=5)
@pytest.mark.parametrize("fields", [
    {}, {"num_hidden_layers": 1}, {"num_key_value_heads": 16}, {"num_key_value_heads": 1}, {"head_dim": 96},
    {"hidden_size": 2560, "num_attention_heads": 32, "num_hidden_layers": 36}, "any"], ids=str)
def test_todo_3_is_what_the_engine_sets_aside(lab, rng, fields):
    for dtype in DTYPES:
        config = any_shape(rng) if fields == "any" else qwen(**fields)
        shape = in_words(config) if fields == "any" else f"Qwen3-0.6B's shape with {fields}"
        block = engines_bytes(config, dtype, 16)
        check_bytes_per_token(
            lab, config, dtype, block / 16, f"the engine's blocks of 16 tokens have {block:,} bytes in {dtype} for {shape}")
        if fields != "any":
            continue
        # what leaves no keys and values is of no account
        other = replace(config, num_attention_heads=config.num_key_value_heads * rng.randrange(4, 9),
                        hidden_size=rng.randrange(10, 999), intermediate_size=rng.randrange(10, 999))
        check_bytes_per_token(lab, other, dtype, block / 16, f"a token of {in_words(other)} in {dtype} has {block // 16:,} bytes")


# TODO 4: FLOPs and bytes of a decode step


def counted_step(network: Network, context: int) -> SimpleNamespace:
    """A real decode step over `context` tokens, itself included: its FLOPs by torch, its bytes of keys and values."""
    config, read = network.config, 0

    def append(layer, k, v):
        nonlocal read
        old = torch.ones(context - 1, config.num_key_value_heads, config.head_dim)
        keys, values = torch.cat([old, k]), torch.cat([old, v])
        read += keys.nbytes + values.nbytes
        return keys, values

    log = Log()
    log.watch(network, [10], context - 1, append)
    return SimpleNamespace(flops=products_of(log.events)[0], kv_bytes=read)


def counted_matrices(network: Network, batch: int) -> int:
    """FLOPs of `batch` rows times every matrix, by torch's count."""
    return sum(flop_registry[torch.ops.aten.mm]((batch, matrix.shape[1]), matrix.T.shape) for matrix in network.matrices())


def shares(config: ModelConfig, batch: int, context: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    """(FLOPs, bytes) of matrices and attention, from the shapes of Qwen3's tensors."""
    rows = [(config.num_attention_heads * config.head_dim, config.hidden_size)] * 2
    rows += [(config.num_key_value_heads * config.head_dim, config.hidden_size)] * 2
    rows += [(config.intermediate_size, config.hidden_size)] * 3
    numbers = config.num_hidden_layers * sum(a * b for a, b in rows) + config.vocab_size * config.hidden_size
    keys = config.num_hidden_layers * context * config.head_dim
    return [(2 * numbers * batch, numbers * dtype.itemsize),
            (4 * keys * config.num_attention_heads * batch, 2 * keys * config.num_key_value_heads * batch * dtype.itemsize)]


def cost_of(cost, what: str) -> tuple[int, int]:
    """FLOPs and bytes of a `Cost`."""
    __tracebackhide__ = True
    pair = tuple(getattr(cost, name, None) for name in ("flops", "num_bytes"))
    assert all(type(value) in (int, float) for value in pair), f"{what}: expected a Cost of two numbers; got {shown(cost)}"
    return pair


def check_matrices(lab, config: ModelConfig, batch: int, dtype: torch.dtype, expected: tuple[int, int], what: str) -> None:
    """`matrices_cost` is so many FLOPs and bytes."""
    __tracebackhide__ = True
    what = f"{what}, batch {batch}, {dtype}"
    flops, num_bytes = cost_of(of_any_dtype(lab.matrices_cost, config, batch, dtype), what)
    head, numbers = config.hidden_size * config.vocab_size, expected[0] // (2 * batch)
    mlp = config.num_hidden_layers * config.hidden_size * config.intermediate_size
    counts = [(numbers - head, "the matrices without the head"), (numbers - mlp, "two matrices in the MLP, which has three"),
              (numbers + head, "the embedding counted, too, of which a token takes one row"),
              ((numbers - head) / config.num_hidden_layers + head, "one layer and the head")]
    assert flops == expected[0], f"{what}: torch counts {expected[0]:,} FLOPs with the matrices, you {flops:,}" + story(
        flops, expected[0], *((2 * batch * count, which) for count, which in counts), (2 * numbers, "for one sequence"),
        (numbers * batch, "multiplications alone: with an addition each, they are two FLOPs"))
    assert num_bytes == expected[1], f"{what}: all matrices have {expected[1]:,} bytes, and you read {num_bytes:,}" + story(
        num_bytes, expected[1], *((dtype.itemsize * count, which) for count, which in counts), (numbers, "numbers, not bytes"),
        (expected[1] * batch, "read for each sequence: a step reads a matrix once, for all of them"),
        (4 * numbers, "right for numbers of 4 bytes"), (2 * numbers, "right for numbers of 2 bytes"))


def check_attention(lab, config: ModelConfig, batch: int, context: int, dtype: torch.dtype, expected, what: str) -> None:
    """`attention_cost` is so many FLOPs and bytes."""
    __tracebackhide__ = True
    what = f"{what}, batch {batch}, context {context}, {dtype}"
    flops, num_bytes = cost_of(of_any_dtype(lab.attention_cost, config, batch, context, dtype), what)
    sharing = config.num_attention_heads // config.num_key_value_heads
    assert flops == expected[0], f"{what}: torch counts {expected[0]:,} FLOPs beside the matrices, you {flops:,}" + story(
        flops, expected[0],
        (expected[0] / 2, "half: there are two products, with keys and with values, and two FLOPs for each number"),
        (expected[0] / sharing, "the products of KV heads: every query head makes its own"),
        (expected[0] / config.num_hidden_layers, "one layer's"), (expected[0] / context, "for one token of the context"),
        (expected[0] / batch, "one sequence's"))
    assert num_bytes == expected[1], (
        f"{what}: a step reads {expected[1]:,} bytes of keys and values, you count {num_bytes:,}" + story(
            num_bytes, expected[1], (expected[1] / 2, "the keys alone, or the values"),
            (expected[1] / context, "one token of the context"), (expected[1] * sharing, "of query heads: KV heads are read"),
            (expected[1] / batch, "one sequence's: nothing of their caches is shared")))


@pytest.mark.todo(4, points=5)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_todo_4_matrices_are_multiplied_for_everybody_and_read_once(lab, rng, batch):
    for name in ("course", "odd"):
        network, flops = network_of(name), counted_matrices(network_of(name), batch)
        for dtype in DTYPES:
            num_bytes = sum(matrix.numel() * dtype.itemsize for matrix in network.matrices())
            check_matrices(lab, network.config, batch, dtype, (flops, num_bytes), name)
    for dtype, tied in product(DTYPES, (True, False)):  # the head is read, whether it is the embedding or a matrix of its own
        config = replace(any_shape(rng), tie_word_embeddings=tied, vocab_size=rng.randrange(100, 10**5))
        matrices, _ = shares(config, batch, 1, dtype)
        what = f"matrices ({in_words(config)}; weights {'' if tied else 'not '}tied)"
        check_matrices(lab, config, batch, dtype, matrices, what)


@pytest.mark.todo(4, points=4)
@pytest.mark.parametrize("name, context", [("course", 1), ("course", 40), ("odd", 2)])
def test_todo_4_attention_is_the_rest_of_a_real_step(lab, name, context):
    network = network_of(name)
    step = counted_step(network, context)
    rest = step.flops - counted_matrices(network, 1)
    check_attention(lab, network.config, 1, context, torch.float32, (rest, step.kv_bytes), f"a real step of {name}")


@pytest.mark.todo(4, points=3)
def test_todo_4_every_sequence_has_keys_and_values_of_its_own(lab, rng):
    for dtype in DTYPES:
        for config, batch, context in ((qwen(), 32, 100), (any_shape(rng), rng.randrange(2, 40), rng.randrange(2, 99))):
            _, (flops, num_bytes) = shares(config, batch, context, dtype)
            assert num_bytes == batch * engines_bytes(config, dtype, context), "the engine sets aside as much as is read"
            check_attention(lab, config, batch, context, dtype, (flops, num_bytes), in_words(config))


@pytest.mark.todo(4, points=3)
def test_todo_4_intensity_is_flops_per_byte(lab, rng, there):
    for flops, num_bytes in ((6, 4), (1, 4), (rng.randrange(1, 10**6), rng.randrange(1, 10**6))):
        cost = there.kept(lab.Cost, flops, num_bytes)
        intensity = number(lab.arithmetic_intensity(cost), "arithmetic_intensity")
        assert close(intensity, flops / num_bytes), (
            f"{flops:,} FLOPs on {num_bytes:,} bytes are {flops / num_bytes:g} FLOPs a byte, not {intensity:g}")


# TODO 5: the machine's ceilings. What a log of torch's operators comes to is added up here.


LOOKS_LIKE = re.compile("::new_|_like$")
"""Operators that take a tensor's shape and dtype, and read none of its numbers."""


class Traffic:
    """Bytes that torch's operators read (each memory once) and write (views write nothing); `events` are those of a log."""

    def __init__(self, events: Sequence) -> None:
        self.written = 0
        self._read: dict = {}  # by address: the longest piece that was read from there
        for event in events:
            self._count(event)

    def _count(self, event) -> None:
        memories = {piece.memory for piece in event.given}
        fresh = [piece for piece in event.made if piece.memory not in memories]
        if event.changed and not event.overload.endswith("out"):  # a write into a part: as much as there is to write
            self.written += sum(piece.num_bytes for piece in event.given) or event.changed[0].num_bytes
        else:
            self.written += sum(piece.num_bytes for piece in fresh)
        if (fresh or event.changed) and not LOOKS_LIKE.search(event.name):  # no view: what was given was read
            for piece in event.given:
                known = self._read.get(piece.address, piece)
                self._read[piece.address] = max(known, piece, key=lambda each: each.num_bytes)

    def memories(self, floating: bool = False) -> dict[int, int]:
        """Bytes read of each memory, or of each that holds floating numbers: all of its views, but not more than it has."""
        read: dict[int, int] = {}
        for piece in self._read.values():
            if piece.floating or not floating:
                read[piece.memory] = min(piece.memory_bytes, read.get(piece.memory, 0) + piece.num_bytes)
        return read

    @property
    def held(self) -> int:
        """Bytes of the memories of which anything was read."""
        return sum({piece.memory: piece.memory_bytes for piece in self._read.values()}.values())

    def dtypes(self) -> str:
        """Of all that was read, in words."""
        return ", ".join(sorted({piece.dtype for piece in self._read.values()}))


def products_of(events: Sequence) -> tuple[int, set[str]]:
    """FLOPs by torch's count, and the dtypes of what was multiplied. On the device meta nothing is: its memory has no address."""
    flops, dtypes = 0, set()
    for event in [event for event in events if all(piece.address for piece in event.given)]:
        count = flop_registry.get(getattr(torch.ops.aten, event.name.removeprefix("aten::"), None))
        if count:
            flops += count(*[piece.shape for piece in event.given])
            dtypes |= {piece.dtype for piece in event.given}
    return flops, dtypes


def unwritten(events: Sequence) -> dict[int, int]:
    """Of each memory that was only asked for (torch.empty and its kin), the bytes that nobody has written."""
    left: dict[int, int] = {}
    for event in events:
        if re.match("aten::(new_)?empty", event.name):
            left |= {piece.memory: piece.memory_bytes for piece in event.made}
        for piece in event.changed:
            if piece.memory in left:
                left[piece.memory] -= piece.num_bytes
    return left


class FakeClock:
    """A clock that only work moves: call number i of `work` takes seconds[i]."""

    def __init__(self, seconds: Sequence[float], now: float) -> None:
        self._now, self._seconds, self.calls = now, list(seconds), 0  # where a clock begins means nothing

    def now(self) -> float:
        return self._now

    def work(self) -> None:
        assert self.calls < len(self._seconds), f"the work was done more than {len(self._seconds)} times"
        self._now += self._seconds[self.calls]
        self.calls += 1


@pytest.mark.todo(5, points=5)
@pytest.mark.parametrize("seconds, median", [
    ((9, 3, 1, 2), 2), ((50, 1, 40, 2, 3, 4), 3), ((1, 7, 5, 9, 6, 8), 7), ((5, 4), 4), ("any, slow at first", None),
    ("any, fast at first", None)], ids=str)
def test_todo_5_median_of_the_calls_after_the_first(lab, rng, there, seconds, median):
    if median is None:
        timed = [quarters / 4 for quarters in rng.sample(range(2, 60), rng.choice([3, 5, 7]))]
        timed[rng.randrange(len(timed))] += 25
        seconds, median = [60 if "slow" in seconds else 0.25, *timed], sorted(timed)[len(timed) // 2]
    clock, timed = FakeClock(seconds, float(rng.randrange(-100, 100))), seconds[1:]
    answer = lab.median_seconds(there.lend(clock.work), repeats=len(timed), clock=there.lend(clock.now))
    answer = number(answer, "median_seconds")
    assert clock.calls == len(seconds), f"one call to warm up and {len(timed)} timed ones; there were {clock.calls}"
    why = story(
        answer, median, (min(timed), "the smallest"), (sum(timed) / len(timed), "the mean"), (max(timed), "the largest"),
        (sum(timed), "their sum"), (sorted(seconds)[len(seconds) // 2], "the median with the first call in it"),
        (sum(seconds) / len(seconds), "the mean with the first call in it"), (seconds[0], "the first call's"))
    assert close(answer, median), (
        f"the calls took {', '.join(map(str, seconds))} seconds, the first to warm up: the median is {median}, not "
        f"{answer:g}{why}")


@pytest.mark.todo(5, points=1)
def test_todo_5_the_usual_clock_counts_seconds(lab, rng, there):
    for nap in rng.sample([rng.uniform(0.001, 0.003), rng.uniform(0.1, 0.2)], 2):  # no one number is right for both
        began = time.perf_counter()
        answer = number(lab.median_seconds(there.lend(lambda nap=nap: time.sleep(nap)), repeats=3), "median_seconds")
        whole = time.perf_counter() - began
        assert nap <= answer <= whole, (
            f"a call sleeps {nap:g} seconds, and all calls together took {whole:g}: the median cannot be {answer:g}")


class Timer:
    """In the place of median_seconds: has the work done once, watched, and says that it took `seconds`."""

    def __init__(self, there, seconds: float) -> None:
        self.seconds, self.calls, self.log = seconds, 0, there.operators()
        self._there = there

    def __call__(self, work) -> float:
        self.calls += 1
        assert callable(work), (
            f"what is timed is a function without arguments, not {shown(work)}: do not call it yourself")
        self._there.kept(self.log.watch, work)
        return self.seconds

    def rate(self, measure, *arguments) -> float:
        """What the measurement says; it must have had its work timed once."""
        __tracebackhide__ = True
        rate = number(measure(*arguments, self._there.lend(self)), "the measurement")
        assert self.calls == 1, f"seconds_of was called {self.calls} times; once, with the function to be timed"
        return rate


def check_all_was_read(traffic: Traffic, num_bytes: int) -> None:
    """At least num_bytes of floating numbers, by torch, and next to nothing was written."""
    read = sum(traffic.memories().values())
    assert read > 0, "no operator of torch read anything in the timed function: read with torch, not with numpy or Python"
    assert traffic.held >= num_bytes, (
        f"a buffer of at least {num_bytes:,} bytes was asked for; what torch read from has {traffic.held:,}: "
        "a smaller one stays in the cache, however often it is read")
    assert read >= num_bytes, (
        f"a buffer of at least {num_bytes:,} bytes was to be read; it has {traffic.held:,}, "
        f"and only {read:,} of them were read")
    assert sum(traffic.memories(floating=True).values()) >= num_bytes, (
        f"the buffer was read as {traffic.dtypes()}: take floating numbers. "
        "Many reductions of other ones are computed number by number, and take longer than reading does")
    assert traffic.written <= read / 100, (
        f"beside {read:,} bytes read, {traffic.written:,} were written in the timed function: make the buffer outside, "
        "and reduce it to one number")


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize("num_bytes", [1 << 20, 300_001, "any"])
def test_todo_5_bandwidth_is_the_bytes_that_were_read_by_the_seconds(lab, rng, there, num_bytes):
    num_bytes = rng.randrange(10**6, 4 * 10**6) * 2 + 1 if num_bytes == "any" else num_bytes
    timer = Timer(there, rng.randrange(1, 40) / 8)
    answer = timer.rate(lab.read_bandwidth, num_bytes)
    traffic = Traffic(timer.log.events)
    check_all_was_read(traffic, num_bytes)
    memories, counted = traffic.memories().values(), answer * timer.seconds
    # A small operand, such as a vector that the buffer is multiplied by, may be counted or not.
    buffer, read = sum(size for size in memories if size > max(memories) / 10), sum(memories)
    why = story(counted, buffer, (num_bytes, f"the {num_bytes:,} bytes that were asked for: count those of the buffer"))
    assert (1 - 1e-6) * buffer <= counted <= (1 + 1e-6) * read, (
        f"{read:,} bytes in {timer.seconds} seconds are {read / timer.seconds:,.0f} bytes per second, not {answer:,.0f}{why}")


@pytest.mark.todo(5, points=1)
def test_todo_5_the_buffer_was_written_before_it_is_read(lab, rng, there):
    num_bytes, timer, log = rng.randrange(1 << 20, 1 << 21), Timer(there, 1.0), there.operators()
    timer.rate(lambda *arguments: log.watch(lab.read_bandwidth, *arguments), num_bytes)
    read = Traffic(timer.log.events).memories()
    whole = sum(read.values())
    assert whole >= num_bytes, f"a buffer of at least {num_bytes:,} bytes was to be read; {whole:,} were"
    left = sum(max(size, 0) for memory, size in unwritten(log.events).items() if memory in read)
    assert left <= num_bytes / 100, (
        f"of the buffer that was read, {left:,} bytes were never written: memory that is only asked for is one page "
        "of zeros many times over, which stays in the cache. Fill it first, with torch")


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_todo_5_matmul_rate_is_the_operations_of_a_product_by_the_seconds(lab, rng, there, dtype):
    for size in (32, rng.randrange(33, 64)):
        timer, operations = Timer(there, rng.randrange(1, 40) / 8), 2 * size**3
        answer = timer.rate(lab.matmul_rate, size, dtype)
        events = timer.log.events
        flops, dtypes = products_of(events)
        assert flops == operations, (
            f"one product of {size} × {size} matrices has {operations:,} FLOPs by torch's count; "
            f"the timed function had {flops:,}")
        made = [event.name for event in events if re.search("rand|normal|ones|zeros|fill|_to_copy|empty", event.name)]
        assert not made, f"the timed function also did {made}: make the matrices outside, in their dtype"
        assert dtypes == {str(dtype)}, f"the product was to be of {dtype}; it was of {', '.join(sorted(dtypes))}"
        assert close(answer, flops / timer.seconds), (
            f"{flops:,} FLOPs in {timer.seconds} seconds are {flops / timer.seconds:,.0f} a second, not {answer:,.0f}")


@pytest.mark.todo(5, points=1)
def test_todo_5_a_real_measurement_is_in_the_bounds_of_all_machines(lab, rng):
    num_bytes, size = rng.randrange(1 << 21, 1 << 22), rng.randrange(64, 128)
    # At least that of doing the work once in all the time it took, and less than any processor has.
    for measure, work, most, unit in ((lambda: lab.read_bandwidth(num_bytes), num_bytes, 1e14, "bytes"),
                                      (lambda: lab.matmul_rate(size, torch.float32), 2 * size**3, 1e16, "FLOPs")):
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            rates.append(number(measure(), "the measurement"))
            least = work / (time.perf_counter() - began)
            assert least <= rates[-1] <= most, (
                f"between {least:g} and {most:g} {unit} a second are possible; it says {rates[-1]:g}: is it in {unit}, and in "
                "seconds?")
        assert len(set(rates)) > 1, f"three measurements all came to {rates[0]!r} {unit} a second, to the last digit"


# TODO 6: predict, then measure


def check_prediction(predict, config: ModelConfig, batch: int, context: int, dtype, bandwidth: float, rate: float) -> None:
    """`predict(config, batch, context, dtype)`: the slower of computing and reading, of the matrices and of attention."""
    __tracebackhide__ = True
    answer = number(of_any_dtype(predict, config, batch, context, dtype), "predict_step_seconds")
    parts = [(flops / rate, num_bytes / bandwidth) for flops, num_bytes in shares(config, batch, context, dtype)]
    expected = sum(max(part) for part in parts)
    (m_compute, m_read), (a_compute, a_read) = parts
    assert close(answer, expected), (
        f"batch {batch}, context {context}, {dtype} ({in_words(config)}): computing with the matrices takes {m_compute:.6g} s, "
        f"reading them {m_read:.6g} s; attention {a_compute:.6g} s and {a_read:.6g} s. "
        f"The slower of each pair, added: {expected:.6g} s; you say {answer:.6g} s"
        + story(answer, expected, (m_compute + m_read + a_compute + a_read, "all four added: reading and computing overlap"),
                (max(m_compute + a_compute, m_read + a_read), "all computing, or all reading: the parts take turns"),
                (max(map(max, parts)), "the slower part alone"), (sum(map(min, parts)), "the faster of each"),
                (m_compute + a_compute, "computing alone"), (m_read + a_read, "reading alone")))


# FLOPs a byte, in bfloat16: matrices have `batch`, attention has 2; in float32 half of that. One of them computes while
# the other reads where the machine's own ratio lies between: it is 20, 1.5, 100 and 0.33 here.
@pytest.mark.todo(6, points=4)
@pytest.mark.parametrize("batch, context", [(1, 1), (1, 4096), (8, 100), (256, 4096)])
@pytest.mark.parametrize("bandwidth, rate", [(30e9, 600e9), (20e9, 30e9), (4e12, 4e14), (30e9, 10e9), ("any", "any")])
def test_todo_6_a_step_takes_as_long_as_its_parts_each_at_its_ceiling(lab, rng, there, batch, context, bandwidth, rate):
    def predict_with(bandwidth: float, rate: float):
        predict, ceilings = lab.predict_step_seconds, there.kept(lab.Ceilings, bandwidth, rate)
        return lambda *step: predict(*step, ceilings)

    if bandwidth != "any":
        predict = predict_with(bandwidth, rate)
        for dtype in DTYPES:
            check_prediction(predict, qwen(), batch, context, dtype, bandwidth, rate)
        return
    for dtype in DTYPES:  # FLOPs in the time of reading a byte: between those of matrices and attention, few, and many
        config, bandwidth = any_shape(rng), rng.uniform(1e9, 1e12)
        sharing = config.num_attention_heads // config.num_key_value_heads
        for balance in (2 * math.sqrt(batch * sharing) / dtype.itemsize, rng.choice([0.1, 1000])):
            predict = predict_with(bandwidth, bandwidth * balance)
            check_prediction(predict, config, batch, context, dtype, bandwidth, bandwidth * balance)


@pytest.mark.todo(6, points=4)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bandwidth, rate", [(30e9, 500e9), (100e9, 100e9), ("any", "any")])
def test_todo_6_at_the_ridge_matrices_take_as_long_to_read_as_to_compute(lab, rng, there, dtype, bandwidth, rate):
    if bandwidth == "any":
        bandwidth, rate = rng.uniform(1e9, 1e12), rng.uniform(1e9, 1e14)
    answer = number(of_any_dtype(lab.ridge_batch, dtype, there.kept(lab.Ceilings, bandwidth, rate)), "ridge_batch")
    numbers = 1_000_000  # of a matrix; it does not matter how many
    compute, read = 2 * numbers * answer / rate, numbers * dtype.itemsize / bandwidth
    assert close(compute, read), (
        f"{bandwidth:.3g} bytes and {rate:.3g} FLOPs a second: at batch {answer:g} a matrix of a million {dtype} takes "
        f"{compute:.2e} s to compute with and {read:.2e} s to read; at the ridge both take as long"
        + story(answer, rate / bandwidth * dtype.itemsize / 2, (rate / bandwidth, "right for numbers of 2 bytes"),
                (rate / bandwidth * dtype.itemsize, "twice the ridge: a number makes two FLOPs for each sequence"),
                (rate / bandwidth / 2, "right for numbers of one byte"), (bandwidth / rate, "upside down"),
                (rate / bandwidth / dtype.itemsize * 2, "bytes and FLOPs of a number exchanged")))


class Decoding:
    """What is measured: `prepare`, the steps that it makes, and a timer. In which order batches are measured is not judged.

    Args:
        took: batch size → what the timer says of a step.
        naps: batch size → what a step really takes, in seconds; nothing where it is not there.

    Attributes:
        log: what happened, in order.
        late: what happened when it was too late, in words: a step of a batch that was no longer there, prompts on the clock.
        since: batch size → when its first step began, and when the last had ended.
    """

    def __init__(self, there, took: dict[int, float], naps: dict[int, float] | None = None) -> None:
        self.log: list[tuple[str, int]] = []
        self.late: list[str] = []
        self.naps = naps or {}
        self.since: dict[int, tuple[float, float]] = {}
        self._there, self._took, self._prepared = there, took, 0
        self._timed: list[int] | None = None  # of the steps on the clock

    def prepare(self, batch: int):
        if self._timed is not None:
            self.late.append(f"the prompts of batch {batch} were computed while the timer ran")
        self._prepared = batch
        self.log.append(("prepare", batch))
        return self._there.lend(lambda: self._step(batch))

    def _step(self, batch: int) -> None:
        if batch != self._prepared:
            self.late.append(f"a step of batch {batch} was done after prepare({self._prepared}), which had ended it")
        self.log.append(("step", batch))
        if self._timed is not None:
            self._timed.append(batch)
        began = time.perf_counter()
        time.sleep(self.naps.get(batch, 0.0))
        self.since[batch] = self.since.get(batch, (began, began))[0], time.perf_counter()

    def seconds_of(self, work) -> float:
        """As the lab's timer, by a clock that only steps move."""
        assert callable(work), f"seconds_of gets the function that does a step, not {shown(work)}"
        self._timed = []
        work()
        timed, self._timed = self._timed, None
        assert timed, "what was timed did no step"
        return sum(self._took.get(batch, 1.0) for batch in timed)

    def measured(self, lab, batches: Sequence[int], *seconds_of) -> dict[int, float]:
        """`measure_throughput` of these batches: a number for each, and nothing came too late."""
        __tracebackhide__ = True
        lend = self._there.lend
        answer = lab.measure_throughput(lend(self.prepare), batches, *map(lend, seconds_of))
        assert not self.late, (
            f"{self.late[0]}. Prompts are computed before the timer starts, and a batch is measured before another is "
            f"prepared, which ends it. What happened: {self.log}")
        assert isinstance(answer, dict) and set(answer) == set(batches), (
            f"expected a dict with a throughput for each of {list(batches)}; got {shown(answer)}")
        return {batch: number(answer[batch], f"measure_throughput, for batch {batch},") for batch in batches}


@pytest.mark.todo(6, points=4)
def test_todo_6_throughput_is_the_tokens_of_a_step_by_its_seconds(lab, rng, there):
    drawn = {batch: rng.randrange(1, 40) / 8 for batch in rng.sample(range(1, 65), 4)}
    for took in ({1: 0.4, 4: 0.5, 16: 1.0}, {16: 2.0, 2: 0.25, 8: 0.5}, drawn):
        decoding = Decoding(there, took)
        answer = decoding.measured(lab, list(took), decoding.seconds_of)
        expected = {batch: batch / seconds for batch, seconds in took.items()}
        assert all(close(answer[batch], expected[batch]) for batch in took), (
            f"steps took so many seconds: {took}. In tokens per second that is {expected}, not {answer}")
    decoding = Decoding(there, {})
    decoding.measured(lab, (1, 4))
    steps = [decoding.log.count(("step", batch)) for batch in (1, 4)]
    assert min(steps) > 2, (
        f"without a seconds_of the steps are timed by median_seconds, which makes a call to warm up and then several to time; "
        f"for the batches 1 and 4 there were {steps}")


@pytest.mark.practice
@pytest.mark.todo(6, points=2)
def test_todo_6_the_program_predicts_and_measures(lab, capsys, tmp_path):
    lab.ridge_batch(torch.float32, lab.Ceilings(1.0, 1.0))  # says which TODO this is if it is unwritten
    svg, place, cache = tmp_path / "picture.svg", tmp_path / "place", CacheSize(1 << 20, "this test")
    lab.show_costs()
    ceilings = lab.show_ceilings(cache, torch.float32, 128)
    lab.show_curve(cache, torch.float32, ceilings, (1, 2), place, svg)
    output = capsys.readouterr().out
    assert "1 GiB holds 9,362 tokens" in output and "batch 256: matrices 305.14 GFLOP" in output, output
    assert len(re.findall(r"batch +[12]: at most [\d.]+ tokens/s, measured [\d.]+", output)) == 2, output
    assert svg.read_text().count("<circle") == 2, "the picture has a point for each measured batch"
    assert list(place.iterdir()) == [], "the generated checkpoint was left behind"


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
