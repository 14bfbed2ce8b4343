"""The benchmark harness: configuration, plan, cells, store and report; it knows no method or task by name."""
