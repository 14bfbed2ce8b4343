"""Evaluation tasks: one plugin per file."""
