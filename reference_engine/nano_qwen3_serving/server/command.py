"""`python -m nano_qwen3_serving serve`, and `bench --serve`: the terminal's side of a server and of its clients.

Knows vLLM's flags; what needs the extra `[server]`, or takes long to import, is imported when the command runs.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from nano_qwen3_serving.exceptions import EngineError, InvalidParametersError, shown

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EXTRA = ("fastapi", "starlette", "pydantic", "uvicorn", "h11", "prometheus_client", "httpx")

Number = int | None
ENGINE, NETWORK, BOUNDS = "Engine", "Network", "Bounds"
TRY = '{"prompt": "What is a KV cache?", "max_tokens": 60, "temperature": 0}'


def serve(
    model: Annotated[str | None, typer.Option(
        help="course, course-draft, a folder, or a Hugging Face id.", rich_help_panel=ENGINE)] = None,
    served_model_name: Annotated[list[str] | None, typer.Option(
        help="What clients call the model; may be given several times.", rich_help_panel=ENGINE)] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.", rich_help_panel=ENGINE)] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=ENGINE)] = "auto",
    max_model_len: Annotated[Number, typer.Option(help="Tokens of a request.", rich_help_panel=ENGINE)] = None,
    block_size: Annotated[Number, typer.Option(help="Tokens in a KV block.", rich_help_panel=ENGINE)] = None,
    num_gpu_blocks_override: Annotated[Number, typer.Option(help="KV blocks.", rich_help_panel=ENGINE)] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(
        help="Share of a CUDA device's memory.", rich_help_panel=ENGINE)] = 0.92,
    max_num_seqs: Annotated[Number, typer.Option(help="Requests that run at once.", rich_help_panel=ENGINE)] = None,
    max_num_batched_tokens: Annotated[Number, typer.Option(help="Tokens of a step.", rich_help_panel=ENGINE)] = None,
    scheduling_policy: Annotated[str, typer.Option(help="fcfs or priority.", rich_help_panel=ENGINE)] = "fcfs",
    enable_prefix_caching: Annotated[bool, typer.Option(help="Share equal beginnings.", rich_help_panel=ENGINE)] = True,
    enforce_eager: Annotated[bool, typer.Option(help="As in vLLM; changes nothing here.", rich_help_panel=ENGINE)] = False,
    stream_interval: Annotated[int, typer.Option(
        min=1, help="Tokens in a piece of a stream, after the first.", rich_help_panel=ENGINE)] = 1,
    stream_pause: Annotated[float, typer.Option(
        min=0, help="Seconds between two pieces of a stream, at least.", rich_help_panel=ENGINE)] = 0.02,
    seed: Annotated[int, typer.Option(help="Of requests that bring none.", rich_help_panel=ENGINE)] = 0,
    host: Annotated[str, typer.Option(
        help="0.0.0.0 lets other machines in; give an --api-key then.", rich_help_panel=NETWORK)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=NETWORK)] = 8000,
    api_key: Annotated[str | None, typer.Option(
        envvar="NANO_QWEN3_API_KEY", show_envvar=True, help="What clients must send.", rich_help_panel=NETWORK)] = None,
    allowed_origins: Annotated[list[str] | None, typer.Option(
        help="Of pages whose scripts may call the server (CORS); '*' is all.", rich_help_panel=NETWORK)] = None,
    allowed_hosts: Annotated[list[str] | None, typer.Option(
        help="More names by which clients may call the server.", rich_help_panel=NETWORK)] = None,
    uvicorn_log_level: Annotated[str, typer.Option(help="info shows each request.", rich_help_panel=NETWORK)] = "warning",
    max_num_queued_reqs: Annotated[int, typer.Option(min=1, help="Requests that may wait.", rich_help_panel=BOUNDS)] = 1000,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Of a request.", rich_help_panel=BOUNDS)] = 4 << 20,
    max_connections: Annotated[int, typer.Option(
        min=1, help="Open at once, of all clients.", rich_help_panel=BOUNDS)] = 2048,
    request_timeout: Annotated[float, typer.Option(help="Seconds, waiting included.", rich_help_panel=BOUNDS)] = 600.0,
    drain_timeout: Annotated[float, typer.Option(
        min=0, help="Seconds that running requests get to finish when the server is stopped.", rich_help_panel=BOUNDS)] = 30.0,
) -> None:
    """Serve a model over HTTP, as OpenAI and vLLM do."""
    run = imported("serve", "the server").run_server
    if api_key is None and not is_loopback(host):
        print(f"warning: whoever reaches {host}:{port} can use the model; give an --api-key", file=sys.stderr)
    is_clean = run(
        {"model": model, "dtype": dtype, "device": device, "max_model_len": max_model_len, "block_size": block_size,
         "num_gpu_blocks_override": num_gpu_blocks_override, "gpu_memory_utilization": gpu_memory_utilization,
         "max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens,
         "scheduling_policy": scheduling_policy, "enable_prefix_caching": enable_prefix_caching,
         "enforce_eager": enforce_eager, "stream_interval": stream_interval, "stream_pause": stream_pause,
         "seed": seed,
         "max_num_queued_reqs": max_num_queued_reqs},
        host=host, port=port, log_level=uvicorn_log_level, drain_seconds=drain_timeout, announce=announce,
        body_bytes=max_body_bytes, request_seconds=request_timeout, connections=max_connections,
        served_model_names=served_model_name or (), api_key=api_key, allowed_origins=listed("allowed_origins", allowed_origins),
        allowed_hosts=names_of(host, api_key, listed("allowed_hosts", allowed_hosts)))
    raise typer.Exit(0 if is_clean else 1)


def measured(
    url: str, workload: str, requests: int | None, *, limits: Mapping[str, float | None], model: str | None, api_key: str | None,
    show_progress: bool, **plan: Any,
) -> dict[str, Any]:
    """What `load` measures of the server at `url`, with a named workload of as many `requests`; None is the workload's own."""
    load = imported("load_test.client", "bench --serve")
    import asyncio  # a tenth of the time that --help takes

    from nano_qwen3_serving.bench import find_workload

    lengths = find_workload(workload)
    lengths = replace(lengths, requests=lengths.requests if requests is None else requests)
    made = load.LoadPlan(lengths, **plan)
    report: dict[str, Any] = asyncio.run(load.load(
        url, made, load.LatencyLimits(**limits), model=model, api_key=api_key, show_progress=show_progress))
    return report


