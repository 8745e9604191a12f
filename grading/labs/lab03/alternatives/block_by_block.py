"""Lab 03 as fused kernels compute: attention goes through the keys block by block, and keeps a running maximum and sum.

No key is repeated, no row of scores is ever whole. Angles turn points by matrices of 2 by 2, from frequencies that each module
keeps for a device. The heads' numbers are copied into rows that were made for them.
"""


import time

import torch
from torch import Tensor, nn

from labs.harness.todo import run_lab
from nano_qwen3_serving import LLM, EngineArgs, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import AttentionMetadata
from nano_qwen3_serving.model.loader import load_weights

PROMPT = "What is a KV cache?\n"
OPEN_PROMPT = "Once upon a time"
BLOCK = 16
"""Keys that are looked at together."""


def matrix(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """y = x @ weight.T + bias, its weight [outputs, inputs] still to be loaded (written for you)."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)


class RMSNorm(nn.Module):
    """Brings rows to a root mean square of 1, then scales each column by its weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → [..., size]: x / sqrt(mean of x² + eps) * weight, in x's dtype.

        The root is computed in float32, whatever the dtype of x.
        """
        wide = x.float()
        squares = torch.einsum("...i,...i->...", wide, wide)[..., None]
        return (wide / (squares / x.shape[-1] + self.eps).sqrt() * self.weight.float()).to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Turns pairs of numbers of a head by an angle that grows with the token's position."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, head_dim], positions [num_tokens] of int64 → x turned, in its dtype.

        The pair (x[i], x[i + head_dim / 2]) turns by position * theta ** (-2 * i / head_dim).
        """
        frequencies = self.__dict__.setdefault("frequencies", {})  # they depend on nothing but the device
        if x.device not in frequencies:
            with torch.inference_mode(False):
                numbers = torch.arange(self.head_dim // 2, dtype=torch.float32, device=x.device)
                frequencies[x.device] = self.theta ** (numbers * (-2 / self.head_dim))
        angles = positions.float()[:, None] * frequencies[x.device]
        turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=-1).unflatten(-1, (2, 2))
        points = x.float().unflatten(-1, (2, -1)).transpose(-1, -2)[..., None]  # [num_tokens, heads, head_dim / 2, 2, 1]
        return (turns[:, None] @ points)[..., 0].transpose(-1, -2).flatten(-2).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query attends to the keys of its own token and of all tokens before it.

    Args:
        q: [num_queries, num_heads, head_dim], of the last `num_queries` tokens.
        k, v: [num_keys, num_kv_heads, head_dim], of all tokens so far; num_keys >= num_queries.

    Returns:
        [num_queries, num_heads, head_dim], in q's dtype. Scores and weights are computed in float32.
    """
    (num_queries, num_heads, dim), (num_keys, num_kv_heads, _) = q.shape, k.shape
    grouped = q.float().unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)  # [num_kv_heads, group, num_queries, head_dim]
    places = torch.arange(num_keys - num_queries, num_keys, device=q.device)[:, None]
    highest = grouped.new_full((*grouped.shape[:-1], 1), float("-inf"))
    total, out = torch.zeros_like(highest), torch.zeros_like(grouped)
    for start in range(0, num_keys, BLOCK):
        keys, values = (t[start : start + BLOCK].float().transpose(0, 1)[:, None] for t in (k, v))
        scores = grouped @ keys.transpose(-1, -2) * dim**-0.5
        future = torch.arange(start, start + keys.shape[2], device=q.device) > places
        scores = scores.masked_fill(future, float("-inf"))
        higher = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
        shares, shrunk = (scores - higher).exp(), (highest - higher).exp()
        total, out, highest = total * shrunk + shares.sum(dim=-1, keepdim=True), out * shrunk + shares @ values, higher
    return (out / total).permute(2, 0, 1, 3).reshape(num_queries, num_heads, dim).to(q.dtype)


class DenseCore:
    """The simplest `core`: keys and values of one request, position i in row i (written for you).

    A layer's cache is a pair of tensors [max_tokens, num_kv_heads, head_dim].
    """

    def make_cache(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype = torch.float32, device="cpu") -> list:
        """One empty cache per layer."""
        both = (2, max_tokens, config.num_key_value_heads, config.head_dim)
        return [tuple(torch.zeros(both, dtype=dtype, device=device)) for _ in range(config.num_hidden_layers)]

    def write(self, layer_cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Puts k and v, [num_tokens, num_kv_heads, head_dim], into the rows `slots`."""
        keys, values = layer_cache
        keys[slots], values[slots] = k, v

    def forward(self, q: Tensor, layer_cache: tuple[Tensor, Tensor], metadata: AttentionMetadata) -> Tensor:
        """q [num_tokens, num_heads, head_dim], of the request's last tokens → the same shape."""
        end = metadata.seq_lens[0]
        keys, values = layer_cache
        return causal_attention(q, keys[:end], values[:end])


def one_request(start: int, end: int, device="cpu") -> AttentionMetadata:
    """What a core is told when tokens [start, end) of one request are computed (written for you)."""
    return AttentionMetadata(
        query_lens=[end - start], seq_lens=[end], block_tables=torch.zeros(1, 1, dtype=torch.long, device=device),
        slot_mapping=torch.arange(start, end, device=device), num_decodes=int(end - start == 1), block_size=end,
    )


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys.

    Args:
        config: shape of the model.
        layer_idx: which layer this is, from 0.
        core: writes keys and values into the cache and attends to them.
    """

    def __init__(self, config: ModelConfig, layer_idx: int, core) -> None:
        super().__init__()
        hidden, dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.layer_idx, self.core = layer_idx, core
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, dim
        self.q_proj = matrix(hidden, self.num_heads * dim, bias)
        self.k_proj = matrix(hidden, self.num_kv_heads * dim, bias)
        self.v_proj = matrix(hidden, self.num_kv_heads * dim, bias)
        self.o_proj = matrix(self.num_heads * dim, hidden, bias)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(dim, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(dim, config.rope_theta)

    def heads(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [num_tokens, hidden], positions [num_tokens] → q, k, v, ready for attention.

        q is [num_tokens, num_heads, head_dim], k and v are [num_tokens, num_kv_heads, head_dim].
        """
        q, k, v = (matrix(x).unflatten(-1, (-1, self.head_dim)) for matrix in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (self.rotary(norm(rows), positions) for norm, rows in ((self.q_norm, q), (self.k_norm, k)))
        return q, k, v

    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes k and v into `metadata.slot_mapping`."""
        q, k, v = self.heads(x, positions)
        self.core.write(layer_cache, k, v, metadata.slot_mapping)
        side_by_side = torch.empty(len(x), self.o_proj.in_features, dtype=x.dtype, device=x.device)
        side_by_side.view(q.shape).copy_(self.core.forward(q, layer_cache, metadata))
        return self.o_proj(side_by_side)


class MLP(nn.Module):
    """The feed-forward network, SwiGLU: no token sees another here."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = matrix(hidden, inner)
        self.up_proj = matrix(hidden, inner)
        self.down_proj = matrix(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]: down(silu(gate(x)) * up(x))"""
        gate = self.gate_proj(x)
        opened = (gate.float() / (1 + (-gate.float()).exp())).to(gate.dtype)
        return self.down_proj(opened * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward network; each adds to what comes in."""

    def __init__(self, config: ModelConfig, layer_idx: int, core) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx, core)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]: h = x + attention(norm(x)); h + mlp(norm(h))"""
        branches = (
            (self.input_layernorm, lambda rows: self.self_attn(rows, positions, layer_cache, metadata)),
            (self.post_attention_layernorm, self.mlp),
        )
        for norm, branch in branches:
            x = x + branch(norm(x))
        return x


class Qwen3Model(nn.Module):
    """Token ids to hidden states (written for you)."""

    def __init__(self, config: ModelConfig, core) -> None:
        super().__init__()
        self.embed_tokens = nn.utils.skip_init(nn.Embedding, config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i, core) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)  # compute_logits() uses it

    def forward(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """[num_tokens] → [num_tokens, hidden], as the last layer leaves it: not normalised."""
        hidden = self.embed_tokens(token_ids)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            hidden = layer(hidden, positions, layer_cache, metadata)
        return hidden


class Qwen3ForCausalLM(nn.Module):
    """The whole network, with the names of Hugging Face's checkpoints."""

    def __init__(self, config: ModelConfig, core) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen3Model(config, core)
        self.lm_head = matrix(config.hidden_size, config.vocab_size)

    def forward(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """Hidden states of all tokens, [num_tokens, hidden]; writes keys and values (written for you)."""
        return self.model(token_ids, positions, cache, metadata)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Rows of what forward() returned, [rows, hidden] → [rows, vocab_size]."""
        return self.lm_head(self.model.norm(hidden)[:, None])[:, 0]

    def last_logits(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """Logits after the last token of each request: [num_requests, vocab_size].

        The requests' tokens lie one after the other, `metadata.query_lens[i]` of request i; rows after
        the last request's are padding. Only the rows that are returned pass through the head.
        """
        hidden = self(token_ids, positions, cache, metadata)
        ends = torch.tensor(metadata.query_lens, device=hidden.device).cumsum(dim=0)
        return self.compute_logits(hidden.index_select(0, ends - 1))


@torch.inference_mode()
def main() -> None:
    """Your layers on the README's example, then your network on a trained checkpoint, then in the engine."""
    print("=== Lab 03: Qwen3, from token ids to logits ===\n")
    show_example()
    config = EngineArgs(model="course", device="cpu").create_engine_config()
    core = DenseCore()
    print("Loading the course checkpoint into your network...")
    network = load_weights(Qwen3ForCausalLM(config.model, core), config)
    shape = f"{config.model.num_hidden_layers} layers, {sum(p.numel() for p in network.model.parameters()):,} numbers"
    print(f"Loaded: {shape}\n")
    tokenizer = Components().tokenizer(config)
    show_candidates(network, core, tokenizer)
    show_engine(write_answer(network, core, tokenizer))


def show_example() -> None:
    """The worked example of README.md, TODO by TODO."""
    norm = RMSNorm(4, eps=1e-6)
    norm.weight.copy_(torch.tensor([1.0, 1.0, 1.0, 0.5]))
    show("RMSNorm of 2 4 4 8:", norm(torch.tensor([2.0, 4.0, 4.0, 8.0])), "0.40 0.80 0.80 0.80")
    rotary = RotaryEmbedding(head_dim=4, theta=100.0)
    show("1 1 0 0 turned, position 3:", rotary(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]), torch.tensor([3])), "-0.99 0.96 0.14 0.30")
    layer, cache, zero = example_layer()
    row = torch.tensor([[2.0, 4.0, 4.0, 8.0, 6.0, 6.0, 6.0, 6.0]])
    show("Two heads, normalised:", layer.self_attn.heads(row, zero)[0], "0.40 0.80 0.80 1.60 1.00 1.00 1.00 1.00")
    q = torch.tensor([2.0, 0.0, 0.0, 0.0]).expand(3, 1, 4)
    k = torch.zeros(3, 1, 4)
    k[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0]).log()
    v = torch.tensor([6.0, 12.0, 24.0]).view(3, 1, 1).expand(3, 1, 4)
    show("Attention over 6, 12, 24:", causal_attention(q, k, v)[:, 0, 0], "6.00 10.00 17.00")
    alone = layer.self_attn(row, zero, cache, one_request(0, 1))
    show("A token that sees itself:", alone, "2.00 4.00 4.00 8.00 2.00 4.00 4.00 8.00")
    gated = layer.mlp(torch.tensor([[0.0, 2.0, 3.0, 5.0, 0.0, 0.0, 0.0, 0.0]]))
    show("Gate 0 2, up 3 5:", gated[0, :2], "0.00 8.81")
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    added = layer(row, zero, cache, one_request(0, 1))
    show("A layer that adds nothing:", added, "2.00 4.00 4.00 8.00 6.00 6.00 6.00 6.00")
    print()


