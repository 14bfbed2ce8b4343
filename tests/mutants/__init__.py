"""Breaks each formula of the core in turn and shows that a test fails: ``python -m tests.mutants``."""
