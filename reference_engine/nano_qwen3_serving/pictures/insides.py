"""Looking inside a step: attention that keeps what passes through it, steps scheduled by hand, attention alone.

Each takes the engine's own `TorchPagedAttention` and adds only the looking; needs a CPU and float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nano_qwen3_serving.attention.torch_paged import LayerCache, TorchPagedAttention
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import EngineConfig, ModelConfig
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.execution.model_runner import ModelInputs
from nano_qwen3_serving.interfaces import AttentionMetadata, ScheduledBatch, ScheduledChunk
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.outputs import CompletionOutput
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.sampling_params import SamplingParams

ChangeTables = Callable[[Tensor, Sequence[int]], Tensor | None]


class WatchedAttention(TorchPagedAttention):
    """The engine's attention, which keeps what it was given and what it gave.

    Attributes:
        calls: q, k, v and out of each call, [tokens, heads, head_dim]: one call for each layer of each step.
        weights: of each call, [tokens, query heads, tokens]: which share of each token's value each row took. Only rows of
            the same step, and only as many as a head has numbers.
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config.model, config.cache.block_size, config.dtype, config.device)
        self.calls: list[dict[str, Tensor]] = []
        self.weights: list[Tensor] = []

    def write(self, layer_cache: LayerCache, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Writes keys and values where they belong, and keeps a copy."""
        self.calls.append({"k": k.clone(), "v": v.clone()})
        super().write(layer_cache, k, v, slots)

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """Attends twice: as always, and with values that are marks: token i's is a 1 in place i and 0 elsewhere.

        What comes out the second time are the weights.
        """
        out = super().forward(q, layer_cache, metadata)
        self.calls[-1].update(q=q.clone(), out=out.clone())
        keys, values = layer_cache
        slots, marks = metadata.slot_mapping, torch.zeros_like(values)
        marks.view(-1, *marks.shape[2:])[slots] = torch.eye(len(slots), self.head_dim)[:, None]
        self.weights.append(super().forward(q, (keys, marks), metadata)[..., : len(slots)])
        return out


class WatchedEngine:
    """The course's model in the engine, with a `WatchedAttention`: computes prompts, and keeps what was seen.

    Attributes:
        network: the module.
        shape: of the model.
        tokenizer: of the model.
        weights: of each layer, as `WatchedAttention.weights`, of the last step.
        logits: rows that went through `lm_head` in the last step, [rows, vocab_size].
        kv_cache: of each layer (keys, values).
    """

    def __init__(self) -> None:
        args = EngineArgs(model="course", device="cpu", dtype="float32", num_gpu_blocks_override=9, enable_prefix_caching=False)
        self._engine = LLMEngine.from_engine_args(args, Components(attention=WatchedAttention))
        runner = self._engine.model_runner
        self.network = cast(Any, runner.model)
        self.shape, self.tokenizer, self.kv_cache = self._engine.config.model, self._engine.get_tokenizer(), runner.kv_cache
        self._attention: WatchedAttention = runner.attention  # type: ignore[assignment]
        self.weights: list[Tensor] = []
        self.logits = torch.empty(0)
        self.network.lm_head.register_forward_hook(lambda module, inputs, result: setattr(self, "logits", result.clone()))

    def compute(self, **prompts: str) -> dict[str, str]:
        """One step that computes all of these prompts; returns the next token that greedy takes after each."""
        self._attention.weights.clear()
        for name, text in prompts.items():
            self._engine.add_request(name, text, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
        outputs = self._engine.step()
        self.weights = list(self._attention.weights)
        return {output.request_id: output.outputs[0].text for output in outputs}

    def words(self, text: str) -> list[str]:
        """The tokens of a text, each as text."""
        return [self.tokenizer.decode([token]) for token in self.tokenizer.encode(text)]

    def ids(self, *words: str) -> list[tuple[str, int]]:
        """Text and id of tokens, as `layers_film` wants them."""
        return [(repr(word), token) for word in words for token in self.tokenizer.encode(word)]

    def sizes(self) -> dict[str, int]:
        """How many numbers each matrix of the network has, by name; `lm_head` is left out, for it is the embedding once more."""
        return {name: matrix.numel() for name, matrix in self.network.named_parameters() if name != "lm_head.weight"}

    def shapes(self, text: str) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """The modules that run while a text is computed, with the shapes of input and output; of the layers, only the first."""
        shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        hooks = [
            module.register_forward_hook(
                lambda _, inputs, result, name=name: shapes.append((name, tuple(inputs[0].shape), tuple(result.shape))))
            for name, module in self.network.named_modules()
            if module is not self.network and ("layers." not in name or ".0." in name)]
        self.compute(text=text)
        for hook in hooks:
            hook.remove()
        return shapes


class MisledAttention(TorchPagedAttention):
    """Reads through tables that `change` has changed; writes to the right places.

    Args:
        config: the engine's.
        change: gets a copy of the tables [requests, blocks] and the number of keys of each request, and changes it or gives
            another one. It is asked only in steps in which every request computes a single token.
    """

    def __init__(self, config: EngineConfig, change: ChangeTables) -> None:
        super().__init__(config.model, config.cache.block_size, config.dtype, config.device)
        self.change = change

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """Attends through the changed tables."""
        if metadata.num_decodes == len(metadata.query_lens):
            copy = metadata.block_tables.clone()
            other = self.change(copy, metadata.seq_lens)
            metadata = replace(metadata, block_tables=copy if other is None else other)
        return super().forward(q, layer_cache, metadata)


def misled(
    prompts: Sequence[str], change: ChangeTables = lambda tables, seq_lens: None, max_tokens: int = 20
) -> list[CompletionOutput]:
    """Greedy answers of the course's model, whose attention reads through tables that `change` made, or the right ones."""
    parts = Components(attention=lambda config: MisledAttention(config, change))
    llm = LLM("course", dtype="float32", device="cpu", block_size=4, enable_prefix_caching=False, components=parts)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=1)
    return [output.outputs[0] for output in llm.generate(list(prompts), params, use_tqdm=False)]


