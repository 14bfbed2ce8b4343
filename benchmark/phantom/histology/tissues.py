"""Tissues and laboratories as data: how each tissue is built, and how each laboratory stains and scans it.

The corpus comes from ``ARTICLES``; the evaluation sets come from two other laboratories, so adaptation is tested
across a stain shift.
"""

from __future__ import annotations

from dataclasses import dataclass

GLANDS, SHEET, SEPTA, FIBRES = "glands", "sheet", "septa", "fibres"


@dataclass(frozen=True)
class Tissue:
    """One tissue: its pattern and the traits of the classic picture; lengths in half-widths of the tile.

    Attributes:
        pattern: which drawing it is: glands round open lumens, a sheet of cells, septa round empty spaces, or fibres.
        jitter: disorder of the gland centres (standard deviation).
        squeeze: 1 where each gland has a shape of its own, 0 where all are round.
        radius, wall: of a gland; of septa, ``wall`` is their thickness in units of the texture.
        serration: depth of the saw teeth on a lumen, as a share of its radius.
        ragged: waviness of the outlines.
        clear: how empty a lumen is.
        debris: nuclear debris inside the lumens.
        nuclei: how densely nuclei lie between the structures, 1 as in most tissues.
        pearls: strength of the keratin pearls in a sheet.
    """

    pattern: str
    jitter: float = 0.10
    squeeze: float = 0.0
    radius: float = 0.25
    wall: float = 0.045
    serration: float = 0.0
    ragged: float = 0.0
    clear: float = 0.85
    debris: float = 0.0
    nuclei: float = 1.0
    pearls: float = 0.0


TISSUES: dict[str, Tissue] = {
    "Lung adenocarcinoma": Tissue(
        GLANDS, jitter=0.24, squeeze=1, radius=0.22, wall=0.060, ragged=0.10, clear=0.55
    ),
    "Benign lung": Tissue(SEPTA, wall=0.30),
    "Lung squamous cell carcinoma": Tissue(SHEET, pearls=1.0),
    "Colon adenocarcinoma": Tissue(
        GLANDS, jitter=0.20, squeeze=1, radius=0.26, wall=0.075, ragged=0.10, clear=0.55, debris=0.6
    ),
    "Benign colonic tissue": Tissue(GLANDS, jitter=0.07),
    "Hyperplastic polyp": Tissue(GLANDS, serration=0.20),
    "Sessile serrated adenoma": Tissue(GLANDS, radius=0.31, serration=0.10),
    # Tissues that no test asks for, as a corpus of figures has them.
    "Lung fibrosis": Tissue(SEPTA, wall=0.75, nuclei=1.3),
    "Normal bone": Tissue(SEPTA, wall=0.60, nuclei=0.3),
    "Normal heart": Tissue(FIBRES, nuclei=0.6),
    "Brain tumor": Tissue(SHEET, nuclei=1.3),
    "Normal brain": Tissue(SHEET, nuclei=0.2),
}
NEUTRAL: dict[str, Tissue] = {
    GLANDS: Tissue(
        GLANDS,
        0.14,
        squeeze=0.4,
        radius=0.26,
        wall=0.054,
        serration=0.05,
        ragged=0.04,
        clear=0.73,
        debris=0.1,
    ),
    SHEET: Tissue(SHEET, nuclei=0.8, pearls=0.2),
    SEPTA: Tissue(SEPTA, wall=0.5, nuclei=0.8),
    FIBRES: Tissue(FIBRES, nuclei=0.8),
}
"""What looks like no tissue of its pattern in particular; the grade of a patient says how far a tile is from it."""


@dataclass(frozen=True)
class Lab:
    """Statistics of one laboratory; pairs are (mean, standard deviation) unless said otherwise.

    Attributes:
        haematoxylin, eosin: absorption of red, green and blue light by each stain.
        spread: standard deviation of all absorptions and of the lamp's colour between patients.
        thickness: factor on the absorption of a section; its logarithm is drawn.
        zoom: magnification.
        extent: share of the tile that the tissue takes, in standard deviations of the texture (0 is a half); the
            rest is stroma.
        grade: Beta(a, b) from 0 (no tissue in particular) to 1 (the classic picture).
        blur: probability of one 3x3 binomial pass.
        noise: white noise, range of the standard deviation.
        fold: probability that the section is folded.
    """

    name: str
    haematoxylin: tuple[float, float, float] = (0.65, 0.85, 0.35)
    eosin: tuple[float, float, float] = (0.12, 0.75, 0.30)
    spread: float = 0.07
    thickness: tuple[float, float] = (0.0, 0.12)
    zoom: tuple[float, float] = (1.0, 0.08)
    extent: tuple[float, float] = (1.0, 0.5)
    grade: tuple[float, float] = (3.0, 1.5)
    blur: float = 0.2
    noise: tuple[float, float] = (0.02, 0.05)
    fold: float = 0.1


ARTICLES = Lab("articles", spread=0.13, extent=(0.9, 0.5))
LC25000 = Lab(
    "lc25000",
    haematoxylin=(0.95, 0.85, 0.20),
    eosin=(0.05, 0.55, 0.60),
    spread=0.05,
    thickness=(0.10, 0.15),
    zoom=(0.88, 0.06),
    extent=(0.5, 0.5),
    grade=(2.5, 1.8),
    blur=0.4,
)
MHIST = Lab(
    "mhist",
    haematoxylin=(0.45, 0.75, 0.65),
    eosin=(0.35, 0.90, 0.20),
    spread=0.05,
    thickness=(-0.30, 0.15),
    zoom=(1.05, 0.06),
    extent=(0.5, 0.5),
    grade=(2.5, 1.5),
    noise=(0.03, 0.06),
)
