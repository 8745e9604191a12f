"""Lab 03: the network, operator by operator, against its formulas in float64.

How far from the truth may a right answer be? A float32 sum of n products is off by at most n * 2**-24 of
their sizes; n < 300 here, so 2e-5 of the largest number is enough for one operator, and 1e-4 for a
network of a few layers. In bfloat16 the roundings are counted.
"""
