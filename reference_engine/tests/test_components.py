"""Each part can be anybody's: a toy version of every seam, swapped in, generates the same text."""

import dataclasses
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from nano_qwen3_serving import LLM, AsyncEngineArgs, AsyncLLM, AsyncLLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.interfaces import RequestUpdate, ScheduledBatch, ScheduledChunk, TextDelta
from nano_qwen3_serving.request import RequestStatus
from nano_qwen3_serving.scheduling.scheduler import finish_reason
from nano_qwen3_serving.testing.doubles import (
    ByteTokenizer,
    TellTaleModel,
    continued_text,
    double_components,
)

pytestmark = pytest.mark.slow

PROMPTS = ["What is machine learning?", "Hello", "What is a block table?", "A", "Explain preemption in one sentence."]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
# small enough for chunks and for waiting, large enough for the toys, which do not preempt
ARGS = {"model": "course", "num_gpu_blocks_override": 64, "block_size": 4, "max_num_batched_tokens": 24,
        "max_num_seqs": 3}  # fmt: skip


# --- the toys


class ListBlockManager:
    """Blocks from a list; no sharing, no counting."""

    def __init__(self, config):
        self.block_size = config.cache.block_size
        self.enable_prefix_caching = False
        self.pool = list(range(1, config.cache.num_blocks))
        self.tables = {}

    @property
    def num_free_blocks(self):
        return len(self.pool)

    def find_cached_prefix(self, request_id, token_ids, salt=""):
        return 0

    def allocate(self, request_id, num_tokens, cached_prefix=(), salt=""):
        missing = -(-num_tokens // self.block_size) - len(self.tables.get(request_id, []))
        if missing > len(self.pool):
            return False
        self.tables.setdefault(request_id, []).extend(self.pool.pop() for _ in range(missing))
        return True

    def block_table(self, request_id):
        return list(self.tables[request_id])

    def commit(self, request_id, token_ids, start=0):
        pass

    def free(self, request_id):
        self.pool += self.tables.pop(request_id, [])

    def reset_prefix_cache(self):
        return not self.tables

    def check_integrity(self):
        held = [b for table in self.tables.values() for b in table]
        assert len(set(held + self.pool)) == len(held) + len(self.pool)


class FifoScheduler:
    """One request after the other, whole prompts, no budget, no preemption."""

    def __init__(self, config, block_manager):
        self.blocks = block_manager
        self.waiting, self.running = [], []

    def add(self, request):
        self.waiting.append(request)

    def abort(self, request_id):
        for queue in (self.waiting, self.running):
            for request in [r for r in queue if r.request_id == request_id]:
                queue.remove(request)
                request.status = RequestStatus.FINISHED
                self.blocks.free(request_id)

    def finish(self, stopped):
        for stop in stopped:
            self.abort(stop.request_id)

    def schedule(self):
        if not self.running and self.waiting:
            self.running.append(self.waiting.pop(0))
        if not self.running:
            return ScheduledBatch([])
        (request,) = self.running
        assert self.blocks.allocate(request.request_id, request.num_tokens)
        start = request.num_computed_tokens
        table = self.blocks.block_table(request.request_id)
        return ScheduledBatch([ScheduledChunk.of(request, start, request.num_tokens - start, table)])

    def update(self, batch, result):
        updates = []
        for chunk in batch.chunks:
            request, new = chunk.request, result.token_ids[chunk.request.request_id]
            request.num_computed_tokens = chunk.end
            request.output_token_ids += new
            request.finish_reason = finish_reason(request, new[-1], len(request.output_token_ids))
            if request.finish_reason:
                self.abort(request.request_id)
            updates.append(RequestUpdate(request, new))
        return updates


class DenseAttention:
    """No blocks to read through: a slot is a row, and each request's rows are gathered one by one."""

    def __init__(self, config):
        model = config.model
        self.size = config.cache.block_size
        self.layers, self.shape = model.num_hidden_layers, (model.num_key_value_heads, model.head_dim)
        self.group = model.num_attention_heads // model.num_key_value_heads

    @property
    def bytes_per_block(self):
        return 2 * self.layers * self.size * self.shape[0] * self.shape[1] * 4

    def make_cache(self, num_blocks):
        return [torch.zeros(2, num_blocks * self.size, *self.shape) for _ in range(self.layers)]

    def slots(self, block_table, positions):
        return [block_table[i // self.size] * self.size + i % self.size for i in positions]

    def write(self, layer_cache, k, v, slots):
        layer_cache[0][slots], layer_cache[1][slots] = k, v

    def forward(self, q, layer_cache, metadata):
        out, row = [], 0
        for i, (count, length) in enumerate(zip(metadata.query_lens, metadata.seq_lens, strict=True)):
            slots = self.slots(metadata.block_tables[i].tolist(), range(length))
            k, v = (c[slots].repeat_interleave(self.group, dim=1).transpose(0, 1) for c in layer_cache)
            for j in range(count):
                seen = length - count + j + 1
                one = q[row + j, :, None]  # [heads, 1, dim]
                out.append(F.scaled_dot_product_attention(one, k[:, :seen], v[:, :seen])[:, 0])
            row += count
        return torch.stack(out)

    def copy_blocks(self, cache, pairs):
        raise NotImplementedError

    def read(self, layer_cache, slots):
        return layer_cache[0][slots], layer_cache[1][slots]


class ArgmaxSampler:
    """The likeliest token, whatever was asked for."""

    def __init__(self, config):
        pass

    def sample(self, logits, rows):
        return logits.argmax(-1).tolist(), [None] * len(rows)


class WholeTextDetokenizer:
    """Decodes everything again for every token; nothing is held back but broken characters."""

    def __init__(self, tokenizer, params):
        self.tokenizer, self.ids, self.shown = tokenizer, [], ""

    def _text(self):
        return self.tokenizer.decode(self.ids)

    def add(self, token_ids):
        self.ids += token_ids
        text = self._text().rstrip("\N{REPLACEMENT CHARACTER}")
        new, self.shown = text[len(self.shown) :], text
        return TextDelta(new)

    def finish(self):
        return TextDelta(self._text()[len(self.shown) :])


TOYS = {
    "block_manager": ListBlockManager,
    "scheduler": FifoScheduler,
    "attention": DenseAttention,
    "sampler": ArgmaxSampler,
    "detokenizer": WholeTextDetokenizer,
}


def answers(components=None, **args):
    llm = LLM(**ARGS | args, components=components)
    outputs = llm.generate(PROMPTS, GREEDY)
    llm.llm_engine.check_invariants()
    return [(o.outputs[0].text, o.outputs[0].token_ids, o.outputs[0].finish_reason) for o in outputs]


@pytest.fixture(scope="module")
def reference():
    return answers()


# --- one seam at a time, on the course model


@pytest.mark.parametrize("part", TOYS)
def test_a_toy_in_place_of_one_part_generates_what_the_reference_does(part, reference):
    made = []

    def factory(*args):
        made.append(TOYS[part](*args))
        return made[-1]

    assert answers(Components(**{part: factory})) == reference
    assert made and all(type(m) is TOYS[part] for m in made)


def test_toys_in_place_of_all_parts_generate_what_the_reference_does(reference):
    assert answers(Components(**TOYS)) == reference


def test_a_toy_model_answers_through_the_reference_parts():
    llm = LLM(**ARGS, components=double_components(tokenizer=Components().tokenizer, alphabet=[65, 66, 67]))
    ids = llm.get_tokenizer().encode("Hello")
    (output,) = llm.generate("Hello", GREEDY)
    from nano_qwen3_serving.testing.doubles import continuation

    assert output.outputs[0].token_ids == continuation(ids, 12, [65, 66, 67])


def test_a_toy_tokenizer_is_the_one_that_encodes_and_decodes():
    llm = LLM(**ARGS, components=Components(tokenizer=lambda config: ByteTokenizer()))
    (output,) = llm.generate("Hello", GREEDY)
    assert output.prompt_token_ids == list(b"Hello")
    assert output.outputs[0].text == llm.get_tokenizer().decode(output.outputs[0].token_ids)


def test_a_toy_model_and_tokenizer_chat_through_every_floor():
    llm = LLM(**ARGS, components=double_components())
    (output,) = llm.chat([{"role": "user", "content": "hi"}], GREEDY)
    assert output.outputs[0].text == continued_text("hi\n", 12)


# --- the same through the engines for asyncio


async def test_components_reach_the_async_engine():
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**ARGS), components=double_components())
    try:
        async for output in engine.generate("Hello", GREEDY, "A"):
            pass
        assert output.outputs[0].text == continued_text("Hello", 12)
        assert type(engine.engine.model_runner.model) is TellTaleModel
    finally:
        engine.shutdown()


async def test_components_reach_async_llm():
    async with AsyncLLM(num_blocks=32, components=double_components(scheduler=FifoScheduler)) as llm:
        results = await llm.generate(["Hello", "hi"], GREEDY)
    assert [r["generated_text"] for r in results] == [continued_text("Hello", 12), continued_text("hi", 12)]


# --- Components itself


def test_there_is_a_seam_for_each_part_and_no_other():
    assert {f.name for f in dataclasses.fields(Components)} == {*TOYS, "model", "tokenizer", "verifier", "drafter"}


def test_using_makes_a_copy_with_some_parts_replaced():
    base = Components()
    mine = base.using(scheduler=FifoScheduler)
    assert mine.scheduler is FifoScheduler and base.scheduler is not FifoScheduler
    assert mine.sampler is base.sampler


def test_an_unknown_part_is_an_error():
    with pytest.raises(TypeError, match="shceduler"):
        Components(shceduler=FifoScheduler)
    with pytest.raises(TypeError, match="shceduler"):
        Components().using(shceduler=FifoScheduler)


REPLACEABLE = {
    "scheduling.block_manager": "block_manager",
    "scheduling.scheduler": "scheduler",
    "attention.torch_paged": "attention",
    "execution.sampler": "sampler",
    "text.detokenizer": "detokenizer",
    "model.loader": "model",
    "text.tokenizer": "tokenizer",
}


def test_the_package_runs_with_a_replacement_when_any_one_parts_file_is_missing():
    code = f"""
import sys
missing = {REPLACEABLE!r}
for module in missing:
    sys.modules["nano_qwen3_serving." + module] = None  # importing it fails, as if the file were deleted
from nano_qwen3_serving import LLM, AsyncLLM, AsyncLLMEngine, LLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.exceptions import GenerationError
from nano_qwen3_serving.testing.doubles import double_components

class Part:
    def __init__(self, *args): pass
    def __getattr__(self, name): raise RuntimeError(name)

def generate(components):
    llm = LLM("course", num_gpu_blocks_override=16, components=components)
    llm.generate("x", SamplingParams(max_tokens=1), use_tqdm=False)

for module in missing:
    del sys.modules["nano_qwen3_serving." + module]
for module, part in missing.items():
    there = sys.modules.pop("nano_qwen3_serving." + module, None)
    sys.modules["nano_qwen3_serving." + module] = None
    try:
        generate(Components())
        raise SystemExit(module + " is not needed: is this test right?")
    except ImportError:
        pass
    try:
        generate(double_components(**{{part: Part}}))
        raise SystemExit(part + " was replaced and not asked for anything")
    except (RuntimeError, GenerationError):
        pass  # the stand-in was asked for something it does not have: it is in its place
    sys.modules["nano_qwen3_serving." + module] = there
    if there is None:
        del sys.modules["nano_qwen3_serving." + module]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
