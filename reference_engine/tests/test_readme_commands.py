"""Every command of every README works: a test here runs it or looks up what it names, or a test elsewhere does, see PROOFS."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

import grading.cli.app
import labs.harness.cli.app
import nano_qwen3_serving.cli
from grading.authoring.mutants import read_mutants
from grading.edition.release import release
from labs.harness.catalog import all_labs, find_lab
from labs.harness.learner.hints import read_hints
from labs.harness.learner.predictions import make_case
from labs.harness.regions import make_starter

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
LABS = all_labs(PROJECT / "labs")
MADE = (".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", ".progress.json", ".backups", ".hypothesis", "predictions.json")

FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)[ ]*$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
INDENTED = re.compile(r"^    (python .+)$", re.MULTILINE)
COMMAND = re.compile(r"(?:pytest|make|pip install)(?: .+)?|(?:python3?|py|pip|jupyter|bash|source|cd) .+|\w+\.py (?:--|[A-Z]).*")


@dataclass(frozen=True)
class Command:
    """A command of a page, and the folder, from the course's root, in which the page has it given."""

    page: str
    line: int
    text: str
    folder: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@cache
def files(*also: str) -> list[str]:
    """Names of the files that git lists (`also`: its options) and that are there; without git, of all but what programs make."""
    try:
        run = subprocess.run(["git", "ls-files", "-z", "--cached", *also], cwd=PROJECT, capture_output=True, text=True,
                             encoding="utf-8", check=True)
        names = set(run.stdout.split("\0"))
    except (OSError, subprocess.CalledProcessError):
        found = (path.relative_to(PROJECT) for path in PROJECT.rglob("*"))
        names = {path.as_posix() for path in found if not any(fnmatch(part, one) for part in path.parts for one in MADE)}
    return sorted(name for name in names if (PROJECT / name).is_file())


@cache
def pages() -> dict[str, str]:
    """Name → text of each README, of the template of the students' one, and of CONTRIBUTING.md."""
    names = [name for name in files() if Path(name).name in ("README.md", "README.md.in", "CONTRIBUTING.md")]
    return {name: (PROJECT / name).read_text(encoding="utf-8") for name in names}


def home_of(page: str) -> str:
    """Where a page's commands are given: in a lab's folder, or in the root; the students' template is for their root."""
    return Path(page).parent.as_posix() if re.match(r"labs/lab\d\d_", page) else "."


def commands_of(page: str, text: str) -> Iterator[Command]:
    """Those in bash blocks, line by line, in backticks, and in lines that are indented as code."""

    def at(position: int, command: str, folder: str = home_of(page)) -> Command:
        return Command(page, text.count("\n", 0, position) + 1, " ".join(command.split()), folder)

    for block in FENCE.finditer(text):
        folder = home_of(page)
        for line in re.finditer(r"(?:.*\\\n)*.+", block["text"]) if block["language"] == "bash" else ():
            yield at(block.start("text") + line.start(), line[0].replace("\\\n", " "), folder)
            if line[0].startswith("cd "):
                folder = os.path.normpath(Path(folder, line[0][3:].strip())).replace(os.sep, "/")
    prose = FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    for found in (*INLINE.finditer(prose), *INDENTED.finditer(prose)):
        if COMMAND.fullmatch(" ".join(found[1].split())):
            yield at(found.start(), found[1])


@cache
def commands() -> list[Command]:
    return [command for page, text in pages().items() for command in commands_of(page, text)]


def test_commands_are_found_wherever_they_stand() -> None:
    page = "labs/lab01_basic_inference/README.md"
    text = ("`pytest\n-k a` `cd x` `python_name` `a.py line 3` `source`\n\n```bash\ncd ../..\npython a \\\n  b\n```\n\n"
            "    python c.py\n\n```python\npip = 1\n```\n| `make x` | `b.py --out c` |\n")
    found = [(one.line, one.text, one.folder) for one in commands_of(page, text)]
    lab = "labs/lab01_basic_inference"
    assert found == [(5, "cd ../..", lab), (6, "python a b", "."), (1, "pytest -k a", lab), (2, "cd x", lab),
                     (15, "make x", lab), (15, "b.py --out c", lab), (10, "python c.py", lab)]


