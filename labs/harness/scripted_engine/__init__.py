"""Engines whose tokens a test chooses.

The model computes as always, but the test's `Ledger` chooses the next token. It also notes every step: tests read from
it what the engine had to compute and which requests shared a step, never from what the part returns. An answer that did
not come from this engine, in the steps that the ledger saw, has other tokens than the ledger chose.

    ledger = Ledger(rng)
    llm = scripted_llm(there, ledger)          # beside the part, wherever that is

Knows nothing of any lab.
"""
