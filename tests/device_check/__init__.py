"""What only a GPU can tell, in one command: ``python -m tests.device_check`` (docs/scaling.md)."""
