"""A learner's past and next steps: progress, results, hints, predictions, diagnosis, backups, updates."""
