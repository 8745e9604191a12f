"""Lab 04: the sampler, on rows of logits drawn for each submission, against the definitions token by token.

What is random is judged by its distribution alone, with bounds that are worked out in `draws.py`;
how a submission draws is its own affair.
"""
