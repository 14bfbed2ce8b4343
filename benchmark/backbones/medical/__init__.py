"""Medical vision-language models of other groups, each described by a record (``records``).

``load`` finds the files of a model, ``convert`` makes safetensors of them, ``model`` builds the towers.
"""
