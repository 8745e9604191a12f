"""Pictures and films of what an engine did, for notebooks: SVG over the flight recorder's records.

A floor of its own, above the engine, which imports nothing from here; needs the extra `notebooks`.
"""

from nano_qwen3_serving.pictures.blocks import attention_reads, pool_film, pool_over_time
from nano_qwen3_serving.pictures.card import Card, Picture
from nano_qwen3_serving.pictures.chunks import flat_batch, rows_film, seen_keys
from nano_qwen3_serving.pictures.counts import cache_film, tokens_computed
from nano_qwen3_serving.pictures.distribution import cut_film, likeliest, probabilities_changed, shares_drawn, tokens_again
from nano_qwen3_serving.pictures.draws import (
    WatchedSampler,
    counted,
    drawn,
    generator,
    grouped,
    logits_after,
    one_at_a_time,
    random_number,
    row,
    stages,
    top_tokens,
)
from nano_qwen3_serving.pictures.film import Film
from nano_qwen3_serving.pictures.guesses import beside
from nano_qwen3_serving.pictures.heads import (
    attention_weights,
    heads_sharing,
    products_apart,
    rotary_pairs,
    turned_by_hand,
)
from nano_qwen3_serving.pictures.insides import (
    MisledAttention,
    StepsByHand,
    WatchedAttention,
    WatchedEngine,
    attend,
    keys_seen,
    keys_seen_by_torch,
    kv_heads_read,
    misled,
)
from nano_qwen3_serving.pictures.latency import latencies
from nano_qwen3_serving.pictures.layers import Station, layers_film, stations
from nano_qwen3_serving.pictures.memory import slots_held, slots_in_blocks
from nano_qwen3_serving.pictures.prefixes import hit_rate, hit_rates, prefix_tree, record_prompts
from nano_qwen3_serving.pictures.reads import blocks_read
from nano_qwen3_serving.pictures.roofline import (
    Roof,
    Work,
    bytes_for_a_token,
    decode_work,
    kept_for_a_token,
    qwen3_06b,
    roofline,
    throughput,
)
from nano_qwen3_serving.pictures.runs import (
    apart_and_together,
    in_groups,
    on_a_clock,
    record,
    warm_llm,
    with_and_without_cache,
)
from nano_qwen3_serving.pictures.schedule import batches_over_time, seats_film, seats_over_time
from nano_qwen3_serving.pictures.streams import Gate, exactly, held, one_by_one, read, serving, until
from nano_qwen3_serving.pictures.timeline import answer_over_time, streams_film, streams_over_time, tokens_over_time

__all__ = [
    "Card",
    "Film",
    "Gate",
    "MisledAttention",
    "Picture",
    "Roof",
    "Station",
    "StepsByHand",
    "WatchedAttention",
    "WatchedEngine",
    "WatchedSampler",
    "Work",
    "answer_over_time",
    "apart_and_together",
    "attend",
    "attention_reads",
    "attention_weights",
    "batches_over_time",
    "beside",
    "blocks_read",
    "bytes_for_a_token",
    "cache_film",
    "counted",
    "cut_film",
    "decode_work",
    "drawn",
    "exactly",
    "flat_batch",
    "generator",
    "grouped",
    "heads_sharing",
    "held",
    "hit_rate",
    "hit_rates",
    "in_groups",
    "kept_for_a_token",
    "keys_seen",
    "keys_seen_by_torch",
    "kv_heads_read",
    "latencies",
    "layers_film",
    "likeliest",
    "logits_after",
    "misled",
    "on_a_clock",
    "one_at_a_time",
    "one_by_one",
    "pool_film",
    "pool_over_time",
    "prefix_tree",
    "probabilities_changed",
    "products_apart",
    "qwen3_06b",
    "random_number",
    "read",
    "record",
    "record_prompts",
    "roofline",
    "rotary_pairs",
    "row",
    "rows_film",
    "seats_film",
    "seats_over_time",
    "seen_keys",
    "serving",
    "shares_drawn",
    "slots_held",
    "slots_in_blocks",
    "stages",
    "stations",
    "streams_film",
    "streams_over_time",
    "throughput",
    "tokens_again",
    "tokens_computed",
    "tokens_over_time",
    "top_tokens",
    "turned_by_hand",
    "until",
    "warm_llm",
    "with_and_without_cache",
]
