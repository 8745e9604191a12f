"""Lab 05, TODO 2: the cache, with a ledger of what each layer was given."""

import random
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import check, expect, hold, kept, operators_seen, refusal, shown
from grading.sandbox.worker.peer import Raised, Remote
from grading.scenarios.lab05.generation import (
    a_prompt,
    computes,
    generated,
    generates_nothing,
    gives_the_best_tokens,
    leaves_the_prompt_alone,
)
from grading.scenarios.lab05.network import Network, Pair, a_shape, numbers_from, others
from grading.scenarios.lab05.traffic import Traffic

CACHE = "TODO 2: A contiguous cache"


class Ledger:
    """A cache there, and here what each of its layers was given."""

    def __init__(self, lab: Remote, rng: random.Random, room: int, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.room, self.dtype = a_shape(rng), room, dtype
        self.cache = lab.ContiguousCache(self.config, room, dtype)
        self.layers = range(self.config.num_hidden_layers)
        self._lab, self._random = lab, numbers_from(rng)
        self._held: dict[int, Pair] = {layer: self.new(0) for layer in self.layers}

    def append_of(self, dtype: torch.dtype, count: int) -> None:
        """Appends to layer 0 keys and values of another dtype; they are refused, or come back in the cache's."""
        pair = tuple(tensor.to(dtype) for tensor in self.new(count))
        try:
            answer = self.cache.append(0, *pair)
        except Raised as error:
            if "TodoError" in error.kinds:
                raise
            return
        self.note(0, (pair[0].to(self.dtype), pair[1].to(self.dtype)))
        self.compare(0, count, answer)

    def new(self, count: int) -> Pair:
        """Keys and values of so many tokens."""
        shape = (2, count, self.config.num_key_value_heads, self.config.head_dim)
        return tuple(torch.randn(shape, generator=self._random).to(self.dtype))

    def holds(self, layer: int) -> int:
        """How many tokens a layer was given."""
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
        """`count` more tokens are too many, and the cache says so."""
        refusal("ValueError", lambda: self.cache.append(layer, *self.new(count)),
                f"a cache of {self.room} tokens, of which layer {layer} holds {self.holds(layer)}, was given {count} more. "
                "max_tokens says what fits, also where the memory has more")

    def _strided(self, tensor: Tensor) -> Remote:
        """The same numbers, laid out so that tokens do not follow each other."""
        return kept(hold(self._lab, tensor.permute(1, 2, 0).contiguous()).permute, 2, 0, 1)


@check(todo=2, points=4, section=CACHE, concept="what append returns")
def append_returns_all_keys_and_values_of_its_layer_oldest_first(lab: Remote, rng: random.Random) -> None:
    for strided in (False, True):
        ledger = Ledger(lab, rng, room=16)
        for count in (rng.randrange(3, 7), 1, rng.randrange(2, 6), 1):
            for layer in ledger.layers:
                ledger.append(layer, count, strided)


@check(todo=2, points=3, section=CACHE, concept="a full cache")
def a_full_cache_refuses_and_keeps_what_it_holds(lab: Remote, rng: random.Random) -> None:
    for room in (5, rng.randrange(4, 10)):  # what is made in powers of two, or in blocks, has room for more than 5
        ledger = Ledger(lab, rng, room)
        ledger.append(0, room - 1)
        for count in (2, rng.randrange(3, 9)):
            ledger.refuses(0, count)
        ledger.append(0, 1)
        ledger.refuses(0, 1)
        ledger.append(1, room)
        ledger.refuses(1, 1)


@check(todo=2, points=3, section=CACHE, concept="what appending one token costs")
def old_tokens_are_never_copied(lab: Remote, rng: random.Random) -> None:
    steps = rng.randrange(350, 400)
    ledger, log = Ledger(lab, rng, steps + 1), operators_seen(lab)
    keys, values = ledger.new(steps)
    size = keys.nbytes + values.nbytes
    there = lab._peer.root.package
    calls = kept(there("builtins").map, ledger.cache.append, [0] * steps, keys.split(1), values.split(1))
    kept(log.watch, there("collections").deque, calls, 0)  # makes all calls, one after the other, and keeps nothing
    ledger.note(0, (keys, values))
    written = Traffic(log.events).written
    expect(written >= size, f"{steps} tokens have {size:,} bytes of keys and values, and torch wrote {written:,} to keep them: "
           "write with torch")
    # Each byte once is `size`. Copying all old ones in each step is 175 times as much. Memory that doubles, the last time
    # just before the end, is asked for (4 times `size` in all), and the old tokens are copied to it (2); with a copy of k and v
    # on the way that is 8.
    expect(written <= 10 * size,
           f"{steps} tokens have {size:,} bytes of keys and values, but {written:,} were written to append them one by one: "
           "write into the memory set aside in the beginning, and return views of it")
    ledger.append(0, 1)


@check(todo=2, points=2, section=CACHE, concept="the same tokens as without")
def tokens_with_a_cache_are_those_without(lab: Remote, rng: random.Random) -> None:
    gives_the_best_tokens(lab.generate_cached, rng)


@check(todo=2, points=2, section=CACHE, concept="what each pass computes")
def every_token_is_computed_exactly_once(lab: Remote, rng: random.Random) -> None:
    computes(lab.generate_cached, rng, lambda length, count: [0, *range(length, length + count - 1)],
             "The last new token is never computed: nobody asks what follows it.")


@check(todo=2, points=2, section=CACHE, concept="whose memory a cache's is", hidden=True)
def caches_share_nothing_and_keep_copies_in_their_own_dtype(lab: Remote, rng: random.Random) -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        seed, room = rng.getrandbits(30), rng.randrange(4, 9)
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
        third = Ledger(lab, rng, 6, dtype)
        for count in (rng.randrange(1, 4), 1, 2):
            third.append_of(torch.float32 if dtype == torch.bfloat16 else torch.bfloat16, count)


@check(todo=2, points=2, section=CACHE, concept="layers, each by itself", hidden=True)
def each_layer_counts_for_itself_in_any_order(lab: Remote, rng: random.Random) -> None:
    ledger = Ledger(lab, rng, room=rng.randrange(8, 14))
    for _ in range(40):
        layer, count = rng.choice(ledger.layers[:3]), rng.randrange(1, 4)
        if ledger.holds(layer) + count > ledger.room:
            ledger.refuses(layer, count)
        else:
            ledger.append(layer, count, strided=rng.random() < 0.3)


@check(todo=2, points=2, section=CACHE, concept="one generation after another", hidden=True)
def a_generation_leaves_nothing_for_the_next(lab: Remote, rng: random.Random) -> None:
    network, prompt, other = Network(rng, torch.bfloat16), a_prompt(rng, 3), a_prompt(rng, 5)
    leaves_the_prompt_alone(lab, lab.generate_cached, network, prompt)
    for text in (other, prompt):
        tokens, right = generated(lab.generate_cached, network, text, 5), network.continuation(text, 5)
        expect(tokens == right, f"after other generations, and the prompt {text}, expected {right}; {tokens} came")
    generates_nothing(lab.generate_cached, rng)
