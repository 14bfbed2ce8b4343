"""Checks that stop a run, or say so in its results, where a number could be wrong without anybody noticing."""
