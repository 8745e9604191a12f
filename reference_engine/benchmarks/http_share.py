"""What is left of an engine's throughput behind HTTP and server-sent events.

    python reference_engine/benchmarks/http_share.py --out reference_engine/benchmarks/results

The same requests go to `LLM.generate` in this process and, streamed, to `serve` in another one, never to both at once. Each
round does both, every other round in the other order; the share is the median of the rounds' own shares. HTTP's client needs
a core, too; the report says how much of one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nano_qwen3_serving import LLM
from nano_qwen3_serving.bench import Workload
from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.observe.host import host
from nano_qwen3_serving.server.load import VOCABULARY, LoadPlan, load
from nano_qwen3_serving.server.load_report import LatencyLimits

BATCH = Workload(32, (32, 32), (128, 128))


@contextmanager
def serving(model: str, stream_interval: int) -> Iterator[str]:
    """`serve` in a process of its own; its URL."""
    command = [sys.executable, "-m", "nano_qwen3_serving", "serve", "--model", model, "--port", "0",
               "--stream-interval", str(stream_interval)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        try:
            yield next(found[1] for line in process.stdout if (found := re.search(r" is served at (\S+);", line)))
        finally:
            process.terminate()


def engine_run(llm: LLM, workload: Workload, seed: int) -> float:
    """Output tokens per second of `LLM.generate`, text included as the server's answers have it."""
    prompts, lengths = workload.draw(VOCABULARY, seed)
    params = [each.clone(detokenize=True) for each in workload.params(lengths, seed)]
    llm.llm_engine.reset_prefix_cache()
    started = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - started)


def http_run(url: str, workload: Workload, seed: int) -> dict[str, Any]:
    """What clients of the server see who ask for all of it at once."""
    report = asyncio.run(load(url, LoadPlan(workload, seed=seed), LatencyLimits(), show_progress=False))
    assert not report["failures"], report["failure_examples"]
    return report


def one_round(llm: LLM, url: str, workload: Workload, seed: int) -> dict[str, float]:
    """Both, one after the other; which goes first depends on the seed."""
    if seed % 2:
        seen = http_run(url, workload, seed)
        engine = engine_run(llm, workload, seed)
    else:
        engine = engine_run(llm, workload, seed)
        seen = http_run(url, workload, seed)
    http = seen["output_tokens_per_second"]
    return {"engine_tokens_per_second": engine, "http_tokens_per_second": http, "share": http / engine,
            "client_cpu_share": seen["client_cpu_share"], **{f"http_{name}_p50": seen[name]["p50"] for name in ("ttft", "itl")}}


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON report.")] = None,
    model: str = "course",
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    stream_interval: Annotated[int, typer.Option(min=1, help="Of the server.")] = 1,
    seed: int = 0,
) -> None:
    """Measure how much of the engine's throughput its HTTP clients get."""
    busy = os.getloadavg()[0]
    llm = LLM(model)
    with serving(model, stream_interval) as url:
        one_round(llm, url, BATCH, seed)
        measured = [one_round(llm, url, BATCH, seed + i) for i in range(1, rounds + 1)]
    medians = {name: statistics.median(each[name] for each in measured) for name in measured[0]}
    for name, value in medians.items():
        Console().print(f"{name.replace('_', ' '):28} {value:10.3f}")
    report = {
        "workload": asdict(BATCH), "model": model, "stream_interval": stream_interval, "median": medians, "rounds": measured,
        "seed": seed, "load_average_before": busy, "host": host()}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "http_share.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
