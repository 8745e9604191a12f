"""Lab 03 with torch's own operators: rms_norm, complex numbers, scaled_dot_product_attention, one product
for q, k and v. Rounds in other places than our solution.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labs.harness.todo import run_lab
from nano_qwen3_serving import LLM, EngineArgs, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import AttentionMetadata
from nano_qwen3_serving.model.loader import load_weights

PROMPT = "What is a KV cache?\n"
OPEN_PROMPT = "Once upon a time"


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
        # TODO 1: divide each row by its root mean square, computed in float32, and multiply by the weight
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class RotaryEmbedding(nn.Module):
    """Turns pairs of numbers of a head by an angle that grows with the token's position."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, head_dim], positions [num_tokens] of int64 → x turned, in its dtype.

        The pair (x[i], x[i + head_dim / 2]) turns by position * theta ** (-2 * i / head_dim).
        """
        # TODO 2: turn the pair (i, i + head_dim / 2) of every head by its token's angle
        half = self.head_dim // 2
        frequencies = torch.exp(-torch.log(torch.tensor(self.theta)) * torch.arange(half) / half).to(x.device)
        angles = torch.outer(positions.float(), frequencies)
        turn = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
        turned = torch.complex(x[..., :half].float().contiguous(), x[..., half:].float().contiguous()) * turn
        return torch.cat((turned.real, turned.imag), dim=-1).type_as(x)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query attends to the keys of its own token and of all tokens before it.

    Args:
        q: [num_queries, num_heads, head_dim], of the last `num_queries` tokens.
        k, v: [num_keys, num_kv_heads, head_dim], of all tokens so far; num_keys >= num_queries.

    Returns:
        [num_queries, num_heads, head_dim], in q's dtype.
    """
    # TODO 4: softmax(q @ k / sqrt(head_dim)) @ v, without the future, each KV head serving its group of query heads
    mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    heads_first = [t.transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)


class DenseCore:
    """The simplest `core`: keys and values of one request, position i in row i (written for you).

    A layer's cache is a pair of tensors [max_tokens, num_kv_heads, head_dim].
    """

    def make_cache(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype = torch.float32) -> list:
        """One empty cache per layer."""
        shape = (max_tokens, config.num_key_value_heads, config.head_dim)
        return [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(config.num_hidden_layers)]

    def write(self, layer_cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Puts k and v, [num_tokens, num_kv_heads, head_dim], into the rows `slots`."""
        keys, values = layer_cache
        keys[slots], values[slots] = k, v

    def forward(self, q: Tensor, layer_cache: tuple[Tensor, Tensor], metadata: AttentionMetadata) -> Tensor:
        """q [num_tokens, num_heads, head_dim], of the request's last tokens → the same shape."""
        end = metadata.seq_lens[0]
        keys, values = layer_cache
        return causal_attention(q, keys[:end], values[:end])


def one_request(start: int, end: int) -> AttentionMetadata:
    """What a core is told when tokens [start, end) of one request are computed (written for you)."""
    return AttentionMetadata(
        query_lens=[end - start], seq_lens=[end], block_tables=torch.zeros(1, 1, dtype=torch.long),
        slot_mapping=torch.arange(start, end), num_decodes=int(end - start == 1), block_size=end,
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
        # TODO 3: project x, cut the rows into heads, normalise the heads of q and k, then turn them
        parts = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([part.weight for part in parts])
        bias = None if self.q_proj.bias is None else torch.cat([part.bias for part in parts])
        heads = F.linear(x, weight, bias).unflatten(1, (-1, self.head_dim))
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        turned = self.rotary(torch.cat([self.q_norm(q), self.k_norm(k)], dim=1), positions)
        q, k = turned.tensor_split([self.num_heads], dim=1)
        return q, k, v

    def forward(self, x: Tensor, positions: Tensor, layer_cache, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes k and v into `metadata.slot_mapping`."""
        # TODO 4: make the heads, have the core write k and v and then attend, and bring the heads together with o_proj
        q, k, v = self.heads(x, positions)
        self.core.write(layer_cache, k, v, slots=metadata.slot_mapping)
        return self.o_proj(self.core.forward(q, layer_cache, metadata).reshape(x.shape[0], -1))


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
        # TODO 5: let the gate, through silu, decide how much of up(x) goes down
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


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
        # TODO 5: add what attention makes of the normalised x, then what the MLP makes of the normalised sum
        residual = x
        x = self.self_attn(self.input_layernorm(x), positions, layer_cache, metadata)
        x = residual + x
        residual = x
        return residual + self.mlp(self.post_attention_layernorm(x))


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
        # TODO 6: the final norm, then the head
        return F.linear(self.model.norm(hidden), self.lm_head.weight)

    def last_logits(self, token_ids: Tensor, positions: Tensor, cache: list, metadata: AttentionMetadata) -> Tensor:
        """Logits after the last token of each request: [num_requests, vocab_size].

        The requests' tokens lie one after the other, `metadata.query_lens[i]` of request i; rows after
        the last request's are padding. Only the rows that are returned pass through the head.
        """
        # TODO 6: run the network, then compute logits of each request's last row, and of no other
        hidden = self.model(token_ids, positions, cache, metadata)
        requests = hidden[: sum(metadata.query_lens)].split(metadata.query_lens)
        return self.compute_logits(torch.stack([rows[-1] for rows in requests]))


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
    """The worked example of README.md, as far as it needs no matrices."""
    norm = RMSNorm(4, eps=1e-6)
    norm.weight.fill_(1.0)
    print("RMSNorm of 2 4 4 8:          ", numbers(norm(torch.tensor([2.0, 4.0, 4.0, 8.0]))))
    rotary = RotaryEmbedding(head_dim=4, theta=100.0)
    print("1 1 0 0 turned, position 3:  ", numbers(rotary(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]), torch.tensor([3]))))
    q = torch.tensor([2.0, 0.0, 0.0, 0.0]).expand(3, 1, 4)
    k = torch.zeros(3, 1, 4)
    k[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0]).log()
    v = torch.tensor([6.0, 12.0, 24.0]).view(3, 1, 1).expand(3, 1, 4)
    print("Attention over 6, 12, 24:    ", numbers(causal_attention(q, k, v)[:, 0, 0]))
    print()


def numbers(values: Tensor) -> str:
    """Two decimals of each."""
    return " ".join(f"{value:.2f}" for value in values.flatten().tolist())


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
    computed = 0
    while len(answer) < 64:
        computed += len(token_ids) + len(answer)
        best = int(logits_after(network, core, token_ids + answer).argmax())
        if best in network.config.eos_token_ids:
            break
        answer.append(best)
        print(tokenizer.decode([best]), end="", flush=True)
    seconds = time.perf_counter() - started
    print(f"\n{len(answer)} tokens in {seconds:.2f} seconds. To write them, {computed} tokens were computed.\n")
    return tokenizer.decode(answer)


def logits_after(network: Qwen3ForCausalLM, core: DenseCore, token_ids: list[int]) -> Tensor:
    """Logits of the token after `token_ids`, [vocab_size]."""
    length = len(token_ids)
    cache = core.make_cache(network.config, length)
    return network.last_logits(torch.tensor(token_ids), torch.arange(length), cache, one_request(0, length))[0]


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
