"""Scores of the unknown, their metrics, and training for it."""
