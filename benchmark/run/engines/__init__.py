"""Ways to run many cells: worker processes, Ray, torchrun."""
