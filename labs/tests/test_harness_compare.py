"""`compare`: the first step at which an engine with somebody's part departs from the reference."""

import pytest

from labs.harness.mixed_engine import first_divergence as fd
from labs.harness.mixed_engine import lockstep
from labs.harness.mixed_engine.parts import Engine, engine_of

pytestmark = pytest.mark.slow

ATTENTION = """
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention

class Mine(TorchPagedAttention):
    calls = 0
{body}

def make(config):
    return Mine(config.model, config.cache.block_size, config.dtype, config.device)
"""

BLOCKS = """
from nano_qwen3_serving.scheduling.block_manager import BlockManager

class Mine(BlockManager):
{body}

def make(config):
    return Mine(config.cache.num_blocks, config.cache.block_size, False)
"""

SAMPLER = """
import dataclasses
from nano_qwen3_serving.execution.sampler import Sampler

class Mine(Sampler):
    calls = 0
{body}

def make(config):
    return Mine()
"""

MODEL = """
from nano_qwen3_serving.components import default_model

class Mine:
    def __init__(self, inner):
        self.inner, self.calls = inner, 0
    def __call__(self, *arguments):
        return self.inner(*arguments)
{body}

def make(config, attention):
    return Mine(default_model(config, attention))
"""


@pytest.fixture
def with_part(workshop):
    """An engine one of whose parts is `text`, with `body` as the class's methods."""

    def make(field: str, text: str, body: str = "    pass") -> Engine:
        folder = workshop.add_lab("lab07_toy", text.format(body=body))
        (folder / "seam.py").write_text(f"def {field}(lab, *given):\n    return lab.make(*given)\n")
        return engine_of(["solution:07"], home=workshop.home)

    return make


def compared(engine: Engine, model: str = "course-draft") -> fd.Comparison:
    """With a model of one layer the backend is called once a step, so that a test can count."""
    return fd.compare(engine, lockstep.make_scenario(model=model), fd.LARGE)  # as beside the reference's attention


@pytest.mark.parametrize(("field", "text"), [("attention", ATTENTION), ("block_manager", BLOCKS), ("sampler", SAMPLER)])
def test_a_right_part_differs_nowhere_and_the_counts_say_what_was_looked_at(with_part, field, text):
    found = compared(with_part(field, text))
    assert (found.differences, found.error) == ([], None)
    assert found.steps > 20 and found.tokens > 50 and found.preemptions > 0 and found.positions > 500
    assert fd.comparison_lines(found) == [
        f"Nothing differs: {found.steps} steps, {found.tokens} tokens, preemptions: {found.preemptions}, "
        f"keys and values of {found.positions} positions."]


def test_block_numbers_are_free(with_part):
    """Another order of the free list gives other tables, and no difference."""
    mine = "    def __init__(self, *given):\n        super().__init__(*given)\n        self._free.reverse()"
    assert compared(with_part("block_manager", BLOCKS, mine)).first is None


def test_the_scenario_has_chunks_mixed_batches_preemptions_and_an_abort(with_part):
    scenario = lockstep.make_scenario()
    side = lockstep.Side(scenario, with_part("sampler", SAMPLER).components)
    number = 0
    while side.has_work(number):
        side.step(number)
        number += 1
    steps = side.recorder.steps
    sizes = [[chunk["num_tokens"] for chunk in step["chunks"]] for step in steps]
    assert any(1 in step and max(step) > 1 for step in sizes), "decoding beside a prompt"
    assert any(not chunk["samples"] for step in steps for chunk in step["chunks"]), "a prompt in chunks"
    assert any(step["preempted"] for step in steps)
    assert side.recorder.steps_with("C") and all("C" not in step["finished"] for step in steps), "C is aborted"
    assert {tuple(lockstep.SETTINGS[i].items()) for i in range(6)}, "every setting"


def test_a_lost_block_is_found_in_the_step_that_loses_it(with_part):
    found = compared(with_part("block_manager", BLOCKS, (
        "    def free(self, request_id):\n"
        "        before = self.num_free_blocks\n"
        "        super().free(request_id)\n"
        "        if self.num_free_blocks > before and request_id == 'A':\n"
        "            self._free.pop()")))
    first = found.first
    assert first.kind == fd.BLOCKS and "free blocks: yours " in first.text
    assert "Lab 07, free: A was freed, which held the blocks [" in first.text, "and which call lost it"
    reference = lockstep.Side(lockstep.make_scenario(model="course-draft"), engine_of([]).components)
    for number in range(first.step + 1):
        reference.step(number)
    assert "A" in reference.recorder.steps[first.step]["finished"]


