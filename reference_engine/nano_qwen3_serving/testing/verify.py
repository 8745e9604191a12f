"""Compares this engine with transformers on the machine it runs on, and reports in one dict.

This is how we learn of correctness and speed on machines we do not have: `python -m
nano_qwen3_serving verify MODEL` writes the report as JSON. transformers is the oracle; our greedy
tokens are judged on its logits for the same sequence.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nano_qwen3_serving.components import Components, default_sampler
from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.interfaces import Sampler, SamplingRow
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.observe.progress import track
from nano_qwen3_serving.sampling_params import SamplingParams

QUESTIONS = ["What is a KV cache?", "Explain async programming in Python", "Count from 1 to 10", "你好"]
NUM_TOKENS = 32
MARGIN = 1e-4  # two best logits closer than this may change places
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}  # of the largest logit


class RecordingSampler:
    """The reference sampler, keeping the logits it was given."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.logits: list[Tensor] = []

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Any:
        """Samples, and keeps a copy of the logits on the CPU."""
        self.logits.append(logits.float().cpu())
        return self.sampler.sample(logits, rows)


def verify_model(model: str, device: str = "auto", dtype: str = "auto") -> dict[str, Any]:
    """Runs every comparison; `passed` says whether all of them held.

    Raises:
        InvalidParametersError, ModelLoadError: the model, device or dtype cannot be used.
    """
    recording: list[RecordingSampler] = []

    def make_sampler(config: EngineConfig) -> RecordingSampler:
        recording.append(RecordingSampler(default_sampler(config)))
        return recording[0]

    started = time.perf_counter()
    llm = LLM(model, device=device, dtype=dtype, components=Components(sampler=make_sampler))
    loaded = time.perf_counter()
    config = llm.llm_engine.config
    oracle = load_oracle(config)
    prompts = all_prompts(llm)
    comparisons = [
        compare(llm, oracle, recording[0], name, prompt)
        for name, prompt in track(prompts, "Comparing with transformers")
    ]
    return {
        "passed": all(c["passed"] for c in comparisons),
        "model": config.model_name,
        "device": str(config.device),
        "dtype": str(config.dtype).removeprefix("torch."),
        "load_seconds": loaded - started,
        "comparisons": comparisons,
        "speed": measure_speed(llm),
        "peak_memory_bytes": peak_memory(config.device),
        "host": {"platform": platform.platform(), "machine": platform.machine(), "python": platform.python_version()},
        "versions": {p: version(p) for p in ("torch", "transformers", "tokenizers", "safetensors")},
    }


def load_oracle(config: EngineConfig) -> Any:
    """transformers' model of the same checkpoint, device and dtype."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one progress bar is enough: ours
    try:
        oracle = AutoModelForCausalLM.from_pretrained(config.model_path, dtype=config.dtype)
    except Exception as error:
        raise ModelLoadError(f"transformers cannot load {config.model_path}: {error}") from error
    return oracle.to(config.device).eval()  # type: ignore[arg-type]  # transformers' decorator loses `self`


def all_prompts(llm: LLM) -> list[tuple[str, str]]:
    """Each question plain, and through the chat template with and without thinking."""
    template = llm.get_tokenizer().apply_chat_template
    prompts = []
    for question in QUESTIONS:
        message = [{"role": "user", "content": question}]
        prompts.append(("plain", question))
        for thinking in (True, False):
            name = "chat, thinking" if thinking else "chat, no thinking"
            prompts.append((name, template(message, enable_thinking=thinking)))
    return prompts


def compare(llm: LLM, oracle: Any, recording: RecordingSampler, name: str, prompt: str) -> dict[str, Any]:
    """One prompt: our greedy tokens and logits against the oracle's logits for the same sequence."""
    from transformers import AutoTokenizer

    config = llm.llm_engine.config
    recording.logits.clear()
    output = llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS), use_tqdm=False)[0]
    ours = torch.cat(recording.logits)
    tokens = output.outputs[0].token_ids
    theirs_ids = AutoTokenizer.from_pretrained(config.tokenizer_path)(prompt, add_special_tokens=False).input_ids
    sequence = torch.tensor([output.prompt_token_ids + tokens[:-1]], device=config.device)
    with torch.inference_mode():
        theirs = oracle(sequence).logits[0, -len(tokens):].float().cpu()
    best = theirs.topk(2, dim=-1)
    margins = (best.values[:, 0] - theirs.gather(1, torch.tensor(tokens)[:, None])[:, 0]).tolist()
    limit = TOLERANCE[config.dtype]
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    # In float32 the margin rule is exact; in lower precision it is the logits' own error.
    allowed = MARGIN if config.dtype == torch.float32 else 2 * limit * float(theirs.abs().max())
    same_prompt = theirs_ids == output.prompt_token_ids
    return {
        "form": name, "prompt": prompt, "text": output.outputs[0].text,
        "passed": same_prompt and error <= limit and max(margins) <= allowed,
        "tokens": len(tokens), "same_prompt_tokens": same_prompt,
        "logits_relative_error": error,
        "tokens_not_the_oracles_best": sum(m > 0 for m in margins),
        "largest_margin": max(margins),
    }


def measure_speed(llm: LLM) -> dict[str, float]:
    """Output tokens per second, alone and eight at a time, after a warm-up."""
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    speed = {}
    for count in (1, 8):
        prompts = [QUESTIONS[0]] * count
        llm.generate(prompts, params, use_tqdm=False)
        started = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        speed[f"tokens_per_second_batch_{count}"] = count * NUM_TOKENS / (time.perf_counter() - started)
    return speed


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far, both models together: on CUDA the device's, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # not measured there
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    table = Table(title=f"{report['model']} on {report['device']}, {report['dtype']}, against transformers")
    for column in ("prompt form", "answer", "logits, relative error", "tokens not the oracle's best", "result"):
        table.add_column(column)
    for c in report["comparisons"]:
        table.add_row(c["form"], c["text"].strip()[:40], f"{c['logits_relative_error']:.1e}",
                      f"{c['tokens_not_the_oracles_best']} of {c['tokens']}", "agrees" if c["passed"] else "DIFFERS")
    console.print(table)
    for name, value in report["speed"].items():
        console.print(f"{name.replace('_', ' ')}: {value:.1f}", highlight=False)
