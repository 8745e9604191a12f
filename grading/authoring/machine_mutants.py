"""Mutants made by machine: the operators of cosmic-ray, applied to a solution's regions.

`grading/labs/labNN/mutants/equivalent.toml` lists those that change nothing a caller could see:

    [[equivalent]]
    operator = "NumberReplacer"
    line = "shown = 0"
    occurrence = 0
    reason = "why it behaves the same"

`occurrence` counts, from 0, what the operator makes of lines with that text; so an entry stays valid
when lines move, and an entry that no longer fits anything is an error. Needs the extra `mutation`.
"""

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from grading.authoring.mutants import Mutant
from grading.labs import HOME, authors_folder
from labs.harness.catalog import Lab, LabError
from labs.harness.regions import find_regions

_LEFT_OUT = re.compile(
    r"Variable(Replacer|Inserter)"  # need names as arguments
    r"|ReplaceBinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(RShift|LShift|BitOr|BitAnd|BitXor)"  # no one slips like that
    r"|ReplaceComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_Is(Not)?"  # an interpreter may share equal numbers
)
"""Operators of cosmic-ray that this module does not use."""

Key = tuple[str, str, int]
"""Operator, text of the line, occurrence."""


def machine_mutants(lab: Lab) -> dict[Key, Mutant]:
    """Every mutation of the solution's regions, those listed as equivalent among them.

    Leaves out mutations that mean the same as the original or as an earlier one. Raises `LabError`
    if cosmic-ray is not installed.
    """
    source = lab.solution.read_text(encoding="utf-8")
    seen = {ast.dump(ast.parse(source))}
    mutants: dict[Key, Mutant] = {}
    met: Counter[tuple[str, str]] = Counter()
    for name, line, todo, text in _mutations(source):
        key = (name, line, met[name, line])
        met[name, line] += 1
        try:
            meaning = ast.dump(ast.parse(text))
        except SyntaxError:
            continue
        if meaning in seen:
            continue
        seen.add(meaning)
        now = _changed_line(source, text)
        story = f"{line}  became  {now}" if now else f"{line}  was changed"
        mutants[key] = Mutant(lab.id, f"{name} {key[2]}", todo, "machine", story, text)
    return mutants


def equivalents(lab: Lab, mutants: dict[Key, Mutant], home: Path = HOME) -> dict[Key, str]:
    """What the lab's `equivalent.toml` lists, with the reasons. Raises `LabError` for an entry that fits none of `mutants`."""
    listed = read_equivalents(lab, home)
    if stale := [key for key in listed if key not in mutants]:
        raise LabError(
            f"lab{lab.id}/equivalent.toml: stale: {stale[0][0]} makes nothing number {stale[0][2]} of a line {stale[0][1]!r}.")
    return listed


def read_equivalents(lab: Lab, home: Path = HOME) -> dict[Key, str]:
    """The entries of `equivalent.toml`; needs no cosmic-ray. Raises `LabError` for one whose line is in no region any more."""
    path = authors_folder(lab, home) / "mutants" / "equivalent.toml"
    if not path.is_file():
        return {}
    source, reasons = lab.solution.read_text(encoding="utf-8"), {}
    lines = [line.strip() for line in source.splitlines()]
    inside = {line for region in find_regions(source) for line in lines[region.begin : region.end - 1]}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", []):
        if set(entry) != {"operator", "line", "occurrence", "reason"} or not entry["reason"].strip():
            raise LabError(f"{path}: an [[equivalent]] has operator, line, occurrence and reason; this one: {entry}.")
        if entry["line"] not in inside:
            raise LabError(f"{path}: stale: no line of a region reads {entry['line']!r}.")
        reasons[entry["operator"], entry["line"], entry["occurrence"]] = entry["reason"]
    return reasons


def _mutations(source: str) -> Iterator[tuple[str, str, int, str]]:
    """(operator, text of the line, TODO, the mutated source), for every place in a region."""
    try:
        from cosmic_ray.ast import ast_nodes, get_ast
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.operators.provider import OperatorProvider
    except ImportError:
        raise LabError("cosmic-ray makes these mutants, and is not installed: pip install -e '.[mutation]'") from None
    owner = {line: region.todo for region in find_regions(source) for line in range(region.begin, region.end)}
    lines, nodes, provider = source.splitlines(), list(ast_nodes(get_ast(source))), OperatorProvider()
    for name in provider:
        if _LEFT_OUT.fullmatch(name):
            continue
        operator = provider[name]()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for number, ((line, _), _) in enumerate(places):
            if line in owner and (text := mutate_code(source, operator, number)) is not None:
                yield name, lines[line - 1].strip(), owner[line], text


def _changed_line(before: str, after: str) -> str:
    """The first line of `after` that differs."""
    return next((new.strip() for old, new in zip(before.splitlines(), after.splitlines(), strict=False) if old != new), "")
