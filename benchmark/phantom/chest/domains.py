"""Hospitals as data: how each one positions patients, exposes films and marks them.

The corpus comes from ``MIMIC``; every evaluation set comes from another hospital, so adaptation is always
tested across a shift. ``FIGURE`` is where publication figures come from, on which the generalist backbone is
pretrained: soft, bright, clear-cut films that cover the hospitals only in part, so that adaptation has a shift to
overcome as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """Acquisition statistics of one hospital; pairs are (mean, standard deviation) unless said otherwise."""

    name: str
    rotation: float = 3.0  # degrees, standard deviation
    scale: tuple[float, float] = (1.0, 0.05)  # magnification
    shift: float = 0.03  # standard deviation, film half-widths
    portable: float = 0.3  # share of AP films: magnified heart, high diaphragm
    gamma: tuple[float, float] = (1.0, 0.10)  # film response
    contrast: tuple[float, float] = (1.0, 0.08)
    brightness: float = 0.03  # standard deviation
    noise: tuple[float, float] = (0.02, 0.04)  # white noise, range of the standard deviation
    grain: float = 0.02  # correlated noise
    blur: float = 0.2  # probability of one 3x3 binomial pass
    bones: tuple[float, float] = (0.9, 0.15)  # visibility of the ribs
    marker: float = 0.3  # probability of a burnt-in side letter
    collimator: float = 0.2  # probability of a dark border
    arrow: float = 0.0  # probability of a figure arrow
    severity: tuple[float, float] = (2.2, 1.8)  # Beta(a, b), mapped to [0.25, 1]
    devices: float = 0.2  # least probability of support devices


MIMIC = Domain("mimic", portable=0.6, devices=0.35)
CHEXPERT = Domain(
    "chexpert",
    rotation=4.0,
    scale=(0.94, 0.06),
    shift=0.05,
    portable=0.7,
    gamma=(1.22, 0.14),
    contrast=(0.88, 0.10),
    noise=(0.03, 0.06),
    grain=0.03,
    bones=(1.1, 0.2),
    marker=0.8,
    severity=(1.8, 2.0),
    devices=0.45,
)
RSNA = Domain(
    "rsna",
    rotation=5.0,
    scale=(1.06, 0.07),
    shift=0.05,
    portable=0.5,
    gamma=(1.20, 0.10),
    contrast=(0.92, 0.10),
    noise=(0.025, 0.05),
    grain=0.035,
    blur=0.5,
    bones=(0.75, 0.15),
    marker=0.6,
    severity=(2.2, 1.8),
    devices=0.3,
)
SIIM = Domain(
    "siim",
    rotation=5.0,
    scale=(1.0, 0.08),
    shift=0.06,
    portable=0.4,
    gamma=(1.10, 0.15),
    contrast=(1.15, 0.10),
    noise=(0.03, 0.06),
    grain=0.03,
    collimator=0.5,
    severity=(1.8, 2.0),
    devices=0.4,
)
NIH = Domain(
    "nih",
    rotation=4.0,
    scale=(0.98, 0.06),
    gamma=(1.08, 0.12),
    noise=(0.025, 0.05),
    grain=0.03,
    blur=0.4,
    marker=0.5,
    severity=(1.9, 2.0),
)
FIGURE = Domain(
    "figure",
    rotation=5.0,
    scale=(0.92, 0.08),
    shift=0.06,
    portable=0.2,
    gamma=(0.75, 0.15),
    contrast=(1.20, 0.15),
    brightness=0.06,
    noise=(0.0, 0.025),
    grain=0.01,
    blur=0.7,
    bones=(0.6, 0.1),
    marker=0.5,
    arrow=0.4,
    collimator=0.4,
    severity=(3.0, 1.3),
    devices=0.1,
)
