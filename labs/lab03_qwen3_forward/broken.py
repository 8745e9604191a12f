"""What your network writes, and what it writes with each of five mistakes in it: README.md, Step 6.

Run it when your network is right: python broken.py
It writes broken/1.py to broken/5.py: your starter.py with one mistake each. What the mistakes are stands below,
under MISTAKES: fill the table in README.md before you look.
"""

import ast
import textwrap
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from labs.harness import loading
from labs.harness.catalog import LabError, lab_at
from labs.harness.todo import run_lab
from nano_qwen3_serving import EngineArgs
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.model.loader import load_weights

FOLDER = Path(__file__).resolve().parent
PROMPTS = ["What is a KV cache?\n", "Once upon a time"]

MISTAKES = [
    # 1: gelu instead of silu. The two curves differ by 0.2 at most, and every layer adds a little of that.
    ("MLP.forward", """
     def forward(self, x):
         return self.down_proj(torch.nn.functional.gelu(self.gate_proj(x)) * self.up_proj(x))
     """),
    # 2: positions go through bfloat16, which knows every integer up to 256, and from there on every second one.
    ("RotaryEmbedding.forward", """
     def forward(self, x, positions):
         return self.yours(x, positions.bfloat16().long())
     """),
    # 3: the final norm is forgotten. All logits of a row grow by about one factor, so the largest often stays the largest.
    ("Qwen3ForCausalLM.compute_logits", """
     def compute_logits(self, hidden):
         return self.lm_head(hidden)
     """),
    # 4: numbers 0 and 1, 2 and 3, ... are turned as pairs, as in other models' code, instead of i and i + head_dim / 2.
    ("RotaryEmbedding.forward", """
     def forward(self, x, positions):
         turned = self.yours(torch.cat([x[..., ::2], x[..., 1::2]], dim=-1), positions)
         return torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(start_dim=-2)
     """),
    # 5: every head reads its neighbour's keys, and its own values.
    ("Attention.heads", """
     def heads(self, x, positions):
         q, k, v = self.yours(x, positions)
         return q, k.roll(1, dims=1), v
     """),
]
"""The method that is wrong, and how; `self.yours` is the one that you wrote."""


@torch.inference_mode()
def main() -> None:
    """Writes the five files, then prints texts, and how far logits are from those of your network."""
    lab, text = lab_at(FOLDER), (FOLDER / "starter.py").read_text(encoding="utf-8")
    (FOLDER / "broken").mkdir(exist_ok=True)
    right, texts = written(loading.load(lab, lab.starter))
    show("yours", texts, f"The largest of its logits after the prompts is {right.max():.2f}.")
    for number, mistake in enumerate(MISTAKES, start=1):
        file = FOLDER / "broken" / f"{number}.py"
        file.write_text(with_mistake(text, *mistake), encoding="utf-8")
        logits, texts = written(loading.load(lab, file))
        show(str(number), texts, f"Its logits after the prompts are off by up to {(logits - right).abs().max():.2f}.")


def with_mistake(text: str, method: str, wrong: str) -> str:
    """The text of a starter.py in which a method is called `yours`, and the wrong one stands behind it."""
    owner, _, name = method.partition(".")
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == owner]
    found = [node for one in classes for node in one.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise LabError(f"starter.py has no method {method} any more.")
    lines, first, end = text.split("\n"), found[0].lineno - 1, found[0].end_lineno or 0
    lines[first] = lines[first].replace(f"def {name}(", "def yours(", 1)
    lines[end:end] = ["", textwrap.indent(textwrap.dedent(wrong).strip(), " " * 4)]
    return "\n".join(lines)


def written(lab: ModuleType, most: int = 40) -> tuple[Tensor, list[str]]:
    """Of a network on the course checkpoint: the logits after each prompt, and the prompts with the greedy texts."""
    config, core = EngineArgs(model="course", device="cpu").create_engine_config(), lab.DenseCore()
    tokenizer, model = Components().tokenizer(config), load_weights(lab.Qwen3ForCausalLM(config.model, core), config)
    logits, texts = [], []
    for prompt in PROMPTS:
        token_ids = tokenizer.encode(prompt)
        after = lab.logits_after(model, core, token_ids)
        logits.append(after)
        for _ in range(most):
            if (best := int(after.argmax())) in model.config.eos_token_ids:
                break
            token_ids.append(best)
            after = lab.logits_after(model, core, token_ids)
        texts.append(tokenizer.decode(token_ids))
    return torch.stack(logits), texts


def show(name: str, texts: list[str], numbers: str) -> None:
    """One network in a few lines."""
    for label, text in zip((name, "", ""), (*texts, numbers), strict=True):
        print(textwrap.fill(" ".join(text.split()), 110, initial_indent=f"{label:8}", subsequent_indent=" " * 8))
    print()


if __name__ == "__main__":
    run_lab(main)
