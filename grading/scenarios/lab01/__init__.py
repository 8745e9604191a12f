"""Lab 01: parameters are tried on the judge's own engine; of batches and chats the judge chooses every token.

`engines.py` says how. An answer that was not computed by the engine that was given, in the steps that
the judge saw, has other tokens than the judge chose.
"""
