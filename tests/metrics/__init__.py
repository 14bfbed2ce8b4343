"""Tests of benchmark/metrics."""