def imported(module: str, what: str) -> Any:
    """A module of the server. Raises an `EngineError` that says what to install, if that is missing."""
    try:
        return importlib.import_module(f"nano_qwen3_serving.server.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise EngineError(f"{what} needs {error.name}, which is not installed: pip install 'nano-qwen3-serving[server]', "
                          "or, in the course's folder, pip install -r requirements.txt") from error


def announce(url: str, model: str, needs_key: bool) -> None:
    """Says where the server is, and one thing to try there."""
    key = " -H 'Authorization: Bearer '$NANO_QWEN3_API_KEY" if needs_key else ""
    print(f"{model} is served at {url}; try: curl {url}/v1/completions{key} -H 'Content-Type: application/json' -d '{TRY}'",
          flush=True)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach it."""
    return host in LOOPBACK or host.startswith("127.")


def names_of(host: str, api_key: str | None, more: list[str]) -> list[str] | None:
    """Names by which clients may call the server; None is any.

    Without a key a loopback address is the only guard, and pages on the web can get around that, see `KnownHosts`. With a
    key they would have to know it.
    """
    if more:
        return [*more, host, *LOOPBACK]
    return [host, *LOOPBACK] if api_key is None and is_loopback(host) else None


def listed(name: str, values: list[str] | None) -> list[str]:
    """An option that was given several times, or once as vLLM has it: a list in JSON."""
    if not values or not values[0].startswith("["):
        return values or []
    try:
        parsed = json.loads(values[0])
    except ValueError:
        parsed = None
    if not isinstance(parsed, list) or not all(isinstance(value, str) for value in parsed):
        raise InvalidParametersError(f"{name} must be a list of strings in JSON, got {shown(values[0])}", parameter=name,
                                     value=values[0])
    return parsed
