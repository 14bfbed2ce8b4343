"""Data: prepared folders, what training sees of them, and the datasets themselves."""
