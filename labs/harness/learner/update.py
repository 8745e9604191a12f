"""`labs update`: installs a newer version of the course over this one, without touching what the learner wrote.

A starter becomes the newer one with the learner's functions in it, and with the learner's additions
to the file: imports, helpers, methods. Every other file is replaced by the newer one. Everything is worked
out before anything is written; one archive keeps the replaced files; and a failed write is
undone. Files that only the newer version has are added; files that only this version has stay.
"""

import ast
import io
import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeGuard

from labs.harness import files, regions, source
from labs.harness.catalog import Lab, LabError, all_labs, lab_at
from labs.harness.learner.backups import FOLDER
from labs.harness.originals import starter_text
from labs.harness.regions import Function, definitions, extent, put_back
from labs.harness.source import lines_of

_NOT_COPIED = {"__pycache__", "build", "dist"}


@dataclass(frozen=True)
class FileChange:
    """A file whose content will change."""

    path: Path
    content: bytes
    replaces: bool
    """Whether the file exists already."""
    notes: tuple[str, ...] = ()
    """Notes for the learner about a merged starter."""

    def shown(self, home: Path) -> str:
        """Its path relative to the parent of the labs' folder."""
        return self.path.relative_to(home.parent).as_posix()


def update(home: Path, newer: Path) -> tuple[list[FileChange], Path | None]:
    """Bring the labs in `home` (and the course around them) to the version in `source`; return the changes and the archive.

    Args:
        newer: the folder of a newer course, or its folder of labs.

    Raises:
        LabError: `newer` is no such folder, or a starter cannot be merged. Then nothing is written.
    """
    changes = plan(home, newer)
    if not changes:
        return [], None
    kept = _archive([change.path for change in changes if change.replaces], home)
    files.replace_all({change.path: change.content for change in changes})
    return changes, kept


def plan(home: Path, version: Path) -> list[FileChange]:
    """The changes that `update` would write."""
    newer = version / "labs" if all_labs(version / "labs") else version
    if not all_labs(newer):
        raise LabError(f"{version} is not a version of this course: it has no folder of labs.")
    if newer.resolve() == home.resolve():
        raise LabError(f"{version} is this version itself. Unpack the newer one beside it, and name that folder.")
    whole = (newer.parent / "pyproject.toml").is_file() and (home.parent / "pyproject.toml").is_file()
    here, there = (home.parent, newer.parent) if whole else (home, newer)
    starters = {lab.starter for lab in all_labs(newer)}
    changes = []
    for path in _files(there):
        target = here / path.relative_to(there)
        content = path.read_bytes()
        notes: list[str] = []
        if path in starters and target.is_file():
            merged, notes = merged_starter(lab_at(target.parent), content.decode("utf-8"))
            content = merged.encode()
        if not target.is_file() or target.read_bytes() != content:
            changes.append(FileChange(target, content, target.exists(), tuple(notes)))
    return changes


def merged_starter(lab: Lab, newer: str) -> tuple[str, list[str]]:
    """The `newer` starter with the learner's work in it, and notes on places that the learner should look at.

    Raises `LabError` if the learner's file is not Python, or has a written function that the newer
    version lacks.
    """
    file = f"{lab.folder.name}/{lab.starter.name}"
    work = source.decoded(lab.starter.read_bytes(), file).text
    base = starter_text(lab) if lab.solution.is_file() or lab.untouched.is_file() else None
    if work == base:
        return newer, []
    try:
        mine = definitions(source.parsed(work, file))
    except LabError as error:
        raise LabError(f"{error} Mend it, or put it back: python -m labs reset {lab.id}") from None
    theirs, old = definitions(ast.parse(newer)), definitions(ast.parse(base or ""))
    written = [name for name in mine if name in _regions(old or theirs) and not _same(mine[name], old.get(name))]
    if lost := [name for name in written if name not in theirs]:
        raise LabError(
            f"{file}: you wrote {lost[0]}, and the newer version has no such function. Nothing was changed. "
            f"Keep a copy of your file, then: python -m labs reset {lab.id}"
        )
    outermost = [name for name in written if not any(name.startswith(f"{other}.") for other in written)]
    if twice := _defined_twice(work, written):
        raise LabError(
            f"{file} defines {twice} more than once, and one copy would be lost. Nothing was changed. Keep one of them.")
    try:
        merged = put_back(newer, work, outermost)
        merged, added = _with_additions(merged, work, base if base is not None else newer)
        kept = _keeps(merged, mine, outermost, [node for _, node in added])
    except (LabError, SyntaxError):
        kept = False
    if not kept:
        raise LabError(
            f"{file} cannot be merged without changing what you wrote. Nothing was changed. "
            f"Keep a copy of your file, then: python -m labs reset {lab.id}")
    return merged, _notes(mine, theirs, old, outermost, [name for name, _ in added])