# Who shows what

EVERY_LAB, LEARNING, PARTS = (f"labs/tests/test_{name}.py" for name in ("every_lab", "harness_learning", "harness_parts"))
MUTANTS, DIAGNOSIS, STARTERS = (f"labs/tests/test_{name}.py" for name in ("mutants", "diagnosis", "harness_commands"))
NEW_LAB, RELEASE = "grading/tests/test_new_lab.py", "grading/tests/test_release.py"
TERMINAL = "reference_engine/tests/test_command_line.py"

PROOFS = {
    r"make demo": "test_make_demo_prints_what_the_readme_shows",
    r"make (test|quick|prove|check|notebooks)|bash \.ci/run|pytest( labs/tests.*)?":
        "test_make_and_ci_start_what_pages_say",
    r"cd .+|jupyter lab .+|pip install.*|python3 -m venv .+|source .+":
        "test_files_and_folders_are_where_pages_say",
    r"python -m grading (init|release|grade|batch|export|report|status|regrade|similarity|workflow)\b.*":
        "test_an_instructors_first_afternoon",
    r"pytest test_lab\.py.*": "test_a_labs_pytest_commands_select_tests",
    r"python -m labs (doctor|list|status( 06)?|hint 02 3|predict 01|solution 02|reset 02|compare 03)":
        "test_a_learners_first_hours",
    r'python -m labs generate "What is a KV cache\?" --use mine:03,06': "test_a_learners_first_hours",
    r"python -m (labs|grading)": "test_subcommands_and_options_exist",
    r"python -m labs ((predict|reset) \d\d|hint \d\d \d)": "test_labs_commands_name_what_there_is",
    r"python -m labs generate .+": f"{PARTS}::test_generate_streams_and_says_whose_parts_ran --use",
    r"python -m labs watch 02": f"{LEARNING}::test_watch_runs_the_tests_of_the_todo_that_was_changed_at_each_save watch",
    r"python -m labs diagnose 02":
        f"{DIAGNOSIS}::test_a_diagnosis_is_announced_given_when_asked_for_and_noted diagnose",
    r"python -m labs update --from FOLDER":
        f"{LEARNING}::test_update_says_what_it_did_and_what_it_was_given_wrongly update --from",
    r"python -m labs practice": f"{RELEASE}::test_a_practice_run_is_fenced_and_summed_up practice",
    r"python -m labs solution":
        f"{RELEASE}::test_without_solutions_the_reference_stands_in_and_asking_for_one_says_why_not solution",
    r"python starter\.py": f"{EVERY_LAB}::test_the_untouched_starter_as_a_program_ends_with_a_friendly_note starter.py",
    r"python broken\.py":
        "grading/labs/lab03/test_author.py::test_the_five_broken_networks_do_what_the_readme_says_of_them broken",
    r"python -m timeit .+": "grading/labs/lab06/test_author.py::test_the_line_that_measures_a_free_list_runs timeit",
    r"python starter\.py --.+|(python \S+/)?(compare|overhead|http_share|make_checkpoint|train|report)\.py .+":
        "test_scripts_take_what_pages_give_them",
    r"python -m nano_qwen3_serving chat": f"{TERMINAL}::test_chat_asks_until_the_end_of_input_and_remembers chat",
    r"python -m nano_qwen3_serving chat .+":
        f"{RELEASE}::test_without_solutions_the_reference_stands_in_and_asking_for_one_says_why_not nano_qwen3_serving chat",
    r"python -m nano_qwen3_serving verify.*": f"{TERMINAL}::test_verify_compares_with_transformers_and_writes_one_json verify",
    r"python -m nano_qwen3_serving bench --serve .+":
        "reference_engine/tests/test_load.py::test_the_command_prints_a_table_or_one_json_object --serve --rate --ttft-limit",
    r"python -m nano_qwen3_serving bench .+": f"{TERMINAL}::test_bench_prints_numbers_or_one_json_object bench --workload --json",
    r"python -m nano_qwen3_serving fuzz .+": f"{TERMINAL}::test_fuzz_runs_and_counts fuzz --requests --seed",
    r"python -m nano_qwen3_serving serve|curl .+":
        "reference_engine/tests/test_server_command.py::test_the_readmes_lines_ask_the_server_that_it_starts curl python",
    r"python -m grading --term 2027S COMMAND":
        f"{RELEASE}::test_a_todo_is_solved_updated_reset_and_regraded_under_the_terms_tag --term grade",
    r"python -m grading agreement": "grading/tests/test_agreement.py::test_the_judge_says_what_the_labs_tests_say agreement",
    r"python -m grading cheats": "grading/tests/test_cheats.py::test_the_command_shows_each_and_fails_if_one_gets_more cheats",
    r"python -m grading gradescope-zip .+":
        "grading/tests/test_gradescope_zip.py::test_judge_and_worker_fit_half_a_core_and_768_mib gradescope-zip --try",
    r"python -m grading collect .+":
        "grading/tests/test_downloads.py::test_collect_lays_each_where_batch_reads_it_with_its_time collect --from --worksheet",
    r"python -m grading attempts .+":
        "grading/tests/test_downloads.py::test_attempts_are_listed_and_compared_though_the_file_is_gone attempts --lab --diff",
    r"python -m grading starter.*": f"{STARTERS}::test_starters_are_made_checked_and_never_lost grading starter --check",
    r"python -m grading new-lab .+": f"{NEW_LAB}::test_a_new_lab_lacks_nothing_that_a_program_can_write_but_its_symptoms new-lab",
    r"python -m grading check-lab .+": f"{NEW_LAB}::test_a_new_lab_goes_all_the_way check-lab",
    r"python -m grading predictions .+":
        f"{NEW_LAB}::test_the_drawn_predictions_of_a_seed_are_shown_with_their_answers predictions --seed",
    # for minutes: the tests call what the commands call
    r"python -m grading mutants .+": f"{MUTANTS}::test_a_mutant_is_caught_by_a_test_of_its_todo mutants",
    r"python -m grading alternatives .+": f"{MUTANTS}::test_right_solutions_that_are_built_differently_pass alternatives",
    r"python -m grading machine-mutants .+": f"{MUTANTS}::test_what_is_listed_as_equivalent_is_still_there machine",
    r"python -m grading symptoms .+": f"{DIAGNOSIS}::test_the_table_is_current symptoms",
}
"""Commands → who shows that they work: a test of this file, or `path::test` and words that its file has. The first that
fits counts. Commands that run for minutes are not run as they stand; their names and options are looked up all the same."""


