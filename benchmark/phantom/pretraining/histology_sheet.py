"""The sheet of stained tiles, for the eye: one row per tissue of the corpus, then one per class of each test.

python -m benchmark.phantom.pretraining.histology_sheet docs/images/phantom_histology.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmark.files import write_whole
from benchmark.phantom.chest.render import IMAGE_SIZE
from benchmark.phantom.chest.studies import block_rng
from benchmark.phantom.histology.parts import NAMES, PARTS
from benchmark.phantom.histology.sections import TILES, render, sample_sections
from benchmark.phantom.histology.tissues import Lab
from benchmark.phantom.shapes import Array

COLUMNS, GAP, HEADING = 5, 2, 15
_SEED = 4
_COLOURS = 64  # few colours keep the file small


def row(label: str, lab: Lab, count: int = COLUMNS) -> Array:
    """Draw tiles [count, S, S, 3] of as many patients with one tissue in one laboratory."""
    rng = block_rng(_SEED, f"sheet-{lab.name}-{label}")
    sections = sample_sections(rng, np.full(count, NAMES.index(label)), lab)
    return render(rng, sections, lab, IMAGE_SIZE)[::TILES]


def sheet() -> Image.Image:
    """Compose the whole sheet in two columns of rows."""
    content = [(label, part.lab) for part in PARTS.values() if part.split != "val" for label in part.classes]
    half = -(-len(content) // 2)
    width, height = COLUMNS * (IMAGE_SIZE + GAP) + 2 * GAP, IMAGE_SIZE + GAP + HEADING
    image = Image.new("RGB", (2 * width, half * height), (20, 20, 20))
    draw = ImageDraw.Draw(image)
    for number, (label, lab) in enumerate(content):
        left, top = (number // half) * width, (number % half) * height
        draw.text((left + 3, top + 1), f"{label} ({lab.name})", fill=(255, 220, 120))
        for place, tile in enumerate(row(label, lab)):
            image.paste(Image.fromarray(tile), (left + place * (IMAGE_SIZE + GAP), top + HEADING))
    return image.quantize(_COLOURS, dither=Image.Dither.NONE)


def main(arguments: list[str] | None = None) -> int:
    """Write the sheet as PNG."""
    program = "python -m benchmark.phantom.pretraining.histology_sheet"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("path", type=Path)
    path = parser.parse_args(arguments).path
    picture = sheet()
    write_whole(path, lambda beside: picture.save(beside, "PNG", optimize=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
