"""Trains the bundled course checkpoints and exports them in Hugging Face format.

    python reference_engine/tools/train.py --out DIR [--model course|course-draft]

Knows the model's shape, the optimisers and the export; what is learned comes from ``documents``.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import CORPUS_FOLDER, load_entries, load_openings, load_tool_questions
from course_tokenizer import END_OF_TEXT, MAX_POSITIONS, TURN_END, train_tokenizer
from documents import Document, DocumentWriter, training_texts
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made; learning rates are the highest ones, reached after warm-up."""

    num_layers: int
    epochs: int
    matrix_lr: float = 5e-3
    other_lr: float = 3e-3
    warmup_share: float = 0.03
    batch_tokens: int = 3072


RECIPES = {
    "course": Recipe(num_layers=4, epochs=26),
    # Stops early: a draft that is sometimes wrong shows what rejecting a token means.
    "course-draft": Recipe(num_layers=1, epochs=4),
}


def build_model(num_layers: int, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A small Qwen3 with fresh weights: hidden 256, 8 query heads on 2 key-value heads of 32."""
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        eos_token_id=turn_end,
        pad_token_id=end_of_text,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        eos_token_id=[turn_end, end_of_text],
        pad_token_id=end_of_text,
    )
    return model


def build_optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["highest_lr"] = group["lr"]
    return [muon, adamw]


def set_learning_rates(
    optimizers: list[torch.optim.Optimizer], progress: float, warmup_share: float
) -> None:
    """Linear warm-up, then linear decay to zero; ``progress`` goes from 0 to 1."""
    factor = min(progress / warmup_share, (1 - progress) / (1 - warmup_share))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["highest_lr"] * factor


def batches(
    documents: list[Document], batch_tokens: int, rng: random.Random
) -> Iterator[list[Document]]:
    """Documents of like length together, at most ``batch_tokens`` with padding, in random order."""
    by_length = sorted(documents, key=lambda d: len(d.token_ids) * rng.uniform(0.9, 1.1))
    groups: list[list[Document]] = [[]]
    for document in by_length:
        longest = max([len(d.token_ids) for d in groups[-1]] + [len(document.token_ids)])
        if groups[-1] and longest * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(document)
    rng.shuffle(groups)
    yield from groups


def weighted_loss(model: Qwen3ForCausalLM, batch: list[Document]) -> torch.Tensor:
    """Mean cross-entropy of the next token, in nats, weighted as the documents say.

    Padding stands at the end, where causal attention never sees it, so no mask is needed.
    """
    width = max(len(document.token_ids) for document in batch)
    token_ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    for row, document in enumerate(batch):
        token_ids[row, : len(document.token_ids)] = torch.tensor(document.token_ids)
        weights[row, : len(document.weights)] = torch.tensor(document.weights)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(token_ids[:, :-1], use_cache=False).last_hidden_state
        learned = weights[:, 1:] > 0
        logits = model.lm_head(hidden[learned])
    losses = F.cross_entropy(logits.float(), token_ids[:, 1:][learned], reduction="none")
    return (losses * weights[:, 1:][learned]).sum() / weights[:, 1:].sum()


def train(model: Qwen3ForCausalLM, writer: DocumentWriter, recipe: Recipe, seed: int) -> None:
    """Runs all epochs in place; bf16 autocast rounds the matrices in every step as export will."""
    optimizers = build_optimizers(model, recipe)
    rng = random.Random(seed)
    started, seen_tokens = time.perf_counter(), 0
    with _progress_display() as display:
        task = display.add_task("", total=recipe.epochs, loss=math.nan, speed=0)
        for epoch in range(recipe.epochs):
            groups = list(batches(writer.epoch(), recipe.batch_tokens, rng))
            losses = []
            for step, group in enumerate(groups):
                progress = (epoch + (step + 1) / (len(groups) + 1)) / recipe.epochs
                set_learning_rates(optimizers, progress, recipe.warmup_share)
                losses.append(_step(model, optimizers, group))
                seen_tokens += sum(len(document.token_ids) for document in group)
                speed = seen_tokens / (time.perf_counter() - started)
                mean = sum(losses) / len(losses)
                completed = epoch + (step + 1) / len(groups)
                display.update(task, completed=completed, loss=mean, speed=speed)
            display.console.print(f"epoch {epoch + 1}: loss {mean:.4f}, {speed:,.0f} tokens/s")


def _step(
    model: Qwen3ForCausalLM, optimizers: list[torch.optim.Optimizer], group: list[Document]
) -> float:
    loss = weighted_loss(model, group)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _progress_display() -> Progress:
    return Progress(
        TextColumn("epoch {task.completed:.1f} of {task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Writes bfloat16 weights, tokenizer and configurations; ``out`` is complete or untouched."""
    partial, replaced = out.with_name(out.name + ".partial"), out.with_name(out.name + ".replaced")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a course checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--model", choices=sorted(RECIPES), default="course")
    parser.add_argument("--epochs", type=int, help="fewer than the recipe's, for a quick try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=CORPUS_FOLDER)
    arguments = parser.parse_args()

    recipe = RECIPES[arguments.model]
    if arguments.epochs:
        recipe = replace(recipe, epochs=arguments.epochs)
    torch.manual_seed(arguments.seed)
    entries, openings = load_entries(arguments.corpus), load_openings(arguments.corpus)
    tokenizer = train_tokenizer(training_texts(entries, openings))
    model = build_model(recipe.num_layers, tokenizer)
    print(f"{arguments.model}: {model.num_parameters():,} parameters, {len(entries)} answers")
    tool_questions = load_tool_questions(arguments.corpus)
    writer = DocumentWriter(entries, openings, tool_questions, tokenizer, arguments.seed)
    train(model, writer, recipe, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    export(model, tokenizer, arguments.out)
    print(f"exported to {arguments.out}")


if __name__ == "__main__":
    main()
