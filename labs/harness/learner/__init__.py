"""What a learner has done and does next: progress, results, hints, predictions, diagnosis, backups, updates."""
