"""The other pictures of the generalist corpus: histology, CT, MRI, forearm film, fundus and ultrasound.

Findings share words with chest films where medicine does (effusion, consolidation, edema, nodule, fracture),
which is what makes a generalist's text tower useful. Every modality is one function ``(rng, count, size) ->
(images, classes)``: images [n, S, S, 3] uint8, classes [n] in the order of the names in :data:`MODALITIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmark.phantom.shapes import CLOUD, FINE, Array, bump, grid, ramp, texture, uniform

_HAEMATOXYLIN = np.array([0.65, 0.85, 0.35], np.float32)
_EOSIN = np.array([0.12, 0.75, 0.30], np.float32)
# Histology classes, in the order of their names in MODALITIES.
_LUNG_ADENO, _SQUAMOUS, _BENIGN_LUNG, _COLON_ADENO, _BENIGN_COLON, _HYPERPLASTIC, _SERRATED = range(7)
# Gland architecture per class: jitter of the centres, radius, wall thickness, depth of the serration.
_JITTER = np.array([0.24, 0.10, 0.10, 0.20, 0.07, 0.10, 0.10], np.float32)
_RADIUS = np.array([0.22, 0.25, 0.25, 0.26, 0.25, 0.25, 0.31], np.float32)
_WALL = np.array([0.060, 0.045, 0.045, 0.075, 0.045, 0.045, 0.045], np.float32)
_SERRATION = np.array([0, 0, 0, 0, 0, 0.20, 0.10], np.float32)

Drawer = Callable[[np.random.Generator, int, int], tuple[Array, Array]]


@dataclass(frozen=True)
class Modality:
    """One kind of picture: how it is drawn, what its classes are called, and how its captions are phrased."""

    draw: Drawer
    classes: tuple[str, ...]
    captions: tuple[str, ...]
    vague: tuple[str, ...] = ()  # what a caption may say instead of the class
    exact: float = 1.0  # share of captions that name the class


def _finish(rng: np.random.Generator, fields: Array, size: int, noise: float) -> Array:
    """Add noise and return [n, S, S, 3] uint8; grey fields [n, P] are repeated to three channels."""
    fields = fields + rng.standard_normal(fields.shape, dtype=np.float32) * np.float32(noise)
    if fields.ndim == 2:
        fields = np.repeat(fields[..., None], 3, -1)
    return (np.clip(fields, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(len(fields), size, size, 3)


def _nearest_gland(rng: np.random.Generator, classes: Array, size: int) -> tuple[Array, Array]:
    """Return (distance to, angle about) the nearest of nine jittered gland centres, each [n, P]."""
    x, y = grid(size)
    count = len(classes)
    turn = uniform(rng, count, 0, 2 * np.pi)
    xr, yr = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    crooked = np.isin(classes, (_LUNG_ADENO, _COLON_ADENO))[:, None]
    jitter = _JITTER[classes][:, None]
    nearest, angle = np.full_like(xr, 9), np.zeros_like(xr)
    for number in range(9):
        offset = jitter * rng.standard_normal((count, 2)).astype(np.float32)
        dx = xr - ((number % 3 - 1) * 0.70 + offset[:, :1])
        dy = yr - ((number // 3 - 1) * 0.70 + offset[:, 1:])
        squeeze = np.where(crooked, uniform(rng, count, 0.6, 1.5), np.float32(1))
        distance = np.sqrt(dx * dx * squeeze + dy * dy / squeeze)
        closer = distance < nearest
        nearest, angle = np.where(closer, distance, nearest), np.where(closer, np.arctan2(dy, dx), angle)
    return nearest, angle


def _stain(rng: np.random.Generator, classes: Array, size: int) -> tuple[Array, Array]:
    """Return the (haematoxylin, eosin) uptake of each slide, [n, P]."""

    def of(*members: int) -> Array:
        return np.isin(classes, members)[:, None]

    fine, cloud = texture(rng, len(classes), size, FINE), texture(rng, len(classes), size, CLOUD)
    nearest, angle = _nearest_gland(rng, classes, size)
    wall = _WALL[classes][:, None]
    radius = _RADIUS[classes][:, None] * (1 + _SERRATION[classes][:, None] * np.sign(np.sin(7 * angle)))
    radius = radius * (1 + 0.10 * cloud * of(_LUNG_ADENO, _COLON_ADENO))
    nuclei = (fine > 0.75).astype(np.float32)
    ring, lumen = ramp(wall - np.abs(nearest - radius), 18.0), ramp(radius - wall - nearest, 18.0)
    blue = 0.18 + 0.55 * nuclei * (nearest > radius) + 1.2 * ring * (0.65 + 0.35 * nuclei)
    blue = blue * (1 - 0.9 * lumen) + 0.6 * lumen * nuclei * of(_COLON_ADENO)  # necrotic debris
    pink = (0.55 + 0.12 * cloud) * (1 - np.where(of(_LUNG_ADENO, _COLON_ADENO), 0.55, 0.85) * lumen)
    pearl = ramp(0.24 - nearest, 8.0)  # keratin pearls in sheets of cells
    blue = np.where(of(_SQUAMOUS), (0.35 + 0.75 * (fine > 0.25)) * (1 - 0.8 * pearl), blue)
    pink = np.where(of(_SQUAMOUS), 0.7 + 0.9 * np.abs(np.sin(22 * nearest)) * pearl, pink)
    septa = ramp(0.30 - np.abs(cloud + 0.25 * fine), 5.0)  # thin walls round white air
    blue = np.where(of(_BENIGN_LUNG), septa * (0.3 + 0.6 * nuclei), blue)
    return blue, np.where(of(_BENIGN_LUNG), 0.08 + 0.7 * septa, pink)


def draw_histology(
    rng: np.random.Generator, count: int, size: int, spread: float = 0.09
) -> tuple[Array, Array]:
    """Draw stained slides: light = exp(-(haematoxylin + eosin)); ``spread`` varies the stain."""
    classes = rng.integers(0, 7, count)
    blue, pink = _stain(rng, classes, size)

    def vary(mean: Array) -> Array:
        varied: Array = mean + np.float32(spread) * rng.standard_normal((count, 1, 3)).astype(np.float32)
        return varied

    absorbed = np.clip(blue, 0, 3)[..., None] * vary(_HAEMATOXYLIN)
    absorbed += np.clip(pink, 0, 3)[..., None] * vary(_EOSIN)
    light = np.exp(-absorbed) * vary(np.ones(3, np.float32))
    return _finish(rng, light, size, 0.03), classes


def draw_ct(rng: np.random.Generator, count: int, size: int) -> tuple[Array, Array]:
    """Draw axial slices of the chest."""
    x, y = grid(size)
    classes = rng.integers(0, 6, count)
    side = np.where(rng.random((count, 1)) < 0.5, -1, 1).astype(np.float32)
    s = uniform(rng, count, 0.4, 1)
    wall = (x / uniform(rng, count, 0.82, 0.95)) ** 2 + (y / uniform(rng, count, 0.62, 0.76)) ** 2
    lung = ramp(1 - ((np.abs(x) - 0.43) / 0.30) ** 2 - (y / 0.48) ** 2, 4.0) * ramp(0.84 - wall, 6.0)
    slices = (
        0.55 * ramp(1 - wall, 5.0) - 0.45 * lung + 0.18 * bump((x / 0.20) ** 2 + ((y - 0.52) / 0.20) ** 2)
    )
    slices += 0.08 * bump(((x - 0.1) / 0.3) ** 2 + ((y + 0.1) / 0.3) ** 2)
    slices += 0.06 * lung * np.clip(texture(rng, count, size, FINE), 0, 2)
    half, out, front = ramp(x * side, 10.0), x * side - 0.45, 0.30 - 0.35 * s
    nodule = np.sqrt(out * out + (y - uniform(rng, count, -0.2, 0.2)) ** 2)
    changes = (
        np.zeros_like(lung),
        0.45 * lung * half * ramp(y - 0.45 + 0.5 * s, 14.0),
        half * lung * (0.4 * ramp(0.03 - np.abs(y + front), 20.0) - 0.14 * ramp(-y - front, 14.0)),
        0.42 * lung * bump((out / 0.32) ** 2 + ((y - 0.1) / 0.4) ** 2) * s,
        0.45 * ramp(0.05 + 0.08 * s - nodule, 22.0),
        0.28 * lung * s * (1 + 0.3 * texture(rng, count, size, CLOUD)),
    )
    slices += _select(changes, classes)
    return _finish(rng, slices, size, 0.03), classes


def _select(changes: tuple[Array, ...], classes: Array) -> Array:
    """Return row i of the change that belongs to class i's number, [n, P]."""
    return np.stack(changes)[classes, np.arange(len(classes))]


