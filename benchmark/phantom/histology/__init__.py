"""Drawn tissue sections and their captions."""
