"""Where a learner stands: which predictions and which TODO are next, and which parts of the path from call to token are theirs.

Derived from the results in `.progress.json`; stores nothing itself and prints nothing.
"""

from labs.harness import originals
from labs.harness.catalog import STATIONS, Lab, all_labs
from labs.harness.learner import predictions
from labs.harness.learner.hints import read_hints
from labs.harness.learner.progress import Progress

YOURS, PARTLY, OURS = "yours", "partly yours", "ours"


def functions(lab: Lab) -> dict[int, list[str]]:
    """TODO -> the names of its functions; empty if no file says which they are."""
    return originals.functions(lab) or {todo: [] for todo in read_hints(lab)}


def open_todos(lab: Lab, progress: Progress) -> list[int]:
    """The TODOs that have not earned all their points."""
    return [todo for todo in functions(lab) if not _earned(progress.todos(lab.id).get(todo))]


def next_todo(progress: Progress, only: Lab | None = None) -> tuple[Lab, int] | None:
    """The first open TODO: of the current lab, if it has one, then of the labs after it, then of the labs from the first.

    The current lab is the one whose starter was saved last, among those whose tests have run.
    """
    labs = [only] if only is not None else all_labs(progress.path.parent)
    begun = [lab for lab in labs if progress.todos(lab.id) and lab.starter.is_file()]
    last = max(begun, key=lambda lab: lab.starter.stat().st_mtime).number if begun else 0
    in_order = [lab for lab in labs if lab.number >= last] + [lab for lab in labs if lab.number < last]
    return next(((lab, todo) for lab in in_order for todo in open_todos(lab, progress)[:1]), None)


def unanswered(progress: Progress, only: Lab | None = None) -> Lab | None:
    """The lab whose predictions are next: that of the next TODO, or the first if no TODO is open; None if they were made."""
    following = next_todo(progress, only)
    labs = [following[0]] if following else [only] if only is not None else all_labs(progress.path.parent)
    return next((lab for lab in labs if predictions.has_questions(lab) and not progress.predictions(lab.id)), None)


def authorship(lab: Lab, progress: Progress) -> str:
    """`yours` if every TODO is solved and none with our code; `ours` if the learner has solved none."""
    todos, still_open = set(functions(lab)), set(open_todos(lab, progress))
    own = todos - still_open - set(progress.solutions_used(lab.id))
    return YOURS if own == todos else PARTLY if own else OURS


def path_line(progress: Progress) -> str:
    """`caller (01 yours, 02 ours) -> tokenizer -> …`: the path, with the labs of this course."""
    labs, stations = all_labs(progress.path.parent), []
    for station in STATIONS:
        marks = [f"{lab.id} {authorship(lab, progress)}" for lab in labs if lab.station == station]
        stations.append(f"{station} ({', '.join(marks)})" if marks else station)
    return " -> ".join(["call", *stations, "token"])


def _earned(row: dict | None) -> bool:
    return row is not None and row["points"] >= row["of"]
