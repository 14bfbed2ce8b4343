"""Stored numbers of other people's code, and what compares this project with them."""
