"""What a learner was given: the untouched starter, and in which functions each TODO is.

Both come from the solution. The student edition has none: there `untouched.py` lies beside the starter.
"""

from labs.harness.catalog import Lab, LabError
from labs.harness.regions import functions_of, functions_of_starter, make_starter


def starter_text(lab: Lab) -> str:
    """The starter as it was at the start. Raises `LabError` if nothing says how that was."""
    if lab.solution.is_file():
        return make_starter(lab.solution.read_text(encoding="utf-8"), lab.id)
    if lab.untouched.is_file():
        return lab.untouched.read_text(encoding="utf-8")
    raise LabError(f"How the starter was is read from {lab.untouched}, which is not there.")


def functions(lab: Lab) -> dict[int, list[str]]:
    """TODO -> the dotted names of its functions; nothing if neither solution nor untouched starter is there."""
    if lab.solution.is_file():
        return functions_of(lab.solution.read_text(encoding="utf-8"))
    return functions_of_starter(lab.untouched.read_text(encoding="utf-8")) if lab.untouched.is_file() else {}
