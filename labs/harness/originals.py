"""The learner's originals: the untouched starter, the functions of each TODO, and the stand-ins for them.

All of it comes from the solution. The student edition has none: there `untouched.py` lies beside the starter,
and our functions are in a sealed file, which `grading.edition.sealing` makes.
"""

import base64
import zlib

from labs.harness.catalog import Lab, LabError
from labs.harness.regions import functions_of, functions_of_starter, make_starter

_COLUMNS = 100
_HEADING = "Sealed: our functions, which stand in for yours while a TODO that others build on is missing or wrong."


def starter_text(lab: Lab) -> str:
    """The starter as it was at the start. Raises `LabError` if neither solution nor untouched starter exists."""
    if lab.solution.is_file():
        return make_starter(lab.solution.read_text(encoding="utf-8"), lab.id)
    if lab.untouched.is_file():
        return lab.untouched.read_text(encoding="utf-8")
    raise LabError(f"The original starter is read from {lab.untouched}, which does not exist.")


def functions(lab: Lab) -> dict[int, list[str]]:
    """TODO -> the dotted names of its functions; empty if neither solution nor untouched starter exists."""
    if lab.solution.is_file():
        return functions_of(lab.solution.read_text(encoding="utf-8"))
    return functions_of_starter(lab.untouched.read_text(encoding="utf-8")) if lab.untouched.is_file() else {}


def our_code(lab: Lab) -> str | None:
    """Source text with our functions: the solution, or the opened sealed file; None if neither exists.

    Raises `LabError` if the sealed file is damaged.
    """
    if lab.solution.is_file():
        return lab.solution.read_text(encoding="utf-8")
    if not lab.sealed.is_file():
        return None
    try:
        return opened(lab.sealed.read_text(encoding="utf-8"))
    except (ValueError, zlib.error):
        raise LabError(f"{lab.sealed} is damaged. Take it from the course again: python -m labs update") from None


def closed(source: str) -> str:
    """The text of a sealed file."""
    packed = base64.b85encode(zlib.compress(source.encode("utf-8"), 9)).decode("ascii")
    lines = [packed[at : at + _COLUMNS] for at in range(0, len(packed), _COLUMNS)]
    return "\n".join([_HEADING, *lines]) + "\n"


def opened(sealed: str) -> str:
    """The text that `closed` sealed. Raises `ValueError` or `zlib.error` for anything else."""
    return zlib.decompress(base64.b85decode("".join(sealed.split("\n")[1:]))).decode("utf-8")
