"""Chest CT volumes in small: anatomy, findings, reports, scanners."""
