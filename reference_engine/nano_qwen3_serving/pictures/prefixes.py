"""Prompts that begin alike: as a tree of blocks, and the hit rate of such prompts as there are more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, Picture, canvas, whole_numbers, write_in
from nano_qwen3_serving.scheduling.block_manager import BlockManager


def record_prompts(prompts: Mapping[str, Sequence[int]], new: int, **engine_args: Any) -> list[dict[str, Any]]:
    """The flight recorder's steps of a run in which all prompts are there from the beginning, each to generate `new` tokens."""
    chosen: dict[str, Any] = {"model": "course", "block_size": 4} | engine_args
    engine = LLMEngine.from_engine_args(EngineArgs(**chosen), recorder=Recorder())
    for name, prompt in prompts.items():
        params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.recorder is not None
    return engine.recorder.steps


def hit_rate(prompts: Sequence[Sequence[int]], num_blocks: int, block_size: int = 4) -> float:
    """The share of the prompts' tokens that is found if a pool serves one after the other."""
    pool, hits = BlockManager(num_blocks, block_size), 0
    for number, prompt in enumerate(prompts):
        name = str(number)
        found = pool.find_cached_prefix(name, prompt)
        if not pool.allocate(name, len(prompt), prompt[:found]):
            raise ValueError(f"a prompt of {len(prompt)} tokens needs more than {num_blocks - 1} blocks of {block_size}")
        pool.commit(name, prompt)
        pool.free(name)
        hits += found
    return hits / sum(map(len, prompts))


def hit_rates(rates: Mapping[int, float], room: int) -> Picture:
    """The hit rate by the number of prompts that take turns; a line marks how many the pool has room for."""
    with canvas(2.8) as (figure, axes):
        axes.plot(list(rates), list(rates.values()), "-o", color=COLOURS[0], markeredgecolor=INK, markersize=5, linewidth=2)
        axes.axvline(room + 0.5, color=INK, linestyle="--", linewidth=1)
        axes.text(room + 0.6, 0.5, "the pool is full", fontsize=8)
        axes.set(xlabel="prompts that take turns", ylabel="hit rate", ylim=(-0.03, 1))
        whole_numbers(axes, "x")
    return Picture(figure, f"Line chart of the hit rate of {min(rates)} to {max(rates)} prompts; there is room for {room}.")


def prefix_tree(prompts: Mapping[str, Sequence[int]], block_size: int = 4) -> Picture:
    """The full blocks of prompts as a tree: a column for each place in a prompt, a row for each different end."""
    paths = {name: [tuple(prompt[:end]) for end in range(block_size, len(prompt) + 1, block_size)]
             for name, prompt in prompts.items()}
    rows: dict[tuple[int, ...], float] = {}
    for row, path in enumerate(paths.values()):
        for prefix in path:
            rows.setdefault(prefix, row)
    with canvas(0.8 + 0.5 * len(paths)) as (figure, axes):
        for prefix, row in rows.items():
            column, before = len(prefix) // block_size, prefix[:-block_size]
            axes.plot([column - 1, column], [rows.get(before, (len(paths) - 1) / 2), row], color=INK, linewidth=1, zorder=1)
            shared = sum(prefix in path for path in paths.values())
            axes.scatter([column], [row], s=420, color=COLOURS[0] if shared > 1 else FAINT, edgecolor=INK, zorder=2)
            write_in(axes, column, row, str(shared))
        axes.set(xlabel="block of the prompt", ylim=(len(paths) - 0.4, -0.6))
        axes.set_yticks(range(len(paths)), list(paths))
        whole_numbers(axes, "x")
    return Picture(figure, f"Tree of {len(rows)} blocks, in each the number of prompts that share it: {', '.join(prompts)}.")
