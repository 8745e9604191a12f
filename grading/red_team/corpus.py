"""The cheats: reads them and makes their submissions. Runs none of them."""

import ast
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grading.red_team import archives
from labs.harness.catalog import LabError, find_lab
from labs.harness.regions import Function, definitions, with_stand_ins

HERE = Path(__file__).parent / "cheats"
_KEYS: dict[str, type | tuple[type, ...]] = {
    "lab": str, "base": str, "worth": (int, float), "todos": list, "needs_isolation": bool}


@dataclass(frozen=True)
class Cheat:
    """One submission that cheats.

    Attributes:
        name: of its file.
        tries: what it tries, in a sentence or two.
        lab: the lab that it is a submission of.
        worth: the points that its honest part earns, of 85.
        todos: the TODOs at which it loses the others.
        needs_isolation: whether it succeeds at the level `none`.
        make: writes it into an empty folder, and returns the submission's path.
    """

    name: str
    tries: str
    lab: str
    worth: float
    todos: tuple[int, ...]
    needs_isolation: bool
    make: Callable[[Path], Path]


def read_cheats() -> list[Cheat]:
    """All cheats, by name: files, and those that only an archive or a folder can express."""
    written = [_read(path) for path in HERE.glob("*.py") if path.name != "__init__.py"]
    built = [_built(build) for build in archives.BUILDERS]
    return sorted([*written, *built], key=lambda cheat: cheat.name)


def _read(path: Path) -> Cheat:
    text = path.read_text(encoding="utf-8")
    tries, fields = _heading(path, ast.get_docstring(ast.parse(text)) or "")
    lab = find_lab(fields["lab"])
    base = {"solution": lab.solution, "starter": lab.starter}.get(fields["base"])
    if base is None:
        raise LabError(f"{path.name}: base is solution or starter, not {fields['base']!r}.")
    whole = composed(base.read_text(encoding="utf-8"), text)
    return _cheat(path.stem, tries, fields, lambda folder: archives.write(folder, path.stem, whole.encode()))


def _built(build: archives.Builder) -> Cheat:
    tries, fields = _heading(Path(build.__name__), ast.get_docstring(ast.parse(f'"""{build.__doc__}"""')) or "")
    lab = find_lab(fields["lab"])
    return _cheat(build.__name__, tries, fields, lambda folder: build(lab, folder))


def _cheat(name: str, tries: str, fields: dict, make: Callable[[Path], Path]) -> Cheat:
    return Cheat(name, tries, fields["lab"], fields["worth"], tuple(fields["todos"]), fields["needs_isolation"], make)


def _heading(path: Path, docstring: str) -> tuple[str, dict]:
    """What the cheat tries, and the fields below that sentence, including `needs_isolation`."""
    tries, _, rest = docstring.partition("\n\n")
    try:
        fields = {"needs_isolation": False} | tomllib.loads(rest)
    except tomllib.TOMLDecodeError as error:
        raise LabError(f"{path.name}: what follows the first empty line of its docstring is no TOML: {error}") from None
    wrong = [key for key, kind in _KEYS.items() if not isinstance(fields.get(key), kind)] + sorted(set(fields) - set(_KEYS))
    if not tries or wrong:
        raise LabError(
            f"{path.name}: its docstring says what it tries, then lab = '04', base = 'solution', worth = 73, "
            "todos = [4] and perhaps needs_isolation = true; "
            f"see {', '.join(wrong)}.")
    return " ".join(tries.split()), fields


def composed(base: str, cheat: str) -> str:
    """`base` with its functions replaced by those of `cheat` of the same name, and the rest of `cheat` at the end."""
    work, theirs = ast.parse(base), ast.parse(cheat)
    known = definitions(work)
    there = {node.name for node in work.body if isinstance(node, Function | ast.ClassDef)}
    taken = with_stand_ins(work, theirs, [name for name in definitions(theirs) if name in known])
    taken.body += [node for node in theirs.body[1:] if getattr(node, "name", None) not in there]
    return ast.unparse(taken) + "\n"
