"""The fuzzer of the public API: every argument of every call, in every way that callers get them wrong.

    run_api_fuzz(2_000, seed=0)      raises ApiFuzzFailure, or returns what happened

A call is drawn from (seed, number) alone: which one, which of its arguments are hostile (`values.py`, `calls.py`), and
how it is made: here, on another thread with an event loop of its own, with arguments that another thread changes
meanwhile, with arguments and answers that went through pickle, in a forked child (`ways.py`). It ends in a result or in
an error of `exceptions.py`; requests that run beside it get the tokens that they would get alone; the engines live on,
and afterwards every block is free (`run.py`). A failure names seed, number and call; `only=` makes that call again.
"""

from nano_qwen3_serving.testing.api_fuzz.run import ApiFuzzFailure, api_fuzz_command, run_api_fuzz

__all__ = ["ApiFuzzFailure", "api_fuzz_command", "run_api_fuzz"]
