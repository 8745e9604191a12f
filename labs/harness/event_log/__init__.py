"""A scheduler plays a workload on an engine without a model; its event log is judged and counted."""
