"""Lab 01 with every step written out: the chat template is applied by hand, requests are added to the engine one by one.

TODO 2 changes parameters that exist; TODO 3 submits and steps the engine itself; TODO 5 adds up in loops.
"""


def load_llm(model: str = "course", max_model_len: int = 1024) -> LLM:
    """The arguments as a dict, and a setting of one's own among them."""
    settings = {"model": model, "max_model_len": max_model_len, "enable_prefix_caching": False}
    return LLM(**settings)


def fact_params() -> SamplingParams:
    """Greedy, with a seed that does no harm."""
    params = SamplingParams(max_tokens=64, seed=7)
    return params.clone(temperature=0.0)


def story_params(seed: int) -> SamplingParams:
    """All other switches written out as off."""
    return SamplingParams(temperature=0.8, top_p=0.9, top_k=0, min_p=0.0, seed=seed, max_tokens=32, n=1)


def sentence_params() -> SamplingParams:
    """The fact's parameters, changed."""
    return fact_params().clone(stop=["."], include_stop_str_in_output=True, max_tokens=24)


def complete_batch(
    llm: LLM, prompts: Sequence[str], sampling_params: SamplingParams | Sequence[SamplingParams]
) -> list[tuple[str, RequestOutput]]:
    """Walks over the outputs by index; one set of parameters becomes a list."""
    if isinstance(sampling_params, SamplingParams):
        sampling_params = [sampling_params for _ in prompts]
    outputs = llm.generate([{"prompt": prompt} for prompt in prompts], list(sampling_params), use_tqdm=False)
    pairs = []
    for index in range(len(outputs)):
        pairs.append((prompts[index], outputs[index]))
    return pairs


def chat_turn(
    llm: LLM, history: list[dict[str, str]], question: str, sampling_params: SamplingParams
) -> list[dict[str, str]]:
    """The tokenizer lays the conversation out; generate() gets its tokens."""
    conversation = [dict(message) for message in history]
    conversation.append({"role": "user", "content": question})
    tokens = llm.get_tokenizer().apply_chat_template(conversation, tokenize=True, add_generation_prompt=True)
    output = llm.generate({"prompt_token_ids": tokens}, sampling_params)[0]
    conversation.append({"role": "assistant", "content": output.outputs[0].text})
    return conversation


def measure(output: RequestOutput) -> Measurement:
    """Numbers in the order in which they happened."""
    [completion] = output.outputs
    arrived, first, last = output.metrics.arrival_time, output.metrics.first_token_ts, output.metrics.last_token_ts
    count, reason = len(completion.token_ids), completion.finish_reason
    mean_itl = None
    if count > 1:
        mean_itl = (last - first) / (count - 1)
    speed = count / (last - arrived)
    return Measurement(len(output.prompt_token_ids), count, reason, reason in {"length"}, first - arrived, mean_itl, speed)


def throughput(outputs: Sequence[RequestOutput]) -> float:
    """One pass over the outputs."""
    tokens, began, ended = 0, float("inf"), float("-inf")
    for output in outputs:
        tokens += len(output.outputs[0].token_ids)
        began = min(began, output.metrics.arrival_time)
        ended = max(ended, output.metrics.last_token_ts)
    return tokens / (ended - began)


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
