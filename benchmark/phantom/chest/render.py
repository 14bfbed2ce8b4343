"""Render studies: anatomy, findings, density, film; with the images comes their truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmark.phantom.chest import anatomy, film, solids
from benchmark.phantom.chest.domains import Domain
from benchmark.phantom.chest.findings import Chest, draw_lung_findings, new_chest
from benchmark.phantom.chest.studies import INDEX, Studies
from benchmark.phantom.shapes import Array, bump

IMAGE_SIZE = 64
MAP_SIDE = 8
MAP_NAMES = ("lung", "heart", "opacity", "fluid", "free air", "mediastinum")
Box = tuple[int, int, int, int]

_AIR_DENSITY, _OPAQUE_DENSITY, _FREE_AIR_DENSITY = 0.17, 0.64, 0.03
_MIN_BOX = 4  # pixels; a fainter opacity still gets a box an eye can see


@dataclass(frozen=True)
class Films:
    """Rendered studies.

    Attributes:
        images: [n, S, S] uint8.
        pneumothorax: [n, S, S] bool, free pleural air.
        boxes: per study (x1, y1, x2, y2) in pixels around each pneumonia and consolidation; x2, y2 exclusive.
        maps: [n, 6, 8, 8] float32 coarse extents in the order of MAP_NAMES; only pretraining looks at them.
    """

    images: Array
    pneumothorax: Array
    boxes: list[list[Box]]
    maps: Array


def render(rng: np.random.Generator, studies: Studies, domain: Domain, size: int = IMAGE_SIZE) -> Films:
    """Draw a block of studies as films of one hospital.

    Args:
        rng: the block's generator; it is advanced.
        studies: what is in the studies.
        domain: how the hospital takes films.
        size: image side in pixels, divisible by 8.

    Returns:
        Images and truth.
    """
    chest = new_chest(studies, anatomy.build(rng, studies, domain, size), rng, size)
    draw_lung_findings(chest)
    air, opaque = _shares(chest)
    density = _soft_density(chest, air, opaque)
    solids.add_bubbles(chest, density)
    solids.add_bones(chest, density, domain)
    density += chest.extra
    solids.add_devices(chest, density)
    body = chest.anatomy.body
    density *= body
    # The textures are used again as grain, in reverse order so that they belong to another study.
    density += domain.grain * 0.5 * (chest.fine[::-1] + chest.cloud[::-1] * body)
    return Films(
        images=film.expose(rng, density, domain, size),
        pneumothorax=_pneumothorax_mask(chest, size),
        boxes=_boxes(chest, size),
        maps=_maps(chest, air, opaque, size),
    )


def _shares(chest: Chest) -> tuple[Array, Array]:
    """Return (share of the view that is lung air, share of that air which opacity replaces), [n, P]."""
    air = chest.anatomy.thorax * (1 - chest.anatomy.covered) * (1 - chest.fluid)
    return air, 1 - np.exp(-chest.opacity)


def _soft_density(chest: Chest, air: Array, opaque: Array) -> Array:
    """Combine lung, vessels, opacity, fluid and soft tissue, [n, P]."""
    body, studies = chest.anatomy, chest.studies
    emphysema = (studies.severity * studies.present)[:, INDEX["emphysema"], None]
    lung_air = np.where(emphysema > 0, 0.10 - 0.03 * emphysema, np.float32(_AIR_DENSITY))
    lung = lung_air + (_OPAQUE_DENSITY - lung_air) * opaque + _vessels(chest) * (1 - opaque)
    lung = lung * (1 - chest.free) + _FREE_AIR_DENSITY * chest.free
    abdomen = np.clip((body.v - body.floor) * 10 + 0.5, 0, 1) * np.clip((0.80 - body.out) * 8 + 0.5, 0, 1)
    soft = 0.60 + 0.10 * body.heart * body.thorax + 0.07 * abdomen + 0.10 * body.middle
    soft += 0.08 * chest.fluid * body.lung
    density: Array = soft * (1 - air) + lung * air
    return density


def _vessels(chest: Chest) -> Array:
    """Hilar shadows and a fine texture that fades from the hilum."""
    out, v = chest.anatomy.out, chest.anatomy.v + 0.05
    hilum = bump(((out - 0.17) / 0.20) ** 2 + (v / 0.30) ** 2)
    fade = np.clip(1.05 - 1.1 * np.sqrt((out - 0.15) ** 2 + 0.6 * v * v), 0.05, 1)
    gain = np.where(chest.studies.has("edema"), 1.5, 1.0) * np.where(chest.studies.has("emphysema"), 0.5, 1.0)
    vessels: Array = gain.astype(np.float32)[:, None] * (
        0.17 * hilum + fade * np.clip(0.065 * chest.fine + 0.03, 0, 1)
    )
    return vessels


def _pneumothorax_mask(chest: Chest, size: int) -> Array:
    visible = chest.free * chest.anatomy.thorax * (1 - chest.anatomy.covered)
    mask: Array = (visible > 0.5).reshape(-1, size, size)
    return mask


def _maps(chest: Chest, air: Array, opaque: Array, size: int) -> Array:
    body, cell = chest.anatomy, size // MAP_SIDE
    fields = (
        body.thorax,
        body.heart,
        opaque * air,
        chest.fluid * body.lung,
        chest.free * body.thorax,
        body.middle,
    )
    cells = [field.reshape(-1, MAP_SIDE, cell, MAP_SIDE, cell).mean((2, 4)) for field in fields]
    return np.stack(cells, axis=1).astype(np.float32)


def _boxes(chest: Chest, size: int) -> list[list[Box]]:
    boxes: list[list[Box]] = [[] for _ in range(len(chest.studies))]
    for rows, shown in chest.boxed:
        for row, pixels in zip(rows, shown.reshape(-1, size, size), strict=True):
            if pixels.any():
                boxes[row].append(_enclosing(pixels, size))
    return boxes


def _enclosing(pixels: Array, size: int) -> Box:
    """Return the box round the true pixels, widened to the least size inside the image."""
    spans = []
    for axis in (0, 1):
        hit = np.flatnonzero(pixels.any(axis))
        low, high = int(hit[0]), int(hit[-1]) + 1
        low = max(0, min(low, (low + high - _MIN_BOX) // 2))
        spans.append((low, min(size, max(high, low + _MIN_BOX))))
    (x1, x2), (y1, y2) = spans
    return x1, y1, x2, y2
