"""Both homes of a new lab and its notebook, written from `template/`: a lab of one TODO that works.

A ✎ marks what the author has to replace; `checklist` says what is missing.
"""

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path

from grading.authoring import starter
from grading.authoring.lab_proofs import PROJECT
from labs.harness.catalog import LabError, lab_at
from nano_qwen3_serving.pictures.journey import ALT

TEMPLATE = Path(__file__).parent / "template"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def write(number: int, name: str, title: str = "", project: Path = PROJECT) -> list[Path]:
    """Write the files of lab `number`; their paths. Raises `LabError` for an invalid name, or a number that is taken."""
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r} is no name for a folder: lower-case words with _ between them, such as continuous_batching.")
    if taken := [*project.glob(f"labs/lab{number:02d}_*"), *project.glob(f"grading/labs/lab{number:02d}")]:
        raise LabError(f"lab {number:02d} is there already: {taken[0].relative_to(project)}.")
    values = {"id": f"{number:02d}", "folder": f"lab{number:02d}_{name}", "title": title or name.replace("_", " ").capitalize()}
    written = []
    for path, text in _files(values):
        whole = project / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    lab = lab_at(project / "labs" / values["folder"])
    starter.write(lab)
    return [*written, lab.starter.relative_to(project)]


def _files(values: dict[str, str]) -> Iterator[tuple[Path, str]]:
    homes = {"lab": Path("labs") / values["folder"], "author": Path("grading/labs") / f"lab{values['id']}"}
    for room, home in homes.items():
        for path in sorted((TEMPLATE / room).rglob("*.template")):
            inside = path.relative_to(TEMPLATE / room).with_suffix("")
            yield home / inside, string.Template(path.read_text(encoding="utf-8")).substitute(values)
    yield Path("notebooks") / f"{values['folder'].removeprefix('lab')}.ipynb", _notebook(values)


def _notebook(values: dict[str, str]) -> str:
    text = (f"# {values['id']} · {values['title']}\n\n**✎ The question that this notebook answers.**\n\n"
            f"In [Lab {values['id']}](../labs/{values['folder']}/README.md) you write the part yourself.")
    cells = [{"cell_type": "markdown", "id": name, "metadata": {}, "source": [source]}
             for name, source in (("question", text), ("map", f"![{ALT}](data:,)"))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel, "way": []}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
