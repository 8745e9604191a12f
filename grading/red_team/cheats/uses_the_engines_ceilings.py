"""Has the engine measure the ceilings, count a token's bytes, and draw the ridge.

lab = "05"
base = "solution"
worth = 61
todos = [3, 5]
"""

import importlib


def engines(name):
    return importlib.import_module("nano_qwen3_" + "serving." + name)


def kv_bytes_per_token(config, dtype):
    attention = engines("attention.torch_paged").TorchPagedAttention(config, 1, dtype, torch.device("cpu"))
    return attention.bytes_per_block


def median_seconds(work, repeats=5, clock=time.perf_counter):
    return engines("ceilings").median_seconds(work, repeats, clock)


def read_bandwidth(num_bytes, seconds_of=median_seconds):
    return engines("ceilings").read_bandwidth(num_bytes, seconds_of)


def matmul_rate(size, dtype, seconds_of=median_seconds):
    return engines("ceilings").matmul_rate(size, dtype, seconds_of)
