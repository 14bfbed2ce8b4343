"""Medical vision-language models of other groups: their files, their parts, one record for each.

``records`` says what a model is; ``radiology`` and ``broad`` hold the eleven of the paper's tables. ``reader`` opens
foreign files without running anything, ``convert`` makes safetensors of them, ``model`` builds the towers, ``load``
finds and loads.
"""
