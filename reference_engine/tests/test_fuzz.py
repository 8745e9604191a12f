"""The fuzzer: five hundred requests on fixed seeds, and the proof that it finds what is planted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest

from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine.async_llm_engine import WaitingRoom
from nano_qwen3_serving.engine.mailbox import Mailbox
from nano_qwen3_serving.engine.step_loop import StepLoop
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.sampling_params import StructuredOutputsParams
from nano_qwen3_serving.scheduling.block_manager import BlockManager
from nano_qwen3_serving.scheduling.scheduler import Scheduler
from nano_qwen3_serving.testing.fuzz import FuzzFailure, FuzzReport, fuzz_command, live, replay, run_fuzz
from nano_qwen3_serving.testing.fuzz.episode import make_episode
from nano_qwen3_serving.testing.fuzz.grammars import ByteGrammar, ByteGrammarCompiler
from nano_qwen3_serving.testing.fuzz.shrink import shrink

pytestmark = pytest.mark.slow

SEEDS = range(6, 11)
WITHIN = 500  #: requests in which a planted bug must be found


@pytest.fixture(scope="module")
def reports() -> list[FuzzReport]:
    """Five hundred requests in all."""
    return [run_fuzz(100, seed) for seed in SEEDS]


def test_five_hundred_requests_lose_no_block_no_waiter_and_no_token(reports):
    assert sum(r.requests for r in reports) == 500


def test_everything_that_can_happen_did_happen(reports):
    whole = FuzzReport()
    for report in reports:
        whole = whole.merged(report)
    never = [f.name for f in fields(whole) if not getattr(whole, f.name)]
    assert never == []
    endings = (whole.finished, whole.aborts, whole.vanished, whole.timeouts, whole.refused, whole.failed, whole.stopped)
    assert sum(endings) == whole.requests


def on_two_loops(number: int) -> bool:
    """Whether callers of that episode live on two event loops."""
    return any(op.get("second_loop") for op in make_episode(11, number, 25, "toy").operations)


@pytest.mark.parametrize("number", [*range(3), *[n for n in range(30) if on_two_loops(n)][:3]])
def test_an_episode_runs_the_same_way_every_time(number):
    first, second = (live(make_episode(11, number, 25, "toy")) for _ in range(2))
    assert first.history == second.history
    assert [c.outputs for c in first.callers.values()] == [c.outputs for c in second.callers.values()]


@pytest.mark.proof
def test_the_course_checkpoint_says_alone_what_it_says_in_the_crowd():
    assert run_fuzz(25, seed=1, model="course").finished > 10


# --- planted bugs ---


class KeepsAborted(Scheduler):
    """Forgets to free the blocks of who is aborted."""

    def _end(self, request, reason):
        if reason != "abort":
            return super()._end(request, reason)
        self.block_manager.free, free = lambda request_id: None, self.block_manager.free
        super()._end(request, reason)
        self.block_manager.free = free


class TakesTwice(Scheduler):
    """Asks for a block more than the tokens need."""

    def _make_room(self, request, size, budget):
        return super()._make_room(request, size + self.block_manager.block_size, budget)


class GivesTwice(BlockManager):
    """Some blocks stay free although somebody has them."""

    def _new_block(self):
        block = super()._new_block()
        if block % 5 == 2:
            self._free.append(block)
        return block

    def check_integrity(self):
        """Blind: the batches and the tokens have to tell."""


class WrongAtTheEdge(TorchPagedAttention):
    """Puts the last token of a block into the next block."""

    def slots(self, block_table: Sequence[int], positions: range) -> list[int]:
        size, last = self.block_size, len(block_table) - 1
        return [block_table[min((i + 1) // size, last)] * size + i % size for i in positions]


class MissesNewest(TorchPagedAttention):
    """A decoding token does not attend to itself."""

    def forward(self, q, layer_cache, metadata):
        lens = [max(n - 1, 1) if i < metadata.num_decodes else n for i, n in enumerate(metadata.seq_lens)]
        return super().forward(q, layer_cache, replace(metadata, seq_lens=lens))


class ForgetsGrammar(Scheduler):
    """A preempted request begins its grammar again, but not its output."""

    def add(self, request):
        if request.grammar is not None:
            request.at_first = request.grammar.copy()
        super().add(request)

    def _preempt(self, request):
        super()._preempt(request)
        if request.grammar is not None:
            request.grammar = request.at_first.copy()


class IgnoresSalt(BlockManager):
    """Shares prefixes among all."""

    def find_cached_prefix(self, request_id, token_ids, salt=""):
        return super().find_cached_prefix(request_id, token_ids)

    def allocate(self, request_id, num_tokens, cached_prefix=(), salt=""):
        return super().allocate(request_id, num_tokens, cached_prefix)


class TrustsHashes(BlockManager):
    """Takes equal hashes for equal contents."""

    def __init__(self, num_blocks, block_size, caching):
        weak = lambda parent, tokens: bytes([sum(parent + bytes(tokens)) % 3])  # noqa: E731
        super().__init__(num_blocks, block_size, caching, weak)

    @staticmethod
    def _is_content(entry, tokens, parent, salt):
        return True


def with_scheduler(scheduler: type) -> Components:
    return Components(scheduler=lambda config, blocks: scheduler(config.scheduler, blocks))


def with_blocks(blocks: type) -> Components:
    return Components(block_manager=lambda config: blocks(
        config.cache.num_blocks, config.cache.block_size, config.cache.enable_prefix_caching))


PLANTED = {
    "blocks of aborted requests are not freed": with_scheduler(KeepsAborted),
    "a request takes more blocks than it needs": with_scheduler(TakesTwice),
    "a block is given to two requests": with_blocks(GivesTwice),
    "slots are wrong at the edge of a block": Components(attention=lambda config: WrongAtTheEdge(
        config.model, config.cache.block_size, config.dtype, config.device)),
    "a decoding token does not attend to itself": Components(attention=lambda config: MissesNewest(
        config.model, config.cache.block_size, config.dtype, config.device)),
    "a grammar starts anew after a preemption": with_scheduler(ForgetsGrammar),
    "the prefix cache ignores salt": with_blocks(IgnoresSalt),
    "the prefix cache trusts its hashes": with_blocks(TrustsHashes),
}


def assert_fuzzer_finds_it(components: Components | None, tmp_path) -> FuzzFailure:
    """The fuzzer finds it, and its shrunk trace fails in the same way again."""
    with pytest.raises(FuzzFailure) as found:
        for seed in SEEDS:
            run_fuzz(WITHIN // len(SEEDS), seed, components=components, shrink_tries=80)
    trace = tmp_path / "trace.json"
    trace.write_text(found.value.trace(), encoding="utf-8")
    with pytest.raises(FuzzFailure) as again:
        replay(trace, components)
    assert again.value.reason == found.value.reason
    assert len(again.value.episode.operations) <= 12
    return found.value


@pytest.mark.share(3)
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_shrunk_and_replayed(bug, tmp_path):
    assert_fuzzer_finds_it(PLANTED[bug], tmp_path)


@pytest.mark.proof
def test_a_mailbox_that_drops_an_output_is_found(monkeypatch, tmp_path):
    def put(self: Mailbox, output: RequestOutput) -> None:
        with self._lock:
            self._output = output  # instead of merging it with the one that was not fetched

    monkeypatch.setattr(Mailbox, "put", put)
    failure = assert_fuzzer_finds_it(None, tmp_path)
    assert "tokens" in failure.reason or "completions" in failure.reason or "text" in failure.reason


def test_a_mailbox_that_never_delivers_leaves_a_waiter_and_that_is_found(monkeypatch, tmp_path):
    put = Mailbox.put
    monkeypatch.setattr(Mailbox, "put", lambda self, output: None if output.finished else put(self, output))
    assert "waiting for ever" in assert_fuzzer_finds_it(None, tmp_path).reason


@pytest.mark.proof
def test_completions_that_share_one_grammar_are_found(monkeypatch, tmp_path):
    monkeypatch.setattr(ByteGrammar, "copy", lambda self: self)
    assert_fuzzer_finds_it(None, tmp_path)


@pytest.mark.proof
def test_an_engine_that_wakes_one_event_loop_of_two_is_found(monkeypatch, tmp_path):
    wake = StepLoop._wake

    def wake_one(self, streams):
        wake(self, [s for s in streams if s.mailbox.port is streams[0].mailbox.port])

    monkeypatch.setattr(StepLoop, "_wake", wake_one)
    assert "waiting for ever" in assert_fuzzer_finds_it(None, tmp_path).reason


def test_a_queue_that_is_full_one_place_too_early_is_found(monkeypatch, tmp_path):
    enter = WaitingRoom.enter

    def enter_early(self, request_id, members):
        self.limit, limit = self.limit and self.limit - 1, self.limit
        try:
            enter(self, request_id, members)
        finally:
            self.limit = limit

    monkeypatch.setattr(WaitingRoom, "enter", enter_early)
    assert_fuzzer_finds_it(None, tmp_path)


def test_a_queue_that_counts_requests_and_not_completions_is_found(monkeypatch, tmp_path):
    enter = WaitingRoom.enter
    monkeypatch.setattr(WaitingRoom, "enter", lambda self, request_id, members: enter(self, request_id, members[:1]))
    assert "places" in assert_fuzzer_finds_it(None, tmp_path).reason


def test_a_place_that_is_kept_by_who_gave_up_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(WaitingRoom, "leave", lambda self, request_id: None)
    assert_fuzzer_finds_it(None, tmp_path)


# --- the tool ---


def text_tokens(grammar: ByteGrammar) -> str:
    """What a grammar allows next; $ is the end."""
    return "".join("$" if t == 256 else chr(t) for t in grammar.allowed().nonzero().flatten().tolist())


def test_a_grammar_of_bytes_allows_what_its_words_or_classes_say():
    compiler = ByteGrammarCompiler(257, 256)
    choice = compiler.compile(StructuredOutputsParams(choice=["no", "not yet"]))
    assert text_tokens(choice) == "n"
    choice.accept(b"no")
    assert text_tokens(choice) == "t$"
    classes = compiler.compile(StructuredOutputsParams(regex="([ab][c])*"))
    other = classes.copy()
    classes.accept(b"a")
    assert (text_tokens(classes), text_tokens(other)) == ("c", "ab$")
    with pytest.raises(ValueError, match="does not follow b'a'"):
        classes.accept(b"a")


def test_shrinking_leaves_the_two_that_matter():
    assert shrink(list(range(100)), lambda items: {17, 58} <= set(items)) == [17, 58]


def test_shrinking_asks_no_more_than_it_may():
    asked = []
    shrink(list(range(100)), lambda items: asked.append(items) or False, tries=5)
    assert len(asked) == 5


def test_the_command_writes_totals(tmp_path, capsys):
    file = tmp_path / "fuzz.json"
    assert fuzz_command(30, [1, 2], json_file=str(file)) == 0
    raw = json.loads(file.read_text(encoding="utf-8"))
    assert raw["totals"]["requests"] == 30 and raw["totals"]["seeds"] == [1, 2]
    assert "preemptions" in capsys.readouterr().out


def test_the_command_prints_and_writes_the_trace_of_a_failure(monkeypatch, tmp_path, capsys):
    put = Mailbox.put
    monkeypatch.setattr(Mailbox, "put", lambda self, output: None if output.finished else put(self, output))
    file = tmp_path / "trace.json"
    assert fuzz_command(25, [0], trace_file=str(file)) == 1
    assert "waiting for ever" in json.loads(file.read_text(encoding="utf-8"))["reason"]
    assert fuzz_command(replay_file=str(file)) == 1
    monkeypatch.undo()
    assert fuzz_command(replay_file=str(file)) == 0
    assert "FAILED" in capsys.readouterr().out
