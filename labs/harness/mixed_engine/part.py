"""A lab's part of the engine, and how the engine uses it.

A lab that makes a part has a `seam.py` that says how the engine uses it: one function for each field of
`Components` that the part can fill, named like the field. Its first argument is the lab's module, the
others are those of the field's factory:

    def block_manager(lab, config):
        return lab.BlockManager(config.cache.num_blocks, config.cache.block_size)
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

from labs.harness import loading, originals
from labs.harness.catalog import Lab, LabError, all_labs
from nano_qwen3_serving.components import Components

FIELDS = tuple(field.name for field in fields(Components))
MINE, SOLUTION, REFERENCE = "mine", "solution", "reference"

_counter = itertools.count(1)


@dataclass(frozen=True)
class Part:
    """A lab's part, loaded, and the fields of `Components` that it fills."""

    lab: Lab
    impl: str
    module: ModuleType
    seam: ModuleType
    stand_ins: tuple[int, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of `Components` that the lab's seam has a function for."""
        return seam_fields(self.lab, self.seam)

    @property
    def file(self) -> Path:
        """The file the part was loaded from."""
        return Path(inspect.getfile(self.module))

    def owner_in_words(self) -> str:
        """Such as "your starter.py (TODO 4 is ours)"."""
        owner = {MINE: f"your {self.file.name}", SOLUTION: f"our {self.file.name}"}.get(self.impl, self.impl)
        ours = " and ".join(map(str, self.stand_ins))
        return f"{owner} (TODO {ours} {'is' if len(self.stand_ins) == 1 else 'are'} ours)" if ours else owner

    def todo_of(self, function: str) -> int | None:
        """The TODO that the function of this dotted name belongs to; a nested function belongs to its outer one's."""
        names = {name: todo for todo, names in originals.functions(self.lab).items() for name in names}
        while function:
            if function in names:
                return names[function]
            function = function.rpartition(".")[0]
        return None


def load_seam(lab: Lab) -> ModuleType:
    """The lab's `seam.py`. Raises `LabError` if the lab makes no part of the engine."""
    if not lab.seam.is_file():
        having = ", ".join(other.id for other in labs_with_seam(lab.folder.parent)) or "none yet"
        raise LabError(
            f"Lab {lab.id} ({lab.title}) makes no part that an engine could be built with: it uses the engine, or "
            f"stands beside it. Labs that make one: {having}.")
    return loading.run_file(lab.seam, f"_lab{lab.id}_seam_{next(_counter)}")


def seam_fields(lab: Lab, seam: ModuleType) -> tuple[str, ...]:
    """The fields of `Components` that `seam` has a function for. Raises `LabError` if there is none."""
    fields = tuple(name for name in FIELDS if callable(getattr(seam, name, None)))
    if not fields:
        raise LabError(f"{lab.folder.name}/seam.py has no function named as a field of Components: {', '.join(FIELDS)}.")
    return fields


def labs_with_seam(home: Path | None = None) -> list[Lab]:
    """The labs that make a part of the engine."""
    return [lab for lab in all_labs(home) if lab.seam.is_file()]