def proof_of(command: Command) -> str | None:
    return next((test for pattern, test in PROOFS.items() if re.fullmatch(pattern, command.text)), None)


def assigned(test: str) -> list[Command]:
    """The commands that a test of this file has to show."""
    found = [command for command in commands() if proof_of(command) == test]
    assert found, f"PROOFS has nothing for {test}"
    return found


def test_every_command_of_every_page_is_shown_to_work_by_some_test() -> None:
    unknown = [str(command) for command in commands() if proof_of(command) is None]
    assert not unknown, "Run these in a test, or say in PROOFS which test does:\n" + "\n".join(unknown)


def test_nothing_is_promised_for_commands_that_no_page_has() -> None:
    first = {next(filter(lambda pattern: re.fullmatch(pattern, one.text), PROOFS)) for one in commands() if proof_of(one)}
    assert not set(PROOFS) - first


@pytest.mark.parametrize("proof", sorted(set(PROOFS.values())))
def test_the_tests_that_are_named_exist_and_have_the_commands_words(proof: str) -> None:
    where, *words = proof.split()
    file, _, test = where.rpartition("::")
    source = (PROJECT / file).read_text(encoding="utf-8") if file else Path(__file__).read_text(encoding="utf-8")
    assert test in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert words or not file
    assert all(word in source for word in words)


