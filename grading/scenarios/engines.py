"""Engines for the checks of labs that use one: the judge's own, and one beside the submission whose tokens the judge chooses.

Knows nothing of any lab. What the submission's engine was asked to compute, and who shared its steps,
is read from the judge's `Ledger`, never from what comes back.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from grading.judge.checks import Wrong, expect, expect_nothing_replaced, kept, ours, shown
from grading.sandbox.worker.peer import Remote
from labs.harness.scripted_engine.engines import POOL_BYTES
from labs.harness.scripted_engine.ledger import Ledger
from labs.harness.scripted_engine.own_engine import SMALL, tokenizer


def components_of(lab: Remote, ledger: Ledger) -> Remote:
    """Parts for an engine beside the submission, its sampler the ledger's."""
    package = lab._peer.root.package
    sampler = package("labs.harness.suite.beside").asking_sampler(ours(ledger.choose))
    return package("nano_qwen3_serving.components").Components(sampler=sampler)


def llm_beside(lab: Remote, ledger: Ledger) -> Remote:
    """An `LLM` beside the submission."""
    return lab._peer.root.package("nano_qwen3_serving").LLM("course-draft", components=components_of(lab, ledger), **SMALL)


def spare_memory(lab: Remote) -> None:
    """Whatever engine the submission builds takes a small pool, unless it says how large."""
    lab._peer.root.package("nano_qwen3_serving.engine.arg_utils").DEFAULT_POOL_BYTES = POOL_BYTES


def is_a(lab: Remote, value: Any, *names: str) -> bool:
    """Whether it is an object of the engine's class of that dotted name, there."""
    if not isinstance(value, Remote):
        return False
    expect_nothing_replaced(lab, "types")
    kind = functools.reduce(getattr, names[1:], lab._peer.root.package(names[0]))
    return lab._peer.root.package("builtins").isinstance(value, kind)


def as_it_is(lab: Remote, function: Remote, *arguments: Any) -> Any:
    """What a call returns, neither awaited nor drained."""
    package = lab._peer.root.package
    [answer] = package("builtins").list(package("itertools").starmap(function, [arguments]))
    return answer


def tokens_of(output: Any) -> list[int]:
    """The tokens of a `RequestOutput` that lies there."""
    return output.outputs[0].token_ids


def text_of(output: Any) -> str:
    """Its text."""
    return output.outputs[0].text


def stdout_of(lab: Remote, run: Callable[[], Any]) -> str:
    """What is printed there meanwhile."""
    package = lab._peer.root.package
    package("sys").stdout = heard = kept(package("io").StringIO)
    run()
    return heard.getvalue()


def expect_served(ledger: Ledger, outputs: Sequence[Any], prompts: Sequence[str]) -> None:
    """Each output is what the judge had the engine say to its prompt, and no request stands in two places."""
    left = list(ledger.requests)
    for place, (prompt, output) in enumerate(zip(prompts, outputs, strict=True), start=1):
        expect(output.prompt == prompt, f"the output of prompt {place}, {prompt!r}, says that it is of {shown(output.prompt)}")
        found, read = tokens_of(output), tokenizer().encode(prompt)
        own = next((one for one in left if one.prompt == read and one.tokens == found), None)
        if own is None:
            raise Wrong(f"prompt {place}, {prompt!r}, came back with {shown(text_of(output))} ({len(found)} tokens); "
                        "that is not what this engine generated for it, or it stands there twice")
        left.remove(own)
