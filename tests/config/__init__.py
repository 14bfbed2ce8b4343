"""Tests of benchmark/config."""
