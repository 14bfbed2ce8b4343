"""A picture of the drawn findings, for the eye.

    python -m benchmark.phantom.ct.sheet --out docs/images/phantom_ct.png

A row for each finding: three slices around it and a coronal cut of a volume that shows nothing else, from the scanner
``SOURCE`` (left) and ``HERE`` (right). The first row has no finding. Window: -1000 to 400 HU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmark.phantom.ct.anatomy import BOXES, FINDINGS, SIZE, Scanner, draw_scan
from benchmark.phantom.ct.parts import HERE, SOURCE
from benchmark.phantom.shapes import Array

_ZOOM, _SEED, _PLAIN = 2, 5, (6, 10, 16)


def sheet() -> Array:
    """Return the picture, uint8 ``[h, w]``."""
    sides = [
        np.vstack([_row(finding, scanner) for finding in (None, *range(len(FINDINGS)))])
        for scanner in (SOURCE, HERE)
    ]
    return np.hstack(sides).repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)


def _row(finding: int | None, scanner: Scanner) -> Array:
    present = np.arange(len(FINDINGS)) == (-1 if finding is None else finding)
    volume, maps = draw_scan(np.random.default_rng(_SEED), present, scanner)
    shown = _PLAIN
    if finding is not None:
        first = int(maps[finding].sum(axis=(1, 2)).argmax()) * (SIZE[0] // BOXES[0])
        shown = (first, first + 1, first + 3)
    coronal = volume[::-1, SIZE[1] // 2 - 2].repeat(2, axis=0)
    grey = (np.clip(np.hstack([*volume[list(shown)], coronal]), -1000, 400) + 1000.0) * (255 / 1400)
    return np.rint(grey).astype(np.uint8)


def main(arguments: list[str] | None = None) -> int:
    """Write the picture."""
    from PIL import Image

    parser = argparse.ArgumentParser(prog="python -m benchmark.phantom.ct.sheet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    Image.fromarray(sheet()).save(parser.parse_args(arguments).out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
