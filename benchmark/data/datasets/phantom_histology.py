"""The embedded dataset ``phantom_histology``: stained tissue, drawn when it is first asked for.

Parts: ``pmc_oa`` (pairs of tile and caption), ``pmc_oa_val`` (validation: other patients of the same laboratories),
``lc25000_lung``, ``lc25000_colon``, ``mhist`` (evaluation). Kept in ``<data-root>/phantom_histology/``.
"""

from __future__ import annotations

from benchmark.data.datasets._drawn import DrawnDataset
from benchmark.phantom.histology.parts import PARTS, describe, draw_part
from benchmark.registry import register_dataset

phantom_histology = register_dataset("phantom_histology")(
    DrawnDataset("phantom_histology", PARTS, describe, draw_part)
)
