"""Lab 05, TODO 4: costs, by torch's count of an operator's FLOPs."""

import math
import random
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from grading.judge.checks import check, expect, kept, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab05.network import a_shape, words
from grading.scenarios.lab05.quantities import DTYPES, SIZES, close, number, of_any_dtype
from nano_qwen3_serving.config import ModelConfig

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
def matrices_are_multiplied_for_everybody_and_read_once(lab: Remote, rng: random.Random) -> None:
    for dtype, batch in product(SIZES, (1, rng.randrange(2, 9), rng.randrange(10, 99))):
        config = a_shape(rng)
        costs(of_any_dtype(lab.matrices_cost, config, batch, dtype), matrices_counted(config, batch, dtype),
              f"matrices ({words(config)}), batch {batch}, {dtype}")


@check(todo=4, points=3, section=COSTS, concept="what attention costs")
def every_query_head_makes_two_products_with_each_token_of_the_context(lab: Remote, rng: random.Random) -> None:
    for dtype, context in product(DTYPES, (1, 2, rng.randrange(3, 99))):
        config = a_shape(rng)
        costs(lab.attention_cost(config, 1, context, dtype), attention_counted(config, 1, context, dtype),
              f"attention ({words(config)}), context {context}, {dtype}")


@check(todo=4, points=3, section=COSTS, concept="intensity")
def intensity_is_flops_per_byte(lab: Remote, rng: random.Random) -> None:
    for flops, num_bytes in ((6, 4), (1, 4), (rng.randrange(1, 10**6), rng.randrange(1, 10**6))):
        said = number(lab.arithmetic_intensity(kept(lab.Cost, flops=flops, num_bytes=num_bytes)), "arithmetic_intensity")
        expect(close(said, flops / num_bytes),
               f"{flops:,} FLOPs on {num_bytes:,} bytes are {flops / num_bytes:g} a byte, not {said:g}")


@check(todo=4, points=3, section=COSTS, concept="what sequences share", hidden=True)
def every_sequence_has_keys_and_values_of_its_own(lab: Remote, rng: random.Random) -> None:
    for dtype in SIZES:
        config, batch, context = a_shape(rng), rng.randrange(2, 40), rng.randrange(2, 99)
        costs(of_any_dtype(lab.attention_cost, config, batch, context, dtype), attention_counted(config, batch, context, dtype),
              f"attention ({words(config)}), batch {batch}, context {context}, {dtype}")


@check(todo=4, points=2, section=COSTS, concept="the head", hidden=True)
def the_head_is_read_whether_it_is_tied_or_not(lab: Remote, rng: random.Random) -> None:
    for tied, dtype in product((True, False), DTYPES):
        config, batch = (replace(a_shape(rng), tie_word_embeddings=tied, vocab_size=rng.randrange(10**4, 10**5)),
                         rng.randrange(1, 300))
        costs(lab.matrices_cost(config, batch, dtype), matrices_counted(config, batch, dtype),
              f"matrices ({words(config)}; weights {'' if tied else 'not '}tied), batch {batch}, {dtype}")
