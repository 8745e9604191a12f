"""What is proved of every lab, in the order in which an author makes it: `python -m grading check-lab NN`.

The project's own tests check the quick steps for every lab.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grading.authoring import lab_proofs as proofs
from labs.harness.catalog import Lab, LabError


@dataclass(frozen=True)
class Step:
    """One thing that is proved of a lab.

    Attributes:
        says: the claim, in a sentence.
        how: how an author makes it true; `NN` stands for the lab's number.
        check: raises `LabError` unless the claim is true.
        runs: whether the check takes a while.
    """

    says: str
    how: str
    check: Callable[[Lab], None]
    runs: bool = False


CHECKLIST = (
    Step(
        "solution.py has a region for each [[todo]] of lab.toml",
        "write the solution by hand; a region lies between ### BEGIN SOLUTION and ### END SOLUTION, under a comment # "
        "TODO 1: its goal",
        proofs.solution_has_the_todos),
    Step(
        "starter.py is made from it",
        "python -m grading starter NN",
        proofs.starter_is_made_from_the_solution),
    Step(
        "starter and solution have the same public functions",
        "python -m grading starter NN",
        proofs.signatures_stay),
    Step(
        "the tests' points are those of lab.toml",
        "in test_lab.py, mark each test @pytest.mark.todo(1, points=4)",
        proofs.tests_are_worth_what_lab_toml_says),
    Step(
        "the solution passes every test",
        "pytest test_lab.py --impl solution",
        proofs.the_solution_passes, runs=True),
    Step(
        "the untouched starter fails every test with that test's TODO",
        "a test calls its own TODO's functions; the TODOs it needs besides are listed under needs in lab.toml",
        proofs.the_starter_fails_every_test, runs=True),
    Step(
        "every TODO has mutants",
        "write them into grading/labs/labNN/mutants/todo_1.toml; grading/README.md has their form",
        proofs.mutants_are_there),
    Step(
        "every mutant is caught by a test of its TODO",
        "write a test of that TODO which fails on it; python -m grading mutants NN shows what catches each",
        proofs.mutants_are_caught, runs=True),
    Step(
        "a deleted test is noticed",
        "only names the one test that catches a mutant",
        proofs.a_guard_that_is_broken_is_noticed, runs=True),
    Step(
        "right solutions that are built differently pass",
        "write one into grading/labs/labNN/alternatives/; a test that rejects it looks at how instead of what",
        proofs.alternatives_pass, runs=True),
    Step(
        "the judge says what the tests say",
        "a test exchanges plain values and tensors with the part, see One suite in labs/harness/README.md; python -m "
        "grading agreement NN",
        proofs.the_judge_agrees, runs=True),
    Step(
        "symptoms.json is current",
        "areas are in grading/labs/labNN/concepts.toml; then python -m grading symptoms NN",
        proofs.symptoms_are_current),
    Step(
        "hints.md has three hints for each TODO",
        "from a question to nearly the answer",
        proofs.hints_are_whole),
    Step(
        "predict.toml asks five to eight questions",
        "each has a function of its name in predict.py, which asks the engine",
        proofs.questions_have_truths, runs=True),
    Step(
        "README.md is whole",
        "Lab 02's headings, and #### TODO 1: with the title of lab.toml",
        proofs.readme_is_whole),
    Step(
        "README.md shows what the solution prints",
        "run solution.py, and copy",
        proofs.the_program_prints_what_the_readme_shows, runs=True),
    Step(
        "a notebook leads to the lab",
        "notebooks/NN_name.ipynb has a link to the lab's README in its first cell",
        proofs.notebook_is_there),
    Step(
        "README.md and labs/README.md list the lab",
        "add a row: | [NN its title](labNN_name/README.md) | hours | what comes before it | what one writes |",
        proofs.tables_list_it),
    Step(
        "nothing is left to fill in",
        f"replace what stands behind each {proofs.UNFINISHED}",
        proofs.nothing_is_left_to_fill_in),
    Step(
        "the project's own tests of it pass",
        "pytest labs/tests grading/labs notebooks/tests -k NN; what a notebook must have is in CONTRIBUTING.md",
        proofs.the_projects_tests_pass, runs=True),
)


def walk(lab: Lab, show: Callable[[Step, str | None], None], steps: Sequence[Step] = CHECKLIST) -> bool:
    """Checks the steps in order and shows each with what is missing, up to the first failure; returns whether all passed."""
    for step in steps:
        try:
            step.check(lab)
        except (LabError, SyntaxError, ValueError) as error:  # of the lab's files, too
            show(step, str(error))
            return False
        show(step, None)
    return True
