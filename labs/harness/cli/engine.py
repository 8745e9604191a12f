"""`python -m labs generate|bench|compare|report`: the commands that run an engine with the labs' parts.

torch and the engine are imported when a command runs, so that the other commands stay quick.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from labs.harness.catalog import LabError, find_lab

if TYPE_CHECKING:
    from labs.harness.mixed_engine.parts import Engine

GOT_OVER = "A step failed; retrying its requests one at a time worked."

app = typer.Typer()
console = Console(highlight=False, markup=False, soft_wrap=True)

Use = Annotated[list[str] | None, typer.Option(
    "--use", metavar="WHOSE:LABS", help="mine:03,06 solution:07 reference:04 mine:all my_file.py:06; may be repeated")]
Base = Annotated[str | None, typer.Option(help="solution: our functions stand in for unwritten TODOs")]
Model = Annotated[str | None, typer.Option(help="course, course-draft, a folder, or a Hugging Face id")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what the text begins with")],
    use: Use = None, base: Base = None, model: Model = None, device: Device = "auto", dtype: Dtype = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="at most this many tokens")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="makes a random answer repeatable")] = None,
) -> None:
    """Complete a prompt on an engine with your parts; tokens appear as they come."""
    from labs.harness.mixed_engine.engine_runs import stream
    from labs.harness.mixed_engine.parts import engine_of
    from nano_qwen3_serving.sampling_params import SamplingParams

    engine = engine_of(use or [], base=base)
    with explain_errors(engine):
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        console.print(prompt, end="", style="bold")
        result = stream(
            engine, prompt, params, lambda text: print(text, end="", flush=True),
            model=model, device=device, dtype=dtype, check_invariants=True)
        console.print(f"\n\n{result}")
    console.print("\n".join(engine.in_words()), style="dim")
    if engine.parts:
        console.print(f"Not what you expected? {engine.compare_command()}", style="dim")


@app.command()
def bench(
    use: Use = None, base: Base = None, model: Model = None, device: Device = "auto", dtype: Dtype = "auto",
    workload: Annotated[str, typer.Option(help="decode-1, decode-8, decode-32, mixed-32, prefill-1024 or quick")] = "decode-8",
    repeats: Annotated[int, typer.Option(min=1, help="runs of each; the medians are shown")] = 3,
    seed: Annotated[int, typer.Option(help="of the prompts")] = 0,
) -> None:
    """How fast a workload runs with your parts, and with the reference's, in turns."""
    from labs.harness.mixed_engine.engine_runs import bench as run
    from labs.harness.mixed_engine.parts import engine_of

    engine = engine_of(use or [], base=base)
    with explain_errors(engine):
        measured = run(engine, workload, repeats, seed, model=model, device=device, dtype=dtype)
    for line in measured.verdict.in_words():
        console.print(line, style=None if measured.verdict.is_right else "red")
    table = Table(title=f"{workload}, medians of {repeats}", title_justify="left")
    for heading in ("", "with your parts", "reference", "ratio", "from", "to"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, (yours, reference) in measured.medians().items():
        ratios = measured.ratios(name)
        cells = [f"{ratio:.2f}" for ratio in (median(ratios), ratios[0], ratios[-1])] if ratios else []
        table.add_row(name.replace("_", " "), f"{yours:.3f}", f"{reference:.3f}", *cells)
    Console(highlight=False).print(table)
    for field, share in measured.shares.items():
        console.print(f"{share:.0%} of the time was spent in your {field.replace('_', ' ')}.")
    console.print("\n".join(engine.in_words()), style="dim")
    if not measured.verdict.is_right:
        raise typer.Exit(1)


@app.command()
def compare(
    name: Annotated[str | None, typer.Argument(metavar="[LAB]", help="6, 06, lab06 or the folder's name")] = None,
    impl: Annotated[str, typer.Option(help="with LAB: mine, solution or a path")] = "mine",
    use: Use = None,
    base: Base = None,
    seed: Annotated[int, typer.Option(help="of the scenario")] = 0,
    model: Annotated[str, typer.Option(help="course, course-draft, a folder, or a Hugging Face id")] = "course",
) -> None:
    """One scenario on your parts and on the reference: the first step at which they differ."""
    from labs.harness.mixed_engine.blame import blame
    from labs.harness.mixed_engine.first_divergence import compare as run
    from labs.harness.mixed_engine.first_divergence import comparison_lines
    from labs.harness.mixed_engine.lockstep import describe, make_scenario
    from labs.harness.mixed_engine.parts import engine_of

    uses = [*(use or []), *([f"{impl}:{find_lab(name).id}"] if name is not None else [])]
    if not uses:
        raise LabError("Which parts? A lab, such as: compare 06. Or several: compare --use mine:06,07")
    engine = engine_of(uses, base=base)
    scenario = make_scenario(seed, model, shares_prefixes=not any("block_manager" in part.fields for part in engine.parts))
    with explain_errors(engine):
        comparison = run(engine, scenario)
    console.print("\n".join(engine.in_words()[:len(engine.parts)]) + f", against the reference.\n{describe(scenario)}\n")
    console.print("\n".join(comparison_lines(comparison)))
    if comparison.first is None and comparison.error is None:
        console.print("Functions that the engine does not use were not compared: pytest test_lab.py tests them.")
    if comparison.error is not None:
        console.print(f"\nStep {comparison.steps} fails.\n{blame(comparison.error, engine) or comparison.error}")
    if comparison.error is not None or (comparison.first and not comparison.first.rounding):
        raise typer.Exit(1)


@app.command()
def report(
    use: Use = None, base: Base = None,
    out: Annotated[Path, typer.Option(help="where the page goes")] = Path("my_engine.md"),
    html: Annotated[bool, typer.Option("--html", help="an HTML page beside it")] = False,
    size: Annotated[int | None, typer.Option(min=1, help="MB of the generated model; else 4 times the largest cache")] = None,
    model: Annotated[Path | None, typer.Option(help="a checkpoint's folder instead of a generated one")] = None,
    seed: Annotated[int, typer.Option(help="of prompts and weights")] = 0,
) -> None:
    """One page on your engine: speed and waste, beside the reference, the naive way and the ceiling."""
    from labs.harness.mixed_engine.parts import engine_of, finished_labs
    from labs.harness.mixed_engine.report import make_report
    from labs.harness.mixed_engine.report_page import write_report

    engine = engine_of(use if use is not None else [f"mine:{lab.id}" for lab in finished_labs()], base=base)
    with explain_errors(engine):
        made = make_report(engine, model=model, size=size, seed=seed, say=console.print)
    for path in write_report(made, out, html):
        console.print(f"The page is in {path}")
    for line in made.verdict.in_words():
        console.print(line, style=None if made.verdict.is_right else "red")
    if not made.verdict.is_right:
        raise typer.Exit(1)



@contextmanager
def explain_errors(engine: Engine) -> Iterator[None]:
    """Reports which part an error in an engine belongs to, and ends with exit status 1.

    A caller's mistake becomes a `LabError`; an error of no part passes through.
    """
    from labs.harness.mixed_engine.blame import blame, causes, earlier
    from labs.harness.mixed_engine.engine_runs import Stopped
    from nano_qwen3_serving.exceptions import EngineError

    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        cause = error.__cause__ if isinstance(error, Stopped) and error.__cause__ else error
        sys.stdout.flush()
        if blamed := blame(cause, engine):
            after = f"\n{error}." if cause is not error else ""
            before = earlier(cause, engine)
            print(f"\n{after}\n{blamed}" + (f"\n\n{GOT_OVER} Before that:\n{before}" if before else ""), file=sys.stderr)
            raise typer.Exit(1) from None
        if any(isinstance(link, EngineError) for link in causes(cause)):
            if cause is not error:  # raised while generating, so it is not the caller's mistake
                print(f"\n\n{error}: {cause}\nWhere it comes from: {engine.compare_command()}", file=sys.stderr)
                raise typer.Exit(1) from None
            raise LabError(str(cause)) from None
        raise cause from None
    if engine.watch.first_error is not None:
        print(f"\n{GOT_OVER} In that step:\n{blame(engine.watch.first_error, engine)}", file=sys.stderr)
