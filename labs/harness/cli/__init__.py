"""The learner's command line: `python -m labs`."""
