"""What happens when a run is killed, or its machine fails it; the scripts here run longer than the tests."""
