"""Lab 01 from README and starter alone: one expression for each TODO, as the contracts suggest."""


def sentence_params() -> SamplingParams:
    """For one sentence: like a fact, but the text ends with its first full stop; up to 24 tokens."""
    return SamplingParams(temperature=0.0, max_tokens=24, stop=".", include_stop_str_in_output=True)


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
