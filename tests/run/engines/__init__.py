"""Tests of benchmark/run/engines."""
