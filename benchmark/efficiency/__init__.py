"""The efficiency verb: what a method costs at real size, without data."""
