"""Lab 01 with parts that use one another: one function of parameters, a chat of one-message lists, numbers from the engine's metrics.

TODO 2 stops by a list of strings; TODO 3 returns pairs from map(); TODO 5 goes by num_generation_tokens and sorted times.
"""


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
