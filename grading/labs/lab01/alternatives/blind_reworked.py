"""Lab 01 from README and starter alone: top_k=1 for greedy, clones, parameters spread to the prompts, one loop.

The template is laid out by the tokenizer and given to generate(); counts and TTFT come from the metrics.
"""

import copy
import math


def load_llm(model: str = "course", max_model_len: int = 1024) -> LLM:
    """An engine that serves `model`, with at most `max_model_len` tokens of prompt and output.

    Raises what the engine raises, for example `ModelLoadError` for a model that is not there.
    """
    options = {"model": model, "max_model_len": max_model_len}
    return LLM(**options)


def fact_params() -> SamplingParams:
    """For a fact: the likeliest token every time, so the same answer every time; up to 64 tokens."""
    # the one likeliest token is all that may be drawn, so nothing depends on the draw
    return SamplingParams(top_k=1, max_tokens=64)


def story_params(seed: int) -> SamplingParams:
    """For a story: another one for another `seed`, the same one for the same; up to 32 tokens.

    Draws at temperature 0.8 from the likeliest tokens that together have 90 % of the probability.
    """
    params = SamplingParams(max_tokens=32)
    return params.clone(temperature=0.8, top_p=0.90, seed=seed)


def sentence_params() -> SamplingParams:
    """For one sentence: like a fact, but the text ends with its first full stop; up to 24 tokens."""
    return fact_params().clone(max_tokens=24, stop=["."], include_stop_str_in_output=True)


def complete_batch(
    llm: LLM, prompts: Sequence[str], sampling_params: SamplingParams | Sequence[SamplingParams]
) -> list[tuple[str, RequestOutput]]:
    """Complete all `prompts` in one batch: each prompt with its output, in the order given.

    `sampling_params` are for all prompts, or one for each.
    """
    batch = list(prompts)
    each = [sampling_params] * len(batch) if isinstance(sampling_params, SamplingParams) else list(sampling_params)
    answers = llm.generate(batch, each, use_tqdm=False)
    result: list[tuple[str, RequestOutput]] = []
    for position, prompt in enumerate(batch):
        result.append((prompt, answers[position]))
    return result


def chat_turn(
    llm: LLM, history: list[dict[str, str]], question: str, sampling_params: SamplingParams
) -> list[dict[str, str]]:
    """One turn of a conversation: `history`, then the user's question, then the assistant's answer.

    A message is `{"role": "system" | "user" | "assistant", "content": text}`. The model reads the
    whole conversation, through its own chat template. `history` itself is not changed.
    """
    conversation = copy.deepcopy(history)
    conversation.append(dict(role="user", content=question))
    text = llm.get_tokenizer().apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    (output,) = llm.generate([text], sampling_params)
    conversation.append(dict(role="assistant", content=output.outputs[0].text))
    return conversation


def measure(output: RequestOutput) -> Measurement:
    """What the request behind a finished `output` took."""
    times = output.metrics
    count = times.num_generation_tokens
    reason = output.outputs[0].finish_reason
    try:
        itl = (times.last_token_ts - times.first_token_ts) / (count - 1)
    except ZeroDivisionError:
        itl = None
    return Measurement(
        len(output.prompt_token_ids), count, reason, reason == "length", times.first_token_latency, itl,
        count / (times.last_token_ts - times.arrival_time),
    )


def throughput(outputs: Sequence[RequestOutput]) -> float:
    """Generated tokens of all requests per second, from the first arrival to the last token."""
    total, first, last = 0, math.inf, -math.inf
    for output in outputs:
        total += output.metrics.num_generation_tokens
        first = min(first, output.metrics.arrival_time)
        last = max(last, output.metrics.last_token_ts)
    return total / (last - first)


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
