"""What the labs' READMEs say in Python is true: signatures are those of solution.py, everything else runs."""

from __future__ import annotations

import ast
import asyncio
import copy
import hashlib
import importlib.util
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from labs.harness import regions
from labs.harness.catalog import Lab, all_labs, find_lab
from nano_qwen3_serving import LLM, AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.exceptions import RequestTimeoutError

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
LABS = all_labs(PROJECT / "labs")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

RUN_ELSEWHERE = {"from starter import *": (
    "grading/labs/lab01/test_author.py", "test_the_calls_to_try_show_what_todo_2_asks_about")}
"""Programs by their first line, and who runs them."""


def blocks(lab: Lab) -> list[str]:
    return BLOCK.findall((lab.folder / "README.md").read_text(encoding="utf-8"))


def logical_lines(block: str) -> list[str]:
    """The lines of a block; those of an open bracket are one."""
    lines: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        if lines and lines[-1].count("(") > lines[-1].count(")"):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return lines


METHOD = re.compile(r"(?P<owner>[A-Z]\w+)(\((?P<made_with>.*?)\))?\.(?P<head>\w+\(.*)")
"""`RMSNorm(size: int).forward(self, …) -> …` and `Attention.heads(self, …) -> …`."""


@dataclass(frozen=True)
class Signature:
    """A function's head, with `...` for its body."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    is_property: bool = False

    def __str__(self) -> str:
        """A constructor's result is left out, for READMEs may leave it out."""
        kind = "property" if self.is_property else "async def" if isinstance(self.node, ast.AsyncFunctionDef) else "def"
        result = ast.unparse(self.node.returns) if self.node.returns and self.node.name != "__init__" else None
        return f"{kind}({ast.unparse(self.node.args)}) -> {result}"


def contracts(block: str) -> dict[str, Signature] | None:
    """Qualified name → signature; None for a block that is no list of signatures."""
    found: dict[str, Signature] = {}
    owner = ""
    for line in logical_lines(block):
        code, _, comment = line.partition("#")
        code, indented = code.strip(), line.startswith(" ")
        of = re.match(r" of (\w+)", comment)
        prefix = f"{of[1]}." if of else owner if indented else ""
        if heading := re.fullmatch(r"class (\w+):", code):
            owner = f"{heading[1]}."
        elif re.match(r"(async )?def \w+\(", code) and not code.endswith(":"):
            found |= signature(code, prefix, "property" in comment)
        elif indented and owner and (field := re.fullmatch(r"(\w+): ([\w\[\], ]+)", code)):
            found |= signature(f"def {field[1]}(self) -> {field[2]}", prefix, "property" in comment)
        elif method := METHOD.fullmatch(code):
            found |= signature(f"def {method['head']}", f"{method['owner']}.")
            if method["made_with"]:
                found |= signature(f"def __init__(self, {method['made_with']})", f"{method['owner']}.")
        else:
            return None
    return found


def signature(head: str, prefix: str, is_property: bool = False) -> dict[str, Signature]:
    node = ast.parse(f"{head}: ...").body[0]
    return {prefix + node.name: Signature(node, is_property)}


def signatures(source: str) -> dict[str, Signature]:
    """Qualified name → signature, of every function of a file."""
    return {
        name: Signature(node, any(ast.unparse(one) == "property" for one in node.decorator_list))
        for name, node in regions.definitions(ast.parse(source)).items()
    }


class WriteOut(ast.NodeTransformer):
    """Puts what a file's aliases of types stand for in their places."""

    def __init__(self, source: str) -> None:
        assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
        self.aliases = {ast.unparse(node.targets[0]): node.value for node in assigned if isinstance(node.value, ast.Subscript)}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.aliases.get(node.id, node)


