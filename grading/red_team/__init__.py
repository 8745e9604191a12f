"""Submissions that cheat, and what they earn."""