# Looked up

TERMINALS = {
    "labs": typer.main.get_command(labs.harness.cli.app.app),
    "grading": typer.main.get_command(grading.cli.app.app),
    "nano_qwen3_serving": typer.main.get_command(nano_qwen3_serving.cli.app),
}


def options_of(words: list[str]) -> set[str]:
    """The options that the command `labs hint …` takes. Raises `LookupError` if there is no such command."""
    command, options = TERMINALS[words[0]], set()
    for word in (word for word in words[1:] if re.fullmatch(r"[a-z][a-z0-9-]+", word)):
        options |= {name for parameter in command.params for name in parameter.opts}
        below = getattr(command, "commands", None)
        if below is None:
            return options
        if word not in below:
            raise LookupError(f"there is no command {word!r}")
        command = below[word]
    return options | {name for parameter in command.params for name in parameter.opts}


def wrong_words(command: str) -> str:
    """What is wrong with the names in `python -m labs …` and the like; nothing for other commands."""
    words = shlex.split(command)
    if words[:2] != ["python", "-m"] or words[2] not in TERMINALS:
        return ""
    try:
        unknown = {word.partition("=")[0] for word in words[3:] if word.startswith("-")} - options_of(words[2:])
    except LookupError as error:
        return str(error)
    return f"no option {', '.join(sorted(unknown))}" if unknown else ""


def test_subcommands_and_options_exist() -> None:
    wrong = {str(command): wrong_words(command.text) for command in commands()}
    assert not {command: what for command, what in wrong.items() if what}
    assert wrong_words("python -m labs hint 02 --al") == "no option --al"
    assert wrong_words("python -m grading nosuch") == "there is no command 'nosuch'"


@pytest.mark.parametrize(("page", "start"), [("labs/README.md", ""), ("grading/README.md", "python -m grading ")])
def test_options_that_a_table_explains_beside_a_command_are_its_own(page: str, start: str) -> None:
    looked_at = 0
    for row in re.findall(r"^\| .+ \|$", pages()[page], re.MULTILINE):
        first, *inline = INLINE.findall(row) or [""]
        command = first if first.startswith("python -m ") else start + first
        options = [f" {one.split()[0]}" for one in inline if one.startswith("--")]
        if options and command.startswith("python -m "):
            assert not wrong_words(command + "".join(options)), row
            looked_at += 1
    assert looked_at


@pytest.mark.parametrize("name", ["labs", "grading"])
def test_the_page_of_a_command_line_names_each_of_its_commands(name: str) -> None:
    words = set(" ".join(INLINE.findall(FENCE.sub("", pages()[f"{name}/README.md"]))).replace(",", " ").split())
    assert not set(TERMINALS[name].commands) - words


def test_labs_commands_name_what_there_is() -> None:
    for command in (one for one in commands() if one.text.startswith("python -m labs ")):
        match shlex.split(command.text)[3:]:
            case ["predict", number]:
                assert (find_lab(number, PROJECT / "labs").folder / "predict.toml").is_file(), command
            case ["hint", number, todo]:
                assert int(todo) in read_hints(find_lab(number, PROJECT / "labs")), command
            case ["generate", _, "--use", use]:
                for number in use.rpartition(":")[2].split(","):
                    assert (find_lab(number, PROJECT / "labs").folder / "seam.py").is_file(), command
            case ["compare", number]:
                assert (find_lab(number, PROJECT / "labs").folder / "seam.py").is_file(), command
            case [_, number] if number.isdigit():
                find_lab(number, PROJECT / "labs")


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.folder.name)
def test_a_labs_page_gives_commands_for_this_lab(lab) -> None:
    own = [command for command in commands() if command.page == f"labs/{lab.folder.name}/README.md"]
    numbers = re.findall(r"python -m labs [a-z]+ (\d\d)|mine:([\d,]+)", "\n".join(command.text for command in own))
    assert numbers and {"".join(found) for found in numbers} == {lab.id}


