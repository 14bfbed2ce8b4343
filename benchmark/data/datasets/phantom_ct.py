"""The embedded dataset ``phantom_ct``: chest CT volumes in small, drawn when they are first asked for.

Parts: ``train`` (pairs of volume and report), ``val`` (validation and thresholds: its other patients),
``test``, and ``elsewhere`` (another hospital). Kept in ``<data-root>/phantom_ct/``.
"""

from __future__ import annotations

from benchmark.data.datasets._drawn import DrawnDataset
from benchmark.phantom.ct.parts import PARTS, describe, draw_part
from benchmark.registry import register_dataset

phantom_ct = register_dataset("phantom_ct")(DrawnDataset("phantom_ct", PARTS, describe, draw_part))
