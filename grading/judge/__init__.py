"""One submission: its files, the seeds of its checks, the checks, and the report."""
