"""The truth behind predict.toml: each question's function runs the engine or its attention."""

import functools

import torch

from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.execution.model_runner import ModelRunner
from nano_qwen3_serving.interfaces import AttentionMetadata, ScheduledBatch, ScheduledChunk
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.request import Request

BLOCK_SIZE = 4


def case(random) -> dict:
    """A block table, a prompt longer than a step, four chunks, a length, and a model's shape."""
    budget = random.randint(5, 9)
    prompt = budget + random.randint(4, 9)
    return {
        "table": random.sample(range(3, 30), 3), "position": random.randint(4, 11),
        "budget": budget, "prompt": prompt, "row": random.randint(1, min(budget, prompt - budget) - 1),
        "chunk_a": random.randint(2, 6), "chunk_c": random.randint(2, 6), "computed": random.randint(6, 21),
        "layers": random.choice([3, 6, 28]), "kv_heads": random.choice([2, 8]), "head_dim": random.choice([32, 128]),
    }


def slot(case: dict) -> int:
    return _attention().slots(case["table"], range(case["position"], case["position"] + 1))[0]


def second_chunk(case: dict) -> int:
    steps = _run(prompt=case["prompt"], budget=case["budget"], tokens=1).steps
    return steps[1]["chunks"][0]["start"]


def keys_of_row(case: dict) -> int:
    """Value i is 1 at i and 0 elsewhere, so the result is the row's weights: count those above 0."""
    start, length = case["budget"], case["prompt"]
    attention = _attention(num_kv_heads=1, head_dim=length)
    cache = attention.make_cache(-(-length // BLOCK_SIZE) + 1)[0]
    table = list(range(1, len(cache[0])))
    slots = torch.tensor(attention.slots(table, range(length)))
    attention.write(cache, torch.zeros(length, 1, length), torch.eye(length)[:, None], slots)
    metadata = AttentionMetadata(
        [length - start], [length], torch.tensor([table]), slots[start:], int(length - start == 1), BLOCK_SIZE)
    weights = attention.forward(torch.zeros(length - start, 1, length), cache, metadata)
    return int((weights[case["row"], 0] > 0).sum())


def row_of_c(case: dict) -> int:
    chunks = [_chunk(name, n) for name, n in zip("abcd", (case["chunk_a"], 1, case["chunk_c"], 1), strict=True)]
    runner = ModelRunner(None, _attention(), None, num_blocks=2, block_size=BLOCK_SIZE, device=torch.device("cpu"))
    inputs = runner.lay_out(ScheduledBatch(chunks))
    names = [chunk.request.request_id for chunk in inputs.chunks]
    return sum(inputs.metadata.query_lens[: names.index("c")])


def blocks_read(case: dict) -> int:
    steps = _run(prompt=case["computed"] - 2, budget=64, tokens=4).steps
    (step,) = [s for s in steps if s["chunks"][0]["start"] == case["computed"]]
    return len(step["block_tables"]["a"])


def bytes_of_block(case: dict) -> int:
    return _attention(case["layers"], case["kv_heads"], case["head_dim"], torch.bfloat16).bytes_per_block


def first_call(case: dict) -> str:
    return _run(prompt=3, budget=64, tokens=1).calls[0]


def _attention(layers: int = 1, num_kv_heads: int = 2, head_dim: int = 8, dtype=torch.float32) -> TorchPagedAttention:
    config = ModelConfig(
        vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=num_kv_heads,
        num_key_value_heads=num_kv_heads, head_dim=head_dim, max_position_embeddings=64)
    return TorchPagedAttention(config, BLOCK_SIZE, dtype, torch.device("cpu"))


def _chunk(name: str, count: int) -> ScheduledChunk:
    request = Request(name, None, list(range(1, count + 1)), SamplingParams(), seed=0, max_total_tokens=64)
    return ScheduledChunk.of(request, 0, count, [1, 2])


class _Calls(TorchPagedAttention):
    """The engine's attention; notes what is called, in order."""

    def __init__(self, config, calls: list[str]):
        super().__init__(config.model, config.cache.block_size, config.dtype, config.device)
        self.calls = calls

    def write(self, *args):
        self.calls.append("write")
        super().write(*args)

    def forward(self, *args):
        self.calls.append("forward")
        return super().forward(*args)


@functools.cache
def _run(prompt: int, budget: int, tokens: int) -> Recorder:
    """The recorder of request "a", alone, with the attention's `calls` in order."""
    recorder = Recorder()
    recorder.calls = []
    engine = LLMEngine.from_engine_args(
        EngineArgs(model="course-draft", block_size=BLOCK_SIZE, max_num_batched_tokens=budget, max_num_seqs=4),
        Components(attention=lambda config: _Calls(config, recorder.calls)), recorder=recorder)
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    engine.add_request("a", {"prompt_token_ids": list(range(300, 300 + prompt))}, params)
    while engine.has_unfinished_requests():
        engine.step()
    return recorder
