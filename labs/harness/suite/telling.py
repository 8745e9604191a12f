"""A run's report on its failures: each kind once, in at most `LINES` lines; the rest is counted.

Knows nothing of pytest: a failure is plain data, made by `failures`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

LINES = 130
"""The most lines of the whole report. With the table and pytest's own lines a run prints less than 200."""
SHORT = 30
"""How many of these lines are kept for failures that are reported with their first line only."""
LINES_EACH = 12
PRINTED = 12
"""How many printed lines are shown, of the first failing test that printed anything."""
NAMED = 4
"""How many other tests that fail in the same way are named."""


@dataclass(frozen=True)
class Failure:
    """How one test failed.

    Attributes:
        todo: its TODO; 0 for a test that belongs to none.
        test: the test function; its cases share it.
        case: what distinguishes the case, such as `[5-True]`.
        kind: failures with the same kind are one for the learner.
        lines: the report, the most important line first.
        waits: whether nothing failed yet: a TODO is not written, or the file cannot be loaded.
        printed: what the test's code printed, the last `PRINTED + 1` lines of it.
    """

    todo: int
    test: str
    case: str
    kind: str
    lines: tuple[str, ...]
    waits: bool = False
    printed: tuple[str, ...] = ()


@dataclass
class _Group:
    first: Failure
    more: list[Failure] = field(default_factory=list)


def report_lines(failures: Sequence[Failure]) -> list[str]:
    """The lines to print."""
    lines = _printed(failures)
    groups = _grouped(failures)
    for number, group in enumerate(groups):
        whole = _whole(group)
        if len(lines) + len(whole) > LINES - SHORT:
            return [*lines, *_in_short(groups[number:])]
        lines += whole
    return lines


def _printed(failures: Sequence[Failure]) -> list[str]:
    first = next((failure for failure in failures if failure.printed), None)
    if first is None:
        return []
    cut = ["… (more before; all of it: pytest -s)"] if len(first.printed) > PRINTED else []
    return ["", f"{first.test}{first.case} printed:", *(f"    {line[:300]}" for line in [*cut, *first.printed[-PRINTED:]])]


def _grouped(failures: Sequence[Failure]) -> list[_Group]:
    """Failures of one kind, or of one test, together; in the order of the first ones."""
    groups: list[_Group] = []
    known: dict[str, _Group] = {}
    for failure in failures:
        keys = (f"kind {failure.kind}", f"test {failure.todo} {failure.test}")
        group = next((known[key] for key in keys if key in known), None)
        if group is None:
            groups.append(group := _Group(failure))
        else:
            group.more.append(failure)
        for key in keys:
            known.setdefault(key, group)
    return groups


def _whole(group: _Group) -> list[str]:
    first = group.first
    lines = [f"{first.test}{first.case}", *(f"    {line}" for line in first.lines[:LINES_EACH])]
    return ["", *lines, *([f"    {_and_more(group)}"] if group.more else [])]


def _and_more(group: _Group) -> str:
    """`… and 27 more cases of this test`, or which other tests fail in the same way."""
    if group.first.waits:
        return f"… and {len(group.more)} more, for the same reason"
    count = Counter(failure.test for failure in group.more)
    cases = count.pop(group.first.test, 0)
    parts = [f"{cases} more case{'s' * (cases > 1)} of this test"] if cases else []
    if count:
        names = [f"{test} ({number} cases)" if number > 1 else test for test, number in list(count.items())[:NAMED]]
        others = f", and {len(count) - NAMED} more" if len(count) > NAMED else ""
        parts.append(f"in the same way {', '.join(names)}{others}")
    return "… and " + "; ".join(parts)


def _in_short(groups: Sequence[_Group]) -> list[str]:
    """One line for each group that did not fit, as far as there is room."""
    shown = groups[: SHORT - 4]
    lines = ["", "More failures, in short; one TODO at a time shows more: pytest test_lab.py -k todo_3"]
    for group in shown:
        said = group.first.lines[0] if group.first.lines else ""
        more = f" (and {len(group.more)} more)" if group.more else ""
        lines.append(f"  {group.first.test}{group.first.case[:30]}: {said}"[:180] + more)
    left = groups[len(shown) :]
    return lines + ([f"  … and {sum(1 + len(group.more) for group in left)} more failing tests."] if left else [])