class StepsByHand:
    """An engine without its scheduler: you say what each step computes, and in which blocks it is kept.

    Args:
        texts: the prompts, by the request's name.
        tables: the block table of each.
        engine_args: of the engine; 8 blocks of 4 slots, unless they say otherwise.

    Attributes:
        attention: a `WatchedAttention`.
        shape: of the model.
        num_layers: of the model.
    """

    def __init__(self, texts: Mapping[str, str], tables: Mapping[str, list[int]], **engine_args: Any) -> None:
        chosen: dict[str, Any] = {
            "model": "course", "dtype": "float32", "device": "cpu", "block_size": 4, "num_gpu_blocks_override": 8,
            "max_model_len": 28}
        engine = LLMEngine.from_engine_args(EngineArgs(**chosen | engine_args), Components(attention=WatchedAttention))
        self.tokenizer, self.tables, self._runner = engine.get_tokenizer(), tables, engine.model_runner
        self.attention: WatchedAttention = engine.model_runner.attention  # type: ignore[assignment]
        self.shape = engine.config.model
        self.num_layers = self.shape.num_hidden_layers
        self._requests = {
            name: Request(name, text, self.tokenizer.encode(text), SamplingParams(temperature=0.0), seed=0,
                          max_total_tokens=engine.config.scheduler.max_model_len)
            for name, text in texts.items()}
        self._rows: dict[str, list[tuple[int, slice]]] = {name: [] for name in texts}

    def lay_out(self, *chunks: tuple[str, int, int]) -> ModelInputs:
        """The tensors of a step that computes these chunks: request, first position, number of tokens."""
        return self._runner.lay_out(self._batch(chunks))

    def rows_of(self, step: ModelInputs) -> list[tuple[str, int, int]]:
        """Request, position and slot of each row of such a step."""
        names = [chunk.request.request_id for chunk in step.chunks for _ in range(chunk.num_tokens)]
        return list(zip(names, step.positions.tolist(), step.metadata.slot_mapping.tolist(), strict=True))

    def described(self, step: ModelInputs) -> str:
        """Such a step in three lines: its rows, then the metadata that attention gets."""
        meta = step.metadata
        return "\n".join(" ".join(map(str, words)) for words in (
            ("token ids", step.token_ids.tolist(), " request, position, slot", *self.rows_of(step)),
            ("query_lens", meta.query_lens, " seq_lens", meta.seq_lens), ("block_tables", meta.block_tables.tolist())))

    def compute(self, *chunks: tuple[str, int, int]) -> None:
        """Computes such a step."""
        row, step = 0, len(self.attention.calls) // self.num_layers
        for name, _, count in sorted(chunks, key=lambda chunk: chunk[2] > 1):
            self._rows[name].append((step, slice(row, row + count)))
            row += count
        self._runner.execute(self._batch(chunks))

    def rows(self, name: str, what: str, layer: int) -> Tensor:
        """All rows of a request in a layer, from all steps so far: [heads, tokens, head_dim], as torch's attention wants them.

        Args:
            name: of the request.
            what: "q", "k", "v" or "out".
            layer: counted from 0.
        """
        calls = self.attention.calls
        return torch.cat([calls[step * self.num_layers + layer][what][rows] for step, rows in self._rows[name]]).transpose(0, 1)

    def beside_dense(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each layer and request, from all steps so far: what attention gave through the table, and torch's own attention
        over the same queries, keys and values without one; both [heads, tokens, head_dim].
        """
        for layer in range(self.num_layers):
            for name in self._rows:
                q, k, v, out = (self.rows(name, what, layer) for what in ("q", "k", "v", "out"))
                yield out, scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def _batch(self, chunks: Sequence[tuple[str, int, int]]) -> ScheduledBatch:
        return ScheduledBatch([
            ScheduledChunk.of(self._requests[name], start, count, self.tables[name]) for name, start, count in chunks])


def attend(q: Tensor, k: Tensor, v: Tensor, table: Sequence[int], shape: ModelConfig, block_size: int = 4) -> Tensor:
    """The engine's attention among the tokens of one request, in a cache of its own.

    Args:
        q: of the last tokens [rows, query heads, head_dim].
        k, v: of all of them, [tokens, KV heads, head_dim].
        table: blocks that keep them.
        shape: of the model; its head counts and head_dim are taken from q and k.
        block_size: slots in a block.

    Returns:
        [rows, query heads, head_dim].
    """
    layer = replace(
        shape, num_hidden_layers=1, num_attention_heads=q.shape[1], num_key_value_heads=k.shape[1], head_dim=q.shape[2])
    core = TorchPagedAttention(layer, block_size, torch.float32, torch.device("cpu"))
    (cache,) = core.make_cache(max(table) + 1)
    slots = torch.tensor(core.slots(list(table), range(len(k))))
    core.write(cache, k, v, slots)
    return core.forward(q, cache, AttentionMetadata(
        [len(q)], [len(k)], torch.tensor([list(table)]), slots[-len(q):], int(len(q) == 1), block_size))


def keys_seen(rows: int, keys: int, table: Sequence[int], shape: ModelConfig) -> Tensor:
    """Which keys the engine's attention shows to each of a request's last rows: bools, [rows, keys].

    Queries and keys are zeros, so that a row takes as much of each value that it sees, and value i is a 1 in place i.
    """
    return attend(torch.zeros(rows, 1, keys), torch.zeros(keys, 1, keys), torch.eye(keys)[:, None], table, shape)[:, 0] > 0


def keys_seen_by_torch(rows: int, keys: int, **arguments: Any) -> Tensor:
    """The same of torch's `scaled_dot_product_attention`, called with these arguments."""
    return scaled_dot_product_attention(torch.zeros(1, rows, keys), torch.zeros(1, keys, keys), torch.eye(keys)[None],
                                        **arguments)[0] > 0


def kv_heads_read(shape: ModelConfig) -> list[int]:
    """For each query head the KV head that it reads: the values of KV head i are i, and what comes out says whose they were."""
    heads, kv_heads, dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    marks = torch.arange(float(kv_heads))[None, :, None].expand(1, kv_heads, dim)
    out = attend(torch.zeros(1, heads, dim), torch.zeros(1, kv_heads, dim), marks, [1], shape)
    return out[0, :, 0].int().tolist()
