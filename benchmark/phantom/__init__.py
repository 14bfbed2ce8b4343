"""The embedded suite: a deterministic generator of chest phantoms, and the making of its backbone."""
