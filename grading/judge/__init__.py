"""One submission: what was handed in, the seeds of its checks, the checks, and the report."""
