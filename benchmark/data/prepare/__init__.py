"""From downloaded files to prepared pixels and tables."""
