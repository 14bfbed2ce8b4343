"""Tests of benchmark/run."""
