"""This engine beside ceilings and peers, in one run: ratios that a noisy machine does not change much.

    python reference_engine/benchmarks/make_checkpoint.py --like qwen3-0.6b /tmp/qwen3-0.6b
    python reference_engine/benchmarks/compare.py /tmp/qwen3-0.6b --out reference_engine/benchmarks/results

With `--vllm PYTHON`, vLLM is measured, too: a new process in each round (README.md says how to make its environment).
Every round measures everything once, one after the other, what is compared side by side. Reported are
the medians of the rounds, of the figures and of each round's own ratios: the machine changes between rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from bare_loop import BareLoop
from memory import memory_of_loading

from nano_qwen3_serving import LLM
from nano_qwen3_serving.bench import WORKLOADS, Workload, draw_for, run_workload
from nano_qwen3_serving.ceilings import ceilings
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.observe.host import host
from nano_qwen3_serving.observe.progress import track

DECODES = ("decode-1", "decode-8", "decode-32")
VLLM_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "3", "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}"}

Measure = Callable[[], float]


def engine_rate(llm: LLM, name: str, seed: int) -> float:
    """Output tokens per second; for the prefill workload prompt tokens per second."""
    result = run_workload(llm, WORKLOADS[name], seed)
    return result["total_tokens_per_second"] if name.startswith("prefill") else result["output_tokens_per_second"]


def bare_rate(llm: LLM, workload: Workload, seed: int) -> float:
    """Output tokens per second of the bare loop on the engine's own weights."""
    engine = llm.llm_engine
    prompts, outputs = workload.draw(engine.config.model.vocab_size, seed)
    length = len(prompts[0]) + outputs[0]
    loop = BareLoop(engine.model_runner.model, engine.model_runner.attention, workload.requests, length)
    return workload.requests * outputs[0] / loop.run(torch.tensor(prompts), outputs[0])


def generate_rate(peer: Any, workload: Workload, seed: int) -> float:
    """Output tokens per second of transformers' `generate`."""
    prompts, outputs = workload.draw(peer.config.vocab_size, seed)
    started = time.perf_counter()
    with torch.inference_mode():
        peer.generate(torch.tensor(prompts), max_new_tokens=outputs[0], min_new_tokens=outputs[0], do_sample=False)
    return workload.requests * outputs[0] / (time.perf_counter() - started)


def generate_batch_rate(peer: Any, workload: Workload, seed: int) -> float:
    """Output tokens per second of transformers' continuous batching."""
    from transformers import GenerationConfig

    prompts, outputs = workload.draw(peer.config.vocab_size, seed)
    settings = GenerationConfig(
        max_new_tokens=outputs[0], min_new_tokens=outputs[0], do_sample=False, eos_token_id=-1, pad_token_id=0)
    started = time.perf_counter()
    results = peer.generate_batch(prompts, generation_config=settings, progress_bar=False)
    seconds = time.perf_counter() - started
    generated = sum(len(r.generated_tokens) for r in results.values())
    return generated / seconds


