"""Lab 01 with parts that use one another: one function of parameters, a chat of one-message lists, numbers from the engine's metrics.

TODO 2 stops by a list of strings; TODO 3 returns pairs from map(); TODO 5 goes by num_generation_tokens and sorted times.
"""

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
    """By position and by name."""
    return LLM(model, max_model_len=max_model_len, max_num_seqs=32)


def fact_params() -> SamplingParams:
    """The likeliest token is what remains if only one may be drawn."""
    return SamplingParams(temperature=1.0, top_k=1, max_tokens=64)


def story_params(seed: int) -> SamplingParams:
    """Built empty, then filled."""
    params = SamplingParams(max_tokens=32)
    return params.clone(temperature=0.8, top_p=0.9, seed=seed)


def sentence_params() -> SamplingParams:
    """The stop string in a list, beside one that never comes."""
    return SamplingParams(max_tokens=24, temperature=0, stop=[".", "!?"], include_stop_str_in_output=True)


def complete_batch(
    llm: LLM, prompts: Sequence[str], sampling_params: SamplingParams | Sequence[SamplingParams]
) -> list[tuple[str, RequestOutput]]:
    """Pairs made from the outputs alone, which carry their prompts."""
    return [(output.prompt, output) for output in llm.generate(list(prompts), sampling_params)]


def chat_turn(
    llm: LLM, history: list[dict[str, str]], question: str, sampling_params: SamplingParams
) -> list[dict[str, str]]:
    """A list of conversations with one conversation in it."""
    conversation = history + [{"role": "user", "content": question}]
    outputs = llm.chat([conversation], sampling_params=sampling_params)
    return conversation + [{"role": "assistant", "content": outputs[0].outputs[0].text}]


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
    """From the metrics wherever they have it."""
    times, completion = output.metrics, output.outputs[0]
    tokens = times.num_generation_tokens
    return Measurement(
        prompt_tokens=len(output.prompt_token_ids),
        tokens=tokens,
        finish_reason=completion.finish_reason,
        cut_off="length" == completion.finish_reason,
        ttft=-times.arrival_time + times.first_token_ts,
        mean_itl=None if tokens < 2 else (times.last_token_ts - times.first_token_ts) / (tokens - 1),
        tokens_per_second=1 / ((times.last_token_ts - times.arrival_time) / tokens),
    )


def throughput(outputs: Sequence[RequestOutput]) -> float:
    """All times in order: the first is an arrival, the last a token."""
    times = sorted(time for output in outputs for time in (output.metrics.arrival_time, output.metrics.last_token_ts))
    return sum(output.metrics.num_generation_tokens for output in outputs) / (times[-1] - times[0])


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