def example_layer() -> tuple[DecoderLayer, tuple[Tensor, Tensor], Tensor]:
    """The example's layer, whose matrices only pick numbers; a cache of one token, and position 0.

    q is all of a row, k and v are its first four numbers, gate the first two and up the next two.
    """
    core = DenseCore()
    config = ModelConfig(
        vocab_size=1, hidden_size=8, intermediate_size=2, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, max_position_embeddings=1,
    )
    layer = DecoderLayer(config, 0, core)
    for weight in layer.parameters():
        weight.copy_(torch.eye(*weight.shape) if weight.dim() == 2 else torch.ones_like(weight))
    layer.mlp.up_proj.weight.copy_(torch.eye(8)[2:4])
    return layer, core.make_cache(config, 1)[0], torch.tensor([0])


def show(what: str, values: Tensor, expected: str) -> None:
    """Two decimals of each number; where they are not those of README.md, also what was expected."""
    found = " ".join(f"{value:.2f}" for value in values.flatten().tolist())
    print(f"{what:29} {found}{'' if found == expected else f'   expected {expected}'}")


def show_candidates(network: Qwen3ForCausalLM, core: DenseCore, tokenizer) -> None:
    """The five likeliest tokens after `OPEN_PROMPT`."""
    print(f"After {OPEN_PROMPT!r} it expects:")
    likeliest = logits_after(network, core, tokenizer.encode(OPEN_PROMPT)).softmax(dim=-1).topk(5)
    for probability, token in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
        print(f"  {tokenizer.decode([token])!r:12} {100 * probability:.2f} %")
    print()


