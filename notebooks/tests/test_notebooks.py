"""The notebooks run, print what is committed in them, and show what they say."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
HOMES = re.compile(r"/home/|/root/|/Users/|/tmp/|[A-Z]:\\\\")  # of whoever ran it last

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


def pictures(path: Path) -> list[tuple[bytes, str, str]]:
    """The PNG, its text alternative and the text beside it, of each picture."""
    outputs = [output for cell in cells(path) for output in cell["outputs"] if "image/png" in output.get("data", {})]
    return [
        (base64.b64decode("".join(o["data"]["image/png"])), o["metadata"].get("image/png", {}).get("alt", ""),
         "".join(o["data"].get("text/plain", "")))
        for o in outputs
    ]


def test_every_lab_has_a_notebook() -> None:
    labs = sorted(folder.name.removeprefix("lab") for folder in (PROJECT / "labs").glob("lab[0-9][0-9]_*"))
    assert [path.stem for path in NOTEBOOKS] == labs


@pytest.mark.slow
@each
def test_a_fresh_kernel_prints_what_is_committed(path: Path) -> None:
    """nbval runs all cells and compares what they print; cells tagged nbval-ignore-output show times."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "nbval.plugin", "--nbval", "--nbval-current-env",
         str(path)],
        cwd=PROJECT, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert f"{len(cells(path))} passed" in run.stdout


@each
def test_it_was_committed_whole_after_one_run_from_top_to_bottom(path: Path) -> None:
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not [cell["source"] for cell in code if re.search(r"\.says\(|\bbeside\(|\bprint\(", cell["source"])
                and not cell["outputs"] and not cell["source"].startswith(("def ", "import ", "from "))]


@each
def test_it_names_no_folder_of_whoever_ran_it(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    said = [o.get("text", "") or o.get("data", {}).get("text/plain", "") for c in notebook["cells"] for o in c.get("outputs", [])]
    texts = ["".join(cell["source"]) for cell in notebook["cells"]] + ["".join(text) for text in said]
    assert not [text for text in texts if HOMES.search(text) or str(PROJECT) in text]


@each
def test_the_reader_guesses_before_it_measures(path: Path) -> None:
    code = [cell["source"] for cell in cells(path)]
    guesses = [i for i, source in enumerate(code) if source.startswith("guess")]
    assert guesses
    for i in guesses:
        assert re.match(r"guess = None  # \S", code[i]), "a guess is committed as None, with a word on its unit"
        assert any(re.search(r"beside\([^)]*\bguess\b", source) for source in code[i + 1 : i + 4])


@each
def test_every_picture_says_what_to_see_and_has_a_text_alternative(path: Path) -> None:
    shown = pictures(path)
    assert len(shown) == sum(".says(" in cell["source"] for cell in cells(path)) > 0
    for png, alternative, text in shown:
        assert png.startswith(b"\x89PNG")
        assert alternative == text
        assert len(alternative.split(". ")) >= 2, "what it is, and what to see"


@each
def test_it_points_to_its_lab(path: Path) -> None:
    texts = [cell["source"] for cell in cells(path, "markdown")]
    lab = f"../labs/lab{path.stem}/README.md"
    assert texts[0].startswith(f"# {path.stem[:2]} ")
    assert lab in texts[0]
    assert "Now you" in texts[-1]
    assert lab in texts[-1]
