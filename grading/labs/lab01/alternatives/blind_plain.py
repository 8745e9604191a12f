"""Lab 01 from README and starter alone: one expression for each TODO, as the contracts suggest."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from labs.harness.todo import run_lab
from nano_qwen3_serving import LLM, RequestOutput, SamplingParams

FACT = "What is a token?"
OPENING = "Once upon a time"
EXPLAIN = "Explain neural networks"
QUESTIONS = ["What is machine learning?", "How does AI work?", "What is a KV cache?"]
CHAT = ["Hello!", "What is greedy decoding?"]


def load_llm(model: str = "course", max_model_len: int = 1024) -> LLM:
    """An engine that serves `model`, with at most `max_model_len` tokens of prompt and output.

    Raises what the engine raises, for example `ModelLoadError` for a model that is not there.
    """
    return LLM(model=model, max_model_len=max_model_len)


def fact_params() -> SamplingParams:
    """For a fact: the likeliest token every time, so the same answer every time; up to 64 tokens."""
    return SamplingParams(temperature=0.0, max_tokens=64)


def story_params(seed: int) -> SamplingParams:
    """For a story: another one for another `seed`, the same one for the same; up to 32 tokens.

    Draws at temperature 0.8 from the likeliest tokens that together have 90 % of the probability.
    """
    return SamplingParams(temperature=0.8, top_p=0.9, seed=seed, max_tokens=32)


def sentence_params() -> SamplingParams:
    """For one sentence: like a fact, but the text ends with its first full stop; up to 24 tokens."""
    return SamplingParams(temperature=0.0, max_tokens=24, stop=".", include_stop_str_in_output=True)


def complete_batch(
    llm: LLM, prompts: Sequence[str], sampling_params: SamplingParams | Sequence[SamplingParams]
) -> list[tuple[str, RequestOutput]]:
    """Complete all `prompts` in one batch: each prompt with its output, in the order given.

    `sampling_params` are for all prompts, or one for each.
    """
    outputs = llm.generate(prompts, sampling_params)
    return list(zip(prompts, outputs, strict=True))


def chat_turn(
    llm: LLM, history: list[dict[str, str]], question: str, sampling_params: SamplingParams
) -> list[dict[str, str]]:
    """One turn of a conversation: `history`, then the user's question, then the assistant's answer.

    A message is `{"role": "system" | "user" | "assistant", "content": text}`. The model reads the
    whole conversation, through its own chat template. `history` itself is not changed.
    """
    messages = [*history, {"role": "user", "content": question}]
    output = llm.chat(messages, sampling_params)[0]
    return [*messages, {"role": "assistant", "content": output.outputs[0].text}]


@dataclass(frozen=True)
class Measurement:
    """What one request took. Times are in seconds."""

    prompt_tokens: int
    tokens: int
    """Generated tokens, an end-of-sequence token among them."""
    finish_reason: str
    cut_off: bool
    """Whether it ended only because it had used up `max_tokens`."""
    ttft: float
    """Time to first token: from the request's arrival."""
    mean_itl: float | None
    """Mean inter-token latency: of the gaps between tokens. One token has no gap: None."""
    tokens_per_second: float
    """Generated tokens over the time from the request's arrival to its last token."""


def measure(output: RequestOutput) -> Measurement:
    """What the request behind a finished `output` took."""
    completion, metrics = output.outputs[0], output.metrics
    tokens = len(completion.token_ids)
    return Measurement(
        prompt_tokens=len(output.prompt_token_ids),
        tokens=tokens,
        finish_reason=completion.finish_reason,
        cut_off=completion.finish_reason == "length",
        ttft=metrics.first_token_ts - metrics.arrival_time,
        mean_itl=(metrics.last_token_ts - metrics.first_token_ts) / (tokens - 1) if tokens > 1 else None,
        tokens_per_second=tokens / (metrics.last_token_ts - metrics.arrival_time),
    )


def throughput(outputs: Sequence[RequestOutput]) -> float:
    """Generated tokens of all requests per second, from the first arrival to the last token."""
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    start = min(output.metrics.arrival_time for output in outputs)
    end = max(output.metrics.last_token_ts for output in outputs)
    return tokens / (end - start)


