"""Tables as data, and their renderings."""
