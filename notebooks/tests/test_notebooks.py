"""The notebooks run, print what is committed in them, and show what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from nano_qwen3_serving.pictures import journey

PROJECT = Path(__file__).parents[2]
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
HOMES = re.compile(r"/home/|/root/|/Users/|/tmp/|[A-Z]:\\\\")  # of whoever ran it last

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


def pictures(path: Path) -> list[tuple[str, str, str]]:
    """The SVG, its text alternative and the text beside it, of each picture and film."""
    shown = [o for cell in cells(path) for o in cell["outputs"] if any(kind.startswith("image/") for kind in o.get("data", {}))]
    return [
        ("".join(o["data"]["image/svg+xml"]), o["metadata"].get("image/svg+xml", {}).get("alt", ""),
         "".join(o["data"].get("text/plain", "")))
        for o in shown
    ]


def code_lines(path: Path) -> list[str]:
    """What a reader has to get through: lines of code that are not empty."""
    return [line for cell in cells(path) for line in cell["source"].splitlines() if line.strip()]


def test_every_lab_has_a_notebook() -> None:
    labs = sorted(folder.name.removeprefix("lab") for folder in (PROJECT / "labs").glob("lab[0-9][0-9]_*"))
    assert [path.stem for path in NOTEBOOKS] == labs


@pytest.mark.share(1)
@pytest.mark.slow
@each
def test_a_fresh_kernel_prints_what_is_committed(path: Path) -> None:
    """nbval runs all cells and compares what they print; cells tagged nbval-ignore-output show times.

    Of a picture it compares the text alternative: letters and last digits may differ from machine to machine.
    """
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "nbval.plugin", "--nbval", "--nbval-current-env",
         "--nbval-sanitize-with", str(Path(__file__).with_name("sanitize.cfg")), str(path)],
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
                and not cell["outputs"]]


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
    assert guesses, "there is no cell `guess = None  # unit` before a measurement"
    for i in guesses:
        assert re.match(r"guess = None  # \S", code[i]), "a guess is committed as None, with a word on its unit"
        assert any(re.search(r"beside\([^)]*\bguess\b", source) for source in code[i + 1 : i + 4])


@each
def test_whoever_only_reads_is_not_reproached_for_not_guessing(path: Path) -> None:
    for cell in cells(path):
        if cell["source"].startswith("guess"):
            assert not cell["outputs"]
            assert "hide-input" in cell["metadata"]["tags"]
    assert "no guess" not in path.read_text(encoding="utf-8")


@each
def test_every_picture_says_what_to_see_and_has_a_text_alternative(path: Path) -> None:
    shown = pictures(path)
    assert shown, "there is no picture; nano_qwen3_serving.pictures draws them"
    assert len(shown) == sum(".says(" in cell["source"] for cell in cells(path)), "a picture says what to see: .says(…)"
    for _, alternative, text in shown:
        assert alternative == text
        assert len(alternative.split(". ")) >= 2, "what it is, and what to see"


@each
def test_every_picture_is_an_svg_for_light_and_dark_pages_with_no_script(path: Path) -> None:
    for svg, *_ in pictures(path):
        root = ElementTree.fromstring(svg)
        assert svg.startswith("<svg "), "GitHub shows no SVG that begins with a prologue"
        assert root.tag.endswith("}svg")
        assert "prefers-color-scheme:dark" in svg
        assert not [element for element in root.iter() if element.tag.endswith("}script")]
        assert not re.search(r'href="(?!#)', svg), "nothing is loaded"
        assert not re.search(r"(?:fill|stroke)[=:]\W*(?:#fff\b|white|black|#000\b|#000000)", svg), "paper and ink turn over"


@each
def test_one_film_moves_by_itself_and_stands_still_for_whoever_asked_for_that(path: Path) -> None:
    films = [svg for svg, *_ in pictures(path) if "@keyframes" in svg]
    assert len(films) == 1, f"a notebook has one film, made of a run's records; this one has {len(films)}"
    film = films[0]
    assert "prefers-reduced-motion" in film
    assert film.count("@keyframes") >= 5
    (source,) = [cell["source"] for cell in cells(path) if "_film(" in cell["source"]]
    assert ".says(" in source


@each
def test_it_opens_with_a_question_and_a_map_before_any_import(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert "code" in kinds, "nothing is run in this notebook"
    first = kinds.index("code")
    opening = ["".join(cell["source"]) for cell in notebook["cells"][:first]]
    question = opening[0].split("\n\n")[1]
    assert question.startswith("**")
    assert "?" in question
    assert opening[1] == journey.markdown(path.stem[:2], journey.about_what(path.parent)), "make notebooks draws it"
    assert f"You are here: {' and '.join(notebook['metadata']['way'])}" in opening[1]


def test_the_map_shows_the_whole_way_and_every_notebook_has_a_place_on_it() -> None:
    about = journey.about_what(NOTEBOOKS[0].parent)
    assert list(about) == ["generate", "tokenise", "schedule", "blocks", "model", "attention", "sampler", "text", "stream"]
    assert {number for numbers in about.values() for number in numbers} == {path.stem[:2] for path in NOTEBOOKS}


def test_drawing_the_map_anew_changes_the_map_and_nothing_else(tmp_path: Path) -> None:
    committed = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    stale = json.loads(json.dumps(committed))
    stale["cells"][1]["source"] = [f"![{journey.ALT}](data:,)"]
    for path in NOTEBOOKS[1:]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copy = tmp_path / NOTEBOOKS[0].name
    copy.write_text(json.dumps(stale), encoding="utf-8")
    journey.main([str(copy)])
    assert json.loads(copy.read_text(encoding="utf-8")) == committed
    assert sorted(tmp_path.iterdir()) == [tmp_path / path.name for path in NOTEBOOKS]


@each
def test_it_is_an_essay_with_a_little_code(path: Path) -> None:
    prose = [cell["source"] for cell in cells(path, "markdown") if not cell["source"].startswith("![")]
    words = sum(len(text.split()) for text in prose)
    assert words >= 1_500, f"{words} words are no essay: 1,500"
    assert words >= 20 * len(code_lines(path)), f"{len(code_lines(path))} lines of code want twenty words each; there are {words}"
    boxes = sum(text.count("> **In vLLM**") + text.count("> **On a GPU**") for text in prose)
    assert boxes >= 2, f"two boxes `> **In vLLM**` or `> **On a GPU**` say what real engines do; there are {boxes}"
    assert "**References.**" in prose[-1], "the last text ends with **References.**"


@each
def test_code_fits_into_the_column_and_what_is_plumbing_is_folded(path: Path) -> None:
    assert not [line for line in code_lines(path) if len(line) > 88]
    for cell in cells(path):
        folded = "hide-input" in cell["metadata"].get("tags", [])
        assert cell["metadata"].get("jupyter", {}).get("source_hidden", False) == folded
        assert folded or not cell["source"].startswith(("import ", "from "))


@each
def test_it_is_small_enough_to_be_shown(path: Path) -> None:
    assert path.stat().st_size < 600_000


@each
def test_it_points_to_its_lab(path: Path) -> None:
    texts = [cell["source"] for cell in cells(path, "markdown")]
    lab = f"../labs/lab{path.stem}/README.md"
    assert texts[0].startswith(f"# {path.stem[:2]} ")
    assert lab in texts[0]
    assert "Now you" in texts[-1], "the last text says Now you, and leads to the lab"
    assert lab in texts[-1]
