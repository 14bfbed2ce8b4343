"""Paired tests between rows, and the sentences about them."""