def main() -> None:
    """Three tasks, a batch, a chat, and what it all took."""
    print("=== Basic Inference Lab ===\n")
    print("Loading the model...")
    llm = load_llm()
    print("Ready.\n")
    show_fact(llm)
    show_story(llm)
    show_sentence(llm)
    outputs = show_batch(llm)
    show_chat(llm)
    show_measurements(outputs)


def show_fact(llm: LLM) -> None:
    """Task 1, twice."""
    print("Task 1: a fact, the same every time")
    first, second = (llm.generate(FACT, fact_params())[0].outputs[0].text for _ in range(2))
    say("prompt", FACT)
    say("answer", first)
    say("again", "the same" if second == first else second)


def show_story(llm: LLM) -> None:
    """Task 2, with three seeds, then with the first seed again."""
    print("\nTask 2: a story, another for each seed")
    texts = [llm.generate(OPENING, story_params(seed))[0].outputs[0].text for seed in (1, 2, 3, 1)]
    say("prompt", OPENING)
    for seed, text in zip((1, 2, 3), texts, strict=False):
        say(f"seed {seed}", OPENING + text)
    say("seed 1", "the same" if texts[-1] == texts[0] else texts[-1])


def show_sentence(llm: LLM) -> None:
    """Task 3."""
    print("\nTask 3: one sentence, then stop")
    completion = llm.generate(EXPLAIN, sentence_params())[0].outputs[0]
    say("prompt", EXPLAIN)
    say("answer", completion.text)
    say("ended by", f"{completion.finish_reason}, at {completion.stop_reason!r}")


def show_batch(llm: LLM) -> list[RequestOutput]:
    """Five prompts in one call; the last two are cut off, one of them after a single token."""
    prompts = [*QUESTIONS, "Count to ten.", "Are you a robot?\n"]
    params = [fact_params()] * len(QUESTIONS) + [sentence_params(), fact_params().clone(max_tokens=1)]
    print(f"\nA batch of {len(prompts)} prompts in one call")
    pairs = complete_batch(llm, prompts, params)
    for prompt, output in pairs:
        say("prompt", prompt)
        say("answer", output.outputs[0].text)
    return [output for _, output in pairs]


def show_chat(llm: LLM) -> None:
    """Two turns, and how many tokens the model had to read for each."""
    print(f"\nA chat of {len(CHAT)} turns")
    history: list[dict[str, str]] = []
    for question in CHAT:
        history = chat_turn(llm, history, question, fact_params())
        read = llm.get_tokenizer().apply_chat_template(history[:-1], tokenize=True, add_generation_prompt=True)
        say("you", question)
        say("model", history[-1]["content"])
        say("", f"(It read {len(read)} tokens.)")


def show_measurements(outputs: Sequence[RequestOutput]) -> None:
    """The batch in numbers. Seconds on your machine are your own."""
    print("\nWhat the batch took")
    print(f"  {'prompt':26}{'tokens':>6}  {'ended by':9} {'TTFT':8} {'mean ITL':9} tokens/s")
    for output in outputs:
        m = measure(output)
        itl = f"{m.mean_itl:.4f} s" if m.mean_itl is not None else "none"
        print(f"  {output.prompt.strip():26}{m.tokens:6}  {m.finish_reason:9} {m.ttft:.3f} s  {itl:9} {m.tokens_per_second:.1f}")
    tokens = sum(measure(output).tokens for output in outputs)
    print(f"  All together: {tokens} tokens at {throughput(outputs):.1f} tokens/s")
    cut_off = [output.prompt.strip() for output in outputs if measure(output).cut_off]
    print(f"  Cut off by max_tokens: {', '.join(cut_off) or 'none'}")


def say(label: str, text: str) -> None:
    """Print `text` beside its label, in lines of a readable length."""
    print(textwrap.fill(" ".join(text.split()), 96, initial_indent=f"  {label:10}", subsequent_indent=" " * 12))


if __name__ == "__main__":
    run_lab(main)