def test_a_block_with_two_owners_is_found(with_part):
    found = compared(with_part("block_manager", BLOCKS, (
        "    def _new_block(self):\n"
        "        block = super()._new_block()\n"
        "        return 3 if block == 5 else block")))
    assert found.first.kind == fd.BLOCKS and "block 3 of your table" in found.first.text


def test_a_wrong_slot_is_named_with_the_right_one(with_part):
    found = compared(with_part("attention", ATTENTION, (
        "    def slots(self, block_table, positions):\n"
        "        return [slot ^ (i == 5) for i, slot in zip(positions, super().slots(block_table, positions))]")))
    first = found.first
    assert (first.kind, first.step) == (fd.SLOTS, 0)
    assert first.text.startswith("request A, position 5: yours slot ")
    assert fd.comparison_lines(found)[0] == f"First difference, in the slots: step 0, {first.text}"


def test_a_wrong_write_is_found_before_the_token_that_it_changes(with_part):
    """A decoding token's key goes to its neighbour's place from the 12th write on."""
    found = compared(with_part("attention", ATTENTION, (
        "    def write(self, layer_cache, k, v, slots):\n"
        "        self.calls += 1\n"
        "        super().write(layer_cache, k + 3 * (self.calls == 12), v, slots)")))
    first = found.first
    assert (first.kind, first.step) == (fd.KV, 11)
    assert "the key in layer 0 is off by 3; written in this step by " in first.text
    later = found.differences[1:]
    assert later and all(one.step >= 11 for one in later)
    since = [line for line in fd.comparison_lines(found) if line.endswith("; first wrong keys and values in step 11")]
    assert len(since) == sum(one.step > 11 for one in later)


def test_a_key_that_is_overwritten_later_is_found_then(with_part):
    found = compared(with_part("attention", ATTENTION, (
        "    def write(self, layer_cache, k, v, slots):\n"
        "        super().write(layer_cache, k, v, slots)\n"
        "        self.calls += 1\n"
        "        if self.calls == 2:\n"
        "            layer_cache[1].view(-1, *v.shape[1:])[self.first] = 9.0\n"
        "        self.first = slots[0]")))
    assert (found.first.kind, found.first.step) == (fd.KV, 1)
    assert "request A, position 0" in found.first.text and "the value in layer 0" in found.first.text
    assert "no request was due to write there in this step" in found.first.text


def test_wrong_attention_shows_in_the_logits(with_part):
    found = compared(with_part("attention", ATTENTION, (
        "    def forward(self, q, layer_cache, metadata):\n"
        "        self.calls += 1\n"
        "        return super().forward(q * (1 + (self.calls > 3)), layer_cache, metadata)")))
    assert (found.first.kind, found.first.step) == (fd.LOGITS, 3)


def test_what_tokens_before_the_last_saw_shows_in_the_next_layers_keys(with_part):
    """A prompt's first token attends to nothing but itself; here it sees as much as the last."""
    found = compared(with_part("attention", ATTENTION, (
        "    def forward(self, q, layer_cache, metadata):\n"
        "        out = super().forward(q, layer_cache, metadata)\n"
        "        out[0] += out[-1] * (metadata.query_lens[0] > 1)\n"
        "        return out")), model="course")
    assert found.first.kind == fd.KV and "request A, position 0" in found.first.text and "layer 1" in found.first.text


def test_nan_differs_from_everything(with_part):
    found = compared(
        with_part(
            "model",
            MODEL,
            "    def compute_logits(self, hidden):\n        return self.inner.compute_logits(hidden) * float('nan')",
        )
    )
    assert found.first is None and "NaN" in str(found.error), "the engine itself refuses to choose a token from them"


def test_a_wrong_token_is_named_with_the_references(with_part):
    found = compared(with_part("sampler", SAMPLER, (
        "    def sample(self, logits, rows):\n"
        "        tokens, logprobs = super().sample(logits, rows)\n"
        "        self.calls += 1\n"
        "        return [token ^ (self.calls == 1) for token in tokens], logprobs")))
    assert found.first.kind == fd.TOKEN and not found.first.rounding
    yours, reference = (int(text.split()[-1]) for text in found.first.text.split(", ")[-2:])
    assert yours == reference ^ 1


