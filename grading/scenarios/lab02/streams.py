"""Lab 02: engines and streams beside the submission, and outputs handed out one by one."""

from collections.abc import Callable, Iterator
from typing import Any

from grading.judge.checks import expect, ours, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import as_it_is, components_of, is_a
from labs.harness.scripted_engine.ledger import PatientLedger
from labs.harness.scripted_engine.own_engine import SMALL, exactly
from nano_qwen3_serving import LLM, RequestOutput


def parts(lab: Remote) -> Remote:
    """What `labs/harness/suite/beside.py` has, there."""
    return lab._peer.root.package("labs.harness.suite.beside")


def engine_beside(lab: Remote, ledger: PatientLedger | None = None, max_num_seqs: Any = 128) -> Remote:
    """An `AsyncLLMEngine` beside the submission; with a ledger, its sampler is that."""
    package = lab._peer.root.package("nano_qwen3_serving")
    components = None if ledger is None else components_of(lab, ledger)
    args = package.AsyncEngineArgs(model="course-draft", max_num_seqs=max_num_seqs, **SMALL)
    return package.AsyncLLMEngine.from_engine_args(args, components=components)


def all_outputs(lab: Remote, *streams: Remote) -> list[list[Remote]]:
    """The outputs of streams that are read at the same time."""
    return parts(lab).all_at_once(list(streams))


def listener(lab: Remote, heard: Callable[[str], None]) -> Remote:
    """A function there whose calls come by here."""
    return parts(lab).as_function(ours(heard))


def expect_output(output: Any, lab: Remote, what: str) -> None:
    """It is a `RequestOutput`."""
    expect(is_a(lab, output, "nano_qwen3_serving", "RequestOutput"), f"{what} is {shown(output)}; expected a RequestOutput")


class Handed:
    """A stream of an engine of the judge's, which takes a step when its next output is wanted.

    Attributes:
        outputs: those that were handed out.
        ended: whether somebody asked for one more.
    """

    def __init__(self, lab: Remote, outputs: Iterator[Any]) -> None:
        self._lab, self._outputs = lab, outputs
        self.outputs: list[Any] = []
        self.ended = False

    def next(self) -> Any:
        """The next output, or None at the end; both are noted."""
        output = next(self._outputs, None)
        if output is None:
            self.ended = True
        else:
            self.outputs.append(output)
        return output

    def generate(self, prompt: str, sampling_params: Any, request_id: str, **more: Any) -> Remote:
        """What an engine's method of this name returns."""
        return self.stream()

    def stream(self) -> Remote:
        """The stream, there."""
        return as_it_is(self._lab, parts(self._lab).handed_out, ours(self.next))


def stepwise(prompt: str, num_tokens: int, request_id: str) -> Iterator[RequestOutput]:
    """The outputs of an engine, computed as they are read."""
    engine = LLM("course-draft", **SMALL).llm_engine
    engine.add_request(request_id, prompt, exactly(num_tokens))
    while engine.has_unfinished_requests():
        yield from engine.step()
