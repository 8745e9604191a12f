"""Both homes of a new lab and its notebook, written from `template/`: a working lab with the requested number of TODOs.

A ✎ marks what the author has to replace; `checklist` says what is missing.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grading.authoring import starter
from grading.authoring.lab_proofs import PROJECT
from labs.harness.catalog import LabError, lab_at
from labs.harness.learner.results import PREDICTION_POINTS, TOTAL_POINTS
from nano_qwen3_serving.pictures.journey import ALT

TEMPLATE = Path(__file__).parent / "template"
MOST_TODOS = 20
_FOR_EACH = "todo_K"
"""In the name of a template that is written for each TODO but the first."""
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def write(number: int, name: str, title: str = "", todos: int = 2, project: Path = PROJECT) -> list[Path]:
    """Write the files of lab `number` with so many TODOs; their paths.

    Raises:
        LabError: for an invalid name, a number that is taken, or a wrong number of TODOs.
    """
    if not 1 <= todos <= MOST_TODOS:
        raise LabError(f"{todos} TODOs: a new lab has from 1 to {MOST_TODOS}.")
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r} is no name for a folder: lower-case words with _ between them, such as continuous_batching.")
    if taken := [*project.glob(f"labs/lab{number:02d}_*"), *project.glob(f"grading/labs/lab{number:02d}")]:
        raise LabError(f"lab {number:02d} is there already: {taken[0].relative_to(project)}.")
    values = {"id": f"{number:02d}", "folder": f"lab{number:02d}_{name}", "title": title or name.replace("_", " ").capitalize()}
    written = []
    for path, text in _files(values, todos):
        whole = project / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    lab = lab_at(project / "labs" / values["folder"])
    starter.write(lab)
    return [*written, lab.starter.relative_to(project)]


def _files(values: dict[str, str], todos: int) -> Iterator[tuple[Path, str]]:
    homes = {"lab": Path("labs") / values["folder"], "author": Path("grading/labs") / f"lab{values['id']}"}
    environment = Environment(loader=FileSystemLoader(TEMPLATE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              keep_trailing_newline=True)
    whole: dict[str, Any] = {**values, "further": list(range(2, todos + 1)), "example": _example,
                             "worth": lambda todo: _worth(todo, todos)}
    for room, home in homes.items():
        for path in sorted((TEMPLATE / room).rglob("*.template")):
            inside = (home / path.relative_to(TEMPLATE / room)).with_suffix("")
            template = environment.get_template(path.relative_to(TEMPLATE).as_posix())
            for todo in whole["further"] if _FOR_EACH in path.name else [1]:
                yield inside.with_name(inside.name.replace(_FOR_EACH, f"todo_{todo}")), template.render(whole, todo=todo)
    yield Path("notebooks") / f"{values['folder'].removeprefix('lab')}.ipynb", _notebook(values)


def _worth(todo: int, todos: int) -> int:
    """A TODO's points: what all are worth together, in equal parts, the first ones a point more."""
    each, more = divmod(TOTAL_POINTS - PREDICTION_POINTS, todos)
    return each + (todo <= more)


def _example(todo: int) -> list[int]:
    """Tokens of so many requests, of which all but the first two take one block of 4."""
    return [6, 8, *[3] * (todo - 2)]


def _notebook(values: dict[str, str]) -> str:
    text = (f"# {values['id']} · {values['title']}\n\n**✎ The question that this notebook answers.**\n\n"
            f"In [Lab {values['id']}](../labs/{values['folder']}/README.md) you write the part yourself.")
    cells = [{"cell_type": "markdown", "id": name, "metadata": {}, "source": [source]}
             for name, source in (("question", text), ("map", f"![{ALT}](data:,)"))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel, "way": []}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
