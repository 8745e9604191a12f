"""The page of *my engine*, from a `EngineReport`: as Markdown, and as HTML with the same words."""

from __future__ import annotations

from html import escape
from pathlib import Path

from labs.harness.mixed_engine.report import CACHES, EngineReport, Figures
from nano_qwen3_serving.observe.files import write_atomically

ROWS = (
    ("tokens/s", lambda f: f"{f.tokens_per_second:.1f}"),
    ("its range", lambda f: "" if f.spread is None else f"{f.spread[0]:.1f} – {f.spread[1]:.1f}"),
    ("TTFT, ms", lambda f: "" if f.ttft is None else f"{1000 * f.ttft:.1f}"),
    ("ITL, ms", lambda f: f"{1000 * f.itl:.1f}"),
    ("KV slots wasted", lambda f: "" if f.waste is None else f"{100 * f.waste:.0f} %"),
)
COLUMNS = {"yours": "your engine", "reference": "reference", "naive": "naive", "ceiling": "ceiling"}
MEANING = (
    "tokens/s: generated tokens of all requests, over the time of the whole run.",
    "its range: the slowest and the fastest of the runs whose median is shown above.",
    "TTFT: from the start to a request's first token, median of the requests. ITL: between two of its tokens.",
    "KV slots wasted: of the slots that requests hold, the share that keeps no token, over all steps.",
    "naive: one request after the other, every token computes all before it again; its waste is that of reserving "
    "the longest possible request for each. Where its TTFT is missing it was stopped after some of the requests.",
    "ceiling: weights read once a step at the measured bandwidth, two operations a weight and token at the measured "
    "rate, and nothing else.",
)


def write_report(report: EngineReport, out: Path, html: bool) -> list[Path]:
    """Writes the page, and with `html` an HTML page beside it; returns the paths."""
    out.parent.mkdir(parents=True, exist_ok=True)
    pages = {out: as_markdown(report)} | ({out.with_suffix(".html"): as_html(report)} if html else {})
    for path, text in pages.items():
        write_atomically(path, text)
    return list(pages)


def as_markdown(report: EngineReport) -> str:
    """The page in Markdown."""
    lines = ["# My engine", "", *(f"- {line}" for line in report.parts), ""]
    lines += [f"**{line}**\n" for line in report.verdict.in_words()]
    for title, columns in report.figures.items():
        lines += [f"## {heading(report, title)}", "", *markdown_table(table(columns)), ""]
    lines += ["## How it was measured", "", *(f"- {line}" for line in (*MEANING, *conditions(report))), ""]
    return "\n".join(lines)


def as_html(report: EngineReport) -> str:
    """The page in HTML, complete in itself."""
    body = ["<h1>My engine</h1>", html_list(report.parts)]
    body += [f"<p><strong>{escape(line)}</strong></p>" for line in report.verdict.in_words()]
    for title, columns in report.figures.items():
        body += [f"<h2>{escape(heading(report, title))}</h2>", html_table(table(columns))]
    body += ["<h2>How it was measured</h2>", html_list([*MEANING, *conditions(report)])]
    style = "body{font-family:sans-serif;max-width:50em;margin:2em auto}td,th{padding:.3em 1em;text-align:right}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>My engine</title><style>{style}</style>\n'
        + "\n".join(body) + "\n</html>\n")


def heading(report: EngineReport, title: str) -> str:
    """A workload in words: "eight at once: 8 prompts of 16 to 48 tokens, 32 generated"."""
    work = report.workloads[title]
    both = (work.prompt, work.output)
    prompts, outputs = (f"{low} to {high}" if low < high else str(low) for low, high in both)
    return f"{title}: {work.requests} prompt{'s' * (work.requests > 1)} of {prompts} tokens, {outputs} generated for each"


def table(columns: dict[str, Figures]) -> list[list[str]]:
    """Rows of cells, the headings first."""
    present = [name for name in COLUMNS if name in columns]
    head = ["", *(COLUMNS[name] for name in present)]
    return [head, *([what, *(show(columns[name]) for name in present)] for what, show in ROWS)]


def conditions(report: EngineReport) -> list[str]:
    """The conditions that the figures depend on."""
    weights = report.weight_bytes / 1e6
    enough = report.weight_bytes >= CACHES * report.cache.num_bytes
    note = "" if enough else f" Less than {CACHES} times the cache: part of the weights may stay in it."
    made = report.host
    return [
        *(f"{share:.0%} of your engine's time was spent in your {field.replace('_', ' ')}." for field, share in report.shares),
        f"The model: {report.model}, {weights:.0f} MB in float32; the processor's largest cache: "
        f"{report.cache.num_bytes / 1e6:.0f} MB ({report.cache.source}).{note}",
        f"The machine: {made['processor']}, {made['threads']} thread{'s' * (made['threads'] > 1)}, "
        f"{report.ceilings.bytes_per_second / 1e9:.1f} GB/s read, "
        f"{report.ceilings.flops_per_second / 1e9:.0f} GFLOP/s, the best of a few measurements meanwhile.{busy(report)}",
        f"Medians of {report.repeats} runs, the naive way once; seed {report.seed}. Compare numbers of one page only.",
        f"Python {made['python']}, torch {made['versions']['torch']}, commit {made['commit'] or 'unknown'}.",
    ]


def busy(report: EngineReport) -> str:
    """A warning if an engine was faster than the ceiling: then other work disturbed the measurement."""
    for columns in report.figures.values():
        rates = {name: figures.tokens_per_second for name, figures in columns.items()}
        if max(rates.values()) > rates["ceiling"]:
            return " Something here is above its ceiling: the machine was busy with other things. Measure again."
    return ""


def markdown_table(rows: list[list[str]]) -> list[str]:
    """A table with right-aligned numbers."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]]


def html_table(rows: list[list[str]]) -> str:
    """The first row and column are headings."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "\n".join(
        f"<tr><th>{escape(row[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows[1:])
    return f"<table><tr>{head}</tr>\n{body}</table>"


def html_list(lines: list[str]) -> str:
    """Points."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
