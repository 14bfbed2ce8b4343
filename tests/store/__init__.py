"""Tests of benchmark/store."""
