"""What is left of an engine's throughput behind HTTP and server-sent events.

    python reference_engine/benchmarks/http_share.py --out reference_engine/benchmarks/results

The same requests go to `LLM.generate` in this process and, streamed, to `serve` in another one, never to both at once. Each
round does both, every other round in the other order; the share is the median of the rounds' own shares. HTTP's client needs
a core, too; the report says how much of one. With `--vllm PYTHON` they go to vLLM's server as well, on the same checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from compare import VLLM_ENVIRONMENT

from nano_qwen3_serving import LLM
from nano_qwen3_serving.bench import Workload
from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.observe.host import host
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.server.load_test.client import VOCABULARY, LoadPlan, load
from nano_qwen3_serving.server.load_test.report import LatencyLimits

BATCH = Workload(32, (32, 32), (128, 128))


@contextmanager
def serving(model: str, *options: str) -> Iterator[str]:
    """`serve` in a process of its own; its URL."""
    command = [sys.executable, "-m", "nano_qwen3_serving", "serve", "--model", model, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        try:
            yield next(found[1] for line in process.stdout if (found := re.search(r" is served at (\S+);", line)))
        finally:
            process.terminate()


@contextmanager
def vllm_serving(python: Path, config: EngineConfig) -> Iterator[str]:
    """vLLM's server on the same checkpoint, in a process of its own, from the environment of `python`; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(config.model_path),
               "--host", "127.0.0.1", "--port", str(port), "--dtype", str(config.dtype).removeprefix("torch.")]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env={**os.environ, **VLLM_ENVIRONMENT}, stdout=subprocess.DEVNULL) as process:
        try:
            while not is_healthy(url):
                if process.poll() is not None:
                    raise SystemExit(f"vLLM's server ended with {process.returncode}: {' '.join(command)}")
                time.sleep(1)
            yield url
        finally:
            process.terminate()


def is_healthy(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def engine_run(llm: LLM, workload: Workload, seed: int) -> float:
    """Output tokens per second of `LLM.generate`, text included as the server's answers have it."""
    prompts, lengths = workload.draw(VOCABULARY, seed)
    params = [SamplingParams(**each | {"detokenize": True}) for each in workload.params(lengths, seed)]
    llm.llm_engine.reset_prefix_cache()
    started = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - started)


def http_run(url: str, workload: Workload, seed: int) -> dict[str, Any]:
    """What clients of the server see who ask for all of it at once."""
    report = asyncio.run(load(url, LoadPlan(workload, seed=seed), LatencyLimits(), show_progress=False))
    assert not report["failures"], report["failure_examples"]
    return report


def one_round(llm: LLM, url: str, vllm_url: str | None, workload: Workload, seed: int) -> dict[str, float]:
    """All of them, one after the other; whether the engine or its server goes first depends on the seed."""
    if seed % 2:
        seen = http_run(url, workload, seed)
        engine = engine_run(llm, workload, seed)
    else:
        engine = engine_run(llm, workload, seed)
        seen = http_run(url, workload, seed)
    http = seen["output_tokens_per_second"]
    vllm = {}
    if vllm_url is not None:
        theirs = http_run(vllm_url, workload, seed)["output_tokens_per_second"]
        vllm = {"vllm_http_tokens_per_second": theirs, "http / vllm_http": http / theirs}
    return vllm | {"engine_tokens_per_second": engine, "http_tokens_per_second": http, "share": http / engine,
            "client_cpu_share": seen["client_cpu_share"], **{f"http_{name}_p50": seen[name]["p50"] for name in ("ttft", "itl")}}


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON report.")] = None,
    model: str = "course",
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    stream_interval: Annotated[int, typer.Option(min=1, help="Of the server.")] = 1,
    stream_pause: Annotated[float, typer.Option(min=0, help="Of the server.")] = 0.02,
    seed: int = 0,
    vllm: Annotated[Path | None, typer.Option(help="The Python of an environment with vLLM, to measure its server, too.")] = None,
) -> None:
    """Measure how much of the engine's throughput its HTTP clients get."""
    busy = os.getloadavg()[0]
    llm = LLM(model)
    theirs = nullcontext() if vllm is None else vllm_serving(vllm, llm.llm_engine.config)
    options = ("--stream-interval", str(stream_interval), "--stream-pause", str(stream_pause))
    with serving(model, *options) as url, theirs as vllm_url:
        one_round(llm, url, vllm_url, BATCH, seed)
        measured = [one_round(llm, url, vllm_url, BATCH, seed + i) for i in range(1, rounds + 1)]
    medians = {name: statistics.median(each[name] for each in measured) for name in measured[0]}
    for name, value in medians.items():
        Console().print(f"{name.replace('_', ' '):28} {value:10.3f}")
    report = {
        "workload": asdict(BATCH), "model": model, "stream_interval": stream_interval, "stream_pause": stream_pause,
        "median": medians, "rounds": measured,
        "seed": seed, "load_average_before": busy, "host": host()}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "http_share.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