def test_scripts_take_what_pages_give_them() -> None:
    for command in assigned("test_scripts_take_what_pages_give_them"):
        script, *arguments = [word for word in command.text.split() if word != "python"]
        folder = command.folder if "/" in script or script == "starter.py" else Path(command.page).parent
        source = (PROJECT / folder / script.replace("starter", "solution")).read_text(encoding="utf-8")
        for option in (word for word in arguments if word.startswith("--")):
            assert re.search(rf'"{option}"|^    {option[2:]}: Annotated', source, re.MULTILINE), command
        if not arguments[0].startswith("--"):
            assert re.search(r'add_argument\("\w+"|typer\.Argument\(', source), command


def pyproject() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


def is_in_place(command: Command, root: Path) -> bool:
    """Whether what a command names is there, of a course in `root`."""
    folder, words = root / command.folder, shlex.split(command.text)
    match words:
        case ["cd", target]:
            return (folder / target).is_dir()
        case ["jupyter", "lab", target]:
            return bool(list((folder / target).glob("*.ipynb")))
        case ["pip", "install", "-r", file]:
            return (folder / file).is_file()
        case ["pip", "install", "-e", extra]:
            return extra[0] == "." and extra[2:-1] in pyproject()["project"]["optional-dependencies"]
        case ["python3", "-m", "venv", target]:
            return os.path.normpath(folder / target) == str(root / ".venv")
        case ["source", script]:
            return os.path.normpath(folder / script) == str(root / ".venv/bin/activate")
        case ["python", script, *_] if script.endswith(".py"):
            return (folder / script).is_file() or ((root / command.page).parent / script).is_file()
        case other:
            return other == ["pip", "install"] or other[0] not in ("cd", "jupyter", "pip", "python3", "source")


def test_files_and_folders_are_where_pages_say() -> None:
    for command in commands():
        assert is_in_place(command, PROJECT), command


# The students' edition


@pytest.fixture(scope="module")
def edition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The students' edition of the course as it is here."""
    if not (PROJECT / ".git").exists():
        pytest.skip("this course is no git repository, and releases are made from one")
    folder = tmp_path_factory.mktemp("release") / "students"
    release("2027S", folder, PROJECT)
    return folder


def test_every_command_of_an_edition_is_one_that_works_and_what_it_names_is_there(edition: Path) -> None:
    found = [one for page in edition.rglob("*.md") if page.name != "CHANGELOG.md"
             for one in commands_of(page.relative_to(edition).as_posix(), page.read_text(encoding="utf-8"))]
    assert len(found) > 100
    for command in found:
        assert proof_of(command) is not None and not wrong_words(command.text), command
        assert is_in_place(command, edition), command
        assert not command.text.startswith("python -m grading"), f"{command}: students have no folder grading"


