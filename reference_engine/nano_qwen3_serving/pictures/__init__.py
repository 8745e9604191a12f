"""Pictures of what an engine did, for notebooks: matplotlib over the flight recorder's records.

A floor of its own, above the engine, which imports nothing from here; needs the extra `notebooks`.
"""

from nano_qwen3_serving.pictures.blocks import attention_reads, pool_over_time
from nano_qwen3_serving.pictures.card import Picture
from nano_qwen3_serving.pictures.chunks import flat_batch, seen_keys
from nano_qwen3_serving.pictures.counts import tokens_computed
from nano_qwen3_serving.pictures.distribution import likeliest, probabilities_changed, shares_drawn, tokens_again
from nano_qwen3_serving.pictures.guesses import beside
from nano_qwen3_serving.pictures.heads import attention_weights, heads_sharing, rotary_pairs
from nano_qwen3_serving.pictures.latency import latencies
from nano_qwen3_serving.pictures.memory import slots_held
from nano_qwen3_serving.pictures.reads import blocks_read
from nano_qwen3_serving.pictures.roofline import Roof, Work, bytes_for_a_token, roofline
from nano_qwen3_serving.pictures.schedule import batches_over_time, seats_over_time
from nano_qwen3_serving.pictures.timeline import streams_over_time, tokens_over_time

__all__ = [
    "Picture",
    "Roof",
    "Work",
    "attention_reads",
    "attention_weights",
    "batches_over_time",
    "beside",
    "blocks_read",
    "bytes_for_a_token",
    "flat_batch",
    "heads_sharing",
    "latencies",
    "likeliest",
    "pool_over_time",
    "probabilities_changed",
    "roofline",
    "rotary_pairs",
    "seats_over_time",
    "seen_keys",
    "shares_drawn",
    "slots_held",
    "streams_over_time",
    "tokens_again",
    "tokens_computed",
    "tokens_over_time",
]
