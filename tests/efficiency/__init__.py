"""Tests of benchmark/efficiency."""