def draw_mri(rng: np.random.Generator, count: int, size: int) -> tuple[Array, Array]:
    """Draw axial slices of the brain."""
    x, y = grid(size)
    classes = rng.integers(0, 4, count)
    skull = (x / uniform(rng, count, 0.68, 0.78)) ** 2 + (y / uniform(rng, count, 0.82, 0.92)) ** 2
    brain = ramp(0.82 - skull, 6.0)
    slices = 0.75 * ramp(0.06 - np.abs(skull - 1), 12.0) + brain * (
        0.45 + 0.06 * texture(rng, count, size, FINE)
    )
    slices -= 0.30 * bump(((np.abs(x) - 0.11) / 0.10) ** 2 + (y / 0.32) ** 2)
    radius = uniform(rng, count, 0.12, 0.26)
    distance = np.sqrt((x - uniform(rng, count, -0.4, 0.4)) ** 2 + (y - uniform(rng, count, -0.4, 0.4)) ** 2)
    ring = 0.40 * ramp(0.04 - np.abs(distance - radius), 16.0) - 0.15 * ramp(radius - distance, 14.0)
    blood = 0.45 * ramp(radius - distance + 0.05 * texture(rng, count, size, CLOUD), 12.0)
    swelling = 0.28 * bump((distance / (2.2 * radius)) ** 2)
    slices += brain * _select((np.zeros_like(brain), ring, blood, swelling), classes)
    return _finish(rng, slices, size, 0.03), classes


