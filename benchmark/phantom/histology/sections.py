"""Stained sections: from tissues and a laboratory to colour tiles.

A section is two fields, the uptake of haematoxylin (nuclei, blue) and of eosin (everything else, pink); light that
passes it is exp(-(haematoxylin + eosin)). The style is that of the histology in the generalist corpus
(``modalities.draw_histology``); here tiles also have a grade, stroma, a magnification and a laboratory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from benchmark.phantom.histology.tissues import FIBRES, GLANDS, NEUTRAL, SEPTA, SHEET, TISSUES, Lab, Tissue
from benchmark.phantom.shapes import CLOUD, FINE, Array, column, grid, normal, ramp, texture, uniform

TILES = 2  # of each patient, neighbours in a part: the same tissue, grade and stain
_TRAITS = tuple(field.name for field in fields(Tissue) if field.name != "pattern")
_LEAST_GRADE = 0.25  # a grade of 0 still has this share of the classic picture
_TEETH = 7  # of a serrated gland
_PITCH = 0.70  # between gland centres, which stand three by three

Traits = dict[str, Array]


@dataclass(frozen=True)
class Sections:
    """A block of tiles, TILES of each patient.

    Attributes:
        tissue: [n] int, index into TISSUES.
        grade: [n] float32, from 0 (no tissue in particular) to 1 (the classic picture).
    """

    tissue: Array
    grade: Array

    def __len__(self) -> int:
        return len(self.tissue)


def sample_sections(rng: np.random.Generator, patients: Array, lab: Lab) -> Sections:
    """Draw the grades of patients whose tissues [p] are known; returns TILES tiles of each."""
    grade = rng.beta(*lab.grade, len(patients)).astype(np.float32)
    return Sections(np.repeat(patients, TILES), np.repeat(grade, TILES))


def render(rng: np.random.Generator, sections: Sections, lab: Lab, size: int) -> Array:
    """Draw tiles [n, size, size, 3] uint8.

    Args:
        rng: advanced by the drawing.
        sections: what the tiles show.
        lab: stain, thickness, magnification and camera.
        size: width and height in pixels.
    """
    count = len(sections)
    zoom = np.maximum(normal(rng, count, *lab.zoom), 0.5)
    x, y = (axis / zoom for axis in grid(size))
    uptake = np.empty((2, count, size * size), np.float32)
    patterns = np.array([tissue.pattern for tissue in TISSUES.values()])[sections.tissue]
    for pattern, draw in _PATTERNS.items():
        rows = np.flatnonzero(patterns == pattern)
        if len(rows):
            uptake[:, rows] = draw(rng, _traits(sections, rows), x[rows], y[rows], size)
    cover = ramp(texture(rng, count, size, CLOUD) + normal(rng, count, *lab.extent), 4.0)
    uptake = cover * uptake + (1 - cover) * _stroma(rng, count, size)
    _fold(rng, uptake, x, y, lab)
    return _scan(rng, _dye(rng, uptake, lab), lab, size)


def _traits(sections: Sections, rows: Array) -> Traits:
    """Return the traits of some tiles, each [n, 1]: between those of no tissue in particular and the classic ones."""
    share = _LEAST_GRADE + (1 - _LEAST_GRADE) * sections.grade[rows]
    tissues = [list(TISSUES.values())[number] for number in sections.tissue[rows]]
    values = {}
    for name in _TRAITS:
        classic = np.array([getattr(tissue, name) for tissue in tissues], np.float32)
        neutral = np.array([getattr(NEUTRAL[tissue.pattern], name) for tissue in tissues], np.float32)
        values[name] = column(neutral + share * (classic - neutral))
    return values


def _nuclei(fine: Array, density: Array) -> Array:
    """Return where nuclei are, [n, P] of 0 and 1; density 1 leaves the share that most tissues have."""
    return (fine > 0.75 + 0.8 * (1 - density)).astype(np.float32)


def _nearest_gland(rng: np.random.Generator, traits: Traits, x: Array, y: Array) -> tuple[Array, Array]:
    """Return (distance to, angle about) the nearest of nine gland centres, each [n, P]."""
    count = len(x)
    turn = uniform(rng, count, 0, 2 * np.pi)
    xr, yr = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    nearest, angle = np.full_like(xr, 9), np.zeros_like(xr)
    for number in range(9):
        offset = traits["jitter"] * rng.standard_normal((count, 2)).astype(np.float32)
        dx = xr - ((number % 3 - 1) * _PITCH + offset[:, :1])
        dy = yr - ((number // 3 - 1) * _PITCH + offset[:, 1:])
        squeeze = uniform(rng, count, 0.6, 1.5) ** traits["squeeze"]
        distance = np.sqrt(dx * dx * squeeze + dy * dy / squeeze)
        closer = distance < nearest
        nearest, angle = np.where(closer, distance, nearest), np.where(closer, np.arctan2(dy, dx), angle)
    return nearest, angle


def _glands(rng: np.random.Generator, traits: Traits, x: Array, y: Array, size: int) -> Array:
    """Walls of nuclei round open lumens, [2, n, P]."""
    fine, cloud = texture(rng, len(x), size, FINE), texture(rng, len(x), size, CLOUD)
    nearest, angle = _nearest_gland(rng, traits, x, y)
    nuclei, wall = _nuclei(fine, traits["nuclei"]), traits["wall"]
    radius = traits["radius"] * (1 + traits["serration"] * np.sign(np.sin(_TEETH * angle)))
    radius = radius * (1 + traits["ragged"] * cloud)
    ring, lumen = ramp(wall - np.abs(nearest - radius), 18.0), ramp(radius - wall - nearest, 18.0)
    blue = 0.18 + 0.55 * nuclei * (nearest > radius) + 1.2 * ring * (0.65 + 0.35 * nuclei)
    blue = blue * (1 - 0.9 * lumen) + traits["debris"] * lumen * nuclei
    return np.stack([blue, (0.55 + 0.12 * cloud) * (1 - traits["clear"] * lumen)])


def _sheet(rng: np.random.Generator, traits: Traits, x: Array, y: Array, size: int) -> Array:
    """Cells side by side, with keratin pearls where there are any, [2, n, P]."""
    fine = texture(rng, len(x), size, FINE)
    nearest, _ = _nearest_gland(rng, traits, x, y)
    pearl = traits["pearls"] * ramp(0.24 - nearest, 8.0)
    cells = (fine > 0.25 + 1.2 * (1 - traits["nuclei"])).astype(np.float32)
    blue = (0.35 + 0.75 * cells) * (1 - 0.8 * pearl)
    return np.stack([blue, 0.7 + 0.9 * np.abs(np.sin(22 * nearest)) * pearl])


def _septa(rng: np.random.Generator, traits: Traits, x: Array, y: Array, size: int) -> Array:
    """Walls round empty spaces, [2, n, P]."""
    del y
    fine, cloud = texture(rng, len(x), size, FINE), texture(rng, len(x), size, CLOUD)
    septa = ramp(traits["wall"] - np.abs(cloud + 0.25 * fine), 5.0)
    return np.stack([septa * (0.3 + 0.6 * _nuclei(fine, traits["nuclei"])), 0.08 + 0.7 * septa])


def _fibres(rng: np.random.Generator, traits: Traits, x: Array, y: Array, size: int) -> Array:
    """Wavy parallel strands with few nuclei, [2, n, P]."""
    fine, cloud = texture(rng, len(x), size, FINE), texture(rng, len(x), size, CLOUD)
    turn = uniform(rng, len(x), 0, np.pi)
    across = x * np.cos(turn) + y * np.sin(turn)
    strands = 0.5 + 0.5 * np.sin(uniform(rng, len(x), 14, 20) * across + 0.8 * cloud)
    return np.stack([0.12 + 0.5 * _nuclei(fine, traits["nuclei"]), 0.5 + 0.6 * strands])


def _stroma(rng: np.random.Generator, count: int, size: int) -> Array:
    """What lies between: pink, faintly streaked, with scattered nuclei, [2, n, P]."""
    fine, cloud = texture(rng, count, size, FINE), texture(rng, count, size, CLOUD)
    return np.stack([0.15 + 0.5 * (fine > 1.2), 0.5 + 0.15 * cloud + 0.05 * fine])


_PATTERNS = {GLANDS: _glands, SHEET: _sheet, SEPTA: _septa, FIBRES: _fibres}


def _fold(rng: np.random.Generator, uptake: Array, x: Array, y: Array, lab: Lab) -> None:
    """Where a section is folded, light passes it twice more."""
    count = len(x)
    turn, place = uniform(rng, count, 0, np.pi), uniform(rng, count, -0.8, 0.8)
    folded = column(rng.random(count) < lab.fold)
    uptake *= 1 + folded * ramp(0.06 - np.abs(x * np.cos(turn) + y * np.sin(turn) - place), 14.0)


def _dye(rng: np.random.Generator, uptake: Array, lab: Lab) -> Array:
    """Return the light [n, P, 3] that passes; patients differ in stain, lamp and thickness."""
    patients = uptake.shape[1] // TILES

    def vary(mean: tuple[float, float, float]) -> Array:
        varied = np.array(mean) + lab.spread * rng.standard_normal((patients, 1, 3))
        return np.repeat(varied, TILES, axis=0).astype(np.float32)

    haematoxylin, eosin, lamp = vary(lab.haematoxylin), vary(lab.eosin), vary((1, 1, 1))
    thickness = np.repeat(np.exp(normal(rng, patients, *lab.thickness)), TILES, axis=0)
    blue, pink = np.clip(uptake * thickness, 0, 3)[..., None]
    light: Array = np.exp(-(blue * haematoxylin + pink * eosin)) * lamp
    return light


def _scan(rng: np.random.Generator, light: Array, lab: Lab, size: int) -> Array:
    """Blur some tiles, add noise, and return [n, size, size, 3] uint8."""
    count = len(light)
    tiles = light.reshape(count, size, size, 3)
    rows = np.flatnonzero(rng.random(count) < lab.blur)
    soft = tiles[rows]
    soft[:, 1:-1] = 0.25 * (soft[:, :-2] + soft[:, 2:]) + 0.5 * soft[:, 1:-1]
    soft[:, :, 1:-1] = 0.25 * (soft[:, :, :-2] + soft[:, :, 2:]) + 0.5 * soft[:, :, 1:-1]
    tiles[rows] = soft
    tiles += (
        rng.standard_normal(tiles.shape, dtype=np.float32) * uniform(rng, count, *lab.noise)[:, :, None, None]
    )
    return (np.clip(tiles, 0, 1) * 255 + 0.5).astype(np.uint8)
