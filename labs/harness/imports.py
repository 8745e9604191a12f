"""What a learner's file may import: one rule for practice, the judge and its workers.

A lab allows the parts of the engine that its starter uses and those that any file may need to name a type. The rest of the
engine, and libraries that are the answer, may be read but not imported. Knows names only; loads nothing.
"""

from labs.harness.catalog import Lab
from nano_qwen3_serving import __all__ as PUBLIC

ENGINE = "nano_qwen3_serving"
COMMON = tuple(f"{ENGINE}.{name}" for name in (
    "arguments", "components", "config", "exceptions", "interfaces", "observe", "outputs", "prompts", "request",
    "sampling_params", "side_files"))
"""Modules of the engine that every lab may import: the data between its parts, and the choice of parts."""
ANSWERS = (
    "transformers", "vllm", "sglang", "lmdeploy", "tensorrt_llm", "nanovllm", "minivllm", "flash_attn", "flashinfer", "xformers",
    "mlx_lm", "llama_cpp", "ctransformers", "exllamav2", "optimum", "torch.nn.attention.experimental", "torch.onnx")
"""Libraries that are, or contain, what learners write in the labs."""
NOT_GIVEN = {
    "solution", "starter", "untouched", "test_lab", "seam", "reference", "predict", "going_further", "__init__"}
"""Files of a lab that a learner's file must not import; the lab's other modules are given to the learner."""


def may_import(lab: Lab, name: str) -> bool:
    """Whether a file for `lab` may import this dotted name; any name is allowed that is neither the course's nor an answer."""
    parts = name.removesuffix(".*").split(".")
    if "solution" in parts or _below(name, lab.refuse):
        return False
    if parts[0] in ("grading", *NOT_GIVEN - {"starter"}):
        return False
    if parts[0] == "labs":
        return _is_given_to_learner(lab, parts)
    if parts[0] == ENGINE:
        return len(parts) == 1 or parts[1] in PUBLIC or _below(name, (*COMMON, *lab.allow))
    return _uses_all(lab) or not _below(name, ANSWERS)


def works_there(lab: Lab, module: str) -> bool:
    """Whether a module of the engine works where submissions of `lab` are graded; otherwise only its names exist there."""
    return _uses_all(lab) or module == ENGINE or _below(module, (*COMMON, *lab.allow))


def why_not(lab: Lab, name: str) -> str:
    """Why `name` may not be imported, and which names may."""
    if name.split(".")[0] != ENGINE or _below(name, lab.refuse):
        return "Reading it is allowed, importing it is not: it does what this lab asks you to write."
    allowed = ", ".join(module.removeprefix(f"{ENGINE}.") for module in (*COMMON, *lab.allow))
    return (f"Reading it is allowed, importing it is not: of the engine this lab needs the names that {ENGINE} itself has "
            f"(LLM, SamplingParams, ...), and {allowed}.")


def _uses_all(lab: Lab) -> bool:
    """Whether the lab uses the engine and makes no part of it."""
    return ENGINE in lab.allow


def _is_given_to_learner(lab: Lab, parts: list[str]) -> bool:
    if parts[1:2] == ["harness"]:
        return parts[2:3] in ([], ["todo"])
    return parts[1:2] in ([], [lab.folder.name]) and not NOT_GIVEN & set(parts[2:])


def _below(name: str, others: tuple[str, ...]) -> bool:
    return any(name == other or name.startswith(other + ".") for other in others)
