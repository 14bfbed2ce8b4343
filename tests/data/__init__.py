"""Tests of benchmark/data."""
