"""`python -m nano_qwen3_serving`: the engine from a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nano_qwen3_serving.exceptions import EngineError, InvalidParametersError
from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.server.command import measured, serve
from nano_qwen3_serving.server.load_test.report import show as show_load

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="A serving engine for Qwen3. Without --model: the bundled course checkpoint.")
console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)  # what people and models write, as it is

Model = Annotated[str | None, typer.Option(help="course, course-draft, a folder, or a Hugging Face id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")]
MaxTokens = Annotated[int, typer.Option(help="Generate at most this many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token every time.")]
Seed = Annotated[int | None, typer.Option(help="Makes a random answer repeatable.")]
LOAD = "Load on a server"


app.command()(serve)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    model: Model = None, device: Device = "auto", dtype: Dtype = "auto",
    max_tokens: MaxTokens = 100, temperature: Temperature = 0.0, seed: Seed = None,
) -> None:
    """Complete prompts as they stand."""
    from nano_qwen3_serving.llm import LLM

    llm = LLM(model, device=device, dtype=dtype)
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    for output in llm.generate(prompts, params):
        console.print(output.prompt, style="bold", end="")
        console.print(output.outputs[0].text)


@app.command()
def chat(
    questions: Annotated[list[str] | None, typer.Argument(help="Asked one after the other; none: ask me.")] = None,
    model: Model = None, device: Device = "auto", dtype: Dtype = "auto",
    max_tokens: MaxTokens = 200, temperature: Temperature = 0.0, seed: Seed = None,
) -> None:
    """Talk to the model; answers stream token by token. /help lists what else one can type."""
    from nano_qwen3_serving.terminal_chat import converse

    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    converse(questions, params, console, model=model, device=device, dtype=dtype)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="A bundled name, a folder, or a Hugging Face id.")] = "course",
    device: Device = "auto", dtype: Dtype = "auto",
    out: Annotated[Path, typer.Option(help="Where the JSON report goes.")] = Path("verify.json"),
) -> None:
    """Compare this engine with transformers on this machine; writes one JSON you can send back."""
    from nano_qwen3_serving.testing.verify import show, verify_model

    report = verify_model(model, device, dtype)
    write_atomically(out, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    show(report, console)
    console.print(f"The whole report is in {out}")
    if not report["passed"]:
        raise typer.Exit(1)


@app.command()
def bench(
    context: typer.Context,
    model: Model = None, device: Device = "auto", dtype: Dtype = "auto",
    workload: Annotated[str, typer.Option(
        help="Such as decode-8, decode-32-sampled, shared-16, text-8 or quick; an unknown one lists all.")] = "decode-8",
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the medians are reported.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, nothing else.")] = False,
    url: Annotated[str | None, typer.Option(
        "--serve", metavar="URL", help="Measure this server with OpenAI's API instead.", rich_help_panel=LOAD)] = None,
    rate: Annotated[float | None, typer.Option(
        help="Requests a second, whether or not earlier ones were answered.", rich_help_panel=LOAD)] = None,
    concurrency: Annotated[int | None, typer.Option(
        help="Requests in flight; the next is sent when one ends.", rich_help_panel=LOAD)] = None,
    requests: Annotated[int | None, typer.Option(help="Instead of the workload's number.", rich_help_panel=LOAD)] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.", rich_help_panel=LOAD)] = 600.0,
    ttft_limit: Annotated[float | None, typer.Option(
        help="For goodput: seconds until the first token.", rich_help_panel=LOAD)] = None,
    itl_limit: Annotated[float | None, typer.Option(help="Seconds between tokens.", rich_help_panel=LOAD)] = None,
    e2e_limit: Annotated[float | None, typer.Option(help="Seconds until the end.", rich_help_panel=LOAD)] = None,
    api_key: Annotated[str | None, typer.Option(
        envvar="NANO_QWEN3_API_KEY", show_envvar=True, help="What the server wants.", rich_help_panel=LOAD)] = None,
) -> None:
    """Measure how fast a named workload runs: in this process, or on a server."""
    if url is not None:
        refuse_given(context, ("device", "dtype", "repeats"), "is for an engine in this process; leave it out with --serve")
        report = measured(
            url, workload, requests, rate=rate, concurrency=concurrency, timeout=timeout, seed=seed, model=model,
            limits={"ttft": ttft_limit, "itl": itl_limit, "e2e": e2e_limit}, api_key=api_key, show_progress=not as_json)
        print(json.dumps(report, indent=2)) if as_json else show_load(report, console)
        return
    refuse_given(context, ("rate", "concurrency", "requests", "timeout", "ttft_limit", "itl_limit", "e2e_limit"),
                 "is for a server; give its address with --serve")
    from nano_qwen3_serving.bench import bench as run

    result = run(model, workload, repeats, seed, device=device, dtype=dtype)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result["median"].items():
        console.print(f"{name.replace('_', ' '):28} {value:10.3f}")


def refuse_given(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuses options that the command line has and that would change nothing."""
    for name in names:
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE":
            raise InvalidParametersError(f"--{name.replace('_', '-')} {why}", parameter=name, value=context.params[name])


@app.command()
def fuzz(
    requests: Annotated[int, typer.Option(min=1, help="How many, split over the seeds.")] = 500,
    seed: Annotated[list[int] | None, typer.Option(help="May be given several times.")] = None,
    model: Annotated[str, typer.Option(help="toy, whose tokens show every misplaced key, or course.")] = "toy",
    replay: Annotated[str | None, typer.Option(help="A trace of a failure to live through again.")] = None,
    trace: Annotated[str, typer.Option(help="Where a failure's trace goes.")] = "fuzz_trace.json",
    totals: Annotated[str | None, typer.Option("--json", help="Where the totals go.")] = None,
    api: Annotated[bool, typer.Option("--api", help="Hostile arguments for every public call instead.")] = False,
) -> None:
    """Throw random requests, aborts and faults at the engine, and check every token."""
    if api:
        from nano_qwen3_serving.testing.api_fuzz.run import api_fuzz_command

        raise typer.Exit(api_fuzz_command(requests, seed or [0]))
    from nano_qwen3_serving.testing.fuzz.command import fuzz_command

    raise typer.Exit(fuzz_command(
        requests, seed, model=model, replay_file=replay, trace_file=trace, json_file=totals))


@app.command()
def trace(
    records: Annotated[Path, typer.Argument(help="What a Recorder wrote, one JSON line a step.")],
    out: Annotated[Path, typer.Argument(help="For chrome://tracing or ui.perfetto.dev.")],
) -> None:
    """Turn a flight recorder's file into a trace that a browser shows."""
    from nano_qwen3_serving.observe.chrome import chrome_trace

    steps = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    write_atomically(out, json.dumps(chrome_trace(steps)))
    console.print(f"{len(steps)} steps are in {out}")


def main() -> None:
    """The command line; one of the engine's own errors is printed as one line, not as a traceback."""
    try:
        app()
    except (EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
