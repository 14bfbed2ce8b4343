"""The chest before any opacity is drawn: pose, habitus, and the fields of lungs, heart and body wall.

Findings that move anatomy (a large heart, volume loss, hyperinflation, a tension pneumothorax) act here, on
the habitus; findings that add or remove density act in ``findings.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmark.phantom.chest.domains import Domain
from benchmark.phantom.chest.studies import BOTH, INDEX, RIGHT, Studies
from benchmark.phantom.shapes import Array, bump, column, grid, normal, ramp


@dataclass
class Habitus:
    """Body measures of a block of patients in film units; [n, 1] columns, [n, 2] for right and left."""

    width: Array
    height: Array
    domes: Array  # [n, 2] height v of the diaphragm domes, right and left
    curvature: Array  # depth of the domes
    shift: Array  # sideways displacement of heart and mediastinum
    ratio: Array  # cardiothoracic ratio
    mediastinum: Array  # half-width


@dataclass(frozen=True)
class Anatomy:
    """Fields [n, P] of a block of chests; soft masks lie in [0, 1]."""

    u: Array
    v: Array
    out: Array  # |u|, distance from the midline of the film
    central: Array  # u relative to the displaced mediastinum
    radius2: Array  # squared lung-ellipse radius: 1 at the chest wall
    lung: Array  # lung ellipse, not yet cut by the diaphragm
    above: Array  # above the diaphragm
    floor: Array  # height v of the diaphragm at this column
    thorax: Array  # lung above the diaphragm
    heart: Array
    middle: Array  # mediastinum and aortic knob
    covered: Array  # share of lung air hidden by heart and mediastinum
    body: Array
    habitus: Habitus


def pose(rng: np.random.Generator, count: int, domain: Domain, size: int) -> tuple[Array, Array]:
    """Draw how each patient stands in the film; return the patient coordinates (u, v), each [n, P]."""
    x, y = grid(size)
    angle = np.deg2rad(normal(rng, count, 0, domain.rotation))
    scale = normal(rng, count, *domain.scale)
    aspect = normal(rng, count, 1.0, 0.03)
    dx, dy = x - normal(rng, count, 0, domain.shift), y - normal(rng, count, 0, domain.shift)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    return aspect * (cosine * dx + sine * dy), cosine * dy - sine * dx


def sample_habitus(rng: np.random.Generator, studies: Studies) -> Habitus:
    """Draw the body measures of each patient, then let the findings move them."""
    count, portable = len(studies), column(studies.portable)
    width, height = normal(rng, count, 1.0, 0.05), normal(rng, count, 1.0, 0.04)
    domes = (
        np.concatenate([normal(rng, count, 0.46, 0.04), normal(rng, count, 0.51, 0.04)], axis=1)
        - 0.07 * portable
    )
    shift = normal(rng, count, 0, 0.012)
    ratio = np.clip(normal(rng, count, 0.42, 0.025) + 0.03 * portable, 0.36, 0.49)
    mediastinum = normal(rng, count, 0.105, 0.012) + 0.015 * portable
    habitus = Habitus(width, height, domes, np.full((count, 1), 0.15, np.float32), shift, ratio, mediastinum)
    _enlarge(habitus, studies)
    _lose_volume(habitus, studies)
    _inflate(habitus, studies)
    _push(habitus, studies)
    return habitus


def _severity(studies: Studies, finding: str) -> Array:
    """Severity where the finding is present and 0 elsewhere, [n, 1]."""
    at = INDEX[finding]
    return (studies.severity[:, at] * studies.present[:, at])[:, None]


def _enlarge(habitus: Habitus, studies: Studies) -> None:
    heart, middle = _severity(studies, "cardiomegaly"), _severity(studies, "enlarged_cardiomediastinum")
    habitus.ratio = np.where(heart > 0, 0.56 + 0.20 * heart, habitus.ratio)
    habitus.mediastinum = habitus.mediastinum * np.where(middle > 0, 1.5 + 0.8 * middle, 1.0).astype(
        np.float32
    )


def _lose_volume(habitus: Habitus, studies: Studies) -> None:
    """Atelectasis raises the dome and draws the mediastinum to its side."""
    side = studies.side[:, INDEX["atelectasis"], None]
    affected = (side == np.arange(2)) | (side == BOTH)
    loss = _severity(studies, "atelectasis") * affected
    habitus.domes = habitus.domes - 0.20 * loss
    habitus.shift = habitus.shift + 0.09 * (loss[:, 1:] - loss[:, :1])


def _inflate(habitus: Habitus, studies: Studies) -> None:
    """Emphysema flattens and lowers both domes and narrows the heart."""
    extent = _severity(studies, "emphysema")
    there = extent > 0
    habitus.domes = habitus.domes + np.where(there, 0.05 + 0.10 * extent, 0)
    habitus.curvature = np.where(there, np.float32(0.05), habitus.curvature)
    habitus.ratio = habitus.ratio - 0.05 * extent


def _push(habitus: Habitus, studies: Studies) -> None:
    """A large pneumothorax pushes the mediastinum to the other side."""
    tension = _severity(studies, "pneumothorax") > 0.75
    away = np.where(studies.side[:, INDEX["pneumothorax"], None] == RIGHT, 1, -1)
    habitus.shift = habitus.shift + np.float32(0.07) * away * tension


def build(rng: np.random.Generator, studies: Studies, domain: Domain, size: int) -> Anatomy:
    """Draw the anatomy of a block of studies.

    Args:
        rng: the block's generator.
        studies: n studies.
        domain: hospital.
        size: image side in pixels; P = size * size.

    Returns:
        The fields, each [n, P].
    """
    u, v = pose(rng, len(studies), domain, size)
    body = sample_habitus(rng, studies)
    out, central = np.abs(u), u - body.shift
    lateral = (out - 0.43 * body.width) / (0.31 * body.width + 0.05 * v)
    radius2 = lateral**2 + ((v + 0.10) / (0.74 * body.height)) ** 2
    lung = ramp(1 - radius2, 4.0)
    dome = np.where(u > 0, body.domes[:, 1:], body.domes[:, :1])
    floor = dome + body.curvature * ((out - 0.36) / 0.36) ** 2
    above = ramp(floor - v, 14.0)
    heart, middle = _heart(central, v, body), _middle(central, v, body)
    wall = np.float32(0.97) - (out / (0.93 + 0.05 * v)) ** 4 * 0.9
    return Anatomy(
        u=u,
        v=v,
        out=out,
        central=central,
        radius2=radius2,
        lung=lung,
        above=above,
        floor=floor,
        thorax=lung * above,
        heart=heart,
        middle=middle,
        covered=np.maximum(0.90 * heart, 0.95 * middle),
        body=ramp(wall, 8.0) * ramp(v + 0.97 - 0.5 * np.maximum(out - 0.42, 0), 10.0),
        habitus=body,
    )


def _heart(central: Array, v: Array, body: Habitus) -> Array:
    """A tilted ellipse whose half-width follows the cardiothoracic ratio."""
    half = 0.74 * body.width * body.ratio
    hu = (central - 0.26 * half - 0.02) / half
    hv = (v - 0.22) / (0.37 + 0.20 * (body.ratio - 0.42))
    return ramp(1 - (hu * hu + hv * hv - 0.55 * hu * hv), 5.0)


def _middle(central: Array, v: Array, body: Habitus) -> Array:
    """The mediastinal band, wider below, with the aortic knob on the patient's left."""
    half = body.mediastinum + 0.06 * np.maximum(v, 0)
    knob = bump(((central - body.mediastinum - 0.02) ** 2 + (v + 0.33) ** 2) / 0.012)
    return np.maximum(ramp(half - np.abs(central), 12.0), knob)
