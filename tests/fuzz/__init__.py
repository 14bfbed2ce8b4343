"""Damaged files by the thousand for every reader of files from outside: each is read, or refused by its name."""