def write_answer(network: Qwen3ForCausalLM, core: DenseCore, tokenizer) -> str:
    """Greedy text after `PROMPT`, printed as it comes; every token recomputes all those before it."""
    token_ids, answer = tokenizer.encode(PROMPT), []
    print(f"Your network answers {PROMPT.strip()!r}, computing all tokens again for each new one:")
    started = time.perf_counter()
    passes = computed = 0
    while len(answer) < 64:
        passes, computed = passes + 1, computed + len(token_ids) + len(answer)
        best = int(logits_after(network, core, token_ids + answer).argmax())
        if best in network.config.eos_token_ids:
            break
        answer.append(best)
        print(tokenizer.decode([best]), end="", flush=True)
    seconds = time.perf_counter() - started
    print(f"\n{len(answer)} tokens in {seconds:.2f} seconds, {passes} passes. In all of them {computed} tokens were computed.\n")
    return tokenizer.decode(answer)


def logits_after(network: Qwen3ForCausalLM, core: DenseCore, token_ids: list[int]) -> Tensor:
    """Logits of the token after `token_ids`, [vocab_size]."""
    length, weight = len(token_ids), network.lm_head.weight
    cache = core.make_cache(network.config, length, weight.dtype, weight.device)
    tokens, positions = torch.tensor(token_ids, device=weight.device), torch.arange(length, device=weight.device)
    return network.last_logits(tokens, positions, cache, one_request(0, length, weight.device))[0]


def show_engine(expected: str) -> None:
    """The same text from the engine: your network, its paged attention, four requests in a step."""
    print("The engine with your network, four requests at once, prompts in chunks of 5:")
    components = Components().using(model=lambda config, core: load_weights(Qwen3ForCausalLM(config.model, core), config))
    llm = LLM("course", device="cpu", components=components, long_prefill_token_threshold=5)
    params = SamplingParams(temperature=0.0, max_tokens=64)
    outputs = llm.generate([PROMPT, "What is machine learning?\n", PROMPT, "How does AI work?\n"], params, use_tqdm=False)
    same = sum(output.outputs[0].text.strip() == expected.strip() for output in outputs)
    print(f"{same} of {sum(o.prompt == PROMPT for o in outputs)} answers to this prompt are the text above.")
    print(f"Another request was told: {outputs[1].outputs[0].text.strip()}")


if __name__ == "__main__":
    run_lab(main)
