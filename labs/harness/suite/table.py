"""The table that closes a run of a lab's tests."""

import sys
from collections.abc import Sequence

from labs.harness.catalog import Lab
from labs.harness.learner import predictions, results
from labs.harness.learner.progress import Progress
from labs.harness.learner.results import Row, points_text

_COLOURS = {
    results.SOLVED: "green",
    results.PARTLY: "yellow",
    results.IN_PART: "yellow",
    results.BLOCKED: "yellow",
    results.FAILING: "red",
    results.NOT_STARTED: "dim",
}
_HEADINGS = ("TODO", "points", "state", "next hint")


def print_table(lab: Lab, rows: list[Row], whole: bool, progress: Progress, impl: str, plain: bool) -> None:
    """Print `rows`; with `whole` (every TODO was tested) also the predictions and the total.

    Predictions are the learner's, so only a table about the learner's starter shows them.
    """
    lines = [_line(lab, row) for row in rows]
    if whole:
        lines += _closing_lines(lab, rows, progress if impl == "starter" else None)
    title = f"Lab {lab.id}, {lab.title}: {'your starter.py' if impl == 'starter' else impl}"
    if plain or not can_draw():
        _print_plain(title, lines)
    else:
        _print_rich(title, lines)


def can_draw() -> bool:
    """Whether standard output can show box drawing."""
    return "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()


def _line(lab: Lab, row: Row) -> tuple[str, str, str, str, str]:
    solved = row.kind == results.SOLVED or row.points == row.of
    hint = "" if solved else f"python -m labs hint {lab.id} {row.todo}"
    return _COLOURS[row.kind], str(row.todo), f"{points_text(row.points)}/{points_text(row.of)}", row.state, hint


def _closing_lines(lab: Lab, rows: list[Row], progress: Progress | None) -> list[tuple[str, str, str, str, str]]:
    earned, of = sum(row.points for row in rows), sum(row.of for row in rows)
    lines = []
    if progress is not None and predictions.has_questions(lab):
        attempts = progress.predictions(lab.id)
        points = results.prediction_points(attempts)
        state, command = "not answered yet", f"python -m labs predict {lab.id}"
        if attempts:
            best = max(attempts, key=lambda attempt: attempt["right"])
            state = f"{best['right']} of {best['of']} right"
            command = "" if best["right"] == best["of"] else f"{command} --again"
        colour = "green" if attempts and not command else "yellow" if attempts else "dim"
        lines.append((colour, "predictions", f"{points_text(points)}/{results.PREDICTION_POINTS}", state, command))
        earned, of = earned + points, of + results.PREDICTION_POINTS
    lines.append(("bold", "total", f"{points_text(round(earned, 1))}/{points_text(of)}", "", ""))
    return lines


def _print_plain(title: str, lines: Sequence[tuple[str, ...]]) -> None:
    table = [_HEADINGS, *(line[1:] for line in lines)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
    print(f"\n{title}")
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _width_of(lines: Sequence[tuple[str, ...]]) -> int:
    """The width that keeps points and commands whole; states may take several lines."""
    longest = [max(len(text) for text in texts) for texts in zip(*(line[1:] for line in lines), strict=True)]
    return sum(longest) - longest[2] + min(longest[2], 12) + 3 * len(_HEADINGS) + 1


def _print_narrow(title: str, lines: Sequence[tuple[str, ...]]) -> None:
    """The rows for a narrow terminal: points and state, and the command below them."""
    print(f"\n{title}")
    for _, name, points, state, command in lines:
        print(f"{'TODO ' if name.isdigit() else ''}{name}  {points}  {state}".rstrip())
        if command:
            print(f"    {command}")


def _print_rich(title: str, lines: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.ROUNDED)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading == "points" else "left", no_wrap=heading == "next hint")
    for colour, *cells in lines:
        table.add_row(*cells, style=colour)
    console = Console(file=sys.stdout)
    if console.width < _width_of(lines):
        _print_narrow(title, lines)
        return
    console.print(f"\n{title}", style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(table)
