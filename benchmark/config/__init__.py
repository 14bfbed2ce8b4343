"""From YAML files and flags to one checked run configuration."""
