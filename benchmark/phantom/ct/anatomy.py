"""Chest CT volumes in small, drawn in Hounsfield units (HU): anatomy, then findings, then what a scanner adds.

Axes are slices upwards, rows to the back, columns to the patient's left ("SPL"); coordinates run from -1 to 1 along
each. Edges are as soft as partial volumes make them. Every finding leaves a map of where it was drawn.

Shape letters: D slices, H rows, W columns; K findings; t x h x w boxes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchmark.phantom.shapes import Array

SIZE = (24, 48, 48)
SPACING = (15.0, 7.5, 7.5)  # millimetres
AXES = "SPL"
BOXES = (6, 6, 6)  # of the maps of findings; they are the boxes of the embedded backbone's tokens
FINDINGS = (
    "Lung nodule", "Pleural effusion", "Consolidation", "Emphysema", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Atelectasis",
)  # fmt: skip
"""As CT-RATE calls them."""
PREVALENCE = (0.45, 0.15, 0.20, 0.20, 0.12, 0.10, 0.25, 0.25)
_NODULE, _EFFUSION, _CONSOLIDATION, _EMPHYSEMA, _CARDIOMEGALY, _PERICARDIAL, _CALCIFICATION, _ATELECTASIS = (
    range(8)
)
_AIR, _SOFT = -1000.0, 40.0


@dataclass(frozen=True)
class Scanner:
    """How a hospital's volumes look.

    Attributes:
        noise: standard deviation, in HU. blur: of a slice's profile, in slices. sharpen: HU added at edges.
        offset: standard deviation of a volume's calibration, in HU.
    """

    noise: float
    blur: float = 0.0
    sharpen: float = 0.0
    offset: float = 0.0


def _axes() -> tuple[Array, Array, Array]:
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in SIZE)
    return z[:, None, None], y[None, :, None], x[None, None, :]


_Z, _Y, _X = _axes()


def _inside(squared: Array, sharpness: float = 5.0) -> Array:
    """Return how much of each voxel lies inside a surface where ``squared`` is 1, in [0, 1]."""
    return np.clip((1 - np.sqrt(squared)) * np.float32(sharpness) + np.float32(0.5), 0, 1)


@dataclass
class Patient:
    """A body that findings are drawn into.

    Attributes:
        rng: of everything that follows. hu: volume ``[D, H, W]``. lung: share of lung in each voxel.
        maps: finding -> share of it in each voxel.
    """

    rng: np.random.Generator
    hu: Array
    lung: Array
    heart: Array
    sides: tuple[Array, Array]
    frame: tuple[Array, Array, Array]
    maps: dict[int, Array] = field(default_factory=dict)

    def paint(self, share: Array, value: float, finding: int | None = None, *, stays: bool = False) -> None:
        """Replace a share of each voxel by a value; what was lung there is lung no longer, unless it ``stays``."""
        self.hu += share * (np.float32(value) - self.hu)
        if not stays:
            self.lung = self.lung * (1 - share)
        if finding is not None:
            known = self.maps.get(finding)
            self.maps[finding] = share if known is None else np.maximum(known, share)

    def ball(self, radius: float, stretch: float = 1.0) -> Array:
        """Return a ball somewhere in the lungs, as shares of voxels."""
        inner = np.flatnonzero(self.lung > 0.9)
        where = np.unravel_index(int(inner[self.rng.integers(len(inner))]), SIZE)
        window, squared = [], np.float32(0)
        for axis, (at, n) in enumerate(zip(where, SIZE, strict=True)):
            half = np.float32(radius * (stretch if axis == 0 else 1.0))
            reach = int(half * n / 2) + 3
            near = np.arange(max(0, at - reach), min(n, at + reach + 1), dtype=np.float32)
            window.append(slice(int(near[0]), int(near[-1]) + 1))
            squared = squared + (((near - at) * (2 / n) / half) ** 2).reshape(
                [-1 if i == axis else 1 for i in range(3)]
            )
        share = np.zeros(SIZE, dtype=np.float32)
        share[tuple(window)] = _inside(np.asarray(squared), radius * 24) * self.lung[tuple(window)]
        return share


def draw_body(rng: np.random.Generator, *, large_heart: bool) -> Patient:
    """Draw a chest without findings, but for the size of its heart."""
    scale = np.float32(rng.uniform(0.92, 1.06))
    x = (_X - np.float32(rng.uniform(-0.05, 0.05))) / scale
    y = (_Y - np.float32(rng.uniform(-0.05, 0.05))) / scale
    z = _Z + np.zeros_like(x + y)

    def ellipsoid(centre: tuple[float, float, float], half: tuple[float, float, float]) -> Array:
        parts = zip((z, y, x), centre, half, strict=True)
        return np.asarray(sum(((axis - np.float32(c)) / np.float32(h)) ** 2 for axis, c, h in parts))

    body = (y / np.float32(0.78)) ** 2 + (x / np.float32(0.95)) ** 2 + 0 * z
    hu = np.full(SIZE, _AIR, dtype=np.float32)
    hu += _inside(body, 12) * (np.float32(-100) - hu)  # fat, then muscle
    hu += _inside(body * np.float32(1.17), 12) * (np.float32(_SOFT) - hu)
    dome = np.float32(rng.uniform(-0.72, -0.60)) + np.float32(0.25) * (
        1 - (y / 0.6) ** 2 - (np.abs(x) - 0.42) ** 2 * 4
    )
    above = np.clip((z - dome) * 8 + np.float32(0.5), 0, 1)  # the diaphragm, liver and stomach below it
    right, left = (
        _inside(ellipsoid((-0.05, 0.0, side * 0.44), (1.05, 0.60, 0.37)), 8) * above for side in (-1, 1)
    )
    lung = np.maximum(right, left)
    hu += lung * (np.float32(rng.uniform(-870, -810)) - hu)
    patient = Patient(rng, hu, lung, np.zeros_like(lung), (right, left), (z, y, x))
    for _ in range(14):  # vessels
        patient.hu += 0.5 * patient.ball(0.05, 2.0) * (np.float32(-200) - patient.hu)
    for value, share in (
        (float(rng.uniform(350, 600)), _inside(ellipsoid((0, 0.56, 0), (4, 0.13, 0.12)), 5)),  # spine
        (450.0, _ribs(body, z, y)),
        (50.0, _inside(ellipsoid((0.1, 0.32, 0.12), (1.2, 0.09, 0.09)), 5)),  # aorta
        (-990.0, _inside(ellipsoid((1.0, 0.10, 0), (0.65, 0.08, 0.07)), 5)),  # trachea
    ):
        patient.paint(share, value)
    size = rng.uniform(0.92, 1.05) * (1.32 if large_heart else 1.0)
    patient.heart = ellipsoid((-0.28, -0.10, 0.13), (0.42 * size, 0.32 * size, 0.35 * size))
    heart = _inside(patient.heart, 6) * (body < 0.8) * above
    patient.paint(heart, 45.0, _CARDIOMEGALY if large_heart else None)
    return patient


def _ribs(body: Array, z: Array, y: Array) -> Array:
    ring = np.clip((0.09 - np.abs(np.sqrt(body) - np.float32(0.87))) * 14, 0, 1)
    return ring * np.clip((np.sin(z * 14 + y * 3) - 0.35) * 3, 0, 1)


def draw_scan(rng: np.random.Generator, present: Array, scanner: Scanner) -> tuple[Array, Array]:
    """Draw one volume.

    Args:
        rng: of this volume alone.
        present: findings, bool ``[K]``.
        scanner: that takes it.

    Returns:
        (HU ``[D, H, W]`` int16, bool ``[K, t, h, w]``: boxes in which a finding fills half a voxel or more).
    """
    patient = draw_body(rng, large_heart=bool(present[_CARDIOMEGALY]))
    for finding in (
        _EMPHYSEMA,
        _CONSOLIDATION,
        _NODULE,
        _ATELECTASIS,
        _EFFUSION,
        _PERICARDIAL,
        _CALCIFICATION,
    ):
        if present[finding]:
            _DRAW[finding](patient)
    maps = np.zeros((len(FINDINGS), *BOXES), dtype=bool)
    for finding, share in patient.maps.items():
        maps[finding] = _boxed(share >= 0.5)
    return _scanned(rng, patient.hu, scanner), maps


def _boxed(mask: Array) -> Array:
    t, h, w = BOXES
    cut = mask.reshape(t, SIZE[0] // t, h, SIZE[1] // h, w, SIZE[2] // w)
    return np.asarray(cut.any(axis=(1, 3, 5)))


def _emphysema(patient: Patient) -> None:
    for _ in range(int(patient.rng.integers(12, 20))):
        patient.paint(patient.ball(0.16), -975.0, _EMPHYSEMA, stays=True)


def _consolidation(patient: Patient) -> None:
    patient.paint(patient.ball(0.32), float(patient.rng.uniform(-60, 30)), _CONSOLIDATION)


def _nodule(patient: Patient) -> None:
    for _ in range(int(patient.rng.integers(1, 4))):
        share = patient.ball(0.12 * float(patient.rng.uniform(0.85, 1.25)))
        patient.paint(share, float(patient.rng.uniform(10, 80)), _NODULE)


def _atelectasis(patient: Patient) -> None:
    z, y, _ = patient.frame
    side = patient.sides[int(patient.rng.integers(2))]
    plate = np.clip((0.11 - np.abs(z + np.float32(0.42) + 0.3 * y)) * 10, 0, 1)
    patient.paint(plate * np.minimum(side, patient.lung), 0.0, _ATELECTASIS)


def _effusion(patient: Patient) -> None:
    _, y, _ = patient.frame
    side = patient.sides[int(patient.rng.integers(2))]
    level = np.clip((y - np.float32(patient.rng.uniform(0.12, 0.26))) * 12, 0, 1)
    patient.paint(level * np.minimum(side, patient.lung), 12.0, _EFFUSION)


def _pericardial(patient: Patient) -> None:
    ring = np.clip((np.sqrt(patient.heart) - 1) * 10 + 0.5, 0, 1) * _inside(
        patient.heart / np.float32(1.6), 8
    )
    patient.paint(ring * (patient.hu > -950), 10.0, _PERICARDIAL)


def _calcification(patient: Patient) -> None:
    _, y, _ = patient.frame
    wall = np.argwhere((patient.heart > 0.72) & (patient.heart < 1.0) & (y < 0))
    share = np.zeros(SIZE, dtype=np.float32)
    for at in wall[patient.rng.integers(len(wall), size=int(patient.rng.integers(4, 8)))]:
        share[tuple(slice(max(int(i) - 1, 0), int(i) + 1) for i in at)] = 1.0
    patient.paint(share, float(patient.rng.uniform(500, 900)), _CALCIFICATION)


_DRAW = {
    _EMPHYSEMA: _emphysema, _CONSOLIDATION: _consolidation, _NODULE: _nodule, _ATELECTASIS: _atelectasis,
    _EFFUSION: _effusion, _PERICARDIAL: _pericardial, _CALCIFICATION: _calcification,
}  # fmt: skip


def _scanned(rng: np.random.Generator, hu: Array, scanner: Scanner) -> Array:
    from scipy import ndimage

    grain = ndimage.gaussian_filter(rng.standard_normal(SIZE).astype(np.float32), 0.6)
    hu = hu + grain * np.float32(scanner.noise / grain.std())
    if scanner.blur:
        hu = ndimage.gaussian_filter(hu, (scanner.blur, 0.3, 0.3))
    if scanner.sharpen:
        edges = hu - ndimage.gaussian_filter(hu, (0, 1, 1))
        hu = hu + edges * np.float32(scanner.sharpen) / (np.abs(edges).mean() + 1)
    hu = hu + np.float32(rng.normal(0, scanner.offset) if scanner.offset else 0)
    return np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
