"""How long vLLM takes for workloads: run by the Python of an environment in which vLLM is installed, and this project is not.

    PYTHON reference_engine/benchmarks/vllm_seconds.py MODEL < workloads.json

Reads a JSON object from standard input: for each name of a workload the tokens of its `prompts`, and the vLLM
`SamplingParams` of each as keywords. Writes one to standard output: vLLM's version, and the seconds of each workload.
Everything else that vLLM says goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

WARM_UP = "quick"


def seconds_of(llm: Any, workload: dict[str, Any]) -> float:
    """Seconds of a workload, its prompts all at once, with an empty prefix cache."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": token_ids} for token_ids in workload["prompts"]]
    params = [SamplingParams(**keywords) for keywords in workload["params"]]
    llm.reset_prefix_cache()
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started


def main() -> None:
    """Reads, measures, writes."""
    workloads = json.load(sys.stdin)
    answer = os.dup(1)
    os.dup2(2, 1)  # vLLM logs to standard output, from several processes
    import vllm

    llm = vllm.LLM(sys.argv[1], dtype="bfloat16", max_model_len=2048, max_num_seqs=64, skip_tokenizer_init=True)
    seconds_of(llm, workloads[WARM_UP])
    seconds = {name: seconds_of(llm, workload) for name, workload in workloads.items()}
    with os.fdopen(answer, "w") as stream:
        json.dump({"version": vllm.__version__, "seconds": seconds}, stream)


if __name__ == "__main__":
    main()
