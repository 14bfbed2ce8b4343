"""Dataset plugins: every file in this folder is found, no list names it."""