NAMED = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|json|txt|svg|ipynb|sealed|in|yml|html|sh)|(?:[\w.-]+/)+)`")
TREE = re.compile(r"^[├└]── (\S+)", re.MULTILINE)
WRITTEN = {"predictions.json", "labs/.progress.json", "labs/.backups/", ".github/workflows/practice.yml",
           "added_tokens.json", "special_tokens_map.json", "chat_template.json",
           *(f"broken/{number}.py" for number in range(1, 6))}
"""Files that pages name and that a command makes, or that other people's checkpoints have."""
OF_AN_EDITION = {"ours.sealed", "untouched.py"}
EXAMPLES = re.compile(r"labNN|NN_name|\.\./train\.py")


def named_and_absent(root: Path) -> set[str]:
    """`page: path` for each path that a page names in backticks, or in a picture of a folder, and that is not there."""
    there = [path for path in root.rglob("*")
             if not any(fnmatch(part, one) for part in path.relative_to(root).parts for one in MADE)]
    names = [f"/{path.relative_to(root).as_posix()}" + "/" * path.is_dir() for path in there]
    absent = set()
    for page in (path for path in there if path.suffix == ".md" and path.name != "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8")
        named = [name for name in NAMED.findall(FENCE.sub("", text)) if not any(one.endswith(f"/{name}") for one in names)]
        drawn = [name for block in FENCE.finditer(text) for name in TREE.findall(block["text"])
                 if not (page.parent / name).exists()]
        absent |= {f"{page.relative_to(root).as_posix()}: {name}" for name in [*named, *drawn]
                   if name not in WRITTEN and not EXAMPLES.search(name)}
    return absent


def test_every_path_that_a_page_names_is_there() -> None:
    assert not {one for one in named_and_absent(PROJECT) if one.rpartition(": ")[2] not in OF_AN_EDITION}


def test_every_path_that_a_page_of_an_edition_names_is_there(edition: Path) -> None:
    assert not named_and_absent(edition)
    (edition / "labs" / LABS[0].folder.name / "hints.md").unlink()
    assert named_and_absent(edition), "a path that is gone is noticed"


def test_a_labs_page_draws_all_of_its_folder(edition: Path) -> None:
    for root in (PROJECT, edition):
        for lab in all_labs(root / "labs"):
            drawn = TREE.findall((lab.folder / "README.md").read_text(encoding="utf-8").partition("## Lab Structure")[2])
            there = {path.name for path in lab.folder.iterdir() if not any(fnmatch(path.name, one) for one in MADE)}
            assert there <= set(drawn), f"{lab.folder}: {there - set(drawn)}"


def in_powershell(line: str) -> str:
    if made := re.fullmatch(r"python3 -m venv (.+)", line):
        return "py -m venv " + made[1].replace("/", "\\")
    if activated := re.fullmatch(r"source (.+)/bin/activate", line):
        return activated[1].replace("/", "\\") + r"\Scripts\Activate.ps1"
    return line


@pytest.mark.parametrize("page", [page for page, text in pages().items() if "```powershell" in text])
def test_powershell_blocks_do_what_the_bash_blocks_before_them_do(page: str) -> None:
    blocks = [(block["language"], block["text"].splitlines()) for block in FENCE.finditer(pages()[page])]
    for (before, bash), (language, lines) in pairwise(blocks):
        if language == "powershell":
            assert before == "bash" and lines == [in_powershell(line) for line in bash]


