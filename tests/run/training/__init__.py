"""Tests of benchmark/run/training."""
