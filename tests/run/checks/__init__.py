"""Tests of benchmark/run/checks."""