def draw_forearm(rng: np.random.Generator, count: int, size: int) -> tuple[Array, Array]:
    """Draw plain films of the two bones of the forearm."""
    x, y = grid(size)
    classes = rng.integers(0, 3, count)
    angle = uniform(rng, count, -0.5, 0.5)
    across, along = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    site = along - uniform(rng, count, -0.4, 0.4)
    fracture, lytic = (classes == 1)[:, None], (classes == 2)[:, None]
    step = fracture * uniform(rng, count, 0.05, 0.14) * np.sign(site) * ramp(np.abs(site), 10.0)
    width = 0.13 + 0.10 * along**4
    films = 0.12 + 0.22 * ramp(0.5 - np.abs(across), 8.0)
    for axis in (-0.22, 0.20):
        distance = np.abs(across - axis - step)
        films = (
            films + 0.32 * ramp(width - distance, 18.0) + 0.14 * ramp(0.035 - np.abs(distance - width), 20.0)
        )
    films -= fracture * 0.25 * ramp(0.03 - np.abs(site), 20.0) * ramp(0.4 - np.abs(across), 10.0)
    films -= lytic * 0.25 * bump(((across - 0.2) / 0.13) ** 2 + (site / 0.2) ** 2)
    return _finish(rng, films, size, 0.03), classes


def draw_fundus(rng: np.random.Generator, count: int, size: int) -> tuple[Array, Array]:
    """Draw colour photographs of the retina."""
    x, y = grid(size)
    classes = rng.integers(0, 4, count)
    eye = ramp(0.92 - np.sqrt(x * x + y * y), 16.0)
    nerve = x - np.where(rng.random((count, 1)) < 0.5, -0.4, 0.4).astype(np.float32)
    distance = np.sqrt(nerve * nerve + y * y)
    arcade = np.abs(y) - 0.55 * np.sqrt(np.abs(nerve)) + 0.04 * texture(rng, count, size, CLOUD)
    vessels = ramp(0.022 - np.abs(arcade), 26.0)
    spots = ramp(texture(rng, count, size, FINE) - 1.9, 5.0) * eye
    blood, exudate = spots * (classes == 1)[:, None], spots * (classes == 2)[:, None]
    disc = ramp(0.17 - distance, 16.0)
    cup = ramp(np.where((classes == 3)[:, None], np.float32(0.14), np.float32(0.07)) - distance, 20.0)
    red = 0.75 - 0.15 * vessels - 0.45 * blood + 0.2 * bump((distance / 0.2) ** 2)
    green = 0.36 - 0.20 * vessels - 0.30 * blood + 0.45 * exudate + 0.45 * disc + 0.15 * cup
    blue = 0.14 + 0.15 * disc + 0.3 * cup
    return _finish(rng, eye[..., None] * np.stack([red, green, blue], -1), size, 0.02), classes


