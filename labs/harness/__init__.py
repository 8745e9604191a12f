"""What all labs share: choosing an implementation, points and tables, hints, predictions, progress."""
