"""The predictions of a submission: `predictions.json`, which `labs predict` writes, judged once more."""

from grading.judge.report import CheckResult
from labs.harness.catalog import Lab
from labs.harness.learner import predictions
from labs.harness.learner.results import PREDICTION_POINTS

MOST_ATTEMPTS = 20


def judge(lab: Lab, content: bytes | None) -> list[CheckResult]:
    """One result for the best attempt; none if the lab has no questions."""
    if not (lab.folder / "predict.toml").is_file():
        return []
    if content is None:
        return [_result(0, f"there is no predictions.json; python -m labs predict {lab.id} writes it")]
    try:
        attempts = predictions.read_attempts(content.decode("utf-8-sig"))[:MOST_ATTEMPTS]
    except (ValueError, RecursionError) as error:
        return [_result(0, f"predictions.json cannot be used: {error}")]
    best = max((_share(lab, seed, answers) for seed, answers in attempts), default=0.0)
    earned = round(PREDICTION_POINTS * best, 1)
    return [_result(earned, "" if best == 1 else f"{best:.0%} of the answers of the best attempt are right")]


def _share(lab: Lab, seed: int, answers: dict[str, str | int]) -> float:
    """The share of right answers, checked by running the reference engine."""
    case = predictions.make_case(lab, seed)
    correct = [question.id in answers and answers[question.id] == case.truth(question) for question in case.questions]
    return sum(correct) / len(correct)


def _result(earned: float, message: str) -> CheckResult:
    return CheckResult(
        0, "predictions", PREDICTION_POINTS, earned, False, message, "Predict first", "what happens, before it is coded")
