"""Numbers that overflow are an error of the request that has them, never a token."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nano_qwen3_serving import LLM, EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.exceptions import GenerationError
from nano_qwen3_serving.execution import model_runner
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.testing.doubles import TellTaleModel, continued_text, double_components

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=6)
KINDS = {
    "greedy": SamplingParams(temperature=0, max_tokens=6),
    "random": SamplingParams(temperature=1.0, seed=7, max_tokens=6),
    "filtered": SamplingParams(temperature=0.8, top_k=3, top_p=0.9, min_p=0.01, seed=7, max_tokens=6),
    "penalised": SamplingParams(temperature=0, repetition_penalty=1.2, logit_bias={5: 1.0}, max_tokens=6),
    "with logprobs": SamplingParams(temperature=0, logprobs=3, max_tokens=6),
}


class Overflows(TellTaleModel):
    """The telltale network; contexts that begin with `!` get logits that are spoiled after three tokens."""

    spoiled = "all nan"

    def compute_logits(self, hidden):
        logits = super().compute_logits(hidden)
        for row, context in zip(logits, self.contexts, strict=False):
            if context[0] == ord("!") and len(context) > 6:
                spoil(row, self.spoiled)
        return logits


def spoil(row, how):
    if how == "all nan":
        row[:] = float("nan")
    elif how == "one infinity":
        row[3] = float("inf")
    else:
        row[:] = float("-inf")


def engine_that_overflows(how):
    contexts = []

    def model(config, attention):
        made = Overflows(config, attention, on_forward=lambda seen: contexts.__setitem__(slice(None), seen))
        made.spoiled, made.contexts = how, contexts
        return made

    return LLMEngine.from_engine_args(
        EngineArgs("course", num_gpu_blocks_override=33, block_size=4, check_invariants=True),
        double_components(model=model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["all nan", "one infinity", "all minus infinity"])
def test_a_request_with_logits_that_are_not_finite_fails_by_name_and_others_go_on(how, kind):
    engine = engine_that_overflows(how)
    engine.add_request("neighbour", "hello", GREEDY)
    engine.add_request("A", "!abcd", KINDS[kind])
    engine.add_request("another", "world", GREEDY)
    done = {}
    while engine.has_unfinished_requests():
        done |= {o.request_id: o for o in engine.step() if o.finished}
    for name, text in (("neighbour", "hello"), ("another", "world")):
        assert done[name].outputs[0].text == continued_text(text, 6)
    failed = done["A"]
    assert isinstance(failed.error, GenerationError) and failed.outputs[0].finish_reason == "error"
    assert len(failed.outputs[0].token_ids) < 6
    engine.check_invariants()


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """The course checkpoint with activations above what float16 holds."""
    folder = shutil.copytree(BUNDLED / "course", tmp_path_factory.mktemp("model") / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({name: w * 3e4 if "down_proj" in name else w for name, w in weights.items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("params", [*KINDS.values(), SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=2)],
                         ids=[*KINDS, "with the prompt's logprobs"])
def test_activations_too_large_for_float16_say_which_dtype_to_try(overflowing, params):
    llm = LLM(overflowing, dtype="float16", num_gpu_blocks_override=16)
    with pytest.raises(GenerationError, match=r"NaN or infinite.* float16, try dtype='bfloat16' or 'float32'") as caught:
        llm.generate("What is a KV cache?", params)
    assert caught.value.outputs[0].outputs[0].token_ids == []
    llm.llm_engine.check_invariants()


def test_what_overflows_in_float16_is_computed_in_a_wider_dtype(overflowing):
    output = LLM(overflowing, dtype="float32", num_gpu_blocks_override=16).generate("What is a KV cache?", GREEDY)[0]
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(("dtype", "words"), [
    (torch.float16, "'bfloat16' or 'float32'"), (torch.bfloat16, "dtype='float32'"), (torch.float32, "verify MODEL")])
def test_the_way_out_is_a_wider_dtype_or_a_look_at_the_weights(dtype, words):
    assert words in model_runner.not_finite(dtype)


@pytest.mark.parametrize("args", [{}, {"enable_prefix_caching": False}, {"max_num_batched_tokens": 8, "max_num_seqs": 4},
                                  {"batch_invariant": True}], ids=str)
def test_nan_that_one_request_left_in_the_cache_never_reaches_another(args):
    """Freed blocks are not cleaned: what an aborted request wrote there is masked, and NaN times zero is NaN."""
    prompts = ["What is a KV cache?", "Count from 1 to 3", "Tell me a story"]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    llm = LLM("course", num_gpu_blocks_override=64, check_invariants=True, **args)
    expected = [o.outputs[0].token_ids for o in llm.generate(prompts, params)]
    assert llm.llm_engine.reset_prefix_cache()
    for layer in llm.llm_engine.model_runner.kv_cache:
        for tensor in layer:
            tensor.fill_(float("nan"))
    assert [o.outputs[0].token_ids for o in llm.generate(prompts, params)] == expected


def test_a_draw_from_logits_that_are_not_finite_is_refused():
    logits = torch.zeros(2, 8)
    logits[1, 3] = float("inf")
    row = SamplingRow(SamplingParams(seed=1), [1], [], 1)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        Sampler().sample(logits, [row, row])


class CountsReads(torch.overrides.TorchFunctionMode):
    """Notes every operator that is given a tensor as large as the logits."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if any(isinstance(a, torch.Tensor) and a.numel() >= self.size for a in args):
            self.seen.append(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


def test_a_greedy_step_reads_all_logits_once_for_the_best_and_never_to_check_them():
    runner = LLM("course", num_gpu_blocks_override=16).llm_engine.model_runner
    logits = torch.randn(4, 2048)
    rows = [SamplingRow(GREEDY, [1], [], 1)] * 4
    with CountsReads(logits.numel()) as counts:
        tokens, _ = Sampler().sample(logits, rows)
        runner._check_finite(logits[range(4), tokens], [], torch.float32)
    assert [name for name in counts.seen if name not in ("__getitem__", "__get__", "size")] == ["max"]
