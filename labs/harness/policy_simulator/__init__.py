"""Plays traffic through a scheduler without a model: thousands of requests in seconds.

The scheduler decides as it would in an engine. What a step costs comes from a roofline, and every plan is held against the
rules of an engine. Knows requests, tokens, blocks and costs; knows no engine, no text and no clock.

    log = play(make_scheduler, traffic("chat", rng), POOL, policy)
    log.goodput(Limits(ttft=1.0, itl=0.05))
"""
