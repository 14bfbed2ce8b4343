"""Medical vision-language models of other groups: what a record of one is (``records``), and what is made of it.

``load`` finds the files of a model, ``convert`` makes safetensors of them, ``model`` builds the towers.
"""
