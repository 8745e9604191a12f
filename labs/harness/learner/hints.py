"""Reading `hints.md`: `## TODO 3`, and under it `### Hint 1` to `### Hint 3`."""

import re

from labs.harness.catalog import Lab

HINTS_PER_TODO = 3


def read_hints(lab: Lab) -> dict[int, list[str]]:
    """TODO -> its hints, from a question to nearly the answer."""
    text = (lab.folder / "hints.md").read_text(encoding="utf-8")
    hints: dict[int, list[str]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        if number := re.match(r"TODO (\d+)", section):
            parts = re.split(r"^### Hint \d+.*$", section, flags=re.MULTILINE)[1:]
            hints[int(number[1])] = [part.strip() for part in parts]
    return hints