def vllm_rates(python: Path, model: Path, llm: LLM, seed: int) -> dict[str, float]:
    """Tokens per second of vLLM in a new process, counted as the engine's are, for every workload."""
    drawn = {name: draw_for(llm, workload, seed) for name, workload in WORKLOADS.items()}
    asked = {name: {"prompts": prompts, "params": [
        each | {"seed": None} for each in WORKLOADS[name].params(lengths, seed)]}  # on a CPU it cannot draw with one of its own
             for name, (prompts, lengths) in drawn.items()}
    script = Path(__file__).with_name("vllm_seconds.py")
    done = subprocess.run(
        [str(python), str(script), str(model)], input=json.dumps(asked), capture_output=True, text=True,
        env={**os.environ, **VLLM_ENVIRONMENT}, check=False)
    if done.returncode:
        raise SystemExit(f"vLLM did not run: {python} {script} {model} failed\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    rates = {}
    for name, (prompts, lengths) in drawn.items():
        tokens = sum(lengths) + (sum(map(len, prompts)) if name.startswith("prefill") else 0)
        rates[f"vLLM {answer['version']} {name}"] = tokens / answer["seconds"][name]
    return rates


PEERS = {"decode-1": ("generate", generate_rate), "decode-32": ("generate_batch", generate_batch_rate)}


def measures(llm: LLM, peer: Any, seed: int, peers: bool) -> dict[str, Measure]:
    """Everything that a round measures, by name, neighbours in time that are to be compared."""
    todo: dict[str, Measure] = {}
    for name in DECODES:
        todo[f"engine {name}"] = lambda name=name: engine_rate(llm, name, seed)
        todo[f"bare loop {name}"] = lambda name=name: bare_rate(llm, WORKLOADS[name], seed)
        if peers and name in PEERS:
            peer_name, rate = PEERS[name]
            todo[f"transformers {peer_name} {name}"] = lambda name=name, rate=rate: rate(peer, WORKLOADS[name], seed)
        todo[f"engine {name}-sampled"] = lambda name=name: engine_rate(llm, f"{name}-sampled", seed)
    for name in ("mixed-32", "mixed-32-sampled", "prefill-1024", "shared-16", "text-8"):
        todo[f"engine {name}"] = lambda name=name: engine_rate(llm, name, seed)
    return todo


def flops_per_token(config: ModelConfig) -> float:
    """Of the matrices of the layers, without the head."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = config.hidden_size * config.head_dim * heads + 3 * config.hidden_size * config.intermediate_size
    return 2.0 * layer * config.num_hidden_layers


def ratios(rates: dict[str, float], limits: dict[str, float], config: ModelConfig) -> dict[str, float]:
    """The figures of one round that the project has bars for."""
    result = {f"engine / bare loop, {n}": rates[f"engine {n}"] / rates[f"bare loop {n}"] for n in DECODES}
    result |= {f"sampled / greedy, {n}": rates[f"engine {n}-sampled"] / rates[f"engine {n}"] for n in (*DECODES, "mixed-32")}
    prefill = rates["engine prefill-1024"] * flops_per_token(config)
    result["prefill / matmul ceiling"] = prefill / limits["matmul_bf16_flops"]
    for name, (peer, _) in PEERS.items():
        key = f"transformers {peer} {name}"
        if key in rates:
            result[f"engine / transformers {peer}, {name}"] = rates[f"engine {name}"] / rates[key]
    for key, rate in rates.items():
        if key.startswith("vLLM ") and (mine := rates.get(f"engine {key.split()[-1]}")):
            result[f"engine / {key}"] = mine / rate
    return result


def medians_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def show(report: dict[str, Any]) -> None:
    """The report as tables."""
    console = Console()
    for title, values, form in (("Ceilings", report["ceilings"], "{:.3g}"), ("Tokens per second", report["medians"], "{:.1f}"),
                                ("Ratios", report["ratios"], "{:.2f}"), ("Memory of loading", report["memory"], "{:.3g}")):
        table = Table(title=title, title_justify="left")
        table.add_column("what")
        table.add_column("median" if title != "Memory of loading" else "value", justify="right")
        for name, value in values.items():
            table.add_row(name, form.format(value))
        console.print(table)


def main(
    model: Annotated[Path, typer.Argument(help="A checkpoint, see make_checkpoint.py.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON report.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seed: int = 0,
    peers: Annotated[bool, typer.Option(help="Measure transformers, too.")] = True,
    vllm: Annotated[Path | None, typer.Option(help="The Python of an environment with vLLM, to measure it, too.")] = None,
) -> None:
    """Measure ceilings, a bare loop, transformers, vLLM and this engine, interleaved."""
    memory = memory_of_loading(model)
    llm = LLM(str(model), dtype="bfloat16", max_model_len=2048, max_num_seqs=64)
    run_workload(llm, WORKLOADS["quick"], seed)
    peer = None
    if peers:
        from transformers import AutoModelForCausalLM

        peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    todo = measures(llm, peer, seed, peers)
    limits, runs = [], []
    for _ in range(rounds):
        limits.append(ceilings())
        runs.append({name: todo[name]() for name in track(list(todo), "Measuring")})
        if vllm is not None:
            runs[-1] |= vllm_rates(vllm, model, llm, seed)
    config = llm.llm_engine.config.model
    report = {
        "ratios": medians_of([ratios(*both, config) for both in zip(runs, limits, strict=True)]),
        "medians": medians_of(runs), "ceilings": medians_of(limits),
        "memory": memory, "runs": runs, "seed": seed, "model": model.name,
        "workloads": {n: vars(w) for n, w in WORKLOADS.items()}, "host": host(),
    }
    show(report)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "compare.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
