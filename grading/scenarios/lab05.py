"""Lab 05: the judge plays the network, keeps the ledger of the caches, and is the clock of what is measured."""

import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby, product
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from grading.checks import check, expect, hold, kept, look, ours, refusal, shown
from grading.scenarios.lab05_network import Network, Pair, a_shape, numbers_from, others, words
from grading.scenarios.lab05_traffic import Traffic, products, unwritten
from grading.worker.peer import Raised, Remote
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.config import ModelConfig


def qwen(**fields: int) -> ModelConfig:
    """Qwen3-0.6B's shape, with some fields replaced."""
    shape: dict[str, Any] = {
        "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960}
    return ModelConfig(**(shape | fields))


def number(value: Any, what: str) -> float:
    """A finite number, from the worker."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    expect(type(value) in (int, float) and math.isfinite(value), f"{what} returned {shown(value)}; expected a number")
    return float(value)


def close(said: float, right: float) -> bool:
    """Whether two ways to compute a number agree: to what float32 keeps of it, a little more than 6e-8 a step."""
    return math.isclose(said, right, rel_tol=1e-6)


# TODO 1 and 2: generation, with a network that the judge plays


def generated(generate: Remote, network: Network, prompt: Any, count: int) -> list[int]:
    """What a generation returns, which must be so many ints."""
    try:
        tokens = generate(ours(network, "config", "dtype"), prompt, count)
    except Raised as error:
        if "TodoError" not in error.kinds:
            expect(not network.fault, network.fault)
        raise
    expect(not network.fault, network.fault)
    expect(isinstance(tokens, list) and all(type(token) is int for token in tokens),
           f"the new tokens are a list of ints; {shown(tokens)} came")
    expect(len(tokens) == count,
           f"{count} new tokens were asked for, without the prompt and past any end of sequence; "
           f"{len(tokens)} came: {shown(tokens)}")
    return tokens


def a_prompt(dice: random.Random, length: int) -> list[int]:
    return [dice.randrange(100) for _ in range(length)]


def lengths(dice: random.Random) -> list[tuple[int, int]]:
    """Tokens of the prompt, and new ones."""
    return [(dice.randrange(4, 9), dice.randrange(3, 6)), (1, 4), (dice.randrange(3, 9), 1), (dice.randrange(5, 9), 9)]


def gives_the_best_tokens(generate: Remote, dice: random.Random) -> None:
    for length, count in lengths(dice):
        network, prompt = Network(dice), a_prompt(dice, length)
        tokens, right = generated(generate, network, prompt, count), network.continuation(prompt, count)
        expect(tokens == right, f"after the prompt {prompt} the tokens with the largest logits are {right}; {tokens} came")


def computes(generate: Remote, dice: random.Random, starts: Callable[[int, int], list[int]], why: str) -> None:
    """The passes begin at `starts(length, count)` and go on to the last token there is."""
    for length, count in lengths(dice):
        network, prompt = Network(dice), a_prompt(dice, length)
        text = prompt + generated(generate, network, prompt, count)
        right = [(start, length + i) for i, start in enumerate(starts(length, count))]
        spans = [(start, start + len(tokens)) for start, tokens in network.passes]
        story = f"{length} tokens of prompt, {count} new"
        expect(spans == right, f"{story}: expected passes over positions {right} (first, end), and these came: {spans}. {why}")
        wrong = [start for start, tokens in network.passes if tokens != text[start : start + len(tokens)]]
        expect(not wrong, f"{story}: the passes that begin at {wrong} were given other tokens than prompt and answer have there")


def generates_nothing(generate: Remote, dice: random.Random) -> None:
    network = Network(dice)
    none = generated(generate, network, a_prompt(dice, 5), 0)
    expect(none == [] and not network.passes, f"0 tokens were asked for: no pass is right, and there were {len(network.passes)}")


def leaves_the_prompt_alone(lab: Remote, generate: Remote, network: Network, prompt: list[int]) -> None:
    held, right = hold(lab, prompt), network.continuation(prompt, 4)
    for given in (held, tuple(prompt)):
        tokens = generated(generate, network, given, 4)
        expect(tokens == right, f"after the prompt {prompt}, the second time as a tuple, expected {right}; {tokens} came")
    expect(look(held) == prompt, f"the caller's prompt was {prompt}, and is {shown(look(held))} after the call")


UNCACHED = "TODO 1: Generate without a cache"


@check(todo=1, points=4, section=UNCACHED, concept="which token comes next")
def each_new_token_is_the_one_with_the_largest_logit(lab: Remote, dice: random.Random) -> None:
    gives_the_best_tokens(lab.generate_uncached, dice)


@check(todo=1, points=4, section=UNCACHED, concept="what each pass computes")
def each_pass_computes_all_tokens_so_far(lab: Remote, dice: random.Random) -> None:
    computes(lab.generate_uncached, dice, lambda length, count: [0] * count,
             "Every pass begins at 0, and there is one for each new token.")


@check(todo=1, points=2, section=UNCACHED, concept="when a generation ends", hidden=True)
def a_generation_goes_on_past_the_end_of_a_sequence(lab: Remote, dice: random.Random) -> None:
    network, prompt = Network(dice, all_end=True), a_prompt(dice, 4)
    tokens, right = generated(lab.generate_uncached, network, prompt, 6), network.continuation(prompt, 6)
    expect(tokens == right, f"every token of this network ends a sequence; expected {right} all the same, {tokens} came")


@check(todo=1, points=2, section=UNCACHED, concept="what a caller may expect of the prompt, and of nothing to do", hidden=True)
def the_prompt_is_left_alone_and_nothing_may_be_generated(lab: Remote, dice: random.Random) -> None:
    leaves_the_prompt_alone(lab, lab.generate_uncached, Network(dice), a_prompt(dice, 3))
    generates_nothing(lab.generate_uncached, dice)


# TODO 2: the cache, with a ledger

CACHE = "TODO 2: A contiguous cache"


class Ledger:
    """A cache there, and here what each of its layers was given."""

    def __init__(self, lab: Remote, dice: random.Random, room: int, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.room, self.dtype = a_shape(dice), room, dtype
        self.cache = lab.ContiguousCache(self.config, room, dtype)
        self.layers = range(self.config.num_hidden_layers)
        self._lab, self._random = lab, numbers_from(dice)
        self._held: dict[int, Pair] = {layer: self.new(0) for layer in self.layers}

    def new(self, count: int) -> Pair:
        """Keys and values of so many tokens."""
        shape = (2, count, self.config.num_key_value_heads, self.config.head_dim)
        return tuple(torch.randn(shape, generator=self._random).to(self.dtype))

    def holds(self, layer: int) -> int:
        return len(self._held[layer][0])

    def append(self, layer: int, count: int, strided: bool = False) -> None:
        """Appends new tokens; all that the layer then holds must come back."""
        pair = self.new(count)
        given = [self._strided(tensor) for tensor in pair] if strided else pair
        answer = self.cache.append(layer, *given)
        self.note(layer, pair)
        self.compare(layer, count, answer)

    def note(self, layer: int, pair: Pair) -> None:
        """These were appended."""
        keys, values = self._held[layer]
        self._held[layer] = torch.cat([keys, pair[0]]), torch.cat([values, pair[1]])

    def compare(self, layer: int, count: int, answer: Any) -> None:
        """What came back, when the last `count` tokens were appended, is all that the layer holds."""
        try:
            keys, values = answer
        except (TypeError, ValueError):
            keys = values = answer
        for name, got, right in zip(("keys", "values"), (keys, values), self._held[layer], strict=True):
            story = f"layer {layer}, which held {len(right) - count} tokens, was given {count}"
            expect(isinstance(got, Tensor) and got.shape == right.shape and got.dtype == right.dtype,
                   f"{story}: expected, as {name}, {shown(right)}; {shown(got)} came")
            wrong = others(got, right)
            expect(not wrong, f"{story}: the {name} that came back are not those that were stored, at positions {shown(wrong)}")

    def refuses(self, layer: int, count: int) -> None:
        refusal("ValueError", lambda: self.cache.append(layer, *self.new(count)),
                f"a cache of {self.room} tokens, of which layer {layer} holds {self.holds(layer)}, was given {count} more")

    def _strided(self, tensor: Tensor) -> Remote:
        """The same numbers, laid out so that tokens do not follow each other."""
        return kept(hold(self._lab, tensor.permute(1, 2, 0).contiguous()).permute, 2, 0, 1)


@check(todo=2, points=4, section=CACHE, concept="what append returns")
def append_returns_all_keys_and_values_of_its_layer_oldest_first(lab: Remote, dice: random.Random) -> None:
    for strided in (False, True):
        ledger = Ledger(lab, dice, room=16)
        for count in (dice.randrange(3, 7), 1, dice.randrange(2, 6), 1):
            for layer in ledger.layers:
                ledger.append(layer, count, strided)


@check(todo=2, points=3, section=CACHE, concept="a full cache")
def a_full_cache_refuses_and_keeps_what_it_holds(lab: Remote, dice: random.Random) -> None:
    room = dice.randrange(4, 10)
    ledger = Ledger(lab, dice, room)
    ledger.append(0, room - 1)
    for count in (2, dice.randrange(3, 9)):
        ledger.refuses(0, count)
    ledger.append(0, 1)
    ledger.refuses(0, 1)
    ledger.append(1, room)
    ledger.refuses(1, 1)


@check(todo=2, points=3, section=CACHE, concept="what appending one token costs")
def old_tokens_are_never_copied(lab: Remote, dice: random.Random) -> None:
    steps = dice.randrange(60, 80)
    ledger, log, size = Ledger(lab, dice, steps + 1), operators(lab).Log(), 0
    for _ in range(steps):
        pair = ledger.new(1)
        size += sum(tensor.nbytes for tensor in pair)
        kept(log.watch, ledger.cache.append, 0, *pair)
        ledger.note(0, pair)
    written = Traffic(log.events).written
    # Each byte once is `size`. Copying all old ones in each step is at least 30 times as much. Memory that doubles, the last time
    # just before the end, is asked for (4 times `size` in all), and the old tokens are copied to it (2); with a copy of k and v
    # on the way that is 8.
    expect(written <= 10 * size,
           f"{steps} tokens have {size:,} bytes of keys and values, but {written:,} were written to append them one by one: "
           "write into the memory set aside in the beginning, and return views of it")
    ledger.append(0, 1)


@check(todo=2, points=2, section=CACHE, concept="the same tokens as without")
def tokens_with_a_cache_are_those_without(lab: Remote, dice: random.Random) -> None:
    gives_the_best_tokens(lab.generate_cached, dice)


@check(todo=2, points=2, section=CACHE, concept="what each pass computes")
def every_token_is_computed_exactly_once(lab: Remote, dice: random.Random) -> None:
    computes(lab.generate_cached, dice, lambda length, count: [0, *range(length, length + count - 1)],
             "The last new token is never computed: nobody asks what follows it.")


@check(todo=2, points=2, section=CACHE, concept="whose memory a cache's is", hidden=True)
def caches_share_nothing_and_keep_copies_in_their_own_dtype(lab: Remote, dice: random.Random) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        seed, room = dice.getrandbits(30), dice.randrange(4, 9)
        first, second = (Ledger(lab, random.Random(seed), room, dtype) for _ in range(2))
        pair = first.new(2)
        given = [hold(lab, tensor) for tensor in pair]
        answer = first.cache.append(0, *given)
        first.note(0, pair)
        first.compare(0, 2, answer)
        second.append(0, 3)
        for tensor in given:
            tensor.zero_()  # the network's memory may be used for something else
        first.append(0, 1)
        second.append(0, 1)


@check(todo=2, points=2, section=CACHE, concept="layers, each by itself", hidden=True)
def each_layer_counts_for_itself_in_any_order(lab: Remote, dice: random.Random) -> None:
    ledger = Ledger(lab, dice, room=dice.randrange(8, 14))
    for _ in range(40):
        layer, count = dice.choice(ledger.layers[:3]), dice.randrange(1, 4)
        if ledger.holds(layer) + count > ledger.room:
            ledger.refuses(layer, count)
        else:
            ledger.append(layer, count, strided=dice.random() < 0.3)


@check(todo=2, points=2, section=CACHE, concept="one generation after another", hidden=True)
def a_generation_leaves_nothing_for_the_next(lab: Remote, dice: random.Random) -> None:
    network, prompt, other = Network(dice, torch.bfloat16), a_prompt(dice, 3), a_prompt(dice, 5)
    leaves_the_prompt_alone(lab, lab.generate_cached, network, prompt)
    for text in (other, prompt):
        tokens, right = generated(lab.generate_cached, network, text, 5), network.continuation(text, 5)
        expect(tokens == right, f"after other generations, and the prompt {text}, expected {right}; {tokens} came")
    generates_nothing(lab.generate_cached, dice)


# TODO 3

KV_BYTES = "TODO 3: Predict the KV bytes of a token"
DTYPES = (torch.float32, torch.bfloat16)


def says_so_many_bytes(lab: Remote, config: ModelConfig, dtype: torch.dtype, right: int, story: str) -> None:
    said = lab.kv_bytes_per_token(config, dtype)
    expect(type(said) is int, f"bytes are an int; kv_bytes_per_token returned {shown(said)}")
    expect(said == right, f"{story}, in {dtype}: {right:,} bytes a token; kv_bytes_per_token says {said:,}")


def engine_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """What the engine sets aside for so many tokens."""
    return TorchPagedAttention(config, tokens, dtype, torch.device("cpu")).bytes_per_block


@check(todo=3, points=4, section=KV_BYTES, concept="what a pass hands to its cache")
def is_what_a_pass_of_the_network_hands_to_its_cache(lab: Remote, dice: random.Random) -> None:
    for dtype in (*DTYPES, *DTYPES):
        network = Network(dice, dtype)
        handed: list[int] = []

        def append(layer: int, k: Tensor, v: Tensor, handed: list[int] = handed) -> Pair:
            handed.append(k.nbytes + v.nbytes)
            return k, v

        tokens = dice.randrange(2, 9)
        network(range(tokens), 0, append)
        story = f"a pass over {tokens} tokens handed {sum(handed):,} bytes to its cache"
        says_so_many_bytes(lab, network.config, dtype, sum(handed) // tokens, story)


@check(todo=3, points=3, section=KV_BYTES, concept="what an engine sets aside")
def is_what_the_engine_sets_aside(lab: Remote, dice: random.Random) -> None:
    for fields in ({}, {"num_hidden_layers": dice.randrange(1, 60)}, {"num_key_value_heads": dice.choice((1, 2, 16))},
                   {"head_dim": dice.choice((64, 96, 256))}, {"hidden_size": 2560, "num_attention_heads": 32}):
        for dtype in DTYPES:
            config = qwen(**fields)
            block = engine_bytes(config, dtype, 16)
            story = f"the engine's blocks of 16 tokens have {block:,} bytes for Qwen3-0.6B's shape with {fields}"
            says_so_many_bytes(lab, config, dtype, block // 16, story)


@check(todo=3, points=3, section=KV_BYTES, concept="what the bytes depend on", hidden=True)
def depends_on_the_shape_of_keys_and_values_and_on_nothing_else(lab: Remote, dice: random.Random) -> None:
    for dtype in (torch.float16, torch.float64, *DTYPES):
        config = a_shape(dice)
        right = engine_bytes(config, dtype, 1)
        others: dict[str, Any] = {"num_attention_heads": config.num_key_value_heads * dice.randrange(4, 9),
                                  "hidden_size": dice.randrange(10, 999), "vocab_size": dice.randrange(10, 999),
                                  "intermediate_size": dice.randrange(10, 999)}
        for shape in (config, replace(config, **others)):
            says_so_many_bytes(lab, shape, dtype, right, words(shape))


# TODO 4: costs, by torch's count of an operator's FLOPs

COSTS = "TODO 4: FLOPs and bytes of a decode step"
PRODUCT, PRODUCTS_OF_MANY = flop_registry[torch.ops.aten.mm], flop_registry[torch.ops.aten.bmm]


def matrices_counted(config: ModelConfig, batch: int, dtype: torch.dtype) -> tuple[int, int]:
    """FLOPs of `batch` rows times every matrix, and the bytes of the matrices."""
    hidden, query, key = (config.hidden_size, config.num_attention_heads * config.head_dim,
                          config.num_key_value_heads * config.head_dim)
    layer = [(hidden, query), (hidden, key), (hidden, key), (query, hidden)]
    layer += [(hidden, config.intermediate_size), (hidden, config.intermediate_size), (config.intermediate_size, hidden)]
    matrices = layer * config.num_hidden_layers + [(hidden, config.vocab_size)]
    return sum(PRODUCT((batch, matrix[0]), matrix) for matrix in matrices), sum(map(math.prod, matrices)) * dtype.itemsize


def attention_counted(config: ModelConfig, batch: int, context: int, dtype: torch.dtype) -> tuple[int, int]:
    """FLOPs of the two products, for the query heads of each KV head together, and the bytes of keys and values."""
    caches = batch * config.num_hidden_layers * config.num_key_value_heads
    sharing, dim = config.num_attention_heads // config.num_key_value_heads, config.head_dim
    with_keys = PRODUCTS_OF_MANY((caches, sharing, dim), (caches, dim, context))
    with_values = PRODUCTS_OF_MANY((caches, sharing, context), (caches, context, dim))
    return with_keys + with_values, 2 * caches * context * dim * dtype.itemsize


def costs(answer: Any, right: tuple[int, int], story: str) -> None:
    """The answer is a Cost of so many FLOPs and bytes."""
    said = tuple(getattr(answer, name, None) for name in ("flops", "num_bytes"))
    expect(all(type(value) in (int, float) for value in said), f"{story}: expected a Cost of two numbers; {shown(answer)} came")
    for name, value, counted in zip(("FLOPs", "bytes read"), said, right, strict=True):
        expect(value == counted, f"{story}: {counted:,} {name} by torch's count, and you say {value:,}")


@check(todo=4, points=4, section=COSTS, concept="what the matrices cost")
def matrices_are_multiplied_for_everybody_and_read_once(lab: Remote, dice: random.Random) -> None:
    for dtype, batch in product(DTYPES, (1, dice.randrange(2, 9), dice.randrange(10, 99))):
        config = a_shape(dice)
        costs(lab.matrices_cost(config, batch, dtype), matrices_counted(config, batch, dtype),
              f"matrices ({words(config)}), batch {batch}, {dtype}")


@check(todo=4, points=3, section=COSTS, concept="what attention costs")
def every_query_head_makes_two_products_with_each_token_of_the_context(lab: Remote, dice: random.Random) -> None:
    for dtype, context in product(DTYPES, (1, 2, dice.randrange(3, 99))):
        config = a_shape(dice)
        costs(lab.attention_cost(config, 1, context, dtype), attention_counted(config, 1, context, dtype),
              f"attention ({words(config)}), context {context}, {dtype}")


@check(todo=4, points=3, section=COSTS, concept="intensity")
def intensity_is_flops_per_byte(lab: Remote, dice: random.Random) -> None:
    for flops, num_bytes in ((6, 4), (1, 4), (dice.randrange(1, 10**6), dice.randrange(1, 10**6))):
        said = number(lab.arithmetic_intensity(kept(lab.Cost, flops=flops, num_bytes=num_bytes)), "arithmetic_intensity")
        expect(close(said, flops / num_bytes),
               f"{flops:,} FLOPs on {num_bytes:,} bytes are {flops / num_bytes:g} a byte, not {said:g}")


@check(todo=4, points=3, section=COSTS, concept="what sequences share", hidden=True)
def every_sequence_has_keys_and_values_of_its_own(lab: Remote, dice: random.Random) -> None:
    for dtype in DTYPES:
        config, batch, context = a_shape(dice), dice.randrange(2, 40), dice.randrange(2, 99)
        costs(lab.attention_cost(config, batch, context, dtype), attention_counted(config, batch, context, dtype),
              f"attention ({words(config)}), batch {batch}, context {context}, {dtype}")


@check(todo=4, points=2, section=COSTS, concept="the head", hidden=True)
def the_head_is_read_whether_it_is_tied_or_not(lab: Remote, dice: random.Random) -> None:
    for tied, dtype in product((True, False), DTYPES):
        config, batch = (replace(a_shape(dice), tie_word_embeddings=tied, vocab_size=dice.randrange(10**4, 10**5)),
                         dice.randrange(1, 300))
        costs(lab.matrices_cost(config, batch, dtype), matrices_counted(config, batch, dtype),
              f"matrices ({words(config)}; weights {'' if tied else 'not '}tied), batch {batch}, {dtype}")


# TODO 5: the ceilings

CEILINGS = "TODO 5: Measure the ceilings"


def operators(lab: Remote) -> Remote:
    """The module that sees which of torch's operators run, where the submission is."""
    return lab._peer.root.package("worker.operators")


class Timer:
    """In the place of median_seconds: has the work done once, watched, and says that it took `seconds`."""

    def __init__(self, lab: Remote, seconds: float) -> None:
        self.seconds, self.calls, self.log = seconds, 0, operators(lab).Log()

    def __call__(self, work: Remote) -> float:
        self.calls += 1
        if not isinstance(work, Remote):
            raise TypeError(f"what is timed is a function without arguments, not {shown(work)}: do not call it yourself")
        kept(self.log.watch, work)
        return self.seconds

    def rate(self, measure: Callable[..., Any], *arguments: Any) -> float:
        """What the measurement says; it must have had its work timed once."""
        said = number(measure(*arguments, ours(self)), "the measurement")
        expect(self.calls == 1, f"seconds_of was called {self.calls} times; once is right, with the function to be timed")
        return said


class Clock:
    """A clock that only work moves: call i of it takes seconds[i]."""

    def __init__(self, dice: random.Random, seconds: Sequence[float]) -> None:
        self.calls, self._seconds, self._now = 0, seconds, float(dice.randrange(-100, 100))

    def now(self) -> float:
        return self._now

    def work(self) -> None:
        if self.calls < len(self._seconds):
            self._now += self._seconds[self.calls]
        self.calls += 1


@check(todo=5, points=4, section=CEILINGS, concept="the median of calls")
def the_median_is_that_of_the_calls_after_the_first(lab: Remote, dice: random.Random) -> None:
    for repeats, warm_up in product((1, 3, 5, 7), (60, 0.25)):
        seconds = [quarters / 4 for quarters in dice.sample(range(2, 60), repeats)]
        seconds[dice.randrange(repeats)] += 25 if repeats > 1 else 0
        clock, right = Clock(dice, [warm_up, *seconds]), sorted(seconds)[repeats // 2]
        said = number(lab.median_seconds(ours(clock.work), repeats=repeats, clock=ours(clock.now)), "median_seconds")
        expect(clock.calls == repeats + 1, f"expected one call to warm up and {repeats} timed ones; there were {clock.calls}")
        expect(close(said, right),
               f"to warm up took {warm_up} seconds, the other calls {seconds}: their median is {right}, not {said:g}")


def check_all_was_read(traffic: Traffic, num_bytes: int) -> None:
    """At least so many bytes of floating numbers, by torch, and next to nothing was written."""
    read, asked = sum(traffic.memories().values()), f"a buffer of at least {num_bytes:,} bytes"
    expect(read > 0, "no operator of torch read anything in the timed function: read with torch, not with numpy or Python")
    expect(traffic.held >= num_bytes,
           f"{asked} was asked for; what torch read from has {traffic.held:,}: a smaller one stays in the cache")
    expect(read >= num_bytes, f"{asked} was to be read; it has {traffic.held:,}, and only {read:,} of them were read")
    expect(sum(traffic.memories(floating=True).values()) >= num_bytes,
           f"the buffer was read as {traffic.dtypes()}: take floating numbers. "
           "Many reductions of others take longer than reading does")
    expect(traffic.written <= read / 100, f"beside {read:,} bytes read, {traffic.written:,} were written in the timed function: "
           "make the buffer outside, and reduce it to one number")


@check(todo=5, points=3, section=CEILINGS, concept="bytes per second")
def bandwidth_is_the_bytes_that_were_read_by_the_seconds(lab: Remote, dice: random.Random) -> None:
    for num_bytes in (1 << 20, dice.randrange(10**6, 4 * 10**6) * 2 + 1):
        timer = Timer(lab, dice.randrange(1, 40) / 8)
        said = timer.rate(lab.read_bandwidth, num_bytes)
        traffic = Traffic(timer.log.events)
        check_all_was_read(traffic, num_bytes)
        # A small operand, such as a vector that the buffer is multiplied by, may be counted or not.
        memories = traffic.memories().values()
        buffer, read = sum(size for size in memories if size > max(memories) / 10), sum(memories)
        expect(0.999 * buffer <= said * timer.seconds <= 1.001 * read,
               f"{read:,} bytes in {timer.seconds:g} seconds are {read / timer.seconds:,.0f} bytes per second, not {said:,.0f}")


@check(todo=5, points=3, section=CEILINGS, concept="operations per second")
def matmul_rate_is_the_operations_of_a_product_by_the_seconds(lab: Remote, dice: random.Random) -> None:
    for dtype in (*DTYPES, *DTYPES):
        size, timer = dice.randrange(24, 64), Timer(lab, dice.randrange(1, 40) / 8)
        said, right = timer.rate(lab.matmul_rate, size, dtype), 2 * size**3
        events = timer.log.events
        flops, used = products(events)
        expect(flops == right,
               f"one product of {size} × {size} matrices has {right:,} FLOPs by torch's count; the timed function had {flops:,}")
        made = [event.name for event in events if re.search("rand|normal|ones|zeros|fill|_to_copy|empty", event.name)]
        expect(not made, f"the timed function also did {made}: make the matrices outside, in their dtype")
        expect(used == {str(dtype)}, f"the product was to be of {dtype}; it was of {', '.join(sorted(used))}")
        expect(close(said, right / timer.seconds),
               f"{right:,} FLOPs in {timer.seconds:g} seconds are {right / timer.seconds:,.0f} a second, not {said:,.0f}")


@check(todo=5, points=2, section=CEILINGS, concept="what the buffer was before it was read", hidden=True)
def the_buffer_was_written_before_it_is_read(lab: Remote, dice: random.Random) -> None:
    num_bytes, timer, log = dice.randrange(1 << 20, 1 << 21), Timer(lab, 1.0), operators(lab).Log()
    timer.rate(lambda *arguments: log.watch(lab.read_bandwidth, *arguments), num_bytes)
    read = Traffic(timer.log.events).memories()
    expect(sum(read.values()) >= num_bytes,
           f"a buffer of at least {num_bytes:,} bytes was to be read; {sum(read.values()):,} were")
    left = sum(max(size, 0) for memory, size in unwritten(log.events).items() if memory in read)
    expect(left <= num_bytes / 100,
           f"of the buffer that was read, {left:,} bytes were never written: memory that is only asked for is one page of "
           "zeros many times over, which stays in the cache. Fill it first, with torch")


# Where real time passes nothing depends on how busy the machine is: a call that naps takes at least the nap, and the median of
# timed calls is at most all of them together.


class Stopwatch:
    """How long the judge waited."""

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._started


@check(todo=5, points=1, section=CEILINGS, concept="what the usual clock counts", hidden=True)
def the_usual_clock_counts_seconds(lab: Remote, dice: random.Random) -> None:
    nap = dice.randrange(3, 7) / 1000
    with Stopwatch() as all_calls:
        said = number(lab.median_seconds(ours(lambda: time.sleep(nap)), repeats=3), "median_seconds")
    expect(nap <= said <= all_calls.seconds,
           f"a call sleeps {nap} seconds, and all calls together took {all_calls.seconds:g}: the median cannot be {said:g}")


@check(todo=5, points=1, section=CEILINGS, concept="a real measurement", hidden=True)
def a_real_measurement_is_in_the_bounds_of_all_machines(lab: Remote, dice: random.Random) -> None:
    num_bytes, size = dice.randrange(1 << 21, 1 << 22), dice.randrange(64, 128)
    possible(lambda: lab.read_bandwidth(num_bytes), num_bytes, 1e14, "bytes")
    possible(lambda: lab.matmul_rate(size, torch.float32), 2 * size**3, 1e16, "FLOPs")


def possible(measure: Callable[[], Any], work: int, most: float, unit: str) -> None:
    """The rate is at least that of doing the work once in all the time it took, and less than any processor's."""
    with Stopwatch() as whole:
        said = number(measure(), "the measurement")
    least = work / whole.seconds
    expect(least <= said <= most,
           f"between {least:g} and {most:g} {unit} a second are possible; it says {said:g}: is it in {unit}, and in seconds?")


# TODO 6

RIDGE = "TODO 6: The ridge, and the measured curve"


def ceilings(lab: Remote, bandwidth: float, rate: float) -> Remote:
    return kept(lab.Ceilings, bytes_per_second=bandwidth, flops_per_second=rate)


def predicts(
    lab: Remote, config: ModelConfig, batch: int, context: int, dtype: torch.dtype, bandwidth: float, rate: float
) -> None:
    """The step takes as long as the slower of computing and reading: of the matrices, and of attention."""
    said = number(lab.predict_step_seconds(config, batch, context, dtype, ceilings(lab, bandwidth, rate)), "predict_step_seconds")
    parts = matrices_counted(config, batch, dtype), attention_counted(config, batch, context, dtype)
    (m_compute, m_read), (a_compute, a_read) = [(flops / rate, num_bytes / bandwidth) for flops, num_bytes in parts]
    right = max(m_compute, m_read) + max(a_compute, a_read)
    expect(close(said, right),
           f"{words(config)}; batch {batch}, context {context}, {dtype}: computing with the matrices takes {m_compute:.6g} s, "
           f"reading them {m_read:.6g} s; attention {a_compute:.6g} s and {a_read:.6g} s. "
           f"The slower of each pair, added: {right:.6g} s; you say {said:.6g} s")


@check(todo=6, points=3, section=RIDGE, concept="how long a step takes")
def a_step_takes_as_long_as_its_parts_each_at_its_ceiling(lab: Remote, dice: random.Random) -> None:
    for dtype, balance in product(DTYPES, (0.1, 3, 30, 1000)):  # FLOPs in the time of reading a byte
        bandwidth = dice.uniform(1e9, 1e12)
        predicts(lab, a_shape(dice), dice.choice((1, 8, 64, 256)), dice.randrange(20, 2000), dtype, bandwidth,
                 bandwidth * balance)


@check(todo=6, points=3, section=RIDGE, concept="the ridge")
def at_the_ridge_matrices_take_as_long_to_read_as_to_compute_with(lab: Remote, dice: random.Random) -> None:
    for dtype in (*DTYPES, *DTYPES):
        is_the_ridge(lab, dtype, dice.uniform(1e9, 1e12), dice.uniform(1e10, 1e14))


def is_the_ridge(lab: Remote, dtype: torch.dtype, bandwidth: float, rate: float) -> None:
    said, numbers = number(lab.ridge_batch(dtype, ceilings(lab, bandwidth, rate)), "ridge_batch"), 1_000_000  # of a matrix: any
    compute, read = 2 * numbers * said / rate, numbers * dtype.itemsize / bandwidth
    expect(close(compute, read),
           f"{bandwidth:.3g} bytes and {rate:.3g} FLOPs a second: at batch {said:g} a matrix of a million {dtype} takes "
           f"{compute:.2e} s to compute with and {read:.2e} s to read; at the ridge both take as long")


class Decoding:
    """What is measured: `prepare`, the steps it makes, and a timer; all that happens is in the log.

    Args:
        seconds: batch size → what the timer says of a step.
        nap: what a step really takes, in seconds.
    """

    def __init__(self, seconds: dict[int, float], nap: float = 0.0) -> None:
        self.log: list[tuple[str, int] | str] = []
        self.nap = nap
        self._seconds, self._batch = seconds, 0

    def prepare(self, batch: int) -> Any:
        self.log.append(("prepare", batch))
        self._batch = batch
        return ours(lambda: self._step(batch))

    def _step(self, batch: int) -> None:
        self.log.append(("step", batch))
        time.sleep(self.nap)

    def seconds_of(self, work: Callable[[], Any]) -> float:
        if not callable(work):
            raise TypeError(f"seconds_of gets the function that does a step, not {shown(work)}")
        self.log.append("timer on")
        work()
        self.log.append("timer off")
        return self._seconds.get(self._batch, 1.0)


def throughput(answer: Any, batches: Sequence[int]) -> dict[int, float]:
    """A number for each batch size."""
    expect(isinstance(answer, dict) and set(answer) == set(batches),
           f"expected a dict with a throughput for each of {list(batches)}; {shown(answer)} came")
    return {batch: number(answer[batch], f"measure_throughput, for batch {batch},") for batch in batches}


@check(todo=6, points=3, section=RIDGE, concept="tokens per second")
def throughput_is_the_tokens_of_a_step_by_its_seconds(lab: Remote, dice: random.Random) -> None:
    took = {batch: dice.randrange(1, 40) / 8 for batch in dice.sample(range(1, 65), 4)}
    decoding = Decoding(took)
    said = throughput(lab.measure_throughput(ours(decoding.prepare), list(took), ours(decoding.seconds_of)), list(took))
    for batch, seconds in took.items():
        expect(close(said[batch], batch / seconds),
               f"a step of {batch} sequences took {seconds} seconds: {batch / seconds:g} tokens/s, not {said[batch]:g}")
    right = [entry for batch in took for entry in (("prepare", batch), "timer on", ("step", batch), "timer off")]
    expect(decoding.log == right,
           f"expected {right}, and this happened: {decoding.log}. Prompts are computed before the timer starts, and a batch is "
           "measured before the next is prepared, which ends it")


@check(todo=6, points=2, section=RIDGE, concept="where the slower job is not the same for both parts", hidden=True)
def one_part_may_compute_while_the_other_reads(lab: Remote, dice: random.Random) -> None:
    for dtype, computing in product(DTYPES, ("matrices", "attention")):
        config = a_shape(dice)
        sharing = config.num_attention_heads // config.num_key_value_heads
        batch = dice.randrange(16, 65) if computing == "matrices" else 1
        bandwidth = dice.uniform(1e9, 1e12)
        balance = 2 * math.sqrt(batch * sharing) / dtype.itemsize  # between the two intensities
        predicts(lab, config, batch, dice.randrange(100, 1000), dtype, bandwidth, bandwidth * balance)


@check(todo=6, points=1, section=RIDGE, concept="what the ridge depends on", hidden=True)
def the_ridge_is_right_for_every_size_of_a_number(lab: Remote, dice: random.Random) -> None:
    for dtype in (torch.float64, torch.float16, torch.float32):
        is_the_ridge(lab, dtype, dice.uniform(1e9, 1e12), dice.uniform(1e9, 1e12))


@check(todo=6, points=2, section=RIDGE, concept="measuring as the program does", hidden=True)
def by_default_steps_are_timed_with_median_seconds(lab: Remote, dice: random.Random) -> None:
    batches = dice.sample(range(1, 65), 3)
    decoding = Decoding({}, nap=dice.randrange(2, 4) / 1000)
    with Stopwatch() as whole:
        said = throughput(lab.measure_throughput(ours(decoding.prepare), tuple(batches)), batches)
    order = [entry for entry, _ in groupby(decoding.log)]
    right = [(what, batch) for batch in batches for what in ("prepare", "step")]
    expect(order == right,
           f"for the batch sizes {batches} expected one preparation and then steps, of each in turn; this happened: {order}")
    for batch, rate in said.items():
        steps, least, most = decoding.log.count(("step", batch)), batch / whole.seconds, batch / decoding.nap
        expect(least <= rate <= most,
               f"a step of {batch} sequences sleeps {decoding.nap} seconds, and all steps together took {whole.seconds:g}: "
               f"between {least:g} and {most:g} tokens/s are possible, not {rate:g}")
        expect(steps > 1, f"a step of {batch} was done {steps} times: once to warm up, and then timed")
