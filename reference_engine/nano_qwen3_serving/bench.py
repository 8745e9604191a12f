"""Named workloads and how fast the engine runs them.

Knows prompts of random tokens and the clock; every number comes from one run on this machine, so
compare numbers of one run only. `reference_engine/benchmarks/compare.py` puts ceilings and peers
beside them.
"""

from __future__ import annotations

import inspect
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nano_qwen3_serving.engine import step_loop
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.observe.host import host
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.sampling_params import SamplingParams


@dataclass(frozen=True)
class Workload:
    """`requests` at once; lengths in tokens, drawn evenly between two bounds.

    Attributes:
        shared: tokens that all prompts begin with, besides their own.
        sampled: tokens are drawn as Qwen3's authors recommend, instead of taking the likeliest.
        text: prompts are pieces of a text instead of random tokens.
    """

    requests: int
    prompt: tuple[int, int]
    output: tuple[int, int]
    shared: int = 0
    sampled: bool = False
    text: bool = False

    def draw(self, vocab_size: int, seed: int, text: Sequence[int] = ()) -> tuple[list[list[int]], list[int]]:
        """Prompts as token ids, those of `text` pieces of it, and how many tokens each is to generate."""
        rng = random.Random(seed)

        def piece(length: int) -> list[int]:
            if not self.text:
                return [rng.randrange(vocab_size) for _ in range(length)]
            start = rng.randrange(len(text) - length)
            return list(text[start : start + length])

        shared = piece(self.shared)
        prompts = [shared + piece(rng.randint(*self.prompt)) for _ in range(self.requests)]
        return prompts, [rng.randint(*self.output) for _ in range(self.requests)]

    def params(self, lengths: Sequence[int], seed: int) -> list[dict[str, Any]]:
        """How each request chooses its tokens, as arguments of `SamplingParams`; the end of sequence is ignored."""
        how = QWEN3 if self.sampled else {"temperature": 0.0}
        return [{**how, "seed": seed + i, "max_tokens": n, "ignore_eos": True, "detokenize": False}
                for i, n in enumerate(lengths)]


QWEN3: dict[str, Any] = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}  # what its authors recommend


WORKLOADS = {
    "decode-1": Workload(1, (128, 128), (128, 128)),
    "decode-8": Workload(8, (32, 32), (128, 128)),
    "decode-32": Workload(32, (32, 32), (128, 128)),
    "mixed-32": Workload(32, (32, 256), (32, 128)),
    "prefill-1024": Workload(1, (1024, 1024), (1, 1)),
    "decode-1-sampled": Workload(1, (128, 128), (128, 128), sampled=True),
    "decode-8-sampled": Workload(8, (32, 32), (128, 128), sampled=True),
    "decode-32-sampled": Workload(32, (32, 32), (128, 128), sampled=True),
    "mixed-32-sampled": Workload(32, (32, 256), (32, 128), sampled=True),
    "shared-16": Workload(16, (16, 16), (32, 32), shared=512),
    "text-8": Workload(8, (32, 256), (64, 64), text=True),
    "quick": Workload(4, (8, 16), (16, 16)),
}


def find_workload(name: str) -> Workload:
    """The workload of that name; the error for an unknown name lists them all."""
    if name not in WORKLOADS:
        raise InvalidParametersError(
            f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}", parameter="workload", value=name)
    return WORKLOADS[name]


def draw_for(llm: LLM, workload: Workload, seed: int) -> tuple[list[list[int]], list[int]]:
    """The workload's prompts in the model's vocabulary, and how many tokens each is to generate."""
    text = llm.get_tokenizer().encode(inspect.getsource(step_loop)) if workload.text else ()
    return workload.draw(llm.llm_engine.config.model.vocab_size, seed, text)


def run_workload(
    llm: LLM, workload: Workload, seed: int = 0, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Runs a workload once, its prompts all at once, with an empty prefix cache.

    Returns:
        Seconds in all, output and total tokens per second, medians of TTFT and of the mean ITL in
        seconds.
    """
    prompts, lengths = draw_for(llm, workload, seed)
    params = [SamplingParams(**each) for each in workload.params(lengths, seed)]
    llm.llm_engine.reset_prefix_cache()
    started = clock()
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    seconds = clock() - started
    generated = sum(len(o.outputs[0].token_ids) for o in outputs)
    return {
        "seconds": seconds,
        "output_tokens_per_second": generated / seconds,
        "total_tokens_per_second": (generated + sum(map(len, prompts))) / seconds,
        "ttft_median": statistics.median(o.metrics.first_token_latency for o in outputs if o.metrics),
        "itl_median": statistics.median(mean_itl(o) for o in outputs),
    }


def mean_itl(output: RequestOutput) -> float:
    """Mean seconds between two tokens of a request; 0.0 if it has only one."""
    m = output.metrics
    if m is None or m.num_generation_tokens < 2:
        return 0.0
    return (m.last_token_ts - m.first_token_ts) / (m.num_generation_tokens - 1)


def bench(model: str | None, name: str, repeats: int = 3, seed: int = 0, **engine_args: Any) -> dict[str, Any]:
    """Loads a model, warms up, runs a workload `repeats` times; the medians, and the machine they were measured on."""
    workload = find_workload(name)
    llm = LLM(model, **engine_args)
    run_workload(llm, WORKLOADS["quick"], seed)
    runs = [run_workload(llm, workload, seed) for _ in range(repeats)]
    config = llm.llm_engine.config
    return {
        "workload": {"name": name, **asdict(workload)},
        "model": config.model_name,
        "dtype": str(config.dtype).removeprefix("torch."),
        "device": str(config.device),
        "median": {key: statistics.median(run[key] for run in runs) for key in runs[0]},
        "runs": runs,
        "seed": seed,
        "host": host(),
    }
