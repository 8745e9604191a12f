"""Lab 03, TODO 6: the logits of each request's last token, and the whole network."""

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import check, expect, operators_seen, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab03.compare import COLUMNS, LOGITS, NETWORK, asked, expect_tensor, near
from grading.scenarios.lab03.core import Chunk, Core, Step, tables
from grading.scenarios.lab03.network import Network, Noise, attention, config_of, filled, network_shapes, random_weights, shapes
from nano_qwen3_serving.config import ModelConfig

OF_LOGITS = "TODO 6: Logits of the last position"


class Model:
    """A submission's network, the same by its formulas, and the core between them.

    Args:
        dtype: of the weights.
        attend: see `Core`.
    """

    def __init__(
        self, lab: Remote, config: ModelConfig, noise: Noise, attend: Callable = attention,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.lab, self.core = lab, Core(config, attend, dtype)
        self.weights = {name: weight.to(dtype) for name, weight in random_weights(network_shapes(config), noise).items()}
        self.truth = Network(config, self.weights)
        given, self.cache = self.core.exported()
        self.network = filled(lab.Qwen3ForCausalLM(config, given), self.weights)

    def last_logits(self, step: Step, texts: Iterable[Tensor]) -> Any:
        """What it says of a step; what it was given must stay as it is."""
        metadata = step.metadata(self.lab)
        got = self.core.during(step, asked, self.lab, self.network.last_logits, "token_ids positions",
                               step.tokens(texts), step.positions, self.cache, metadata)
        lens = metadata.query_lens
        expect(lens == step.query_lens, f"metadata.query_lens was changed in place, {step.query_lens} to {shown(lens)}")
        return got

    def hidden(self, step: Step, texts: Iterable[Tensor]) -> Any:
        """What the engine asks it for."""
        return self.core.during(step, self.network, step.tokens(texts), step.positions, self.cache, step.metadata(self.lab))


@check(todo=6, points=3, section=OF_LOGITS, concept="from rows to logits")
def rows_are_normalised_then_given_to_the_head(lab: Remote, rng: random.Random) -> None:
    noise = Noise(rng)
    for config in (config_of(rng), config_of(rng, rms_norm_eps=0.03)):
        model, count = Model(lab, config, noise), rng.randrange(3, 7)
        hidden = rng.uniform(2, 5) * noise(count, config.hidden_size)
        right, axes = model.truth.logits_of(hidden), ("row", "token id")
        near(asked(lab, model.network.compute_logits, "hidden", hidden), right, "lm_head(norm(hidden))", NETWORK, axes=axes)
        row = rng.randrange(count)
        near(model.network.compute_logits(hidden[[row]]), right[[row]], f"row {row} by itself", NETWORK, axes=axes)


@check(todo=6, points=3, section=OF_LOGITS, concept="whose row is whose")
def logits_follow_the_last_token_of_each_request(lab: Remote, rng: random.Random) -> None:
    config, noise = config_of(rng, layers=2), Noise(rng)
    for padding in (0, rng.randrange(1, 5)):
        model, lengths = Model(lab, config, noise), [1, rng.randrange(7, 12), rng.randrange(3, 6), *[2] * rng.randrange(7, 12)]
        texts, places = [noise.tokens(length, config) for length in lengths], tables(rng, *lengths)
        cut = rng.randrange(2, 5)
        model.last_logits(Step([Chunk(0, cut, places[1])]), [texts[1]])
        starts = [0, cut, *[0] * (len(lengths) - 2)]
        step = Step([Chunk(*one) for one in zip(starts, lengths, places, strict=True)], padding)
        got = model.last_logits(step, texts)
        expect_last(model, step, texts, got)
        # as many requests and tokens, and others are the last rows
        others = [noise.tokens(length, config) for length in (1, *reversed(step.query_lens[1:]))]
        places = tables(rng, *map(len, others))
        step = Step([Chunk(0, len(text), table) for text, table in zip(others, places, strict=True)], padding)
        expect_last(model, step, others, model.last_logits(step, others))


def expect_last(model: Model, step: Step, texts: list[Tensor], got: Any) -> None:
    """`got` has the logits after each of these texts, which end with this step."""
    right = torch.stack([model.truth.logits(text)[-1] for text in texts])
    what = f"query_lens {step.query_lens}, {step.padding} rows of padding: the logits of the rows {step.rows}"
    near(got, right, what, NETWORK, axes=LOGITS)


@check(todo=6, points=2, section=OF_LOGITS, concept="how many rows the head computes")
def only_the_rows_that_are_returned_pass_the_head(lab: Remote, rng: random.Random) -> None:
    config, noise, count = config_of(rng, vocab_size=rng.choice([1009, 1013, 1019])), Noise(rng), rng.randrange(20, 40)
    model, log = Model(lab, config, noise), operators_seen(lab)
    step, text = Step([Chunk(0, count, *tables(rng, count))]), noise.tokens(count, config)
    got = model.core.during(step, log.watch, model.network.last_logits, step.tokens([text]), step.positions, model.cache,
                            step.metadata(lab))
    expect_tensor(got, "logits of one request", (1, config.vocab_size), torch.float32, LOGITS)
    rows = rows_of_logits(log.events, config)
    expect(rows == 1, f"{rows} rows of logits were computed for one request of {count} tokens; one is needed")


def rows_of_logits(events: Iterable[Any], config: ModelConfig) -> int:
    """The most rows of one number for each token id that an operator made: more than were needed, or none."""
    weight = config.vocab_size * config.hidden_size
    made = [piece for event in events for piece in event.made if piece.floating and config.vocab_size in piece.shape
            and piece.memory not in {given.memory for given in event.given}]
    return max((math.prod(piece.shape) // config.vocab_size for piece in made if math.prod(piece.shape) != weight), default=0)


@check(todo=6, points=4, section=OF_LOGITS, concept="the whole network")
def the_network_gives_the_logits_of_the_formulas(lab: Remote, rng: random.Random) -> None:
    for config in shapes(rng, layers=3):
        noise = Noise(rng)
        model = Model(lab, config, noise, attend=lab.causal_attention)
        for length, first in ((1, 0), (rng.randrange(12, 20), 0), (rng.randrange(3, 10), rng.randrange(40, 100))):
            text, step = noise.tokens(length, config), Step([Chunk(0, length, *tables(rng, length))], first=first)
            right, what = model.truth.logits(text, first)[-1:], f"logits after {length} tokens, positions from {first}"
            near(model.last_logits(step, [text]), right, what, NETWORK, axes=LOGITS)


@check(todo=6, points=2, section=OF_LOGITS, concept="the network in bfloat16", hidden=True)
def bfloat16_is_as_near_as_it_can_be(lab: Remote, rng: random.Random) -> None:
    config, noise = config_of(rng, layers=2, head_dim=20, attention_bias=True), Noise(rng)
    model = Model(lab, config, noise, attend=lab.causal_attention, dtype=torch.bfloat16)
    rounded, got, theirs, truth = Network(config, model.weights, torch.bfloat16), [], [], []
    for length in (1, 4, 7, 10, 13, 16):
        text = noise.tokens(length, config)
        got.append(model.last_logits(Step([Chunk(0, length, *tables(rng, length))]), [text]))
        expect_tensor(got[-1], "logits in bfloat16", (1, config.vocab_size), torch.bfloat16, LOGITS)
        theirs.append(rounded.logits(text)[-1:])
        truth.append(model.truth.logits(text)[-1:])
    # Two right programs round in different places, so neither is nearer. The ratio of their errors was seen between
    # 0.7 and 1.4, its logarithm spread by 0.15: five times as much is ten times that spread.
    error, usual = (float((torch.cat(one).double() - torch.cat(truth)).square().mean().sqrt()) for one in (got, theirs))
    expect(error <= 5 * usual, f"root mean square error of the logits {error:.4f}; in bfloat16 {usual:.4f} is usual")


@check(todo=6, points=3, section=OF_LOGITS, concept="the network in an engine", hidden=True)
def chunks_of_many_requests_give_what_each_gives_alone(lab: Remote, rng: random.Random) -> None:
    config, noise = rng.choice(shapes(rng, layers=2)), Noise(rng)
    model, lengths = Model(lab, config, noise), [rng.randrange(1, 13) for _ in range(4)]
    texts, places, done = [noise.tokens(length, config) for length in lengths], tables(rng, *lengths), [0] * 4
    right = [model.truth.logits(text) for text in texts]
    while waiting := [one for one in range(4) if done[one] < lengths[one]]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        plan = [(one, min(lengths[one], done[one] + rng.choice([1, 1, 3, 5]))) for one in chosen]
        plan.sort(key=lambda one: one[1] - done[one[0]] > 1)  # those of one token first
        step = Step([Chunk(done[one], end, places[one]) for one, end in plan], padding=rng.randrange(4))
        hidden = model.hidden(step, [texts[one] for one, _ in plan])
        expect_tensor(hidden, "hidden states", (len(step.slots), config.hidden_size), torch.float32, COLUMNS)
        truth = torch.stack([right[one][end - 1] for one, end in plan])
        got = model.network.compute_logits(hidden[step.rows])
        near(got, truth, f"a step of {step.query_lens} tokens of its requests", NETWORK, axes=LOGITS)
        for one, end in plan:
            done[one] = end
