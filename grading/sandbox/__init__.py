"""Where submissions run: isolation levels, the supervision of a worker, and the worker itself."""
