"""Lab 07: the paged cache. What the functions give is compared with attention written out in float64.

A cache that may be changed in place lies where the submission is. The engine of the last checks is the
judge's own, with the submission's attention in place of its own.
"""
