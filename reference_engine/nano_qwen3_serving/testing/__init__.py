"""Tools that try to break an engine: the fuzzer, and the doubles it runs on."""
