"""The embedded dataset ``phantom``: drawn when it is first asked for, kept in ``<data-root>/phantom/``.

Parts: ``mimic`` (pairs of film and report), ``nih`` (validation), ``chexpert_5x200``, ``rsna``, ``rsna_boxes``,
``siim`` (evaluation).
"""

from __future__ import annotations

from benchmark.data.datasets._drawn import DrawnDataset
from benchmark.phantom.chest.parts import PARTS, describe, draw_part
from benchmark.registry import register_dataset

phantom = register_dataset("phantom")(DrawnDataset("phantom", PARTS, describe, draw_part))
