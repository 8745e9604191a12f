"""Lab 02: an engine beside the submission whose tokens the judge chooses, and streams whose outputs it hands out.

The sampler of the engine is the judge's, so each step comes by here: who shared it is what the judge saw
(`engines.py`). While such an engine runs, its thread is the only one that talks to the judge.
"""
