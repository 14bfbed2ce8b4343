"""Dataset plugins: a file here is found by being here."""