def comparable(ours: Signature, said: Signature, source: str) -> tuple[str, str]:
    """Both in full; what the README leaves unannotated is compared without annotations."""
    left_out = {one.arg for one in said.node.args.args if one.annotation is None}
    node = copy.deepcopy(ours.node)
    for one in node.args.args:
        if one.arg in left_out:
            one.annotation = None
    write_out = WriteOut(source).visit
    return str(Signature(write_out(node), ours.is_property)), str(Signature(write_out(said.node), said.is_property))


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.folder.name)
def test_every_signature_in_a_readme_is_that_of_the_solution(lab: Lab) -> None:
    source = lab.solution.read_text(encoding="utf-8")
    ours = signatures(source)
    for block in blocks(lab):
        for name, said in (contracts(block) or {}).items():
            assert name in ours, f"{lab.solution} has no {name}"
            is_ours, is_said = comparable(ours[name], said, source)
            assert is_said == is_ours, name


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.folder.name)
def test_every_function_that_a_learner_writes_has_its_signature_in_the_readme(lab: Lab) -> None:
    said = {name for block in blocks(lab) for name in contracts(block) or {}}
    to_write = {name for names in regions.functions_of(lab.solution.read_text(encoding="utf-8")).values() for name in names}
    assert not to_write - said


@pytest.mark.parametrize(("block", "said"), [
    ("def f(a: int,\n      b = 2) -> T    # [n]\n", {"f": "def(a: int, b=2) -> T"}),
    ("class C:   # ours\n    size: int   # a property\n    async def go(self)\ndef g(self) -> int   # of D\n",
     {"C.size": "property(self) -> int", "C.go": "async def(self) -> None", "D.g": "def(self) -> int"}),
    ("Norm(size: int).forward(self, x: Tensor) -> Tensor\n",
     {"Norm.__init__": "def(self, size: int) -> None", "Norm.forward": "def(self, x: Tensor) -> Tensor"}),
    ("x = f(1)\n", None),
    ("def f():\n    return 1\n", None),
])
def test_signatures_are_read_however_readmes_write_them(block: str, said: dict[str, str] | None) -> None:
    found = contracts(block)
    assert said == (None if found is None else {name: str(one) for name, one in found.items()})


def snippets() -> list[Any]:
    return [
        pytest.param(lab.id, block, id=f"{lab.id}: {block.splitlines()[0]}")
        for lab in LABS for block in blocks(lab) if contracts(block) is None and block.splitlines()[0] not in RUN_ELSEWHERE
    ]


def test_programs_that_run_elsewhere_do() -> None:
    first_lines = {block.splitlines()[0] for lab in LABS for block in blocks(lab)}
    for line, (file, test) in RUN_ELSEWHERE.items():
        source = (PROJECT / file).read_text(encoding="utf-8")
        assert line in first_lines and f"def {test}(" in source and re.escape(line).replace(r"\ ", " ") in source


async def run(code: str, names: dict[str, Any]) -> Any:
    """Run a snippet as the body of a coroutine; what it returns, or the value of its last line."""
    tree = ast.parse("async def snippet():\n" + textwrap.indent(code, "    "))
    body = tree.body[0].body
    if isinstance(body[-1], ast.Expr):
        body[-1] = ast.copy_location(ast.Return(body[-1].value), body[-1])
    body.append(ast.parse("return locals()").body[0])
    exec(compile(ast.fix_missing_locations(tree), "README", "exec"), names)
    return await names["snippet"]()


def solution(lab_id: str) -> ModuleType:
    lab = find_lab(lab_id, PROJECT / "labs")
    spec = importlib.util.spec_from_file_location(f"readme_lab{lab_id}", lab.solution)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def engine_with(**arguments: Any) -> dict[str, Any]:
    """The names that Lab 02's snippets use."""
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course", device="cpu", **arguments))
    return {"engine": engine, "prompt": "What is a KV cache?", "sampling_params": GREEDY, "request_id": "a",
            "seconds": 60, "RequestTimeoutError": RequestTimeoutError}


