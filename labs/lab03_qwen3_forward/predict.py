"""The truth behind predict.toml: each question's function runs torch, transformers or the engine."""

import torch
import torch.nn.functional as F

from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder


def case(random) -> dict:
    """A layer's shape, two positions, a chunk, and three prompts."""
    kv_heads, group = random.choice([2, 3, 4]), random.choice([2, 3, 4])
    prompts = random.sample(range(4, 24), 3)
    key_position = random.randint(2, 40)
    return {
        "factor": random.randint(2, 9),
        "key_position": key_position, "query_position": key_position + random.randint(1, 9), "shift": random.randint(5, 90),
        "hidden": 8 * random.randint(3, 12), "head_dim": 4 * random.randint(2, 8),
        "kv_heads": kv_heads, "heads": kv_heads * group, "head": random.randrange(kv_heads * group),
        "start": random.randint(2, 12), "count": random.randint(2, 6),
        "prompt_a": prompts[0], "prompt_b": prompts[1], "prompt_c": prompts[2], "chunk": random.choice(sorted(prompts)),
        "generated": random.randint(3, 6),
    }  # fmt: skip


def norm_of_a_larger_row(case: dict) -> str:
    row = torch.randn(64, dtype=torch.float64)
    before, after = (F.rms_norm(x, (64,), eps=1e-12).abs().sum() for x in (row, case["factor"] * row))
    return "same" if torch.isclose(before, after) else "larger" if after > before else "smaller"


def score_after_a_shift(case: dict) -> str:
    query, key = torch.randn(2, 8, dtype=torch.complex128)  # eight pairs each, as complex numbers

    def score(shift: int) -> float:
        places = torch.tensor([[case["query_position"] + shift], [case["key_position"] + shift]])
        angles = places * 10_000.0 ** (-torch.arange(8) / 8)
        q, k = torch.stack([query, key]) * torch.polar(torch.ones(2, 8, dtype=torch.float64), angles.double())
        return float((q * k.conj()).real.sum())

    change = score(case["shift"]) - score(0)
    return "stays" if abs(change) < 1e-4 else "grows" if change > 0 else "shrinks"


def attention_numbers(case: dict) -> int:
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    config = Qwen3Config(
        hidden_size=case["hidden"], num_attention_heads=case["heads"], num_key_value_heads=case["kv_heads"],
        head_dim=case["head_dim"], num_hidden_layers=1,
    )
    with torch.device("meta"):
        layer = Qwen3Attention(config, 0)
    return sum(parameter.numel() for name, parameter in layer.named_parameters() if "_proj" in name)


def kv_head(case: dict) -> int:
    values = torch.arange(case["kv_heads"], dtype=torch.float32).view(1, -1, 1, 1)  # KV head g holds the number g
    q = torch.randn(1, case["heads"], 1, 1)
    read = F.scaled_dot_product_attention(q, values, values, enable_gqa=True)
    return round(float(read[0, case["head"], 0, 0]))


def scores_of_a_chunk(case: dict) -> int:
    """Each key has a value of its own direction: what reaches the output was seen."""
    end = case["start"] + case["count"]
    mask = torch.ones(end, end, dtype=torch.bool).tril()[case["start"] :]
    q, k, v = torch.randn(1, case["count"], 4), torch.randn(1, end, 4), torch.eye(end)[None]
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return int((seen > 0).sum())


def rows_of_logits(case: dict) -> int:
    engine = _engine(long_prefill_token_threshold=case["chunk"])
    for name in "abc":
        _add(engine, name, case[f"prompt_{name}"])
    model, rows = engine.model_runner.model, []
    compute = model.compute_logits
    model.compute_logits = lambda hidden: rows.append(len(hidden)) or compute(hidden)
    engine.step()
    return sum(rows)


def tokens_without_a_cache(case: dict) -> int:
    """Every new token is a request of its own, whose prompt is all there is so far."""
    engine = _engine(enable_prefix_caching=False)
    for length in range(case["prompt_a"], case["prompt_a"] + case["generated"]):
        _add(engine, f"after {length}", length)
        while engine.has_unfinished_requests():
            engine.step()
    return sum(chunk["num_tokens"] for step in engine.recorder.steps for chunk in step["chunks"])


def _engine(**arguments) -> LLMEngine:
    return LLMEngine.from_engine_args(EngineArgs(model="course-draft", device="cpu", **arguments), recorder=Recorder())


def _add(engine: LLMEngine, name: str, length: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    engine.add_request(name, {"prompt_token_ids": list(range(300, 300 + length))}, params)
