"""Tests of benchmark/cli."""
