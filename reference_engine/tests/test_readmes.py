"""The Markdown files keep their promises: links resolve, programs run, the map of the engine is true."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from nano_qwen3_serving.engine.llm_engine import LLMEngine

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
ENGINE = PROJECT / "reference_engine"
PACKAGE = ENGINE / "nano_qwen3_serving"
OFF_THE_MAP = ("__init__.py", "__main__.py")  # they only hand on what other files own

FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1`*[ ]*$\n?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)")


def tracked_markdown() -> list[Path]:
    """The Markdown files that git knows; without git, those outside of hidden folders."""
    try:
        run = subprocess.run(
            ["git", "ls-files", "-z", "*.md"], cwd=PROJECT, capture_output=True, text=True, encoding="utf-8", check=True)
        names = [name for name in run.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [str(path.relative_to(PROJECT)) for path in PROJECT.rglob("*.md")]
    return [PROJECT / name for name in sorted(names) if not name.startswith(".") and (PROJECT / name).is_file()]


def anchors(markdown: str) -> set[str]:
    """What a link can name in a file: its headings, spelled as GitHub does."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)[ #]*$", FENCE.sub("", markdown), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = 1
        while (name := slug if count == 1 else f"{slug}-{count - 1}") in found:
            count += 1
        found.add(name)
    return found


def wrong_links(file: Path) -> list[str]:
    """The links of a file that lead nowhere inside the project."""
    wrong = []
    for link in LINK.findall(FENCE.sub("", file.read_text(encoding="utf-8"))):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue  # somewhere else: https, mailto
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        there = target.exists() and target.is_relative_to(PROJECT)
        if not there or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("file", tracked_markdown(), ids=lambda file: file.relative_to(PROJECT).as_posix())
def test_every_relative_link_resolves(file: Path) -> None:
    assert not wrong_links(file)


def test_the_look_up_of_links_notices_wrong_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PROJECT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A `page`, twice\n\n## Twice\n\n## Twice\n\n```bash\n# no heading\n[no](link.md)\n```\n"
        "[a](page.md) [b](#a-page-twice) [c](#twice-1) [d](https://nowhere.invalid/x)\n"
        "[e](gone.md) [f](#no-heading) [g](page.md#twice-2) [h](../)\n", encoding="utf-8")
    assert wrong_links(page) == ["gone.md", "#no-heading", "page.md#twice-2", "../"]


PYTHON_BLOCK = re.compile(r"^(<!-- not run: .+? -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def programs() -> list[Any]:
    """The Python blocks of both READMEs that are complete; `<!-- not run: why -->` marks the others."""
    return [
        pytest.param(code, id=f"{name}-{number}")
        for name, folder in (("course", PROJECT), ("engine", ENGINE))
        for number, (not_run, code) in enumerate(PYTHON_BLOCK.findall((folder / "README.md").read_text(encoding="utf-8")), 1)
        if not not_run
    ]


@pytest.mark.parametrize("code", programs())
def test_every_complete_program_of_a_readme_runs_and_prints(code: str, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "NANO_QWEN3_MODEL"}
    env |= {"PYTHONPATH": str(ENGINE), "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, encoding="utf-8",
        timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_both_readmes_have_a_program_that_is_run() -> None:
    assert {str(program.id).split("-")[0] for program in programs()} == {"course", "engine"}


def floors_table(readme: str) -> list[tuple[int, str]]:
    """The rows of "The map" as (floor, file). A file without a folder lies where the one before it
    in the same cell does; `folder/*.py` is every file there."""
    rows = []
    table = readme.split("## The map")[1].split("\n## ")[0]
    for floor, cell in re.findall(r"^\| (\d+) \| (`[^|]*`) \|", table, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            folder, name = name.rsplit("/", 1) if "/" in name else (folder, name)
            path = f"{folder}/{name}" if folder else name
            files = [p.relative_to(PACKAGE).as_posix() for p in PACKAGE.glob(path)] if "*" in name else [path]
            rows += [(int(floor), file) for file in files if Path(file).name not in OFF_THE_MAP]
    return rows


ROWS = floors_table((ENGINE / "README.md").read_text(encoding="utf-8"))
FLOORS = {file: floor for floor, file in ROWS}


def test_the_map_names_every_file_of_the_package_once_and_no_other() -> None:
    there = Counter(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if p.name not in OFF_THE_MAP)
    named = Counter(file for _, file in ROWS)
    assert not there - named, "these files have no row"
    assert not named - there, "these rows have no file, or name it again"


def imports(source: str, file: str) -> set[str]:
    """The files of the package that `source`, at `file`, imports: anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = [PACKAGE.name, *Path(file).parent.parts]
            base = here[: len(here) + 1 - node.level] if node.level else []
            names = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == PACKAGE.name:
                module, holder = "/".join(parts) + ".py", "/".join(parts[:-1]) + ".py"
                found.add(module if module in FLOORS else holder if holder in FLOORS else name)
    return found


def test_imports_only_go_down_the_floors_and_never_in_a_circle() -> None:
    graph = {file: imports((PACKAGE / file).read_text(encoding="utf-8"), file) for file in FLOORS}
    up = [
        f"{file} (floor {FLOORS[file]}) imports {other} (floor {FLOORS.get(other, 'none')})"
        for file in FLOORS for other in sorted(graph[file]) if FLOORS.get(other, 99) > FLOORS[file]
    ]
    assert not up, "\n".join(up)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


def test_the_readme_shows_step_as_it_is() -> None:
    shown = re.search(r"^def step\(self\):.*?\n(.*?)^```", (ENGINE / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (step,) = ast.parse(textwrap.dedent(inspect.getsource(LLMEngine.step))).body
    assert shown and ast.dump(ast.parse("def step(self):\n" + shown[1]).body[0].body[0]) == ast.dump(step.body[1])


@pytest.mark.parametrize("source", [
    "from nano_qwen3_serving.llm import LLM", "import nano_qwen3_serving.llm", "from nano_qwen3_serving import llm",
    "from ..llm import LLM", "from .. import llm", "def lazily():\n    from nano_qwen3_serving.llm import LLM",
])
def test_imports_are_found_however_they_are_written(source: str) -> None:
    assert imports(source, "scheduling/scheduler.py") == {"llm.py"}