def _defined_twice(work: str, names: list[str]) -> str | None:
    """One of `names` that the file defines twice in the same scope."""
    seen: Counter[str] = Counter()

    def count(tree: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(tree):
            inner = f"{prefix}{node.name}." if isinstance(node, Function | ast.ClassDef) else prefix
            seen[inner[:-1]] += isinstance(node, Function)
            count(node, inner)

    count(ast.parse(work), "")
    return next((name for name in names if seen[name] > 1), None)


def _keeps(merged: str, mine: dict[str, Function], written: list[str], added: list[ast.stmt]) -> bool:
    """Whether every written function and every added statement means the same in `merged` as before."""
    tree = ast.parse(merged)
    there, statements = definitions(tree), {ast.dump(node) for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    kept = all(name in there and ast.dump(there[name]) == ast.dump(mine[name]) for name in written)
    return kept and all(ast.dump(node) in statements for node in added)


def _notes(
    mine: dict[str, Function], theirs: dict[str, Function], old: dict[str, Function], written: list[str], added: list[str]
) -> list[str]:
    notes = [f"yours as before: {', '.join(written)}"] if written else []
    notes += [f"kept, which you added: {', '.join(added)}"] if added else []
    for name in written:
        before, now = ast.unparse(mine[name].args), ast.unparse(theirs[name].args)
        if before != now:
            notes.append(f"{name}({before}) is {name}({now}) in the newer version: look at it")
    provided = [name for name in mine if name in old and name in theirs and name not in _regions(old)]
    for name in provided:
        if not _same(mine[name], old[name]) and not any(_holds(name, other) for other in [*written, *added]):
            notes.append(f"you had changed {name}; it is now the newer version's, and yours is in the archive")
    return notes


def _holds(name: str, other: str) -> bool:
    return other == name or other.startswith(f"{name}.") or name.startswith(f"{other}.")


def _regions(functions: dict[str, Function]) -> set[str]:
    """The functions of a starter that are the learner's to write: those that raise `TodoError` themselves."""
    holding = {name for name, node in functions.items() if regions.unwritten_todos(node)}
    return {name for name in holding if not any(other.startswith(f"{name}.") for other in holding)}


def _same(function: Function, other: Function | None) -> bool:
    return other is not None and ast.dump(function) == ast.dump(other)


# what the learner added to the file


def _with_additions(merged: str, work: str, base: str) -> tuple[str, list[tuple[str, ast.stmt]]]:
    """`merged` with the statements and methods that are in `work` but not in `base`; and the names of these."""
    lines, work_lines = lines_of(merged), lines_of(work)
    additions: list[tuple[str, ast.stmt]] = []
    tree = ast.parse(merged)
    into = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    inserts: list[tuple[int, list[str]]] = []
    for node in _added(ast.parse(work).body, ast.parse(base).body, tree.body):
        additions.append((_name(node), node))
        inserts.append((_place(tree, node), ["", *([""] * _is_definition(node)), *_text(node, work_lines)]))
    old = {node.name: node for node in ast.parse(base).body if isinstance(node, ast.ClassDef)}
    for node in ast.parse(work).body:
        if isinstance(node, ast.ClassDef) and node.name in old and node.name in into:
            for inner in _added(node.body, old[node.name].body, into[node.name].body):
                additions.append((f"{node.name}.{_name(inner)}", inner))
                inserts.append((into[node.name].end_lineno or 0, ["", *_text(inner, work_lines)]))
    for line, text in sorted(inserts, key=lambda insert: -insert[0]):
        lines[line:line] = text
    return "\n".join(lines) + "\n", additions


def _added(work: list[ast.stmt], base: list[ast.stmt], merged: list[ast.stmt]) -> list[ast.stmt]:
    """Statements of `work` that neither other file has: definitions are compared by name, other statements by text."""
    known = {_key(node) for node in [*base, *merged]}
    return [node for node in work if _key(node) not in known and not _is_docstring(node)]


def _key(node: ast.stmt) -> str:
    return node.name if _is_definition(node) else ast.dump(node)


def _name(node: ast.stmt) -> str:
    return node.name if _is_definition(node) else ast.unparse(node).split("\n")[0]


def _is_definition(node: ast.stmt) -> TypeGuard[Function | ast.ClassDef]:
    return isinstance(node, Function | ast.ClassDef)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _text(node: ast.stmt, lines: list[str]) -> list[str]:
    first, last = extent(node, lines) if isinstance(node, Function) else (node.lineno, node.end_lineno or node.lineno)
    if isinstance(node, ast.ClassDef):
        first = min([first, *(decorator.lineno for decorator in node.decorator_list)])
    return lines[first - 1 : last]


def _place(tree: ast.Module, node: ast.stmt) -> int:
    """The line of `tree` after which an added statement goes: definitions before `__main__`, others after the imports."""
    imports = [statement for statement in tree.body
               if isinstance(statement, ast.Import | ast.ImportFrom) or _is_docstring(statement)]
    mains = [statement for statement in tree.body if isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)]
    if not _is_definition(node):
        return imports[-1].end_lineno or 0 if imports else 0
    before = [statement for statement in tree.body if not mains or statement.lineno < mains[0].lineno]
    return before[-1].end_lineno or 0 if before else 0


# files


def _files(folder: Path) -> list[Path]:
    """The course's files in a folder: nothing hidden, nothing built, no environments, no links."""
    paths = []
    for name, folders, names in os.walk(folder):
        folders[:] = sorted(inner for inner in folders if _is_copied(Path(name) / inner))
        paths += [Path(name) / file for file in sorted(names) if not file.startswith(".") and not file.endswith(".pyc")]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _is_copied(folder: Path) -> bool:
    name = folder.name
    unwanted = name.startswith(".") or name in _NOT_COPIED or name.endswith(".egg-info")
    return not unwanted and not folder.is_symlink() and not (folder / "pyvenv.cfg").exists()


def _archive(paths: list[Path], home: Path) -> Path | None:
    """Archives these files, as they are now, in `.backups`; returns the archive, None if there are no files."""
    if not paths:
        return None
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for path in paths:
            archive.write(path, path.relative_to(home.parent))
    return files.write_new(home / FOLDER, f"before-update-{datetime.now():%Y%m%d-%H%M%S}", ".zip", packed.getvalue())