async def aborts(code: str) -> None:
    names = engine_with()
    stream = names["engine"].generate(names["prompt"], SamplingParams(temperature=0, max_tokens=900, ignore_eos=True), "a")
    await anext(stream)
    await run(code, names)
    assert [output async for output in stream][-1].outputs[0].finish_reason == "abort"
    names["engine"].shutdown()


async def has_a_priority(code: str) -> None:
    names = engine_with(scheduling_policy="priority")
    outputs = [output async for output in await run(code, names)]
    assert outputs[-1].finished
    names["engine"].shutdown()


async def times_out(code: str) -> None:
    names = engine_with() | {"sampling_params": SamplingParams(max_tokens=900, ignore_eos=True)}
    for seconds in (0.02, 0.1, 0.5):  # a machine that is slow today may not even have begun
        partial = await run(code, names | {"seconds": seconds})
        if partial is not None:
            break
    assert not isinstance(partial, dict) and partial.request_id == "a"
    names["engine"].shutdown()


async def loads_a_network(code: str) -> None:
    """The course checkpoint in the place of the real one."""
    lab = solution("03")
    names = dict(vars(lab)) | {"core": lab.DenseCore()}
    made = await run(code.replace("Qwen/Qwen3-0.6B", "course"), names)
    assert isinstance(made["network"], lab.Qwen3ForCausalLM)


async def draws(code: str) -> None:
    names = {"torch": torch, "number": 7, "probabilities": torch.tensor([0.5, 0.0, 0.5])}
    first, second = await run(code, names), await run(code, names)
    assert first.shape == (1,) and first == second


async def hashes(code: str) -> None:
    assert 0 <= (await run(code, {"hashlib": hashlib}))["number"] < 2**64


async def is_the_examples_trace(code: str) -> None:
    lab = solution("06")
    assert lab.replay(lab.BlockManager(6, 4), await run(code, {})).peak_blocks == 5


async def serves_with_the_part(code: str) -> None:
    lab = solution("07")

    def make_attention(config: Any) -> Any:
        return lab.PagedAttention(config.model, config.cache.block_size, config.dtype, config.device)

    llm = await run(code, {"LLM": LLM, "Components": Components, "make_attention": make_attention})
    assert llm.generate("What is a KV cache?", GREEDY)[0].outputs[0].text.strip().startswith("A KV cache")


SHOWN_BY = {
    "await engine.abort(request_id)": aborts,
    "engine.generate(prompt, sampling_params, request_id, priority=0)": has_a_priority,
    "try:": times_out,
    'config = EngineArgs(model="Qwen/Qwen3-0.6B", device="cpu", dtype="float32").create_engine_config()': loads_a_network,
    "generator = torch.Generator().manual_seed(number)": draws,
    'digest = hashlib.blake2b(b"any bytes", digest_size=8).digest()': hashes,
    '[{"A": 6, "B": 3}, {"A": 7, "B": 4}, {"A": 8, "B": 5}, {"A": 9, "B": 6}]': is_the_examples_trace,
    'LLM("course", components=Components(attention=make_attention))': serves_with_the_part,
}
"""Snippets by their first line: given the names that they use, they do what the README says."""


@pytest.mark.parametrize(("lab_id", "code"), snippets())
def test_every_snippet_of_a_readme_does_what_it_is_shown_for(lab_id: str, code: str) -> None:
    asyncio.run(SHOWN_BY[code.splitlines()[0]](code))


def test_no_snippet_is_looked_for_that_no_readme_has() -> None:
    assert set(SHOWN_BY) == {snippet.values[1].splitlines()[0] for snippet in snippets()}


def test_the_harness_readme_shows_a_solution_that_makes_a_starter() -> None:
    shown = BLOCK.findall((PROJECT / "labs" / "harness" / "README.md").read_text(encoding="utf-8"))
    for block in shown:
        ast.parse(block)
    assert regions.functions_of(shown[0]) == {3: ["submit"]}
    assert 'raise TodoError("TODO 3: hand the request to the engine", lab="02")' in regions.make_starter(shown[0], "02")
