"""Makes the weights of the embedded backbones; no run needs it."""