def draw_ultrasound(rng: np.random.Generator, count: int, size: int) -> tuple[Array, Array]:
    """Draw sector scans with speckle."""
    x, y = grid(size)
    classes = rng.integers(0, 4, count)
    depth, angle = np.sqrt(x * x + (y + 1.1) ** 2), np.abs(np.arctan2(x, y + 1.1))
    fan = ramp(2.0 - depth, 20.0) * ramp(depth - 0.25, 20.0) * ramp(0.62 - angle, 16.0)
    cloud = texture(rng, count, size, CLOUD)
    speckle = 0.38 + 0.14 * texture(rng, count, size, FINE) + 0.06 * cloud
    radius = uniform(rng, count, 0.15, 0.3)
    distance = np.sqrt(
        (x - uniform(rng, count, -0.25, 0.25)) ** 2 + (y - uniform(rng, count, -0.2, 0.4)) ** 2
    )
    cyst = -0.95 * speckle * ramp(radius - distance, 16.0)
    mass = 0.25 * ramp(radius - distance + 0.05 * texture(rng, count, size, FINE), 10.0)
    fluid = -0.9 * speckle * ramp(0.12 - np.abs(y - 0.1 - 0.1 * x), 14.0)
    speckle = speckle + _select(
        (np.zeros_like(speckle), cyst, mass, np.broadcast_to(fluid, speckle.shape)), classes
    )
    return _finish(rng, speckle * fan, size, 0.02), classes


MODALITIES: dict[str, Modality] = {
    "histology": Modality(
        draw_histology,
        (
            "lung adenocarcinoma",
            "lung squamous cell carcinoma",
            "benign lung tissue",
            "colon adenocarcinoma",
            "benign colonic tissue",
            "hyperplastic polyp",
            "sessile serrated adenoma",
        ),
        (
            "a histopathology slide showing {}",
            "histopathology image of {}",
            "h&e stained section of {}",
            "biopsy with {}",
            "presence of {} tissue on image",
            "microscopic view of {}",
        ),
        ("tumor cells", "glandular tissue", "tissue", "a polyp", "carcinoma"),
        0.55,
    ),
    "ct": Modality(
        draw_ct,
        ("no finding", "pleural effusion", "pneumothorax", "consolidation", "lung nodule", "pulmonary edema"),
        (
            "axial ct of the chest showing {}",
            "computed tomography demonstrates {}",
            "chest ct image with {}",
            "ct scan of {}",
        ),
        ("an abnormal finding",),
        0.75,
    ),
    "mri": Modality(
        draw_mri,
        ("a normal brain", "a brain tumor", "hemorrhage", "cerebral edema"),
        ("mri of the brain showing {}", "axial brain mri with {}", "magnetic resonance image of {}"),
    ),
    "forearm": Modality(
        draw_forearm,
        ("a normal bone", "a displaced fracture", "a lytic bone lesion"),
        (
            "radiograph of the forearm showing {}",
            "x-ray of the limb with {}",
            "plain radiograph demonstrates {}",
        ),
    ),
    "fundus": Modality(
        draw_fundus,
        ("a normal retina", "retinal hemorrhage", "hard exudates", "glaucoma with optic disc cupping"),
        ("fundus photograph showing {}", "retinal image with {}", "color fundus image of {}"),
    ),
    "ultrasound": Modality(
        draw_ultrasound,
        ("normal tissue", "a simple cyst", "a solid mass", "an effusion"),
        ("ultrasound image showing {}", "sonography demonstrates {}", "ultrasound of {}"),
    ),
}


def caption(rng: np.random.Generator, modality: Modality, label: int) -> str:
    """Return a figure caption of one picture: the class by name, or something vague."""
    what = modality.classes[label]
    if modality.vague and rng.random() >= modality.exact:
        what = modality.vague[int(rng.integers(len(modality.vague)))]
    return modality.captions[int(rng.integers(len(modality.captions)))].format(what) + "."
