"""What a learner has done so far, in one small file beside the labs: `.progress.json`.

It may be deleted at any time: it is never needed, only shown. A file that cannot be read counts as
absent. Writing replaces it in one move, so that a run that is cut off leaves the old one whole.
"""

import json
import os
import tempfile
from pathlib import Path

FILE = ".progress.json"


class Progress:
    """The file's contents; change them through the methods, then `save()`."""

    def __init__(self, home: Path):
        self.path = home / FILE
        try:
            facts = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            facts = {}
        self._facts = facts if isinstance(facts, dict) else {}

    @property
    def name(self) -> str | None:
        """The word that seeds this learner's numbers."""
        return self._facts.get("name")

    @name.setter
    def name(self, name: str) -> None:
        self._facts["name"] = name

    def todos(self, lab_id: str) -> dict[int, dict]:
        """TODO -> {"points", "of", "state"} of its last run."""
        return {int(todo): row for todo, row in self._lab(lab_id).get("todos", {}).items()}

    def record_todo(self, lab_id: str, todo: int, *, points: float, of: float, state: str) -> None:
        self._lab(lab_id).setdefault("todos", {})[str(todo)] = {"points": points, "of": of, "state": state}

    def hints_used(self, lab_id: str, todo: int) -> int:
        return self._lab(lab_id).get("hints", {}).get(str(todo), 0)

    def record_hint(self, lab_id: str, todo: int, used: int) -> None:
        self._lab(lab_id).setdefault("hints", {})[str(todo)] = used

    def predictions(self, lab_id: str) -> list[dict]:
        """One entry per attempt: {"seed", "right", "of"}."""
        return self._lab(lab_id).get("predictions", [])

    def record_predictions(self, lab_id: str, *, seed: int, right: int, of: int) -> None:
        self._lab(lab_id).setdefault("predictions", []).append({"seed": seed, "right": right, "of": of})

    def save(self) -> None:
        """Write the file, whole or not at all. A folder that cannot be written to is no error here."""
        try:
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=FILE)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self._facts, file, indent=1, sort_keys=True)
            os.replace(name, self.path)
        except OSError:
            return

    def _lab(self, lab_id: str) -> dict:
        return self._facts.setdefault("labs", {}).setdefault(lab_id, {})
