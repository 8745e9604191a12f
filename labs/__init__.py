"""The nineteen labs: `python -m labs` is the learner's command line, `labs.harness` what all labs share."""
