"""Heads that dense tasks train on feature maps."""
