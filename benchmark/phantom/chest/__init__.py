"""Drawn chest films and their reports."""