# Run

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine; PowerShell blocks are compared")
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine; the pages have a way without")


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """The course as it is unpacked: no starter has been worked on."""
    folder = tmp_path / "course"
    for name in files("--others", "--exclude-standard"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    for lab in all_labs(folder / "labs"):
        lab.starter.write_text(make_starter(lab.solution.read_text(encoding="utf-8"), lab.id), encoding="utf-8")
    return folder


def shell(course: Path, command: str, folder: str = ".", typed: str = "") -> subprocess.CompletedProcess[str]:
    """A command line, as a reader gives it in a fresh terminal with the environment activated."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "NANO_", "MAKE", "MFLAGS"))}
    env |= {"COLUMNS": "200", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env["PYTHONPATH"] = os.pathsep.join([str(course), str(course / "reference_engine")])
    return subprocess.run(
        ["bash", "-c", command], cwd=course / folder, env=env, input=typed, capture_output=True, text=True, encoding="utf-8",
        timeout=300, check=False)


def without_chance(text: str) -> str:
    """`text` with times, memory, ids, seeds, digests and levels of isolation made equal, and broken lines joined."""
    text = re.sub(r"Graded (?:in|under) .+? \(\w+\)", "Graded", re.sub(r"req-[0-9a-z]+", "ID", text))
    text = re.sub(r"\b[0-9a-f]{12,16}\b", "HEX", re.sub(r"\d+\.\d+|\b\d+ (?=s\b|MiB)", "N ", text))
    return " ".join(text.split())


def shown_after(page: str, command: str) -> str:
    """What a page shows as the output of the bash block that is `command`."""
    blocks = list(FENCE.finditer(pages()[page]))
    place = next(i for i, block in enumerate(blocks) if block["language"] == "bash" and block["text"].strip() == command)
    assert blocks[place + 1]["language"] == ""
    return blocks[place + 1]["text"]


@pytest.fixture
def installed(course: Path) -> Path:
    """The course with an environment, as far as make looks at it: its Python is the one that runs this test."""
    python = course / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for stamp in ("installed", "developing"):
        (course / ".venv" / stamp).touch()
    return course


@pytest.mark.proof
@needs_make
@pytest.mark.slow
def test_make_demo_prints_what_the_readme_shows(installed: Path) -> None:
    done = shell(installed, "make demo")
    assert done.returncode == 0, done.stderr
    assert without_chance(done.stdout) == without_chance(shown_after("README.md", "make demo"))


@pytest.mark.proof
@needs_make
@pytest.mark.slow
def test_make_demo_in_the_students_edition_answers_three_questions(installed: Path) -> None:
    shutil.copy(installed / "grading" / "edition" / "templates" / "Makefile", installed / "Makefile")
    done = shell(installed, "make demo")
    assert done.returncode == 0 and done.stdout.count("You: ") == done.stdout.count("Model: ") == 3, done.stderr


@needs_make
def test_make_and_ci_start_what_pages_say(installed: Path) -> None:
    starts = {"test": '-m "not proof"', "quick": '-m "not slow', "prove": "-m proof", "check": "-m ruff",
              "notebooks": "-m nbconvert"}
    for command in assigned("test_make_and_ci_start_what_pages_say"):
        name, *words = command.text.split()
        if name == "make":
            done = shell(installed, f"make -n {words[0]}")
            assert done.returncode == 0 and starts[words[0]] in done.stdout, f"{command}\n{done.stderr}"
        elif name == "pytest" and words:
            assert (PROJECT / words[0]).exists(), command
    assert shell(installed, "bash -n .ci/run").returncode == 0
    assert (installed / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"
    settings = pyproject()["tool"]["pytest"]["ini_options"]
    assert all((PROJECT / folder).is_dir() for folder in settings["testpaths"])
    assert any("slow" in marker for marker in settings["markers"])


@needs_bash
@pytest.mark.slow
def test_a_labs_pytest_commands_select_tests(course: Path) -> None:
    """Each lab is collected once, and `-k` is applied to the names."""
    done = shell(course, "pytest --collect-only -q -p no:cacheprovider --impl solution labs/lab*/test_lab.py")
    assert done.returncode == 0, done.stdout + done.stderr
    for command in assigned("test_a_labs_pytest_commands_select_tests"):
        lab = find_lab(re.search(r"lab\d\d", command.folder)[0] if command.folder != "." else "01", course / "labs")
        names = re.findall(rf"{lab.folder.name}/test_lab\.py::(\S+)", done.stdout)
        words = shlex.split(command.text)[2:]
        selected = words[words.index("-k") + 1].split(" or ") if "-k" in words else [""]
        assert all(any(part in name for name in names) for part in selected), command
        assert {word for word in words if word.startswith("-")} <= {"-k", "-v", "-x", "-rs", "--impl"}, command


def hand_in(folder: Path) -> None:
    """For Lab 06: our solution, one that keeps the table of a freed request, a starter; a fourth student hands in nothing."""
    lab = find_lab("06", PROJECT / "labs")
    case = make_case(lab, seed=1)
    answers = {question.id: case.truth(question) for question in case.questions}
    forgetful = next(one for one in read_mutants(lab) if one.name == "a_freed_request_keeps_an_empty_table")
    texts = {"ada": lab.solution.read_text(encoding="utf-8"), "bob": forgetful.text,
             "cem": make_starter(lab.solution.read_text(encoding="utf-8"), lab.id)}
    for student, text in texts.items():
        (folder / "submissions" / student).mkdir(parents=True)
        (folder / "submissions" / student / "starter.py").write_text(text, encoding="utf-8")
        if student != "cem":
            attempts = json.dumps({"attempts": [{"seed": case.seed, "answers": answers}]})
            (folder / "submissions" / student / "predictions.json").write_text(attempts, encoding="utf-8")
    roster = "Login,Name,Section\nada,Ada,A\nbob,Bob,A\ncem,Cem,B\ndee,Dee,B\n"
    (folder / "roster.csv").write_text(roster, encoding="utf-8")
    times = "".join(f"{student},06,2027-02-28T12:00Z\n" for student in texts)
    (folder / "times.csv").write_text("student,lab,submitted\n" + times, encoding="utf-8")


@pytest.mark.proof
@needs_bash
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed, and a release is made from its repository")
@pytest.mark.slow
def test_an_instructors_first_afternoon(course: Path) -> None:
    """The commands of grading/README.md, in their order and with its term.toml, print what it shows."""
    blocks = list(FENCE.finditer(pages()["grading/README.md"]))
    term, later = [block["text"] for block in blocks if block["language"] == "toml"][:2]
    git = "git -c user.name=a -c user.email=a@b -c commit.gpgsign=false"
    assert shell(course, f"git init -q && git add -A && {git} commit -qm course").returncode == 0
    printed = ""
    for command in assigned("test_an_instructors_first_afternoon"):
        if command.text == "python -m grading batch":
            (course / "term.toml").write_text(term + later, encoding="utf-8")
        done = shell(course, command.text)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed += done.stdout
        if command.text == "python -m grading init":
            hand_in(course)
            (course / "term.toml").write_text(term, encoding="utf-8")
    shown = [after["text"] for block, after in pairwise(blocks) if block["language"] == "bash" and not after["language"]]
    assert len(shown) == 4
    for text in shown:
        assert without_chance(text) in without_chance(printed)
    assert "0 graded, 3 known already" in printed and "Nothing was changed." in printed
    assert "lab 06 is due at 2027-03-01 23:59 CET; 2 students have a deadline of their own" in printed
    assert "override: bob lab 06: The instructor set TODO 5 to 13 points: Shown in the office" in printed
    assert (course / "cohort.html").is_file() and (course / ".github" / "workflows" / "practice.yml").is_file()
    students = course.parent / "students"
    assert not list(students.rglob("solution.py")) and not (students / "grading").exists() and not (students / ".git").exists()


@dataclass(frozen=True)
class Step:
    """A command, what it says, and how it ends."""

    command: str
    says: str
    status: int = 0
    folder: str = "."
    typed: str = ""


LAB01, LAB03 = (find_lab(number, PROJECT / "labs").folder.name for number in ("01", "03"))
FIRST_HOURS = [
    Step("python -m labs doctor", "import nano_qwen3_serving works"),
    Step("python -m labs list", "0 of 6 TODOs solved"),
    Step("python -m labs predict 01", "of 7 right. Your best attempt is worth", folder=f"labs/{LAB01}", typed="ada" + "\n" * 8),
    Step("python starter.py", "python -m labs hint 01 1", 1, f"labs/{LAB01}"),
    Step("python -m labs solution 01", "starter.py is our solution now"),
    Step("pytest test_lab.py -k todo_1", "10/10", folder=f"labs/{LAB01}"),
    Step("python -m labs hint 02 3", "Lab 02, TODO 3, hint 1 of 3"),
    Step("python -m labs solution 02", "starter.py is our solution now"),
    Step("python -m labs status", "our solution was written in"),
    Step("python -m labs status 06", "Next: Lab 06, predictions: python -m labs predict 06"),
    Step("python -m labs reset 02", "Your work: "),
    Step("python -m labs solution 03", "starter.py is our solution now"),
    Step("python -m labs solution 06", "starter.py is our solution now"),
    Step('python -m labs generate "What is a KV cache?" --use mine:03,06', "A KV cache stores"),
    Step("python -m labs compare 03", "Nothing differs: ", folder=f"labs/{LAB03}"),
]


@pytest.mark.proof
@needs_bash
@pytest.mark.slow
def test_a_learners_first_hours(course: Path) -> None:
    assert {command.text for command in assigned("test_a_learners_first_hours")} <= {step.command for step in FIRST_HOURS}
    for step in FIRST_HOURS:
        done = shell(course, step.command, step.folder, step.typed)
        assert (done.returncode, step.says in done.stdout) == (step.status, True), f"{step}\n{done.stdout}{done.stderr}"
