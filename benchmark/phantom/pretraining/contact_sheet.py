"""The contact sheet: every finding at rising severity, every hospital, and the other modalities, for the eye.

    python -m benchmark.phantom.pretraining.contact_sheet docs/images/phantom_contact_sheet.png

Boxes (yellow) and pneumothorax outlines (green) are drawn on every second picture, so that each is also seen
bare.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmark.phantom.chest.domains import CHEXPERT, FIGURE, MIMIC, NIH, RSNA, SIIM, Domain
from benchmark.phantom.chest.render import IMAGE_SIZE, Films, render
from benchmark.phantom.chest.studies import BLOCK, FINDINGS, INDEX, block_rng, sample_present, sample_studies
from benchmark.phantom.pretraining.modalities import MODALITIES
from benchmark.phantom.shapes import Array

COLUMNS, ZOOM, GAP, HEADING = 5, 2, 3, 15
CELL = IMAGE_SIZE * ZOOM
_SEED = 4
_LEVEL_STEP = 9  # between the grey levels kept; few levels keep the file small


def finding_row(finding: str | None, count: int = COLUMNS) -> Films:
    """Render one finding alone at severities from 0.3 to 1, or normal studies when None."""
    rng = block_rng(_SEED, f"sheet-{finding or 'normal'}")
    present = np.zeros((count, len(FINDINGS)), bool)
    if finding:
        present[:, INDEX[finding]] = True
    studies = sample_studies(rng, present, MIMIC)
    studies.severity[:] = np.linspace(0.3, 1.0, count, dtype=np.float32)[:, None]
    return render(rng, studies, MIMIC)


def hospital_row(domain: Domain) -> Films:
    """Render random studies of one hospital."""
    rng = block_rng(_SEED, f"sheet-{domain.name}")
    return render(rng, sample_studies(rng, sample_present(rng, BLOCK, domain), domain), domain)


def rows() -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield (heading, pictures) of every row of the sheet."""
    for finding in (None, *FINDINGS):
        name = finding.replace("_", " ") + ", severity 0.3 to 1" if finding else "no finding"
        yield name, _pictures(finding_row(finding))
    for domain in (MIMIC, CHEXPERT, RSNA, SIIM, NIH, FIGURE):
        yield f"hospital {domain.name}, random studies", _pictures(hospital_row(domain))
    for name, modality in MODALITIES.items():
        images, _ = modality.draw(block_rng(_SEED, f"sheet-{name}"), COLUMNS, IMAGE_SIZE)
        yield f"generalist corpus: {name}", [_enlarge(image) for image in images]


def _enlarge(image: Array) -> Image.Image:
    image = image // _LEVEL_STEP * _LEVEL_STEP
    return Image.fromarray(image).convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)


def _pictures(films: Films) -> list[Image.Image]:
    pictures = []
    for number in range(min(COLUMNS, len(films.images))):
        picture = _enlarge(films.images[number])
        if number % 2:
            _overlay(picture, films, number)
        pictures.append(picture)
    return pictures


def _overlay(picture: Image.Image, films: Films, number: int) -> None:
    draw = ImageDraw.Draw(picture)
    for x1, y1, x2, y2 in films.boxes[number]:
        draw.rectangle((x1 * ZOOM, y1 * ZOOM, x2 * ZOOM - 1, y2 * ZOOM - 1), outline=(255, 200, 0))
    mask = films.pneumothorax[number]
    inside = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inside &= np.roll(mask, step, axis)
    for y, x in np.argwhere(mask & ~inside):
        draw.point((int(x) * ZOOM, int(y) * ZOOM), fill=(0, 255, 120))


def sheet() -> Image.Image:
    """Compose the whole sheet in two columns of rows."""
    content = list(rows())
    half = -(-len(content) // 2)
    width, height = COLUMNS * (CELL + GAP), CELL + GAP + HEADING
    image = Image.new("RGB", (2 * width + 4 * GAP, half * height), (20, 20, 20))
    draw = ImageDraw.Draw(image)
    for number, (heading, pictures) in enumerate(content):
        left, top = (number // half) * (width + 4 * GAP), (number % half) * height
        draw.text((left + 3, top + 1), heading, fill=(255, 220, 120))
        for place, picture in enumerate(pictures):
            image.paste(picture, (left + place * (CELL + GAP), top + HEADING))
    return image.quantize(256, dither=Image.Dither.NONE)


def main(arguments: list[str] | None = None) -> int:
    """Write the contact sheet as PNG."""
    program = "python -m benchmark.phantom.pretraining.contact_sheet"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("path", type=Path)
    path = parser.parse_args(arguments).path
    content = io.BytesIO()
    sheet().save(content, "PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content.getvalue())
    os.replace(beside, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
