"""Runs planned cells: adapts, evaluates, stores."""
