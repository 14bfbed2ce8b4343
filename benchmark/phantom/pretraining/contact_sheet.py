"""Contact sheets of the embedded suites, for the eye.

    python -m benchmark.phantom.pretraining.contact_sheet docs/images/phantom_contact_sheet.png
    python -m benchmark.phantom.pretraining.contact_sheet --suite phantom_histology docs/images/phantom_histology.png

``phantom`` shows every finding at rising severity, every hospital, and the other modalities; boxes (yellow) and
pneumothorax outlines (green) are drawn on every second picture. ``phantom_histology`` shows every tissue of the corpus,
then every class of each test.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmark.files import write_whole
from benchmark.phantom.chest.domains import CHEXPERT, FIGURE, MIMIC, NIH, RSNA, SIIM, Domain
from benchmark.phantom.chest.render import IMAGE_SIZE, Films, render
from benchmark.phantom.chest.studies import BLOCK, FINDINGS, INDEX, block_rng, sample_present, sample_studies
from benchmark.phantom.histology import sections
from benchmark.phantom.histology.parts import NAMES, PARTS
from benchmark.phantom.histology.tissues import Lab
from benchmark.phantom.pretraining.modalities import MODALITIES
from benchmark.phantom.shapes import Array

COLUMNS, ZOOM, HEADING = 5, 2, 15
GAP, TILE_GAP = 3, 2
CELL = IMAGE_SIZE * ZOOM
_SEED = 4
_LEVEL_STEP = 9  # between the grey levels kept; few levels keep the file small
_COLOURS = 64  # few colours keep the file of tiles small

Row = tuple[str, list[Image.Image]]
"""Heading and pictures."""


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


def rows() -> Iterator[Row]:
    """Yield the rows of the chest sheet."""
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


def tile_row(label: str, lab: Lab) -> Array:
    """Draw tiles [COLUMNS, S, S, 3] of as many patients with one tissue in one laboratory."""
    rng = block_rng(_SEED, f"sheet-{lab.name}-{label}")
    drawn = sections.sample_sections(rng, np.full(COLUMNS, NAMES.index(label)), lab)
    return sections.render(rng, drawn, lab, IMAGE_SIZE)[:: sections.TILES]


def tile_rows() -> Iterator[Row]:
    """Yield the rows of the histology sheet."""
    for part in PARTS.values():
        if part.split != "val":
            for label in part.classes:
                tiles = [Image.fromarray(tile) for tile in tile_row(label, part.lab)]
                yield f"{label} ({part.lab.name})", tiles


def compose(rows: list[Row], cell: int, gap: int, between: int, margin: int) -> Image.Image:
    """Compose rows in two columns, ``between`` pixels apart, with ``margin`` pixels at the right."""
    half = -(-len(rows) // 2)
    width, height = COLUMNS * (cell + gap) + between, cell + gap + HEADING
    image = Image.new("RGB", (2 * width - between + margin, half * height), (20, 20, 20))
    draw = ImageDraw.Draw(image)
    for number, (heading, pictures) in enumerate(rows):
        left, top = (number // half) * width, (number % half) * height
        draw.text((left + 3, top + 1), heading, fill=(255, 220, 120))
        for place, picture in enumerate(pictures):
            image.paste(picture, (left + place * (cell + gap), top + HEADING))
    return image


def sheet(suite: str) -> Image.Image:
    """Return the contact sheet of a suite."""
    if suite == "phantom":
        image, colours = compose(list(rows()), CELL, GAP, 4 * GAP, 0), 256
    else:
        gap = TILE_GAP
        image, colours = compose(list(tile_rows()), IMAGE_SIZE, gap, 2 * gap, 2 * gap), _COLOURS
    return image.quantize(colours, dither=Image.Dither.NONE)


def main(arguments: list[str] | None = None) -> int:
    """Write a contact sheet as PNG."""
    program = "python -m benchmark.phantom.pretraining.contact_sheet"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--suite", default="phantom", choices=("phantom", "phantom_histology"))
    parser.add_argument("path", type=Path)
    options = parser.parse_args(arguments)
    picture = sheet(options.suite)
    write_whole(options.path, lambda beside: picture.save(beside, "PNG", optimize=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
