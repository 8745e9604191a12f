"""The truth behind predict.toml: the engine's flight recorder, its block pool, and torch's FLOP counter."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from labs.lab05_kv_cache_and_roofline.network import Network
from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.observe.trace import Recorder


def case(random) -> dict:
    """A prompt, a shape, a matrix and a machine."""
    kv_heads = random.choice([2, 4, 8])
    bandwidth = random.choice([20, 25, 40, 50])
    return {
        "prompt": random.randint(5, 15), "new": random.randint(4, 9),
        "layers": random.randint(2, 9), "kv_heads": kv_heads, "heads": kv_heads * random.choice([2, 4]),
        "head_dim": random.choice([32, 64, 128]),
        "batch": random.randint(3, 12), "rows": random.randint(2, 9) * 10, "columns": random.randint(2, 9) * 10,
        "bandwidth": bandwidth, "rate": bandwidth * random.randint(5, 30) + random.choice([0, 10]),
    }


def tokens_without_cache(case: dict) -> int:
    """Runs the loop and counts what the network is given."""
    network, tokens, computed = Network("course-draft"), list(range(300, 300 + case["prompt"])), 0
    for _ in range(case["new"]):
        computed += len(tokens)
        tokens.append(int(network(tokens, 0, lambda layer, k, v: (k, v)).argmax()))
    return computed


def tokens_with_cache(case: dict) -> int:
    """What the engine's recorder saw computed."""
    engine = LLMEngine.from_engine_args(EngineArgs(model="course-draft"), recorder=Recorder())
    params = SamplingParams(temperature=0.0, max_tokens=case["new"], ignore_eos=True)
    engine.add_request("a", {"prompt_token_ids": list(range(300, 300 + case["prompt"]))}, params)
    while engine.has_unfinished_requests():
        engine.step()
    return sum(chunk["num_tokens"] for step in engine.recorder.steps for chunk in step["chunks"])


def bytes_of_a_token(case: dict) -> int:
    """The bytes of a cache of the engine with room for one token."""
    config = ModelConfig(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"], num_key_value_heads=case["kv_heads"], head_dim=case["head_dim"],
        max_position_embeddings=64)
    cache = TorchPagedAttention(config, 1, torch.bfloat16, torch.device("cpu")).make_cache(1)
    return sum(tensor.nbytes for layer in cache for tensor in layer)


def flops_of_a_matrix(case: dict) -> int:
    return _counted(torch.ones(case["batch"], case["columns"]), torch.ones(case["columns"], case["rows"]))


def attention_in_a_batch(case: dict) -> str:
    """Queries of a batch times keys of its own: FLOPs per byte of keys, for one sequence and for many."""
    intensity = {}
    for batch in (1, case["batch"]):
        queries, keys = torch.ones(batch, 4, 16), torch.ones(batch, 16, 50)
        intensity[batch] = _counted(queries, keys) / keys.nbytes
    one, many = intensity.values()
    return "stays" if one == many else "grows" if many > one else "shrinks"


def first_batch_that_computes(case: dict) -> int:
    """Tries one batch after the other."""
    matrix, batch = torch.ones(50, 40, dtype=torch.bfloat16), 1
    while _counted(torch.ones(batch, 50), matrix.float()) * case["bandwidth"] < matrix.nbytes * case["rate"]:
        batch += 1
    return batch


def _counted(a: torch.Tensor, b: torch.Tensor) -> int:
    """FLOPs of a @ b, by torch's count."""
    with FlopCounterMode(display=False) as counter:
        a @ b
    return counter.get_total_flops()
