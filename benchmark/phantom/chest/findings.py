"""How each finding changes the density of the chest: one small function each, for the rows that have it.

Severity ``s`` lies in [0.25, 1]. ``opacity`` replaces alveolar air through ``1 - exp(-opacity)``, ``fluid``
is the share of the lung view under water, ``free`` the share taken by free pleural air, ``extra`` is density
outside the lung model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from benchmark.phantom.chest.anatomy import Anatomy
from benchmark.phantom.chest.studies import BOTH, INDEX, LEFT, RIGHT, Studies
from benchmark.phantom.shapes import CLOUD, FINE, Array, bump, column, ramp, texture, uniform

_ZONE_HEIGHT = np.array([-0.50, -0.12, 0.22], np.float32)  # v of the upper, middle and lower zone
_BOX_LEVEL = 0.45  # a box encloses what reaches this share of the opacity's own peak
_BOX_FLOOR = 0.30  # and at least this much visible opacity


@dataclass
class Chest:
    """A block of chests while findings are drawn onto it; fields are [n, P]."""

    studies: Studies
    anatomy: Anatomy
    rng: np.random.Generator
    fine: Array
    cloud: Array
    opacity: Array
    fluid: Array
    free: Array
    extra: Array
    boxed: list[tuple[Array, Array]] = field(default_factory=list)  # (rows, [rows, P] bool) to be enclosed

    def severity(self, finding: str, rows: Array) -> Array:
        """Return the severities of these rows, [rows, 1]."""
        severity: Array = self.studies.severity[rows, INDEX[finding]][:, None]
        return severity

    def sides(self, finding: str) -> Iterator[tuple[Array, int, Array, Array]]:
        """Yield (rows, side, outward, v) for each side the finding sits on.

        ``outward`` [rows, P] grows from the midline towards that side's chest wall.
        """
        rows = self.studies.rows(finding)
        side = self.studies.side[rows, INDEX[finding]]
        for which, sign in ((RIGHT, -1.0), (LEFT, 1.0)):
            here = rows[(side == which) | (side == BOTH)]
            if len(here):
                yield here, which, self.anatomy.u[here] * np.float32(sign), self.anatomy.v[here]

    def between(self, rows: Array, low: float, high: float) -> Array:
        """Return uniform draws, one per row, [rows, 1]."""
        return uniform(self.rng, len(rows), low, high)

    def zone(self, finding: str, rows: Array) -> Array:
        """Return the height v of the zone the finding sits in, [rows, 1]."""
        height: Array = column(_ZONE_HEIGHT[self.studies.zone[rows, INDEX[finding]]])
        return height

    def enclose(self, rows: Array, opacity: Array) -> None:
        """Remember the visible part of an opacity, [rows, P], for the boxes."""
        visible = opacity * self.anatomy.thorax[rows] * (1 - 0.7 * self.anatomy.covered[rows])
        level = np.minimum(
            np.maximum(_BOX_FLOOR, _BOX_LEVEL * visible.max(1, keepdims=True)),
            0.8 * visible.max(1, keepdims=True),
        )
        self.boxed.append((rows, visible > level))


def new_chest(studies: Studies, anatomy: Anatomy, rng: np.random.Generator, size: int) -> Chest:
    """Return a chest without findings, with the textures its findings will share."""
    count, shape = len(studies), anatomy.u.shape
    fine, cloud = texture(rng, count, size, FINE), texture(rng, count, size, CLOUD)
    opacity, fluid, free, extra = (np.zeros(shape, np.float32) for _ in range(4))
    return Chest(studies, anatomy, rng, fine, cloud, opacity, fluid, free, extra)


def draw_pneumonia(chest: Chest) -> None:
    """Three confluent ill-defined patches, modulated by clouds."""
    for rows, _, out, v in chest.sides("pneumonia"):
        s = chest.severity("pneumonia", rows)
        center_u = 0.46 + chest.between(rows, -0.10, 0.12)
        center_v = chest.zone("pneumonia", rows) + chest.between(rows, -0.08, 0.08)
        patches = np.zeros_like(out)
        for _ in range(3):
            width = chest.between(rows, 0.15, 0.24) * (0.75 + 0.45 * s)
            height = chest.between(rows, 0.14, 0.22) * (0.75 + 0.45 * s)
            patches += bump(((out - center_u) / width) ** 2 + ((v - center_v) / height) ** 2)
            center_u = center_u + chest.between(rows, -0.12, 0.12)
            center_v = center_v + chest.between(rows, -0.14, 0.14)
        patches *= np.clip(0.75 + 0.65 * chest.cloud[rows], 0.05, 2.0) * (0.8 + 1.1 * s)
        chest.opacity[rows] += patches
        chest.enclose(rows, patches)


def draw_consolidation(chest: Chest) -> None:
    """A homogeneous lobar block with straight fissure edges and air bronchograms."""
    for rows, _, out, v in chest.sides("consolidation"):
        s = chest.severity("consolidation", rows)
        tilt, center = chest.between(rows, -0.25, 0.25), 0.45 + chest.between(rows, -0.05, 0.08)
        across = out - center
        depth = v - chest.zone("consolidation", rows) - tilt * across
        block = ramp(0.13 + 0.17 * s - np.abs(depth), 14.0) * ramp(0.24 + 0.14 * s - np.abs(across), 10.0)
        bronchogram = np.abs(np.sin(np.float32(14) * across + np.float32(9) * depth)) < 0.22
        block *= (1.6 + 1.6 * s) * (1 - np.float32(0.55) * bronchogram)
        chest.opacity[rows] += block
        chest.enclose(rows, block)


def draw_infiltration(chest: Chest) -> None:
    """Streaky perihilar texture on one side."""
    for rows, _, out, v in chest.sides("infiltration"):
        s = chest.severity("infiltration", rows)
        extent = bump(((out - 0.35) / 0.35) ** 2 + ((v - 0.12) / 0.38) ** 2)
        chest.opacity[rows] += extent * np.clip(chest.fine[rows], 0, 2) * (0.6 + 0.6 * s)


def draw_edema(chest: Chest) -> None:
    """Bat-wing haze on both sides with Kerley lines at the lateral bases."""
    rows = chest.studies.rows("edema")
    s, out, v = chest.severity("edema", rows), chest.anatomy.out[rows], chest.anatomy.v[rows]
    wing = bump(((out - 0.30) / (0.36 + 0.10 * s)) ** 2 + ((v + 0.06) / (0.46 + 0.14 * s)) ** 2)
    kerley = (np.sin(np.float32(46) * v) > 0.55) * ramp(out - 0.56, 8.0) * ramp(v, 6.0)
    chest.opacity[rows] += (
        wing * (0.55 + 1.25 * s) * (1 + 0.22 * chest.cloud[rows]) + (0.45 + 0.4 * s) * kerley
    )


def draw_atelectasis(chest: Chest) -> None:
    """One or two plates above the raised dome and crowding of the base."""
    for rows, side, out, v in chest.sides("atelectasis"):
        s = chest.severity("atelectasis", rows)
        base = chest.anatomy.habitus.domes[rows, side][:, None]
        for plate in range(2):
            height = base - 0.10 - 0.13 * plate + chest.between(rows, -0.03, 0.03)
            distance = v - height - chest.between(rows, -0.35, 0.25) * (out - 0.42)
            there = (s > 0.45) if plate else np.ones_like(s)
            band = ramp(0.030 + 0.022 * s - np.abs(distance), 22.0) * ramp(0.25 - np.abs(out - 0.44), 10.0)
            chest.opacity[rows] += there * (1.6 + 1.0 * s) * band
        chest.opacity[rows] += 0.55 * s * ramp(v - base + 0.12, 6.0) * ramp(out, 8.0)


def draw_fibrosis(chest: Chest) -> None:
    """A coarse net at the base."""
    for rows, _, out, v in chest.sides("fibrosis"):
        s = chest.severity("fibrosis", rows)
        net = np.abs(np.sin(np.float32(26) * out + 2 * chest.fine[rows])) * np.abs(np.sin(np.float32(26) * v))
        chest.opacity[rows] += (net < 0.2) * ramp(out, 8.0) * ramp(v - 0.05, 4.0) * (0.7 + 0.7 * s)


def draw_lung_lesion(chest: Chest) -> None:
    """A round, well defined nodule or mass."""
    for rows, _, out, v in chest.sides("lung_lesion"):
        s = chest.severity("lung_lesion", rows)
        center_v = chest.zone("lung_lesion", rows) + chest.between(rows, -0.1, 0.1)
        center_u = 0.50 + chest.between(rows, -0.10, 0.08)
        distance = np.sqrt((out - center_u) ** 2 + (v - center_v) ** 2)
        chest.opacity[rows] += 2.4 * ramp(0.05 + 0.11 * (s - 0.25) - distance, 22.0)


def draw_pleural_effusion(chest: Chest) -> None:
    """Fluid with a lateral meniscus that hides the dome and the angle."""
    for rows, side, out, v in chest.sides("pleural_effusion"):
        s = chest.severity("pleural_effusion", rows)
        level = chest.anatomy.habitus.domes[rows, side][:, None] + 0.07 - 0.46 * s
        lateral = np.clip((out - 0.30) / 0.42, 0, 1)
        water = ramp(v - level + 0.24 * lateral * lateral - 0.05 * (1 - lateral), 14.0) * ramp(
            out - 0.08, 14.0
        )
        chest.fluid[rows] = np.maximum(chest.fluid[rows], water)


def draw_pleural_other(chest: Chest) -> None:
    """A lateral pleural rind with a calcified inner edge."""
    for rows, _, out, v in chest.sides("pleural_other"):
        s = chest.severity("pleural_other", rows)
        inner = np.float32(0.78) - 0.34 * s + 0.07 * chest.cloud[rows]
        lateral = ramp(out - 0.42, 8.0) * ramp(v + 0.55, 5.0)
        depth = chest.anatomy.radius2[rows] - inner
        chest.fluid[rows] = np.maximum(chest.fluid[rows], 0.9 * ramp(depth, 7.0) * lateral)
        edge = ramp(0.07 - np.abs(depth), 20.0) * (chest.fine[rows] > -0.3)
        chest.extra[rows] += 0.22 * edge * lateral * chest.anatomy.thorax[rows]


def draw_pneumothorax(chest: Chest) -> None:
    """Air between the chest wall and a white visceral pleural line; the collapsed lung is denser."""
    for rows, _, out, v in chest.sides("pneumothorax"):
        s = chest.severity("pneumothorax", rows)
        lower_end = -0.30 + 0.85 * s
        depth = (0.16 + 0.34 * s) * np.clip((lower_end - v) / 0.55, 0, 1)
        edge = np.sqrt(chest.anatomy.radius2[rows]) - (1.0 - depth)
        outer = np.maximum(ramp(out - 0.36, 6.0), ramp(-0.42 - v, 6.0) * ramp(out - 0.12, 8.0))
        outer *= ramp(depth - 0.03, 30.0)
        chest.free[rows] = ramp(edge, 18.0) * outer
        line = ramp(0.030 - np.abs(edge), 30.0) * outer
        chest.extra[rows] += 0.26 * line * chest.anatomy.thorax[rows]
        chest.opacity[rows] += 0.35 * s * ramp(-edge, 8.0) * ramp(out, 8.0)


LUNG_FINDINGS: tuple[tuple[str, Callable[[Chest], None]], ...] = (
    ("pneumonia", draw_pneumonia),
    ("consolidation", draw_consolidation),
    ("infiltration", draw_infiltration),
    ("edema", draw_edema),
    ("atelectasis", draw_atelectasis),
    ("fibrosis", draw_fibrosis),
    ("lung_lesion", draw_lung_lesion),
    ("pleural_effusion", draw_pleural_effusion),
    ("pleural_other", draw_pleural_other),
    ("pneumothorax", draw_pneumothorax),
)


def draw_lung_findings(chest: Chest) -> None:
    """Draw every finding of lung and pleura on the rows that carry it."""
    for name, draw in LUNG_FINDINGS:
        if chest.studies.has(name).any():
            draw(chest)
