"""Parts that several methods share; each knows tensors, none knows a method."""
