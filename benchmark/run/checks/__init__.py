"""Checks that a run makes of its data, weights and results."""