def test_wrong_log_probabilities_are_found_though_tokens_agree(with_part):
    found = compared(
        with_part(
            "sampler",
            SAMPLER,
            (
                "    def sample(self, logits, rows):\n"
                "        tokens, logprobs = super().sample(logits, rows)\n"
                "        one_more = lambda row: {t: dataclasses.replace(p, rank=p.rank + 1) for t, p in row.items()}\n"
                "        return tokens, [row and one_more(row) for row in logprobs]"
            ),
        )
    )
    assert [one.kind for one in found.differences] == [fd.LOGPROBS]
    assert "at rank 2, reference" in found.first.text


def test_a_token_that_rounding_alone_changes_is_no_mistake(with_part):
    """Logits that differ by less than the tolerance, and a token of equal worth."""
    body = (
        "    def compute_logits(self, hidden):\n"
        "        logits = self.inner.compute_logits(hidden)\n"
        "        best, second = logits[0].topk(2).indices\n"
        "        logits = logits.clone()\n"
        "        logits[0, second] = logits[0, best] + 1e-4\n"
        "        return logits")
    real, fd.TOLERANCE = fd.TOLERANCE, 1e9
    try:
        found = compared(with_part("model", MODEL, body))
    finally:
        fd.TOLERANCE = real
    assert found.first.kind == fd.TOKEN and found.first.rounding
    assert "No mistake." in fd.comparison_lines(found)[1]


def test_a_part_that_fails_ends_the_comparison_with_its_error(with_part):
    found = compared(with_part("sampler", SAMPLER, (
        "    def sample(self, logits, rows):\n"
        "        self.calls += 1\n"
        "        return None if self.calls == 4 else super().sample(logits, rows)")))
    assert found.first is None and "must return two lists" in str(found.error)
    assert found.tokens > 0
    assert fd.comparison_lines(found)[0].startswith(f"Until it stopped nothing differed: {found.steps} steps")


def test_an_error_that_the_engine_gets_over_is_shown_all_the_same(with_part):
    """A sampler that can only do batches of one: the engine tries each request alone, and goes on."""
    found = compared(with_part("sampler", SAMPLER, (
        "    def sample(self, logits, rows):\n"
        "        assert len(rows) == 1, 'only one'\n"
        "        return super().sample(logits, rows)")))
    assert "only one" in str(found.error) and found.steps > 0


def test_what_nobody_wrote_and_what_was_freed_does_not_matter(with_part):
    """A part that gives a slot of nobody's the weight 0; beside zeros that would change nothing."""
    engine = with_part("attention", ATTENTION, (
        "    def forward(self, q, layer_cache, metadata):\n"
        "        stranger = layer_cache[1][-1].flatten()[-1]\n"
        "        return super().forward(q, layer_cache, metadata) + 0 * stranger"))
    scenario = lockstep.make_scenario(model="course-draft")
    assert compared(engine).first is None
    found = fd.compare(engine, scenario)
    assert found.first is None and found.steps == 0 and "NaN" in str(found.error)


def test_blocks_of_requests_that_are_gone_are_spoiled_but_full_ones_that_are_kept():
    for shares in (False, True):
        scenario = lockstep.make_scenario(model="course-draft", shares_prefixes=shares)
        side = lockstep.Side(scenario, engine_of([]).components, garbage=fd.LARGE)
        for step in range(20):
            seen = side.step(step)
            if seen.record["finished"]:
                break
        name = min(seen.record["finished"])
        table, size = seen.tables[name], seen.block_size
        keys = side.engine.model_runner.kv_cache[0][0]
        spoiled = [bool((keys[block] == fd.LARGE).all()) for block in table]
        whole = seen.computed[name] // size
        assert spoiled == [not shares] * whole + [True] * (len(table) - whole)


def test_with_shared_prefixes_a_block_belongs_to_two_requests():
    scenario = lockstep.make_scenario(model="course-draft", shares_prefixes=True)
    side, step, shared = lockstep.Side(scenario, engine_of([]).components), 0, set()
    while side.has_work(step):
        tables = side.step(step).tables
        shared |= set(tables.get("I", ())) & set(tables.get("J", ()))
        step += 1
    assert len(shared) == 2
    assert "J shares two blocks with I" in lockstep.describe(scenario)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (fd.KV, "the key in layer 2 is off by 3", "So it is in layer 1: its keys and values are right"),
        (fd.KV, "the value in layer 0 is off by 3", "So it is not attention"),
        (fd.LOGITS, "request A: logits are off", "the last layer's attention, or what comes after it"),
        (fd.TOKEN, "request A", "the logits are right"),
    ],
)
def test_a_comparison_says_what_follows_from_the_first_difference(kind, text, says):
    told = fd.comparison_lines(fd.Comparison([fd.Difference(3, kind, text)]))
    assert told[0].startswith("First difference") and says in told[1]
