"""Engines whose tokens a test chooses.

The model computes as always, and which token comes next is up to the test's `Ledger`. It also notes every step: what the
engine was asked to compute, and who shared its steps, is read from there, never from what the part returns. An answer that
did not come from this engine, in the steps that the ledger saw, has other tokens than the ledger chose.

    ledger = Ledger(rng)
    llm = scripted_llm(there, ledger)          # beside the part, wherever that is

Knows nothing of any lab.
"""
