"""One folder per cell: results, configuration, provenance."""
