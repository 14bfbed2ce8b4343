"""Checks that every method must pass, and what each method can do."""
