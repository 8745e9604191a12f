"""Everybody's submissions: batches, the journal, the roster, lateness, regrades, similarity."""
