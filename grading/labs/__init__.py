"""Each lab's second home, `labNN/`: what only those who make the lab or grade it see. Its first is `labs/labNN_name/`."""

from pathlib import Path

from labs.harness.catalog import Lab

HOME = Path(__file__).parent


def authors_folder(lab: Lab, home: Path = HOME) -> Path:
    """The lab's folder in `home`: hidden tests, mutants, alternatives, concepts."""
    return home / f"lab{lab.id}"


def judging_files(lab: Lab) -> list[Path]:
    """What the judge runs of that folder: `hidden.py`, and files that it imports."""
    return sorted(path for path in authors_folder(lab).glob("*.py") if path.name != "test_author.py")
