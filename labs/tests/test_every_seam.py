"""What is proved of every lab that makes a part: its solution in the engine is right, and a failing part is named.

A new lab needs nothing here: it is found by its seam.py.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from labs.harness import loading, regions
from labs.harness.catalog import Lab, all_labs
from labs.harness.mixed_engine.blame import blame
from labs.harness.mixed_engine.first_divergence import compare, comparison_lines
from labs.harness.mixed_engine.lockstep import make_scenario
from labs.harness.mixed_engine.part import Part, load_seam, seam_fields
from labs.harness.mixed_engine.parts import Engine, build, engine_of
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.model.checkpoint import find_checkpoint
from nano_qwen3_serving.testing.checkpoints import Shape, write_random_checkpoint
from nano_qwen3_serving.testing.oracle import Oracle

pytestmark = pytest.mark.slow

HOME = Path(__file__).parents[1]
LABS = [lab for lab in all_labs(HOME) if lab.seam.is_file()]
every_seam = pytest.mark.parametrize("a_lab", LABS, ids=[lab.folder.name for lab in LABS])

TEXTS = ["Explain async programming in Python", "Once upon a time", "What is a block table?", "Hello!"]
TOKENS = 12
TINY = {"device": "cpu", "dtype": "float32", "block_size": 4, "num_gpu_blocks_override": 13, "max_num_batched_tokens": 10,
        "enable_prefix_caching": False, "check_invariants": True}
"""Twelve blocks of four tokens: about two of the requests fit, so that some are preempted; ten tokens a step, so
that prompts are computed in chunks beside others' decoding."""
ODD = Shape(num_attention_heads=6, num_key_value_heads=2, hidden_size=40, head_dim=16)
ROUNDING = 2e-3
"""Logits have a standard deviation of 4. Two right float32 programs were seen to differ by under 1e-4."""


@cache
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@every_seam
def test_the_solution_in_the_engine_gives_the_oracles_tokens(a_lab: Lab):
    llm = LLM("course", components=solution_of(a_lab).components, **TINY)
    prompts = [llm.get_tokenizer().encode(text) for text in TEXTS]
    outputs = llm.generate(TEXTS, SamplingParams(temperature=0, max_tokens=TOKENS), use_tqdm=False)
    transformers = oracle(find_checkpoint("course"))
    transformers.compare(prompts, transformers.greedy(prompts, TOKENS), [o.outputs[0].token_ids for o in outputs])
    assert any(o.metrics.num_preemptions for o in outputs), "the pool is to be too small for all at once"


@every_seam
def test_the_solution_in_the_engine_gives_the_oracles_logits_on_random_weights(a_lab: Lab, random_folder: Path):
    assert_the_oracles_logits(solution_of(a_lab), random_folder)


def assert_the_oracles_logits(engine: Engine, folder: Path) -> None:
    """Compares log-probabilities of the whole vocabulary after each token."""
    prompts = [[(7 * i + j * j) % ODD.vocab_size for j in range(length)] for i, length in enumerate((4, 9, 15))]
    llm = LLM(str(folder), components=engine.components, max_logprobs=-1, **TINY)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=ODD.vocab_size, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        found = output.outputs[0]
        expected = oracle(folder).logits([*prompt, *found.token_ids[:-1]])[len(prompt) - 1 :].log_softmax(dim=-1)
        yours = torch.tensor([[row[token].logprob for token in range(ODD.vocab_size)] for row in found.logprobs])
        assert (yours - expected).abs().max() < ROUNDING


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("random"), ODD, seed=3)


@pytest.fixture(scope="module")
def yarn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with YaRN, trained on 8 tokens and read to 512."""
    folder = write_random_checkpoint(tmp_path_factory.mktemp("yarn"), ODD, seed=3)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 64.0, "original_max_position_embeddings": 8}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@every_seam
def test_a_stretched_checkpoint_is_computed_right_or_refused_as_nobodys_mistake(a_lab: Lab, yarn_folder: Path):
    """A network of a lab knows rope_theta alone: with YaRN its angles would be wrong in silence."""
    engine = solution_of(a_lab)
    if "model" not in seam_fields(a_lab, load_seam(a_lab)):
        assert_the_oracles_logits(engine, yarn_folder)
        return
    with pytest.raises(ModelLoadError, match=r"YaRN, factor=64\), which Lab 03's network does not compute; give ") as caught:
        LLM(str(yarn_folder), components=engine.components, **TINY)
    assert str(yarn_folder) in str(caught.value) and blame(caught.value, engine) is None


@pytest.mark.share(1)
@every_seam
def test_compare_finds_nothing_wrong_with_the_solution(a_lab: Lab):
    found = compare(solution_of(a_lab), make_scenario())
    assert (found.differences, found.error) == ([], None), comparison_lines(found)
    assert found.preemptions > 0 and found.tokens > 50


@every_seam
def test_a_failing_todo_is_blamed_with_its_lab_and_number(a_lab: Lab, tmp_path: Path):
    """Each TODO in turn raises, the others are ours; those that a generation reaches must be named, at least one."""
    source = regions.make_starter(a_lab.solution.read_text(encoding="utf-8"), a_lab.id)
    file = tmp_path / "starter.py"
    file.write_text(re.sub(r"raise TodoError\(.*", 'raise ArithmeticError("deliberate")', source), encoding="utf-8")
    todos = list(regions.functions_of(a_lab.solution.read_text(encoding="utf-8")))
    named = []
    for todo in todos:
        module = loading.load(a_lab, file, [other for other in todos if other != todo])
        engine = build([Part(a_lab, "mine", module, load_seam(a_lab), tuple(other for other in todos if other != todo))])
        error = failure(engine)
        if error is not None:
            found = blame(error, engine)
            assert found is not None and (found.part.lab, found.todo) == (a_lab, todo), f"TODO {todo}: {found or error}"
            assert "deliberate" in found.what
            named.append(todo)
    assert named


def failure(engine: Engine) -> Exception | None:
    """What a short generation with chunks, penalties and draws fails with."""
    params = [
        SamplingParams(temperature=0, max_tokens=8, ignore_eos=True),
        SamplingParams(temperature=0.8, top_k=5, top_p=0.9, seed=1, max_tokens=8, repetition_penalty=1.2, logprobs=2),
    ]
    try:
        LLM("course-draft", components=engine.components, **TINY).generate(TEXTS[:2], params, use_tqdm=False)
    except Exception as error:
        return error
    return None


def test_all_parts_together_give_the_oracles_tokens():
    """As many labs as fill different fields, at once."""
    chosen: dict[tuple[str, ...], Lab] = {seam_fields(lab, load_seam(lab)): lab for lab in LABS}
    engine = engine_of([f"solution:{','.join(lab.id for lab in chosen.values())}"], home=HOME)
    llm = LLM("course", components=engine.components, **TINY)
    outputs = llm.generate(TEXTS, SamplingParams(temperature=0, max_tokens=TOKENS), use_tqdm=False)
    prompts = [llm.get_tokenizer().encode(text) for text in TEXTS]
    transformers = oracle(find_checkpoint("course"))
    transformers.compare(prompts, transformers.greedy(prompts, TOKENS), [o.outputs[0].token_ids for o in outputs])


def solution_of(lab: Lab) -> Engine:
    return engine_of([f"solution:{lab.id}"], home=HOME)


def test_without_parts_the_components_are_the_references():
    assert build([]).components == Components()
