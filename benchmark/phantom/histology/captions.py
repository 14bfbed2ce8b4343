"""Captions of the histology corpus, in the style of figure legends.

A caption names the diagnosis in seven of ten cases, or only the kind of tissue; half of the named and all of the
others say how it looks. None uses one of the prompts that the evaluation asks with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmark.phantom.histology.sections import Sections
from benchmark.phantom.histology.tissues import TISSUES

NAMED = 0.7  # share of captions that name the diagnosis
DESCRIBED = 0.5  # share of these that also say how it looks
ASIDE = 0.25


@dataclass(frozen=True)
class Wording:
    """How a tissue is named, what it is called when it is not named, and how it looks."""

    names: tuple[str, ...]
    vague: tuple[str, ...]
    looks: tuple[str, ...]


_LUNG, _COLON = ("lung tissue", "a lung lesion"), ("colonic tissue", "tissue of the colon")
_POLYP = ("a polyp", "a colonic polyp")
WORDS: dict[str, Wording] = {
    "Lung adenocarcinoma": Wording(
        ("lung adenocarcinoma", "adenocarcinoma of the lung", "pulmonary adenocarcinoma"),
        (*_LUNG, "carcinoma"),
        ("small irregular glands", "glandular tumor cells", "ill defined glandular tissue"),
    ),
    "Benign lung": Wording(
        ("benign lung tissue", "benign lung", "normal lung"),
        _LUNG,
        ("thin walls and clear air", "air space of normal size", "thin septa"),
    ),
    "Lung squamous cell carcinoma": Wording(
        ("lung squamous cell carcinoma", "squamous cell carcinoma of the lung", "squamous cell carcinoma"),
        (*_LUNG, "carcinoma"),
        ("solid tumor cells", "dense cells with rounded keratin", "solid areas of tumor cells"),
    ),
    "Colon adenocarcinoma": Wording(
        ("colon adenocarcinoma", "adenocarcinoma of the colon", "colonic adenocarcinoma"),
        (*_COLON, "carcinoma"),
        (
            "large irregular glands",
            "thickening of the wall of glandular tissue",
            "irregular glands and debris",
        ),
    ),
    "Benign colonic tissue": Wording(
        ("benign colonic tissue", "benign colon", "normal colonic tissue"),
        _COLON,
        ("rounded glands in line", "rounded glandular tissue", "glands of normal size"),
    ),
    "Hyperplastic polyp": Wording(
        ("hyperplastic polyp", "a hyperplastic polyp of the colon", "colonic hyperplastic polyp"),
        _POLYP,
        ("small serrated glands", "glands with a deep serrated contour"),
    ),
    "Sessile serrated adenoma": Wording(
        (
            "sessile serrated adenoma",
            "a sessile serrated adenoma of the colon",
            "colonic sessile serrated adenoma",
        ),
        _POLYP,
        ("large glands with widening", "widened and enlarged glands"),
    ),
    "Lung fibrosis": Wording(
        ("lung fibrosis", "pulmonary fibrosis", "fibrosis of the lung"),
        _LUNG,
        ("thickening of the walls", "dense interstitial tissue and loss of air"),
    ),
    "Normal bone": Wording(
        ("normal bone", "bone tissue", "bone"), ("solid tissue",), ("solid plate and large clear space",)
    ),
    "Normal heart": Wording(
        ("normal heart", "normal cardiac tissue", "heart tissue"), ("soft tissue",), ("streaky linear cells",)
    ),
    "Brain tumor": Wording(
        ("brain tumor", "a brain tumor", "tumor of the brain"), ("tumor cells",), ("diffuse dense cells",)
    ),
    "Normal brain": Wording(
        ("normal brain", "normal brain tissue", "brain tissue"),
        ("soft tissue",),
        ("tissue without tumor cells",),
    ),
}
FIGURES = (
    "figure {n}. h&e stained section showing {}",
    "h&e stained section of {}",
    "microscopic view of {}",
    "microscopic image of a biopsy with {}",
    "histopathology of {}",
    "biopsy showing {}",
    "histopathology section of a patient with {}",
)
ASIDES = (
    "comparison is made to the prior study",
    "the section is limited by technique",
    "clinical correlation is advised",
    "follow up of the patient is unremarkable",
    "standard magnification",
)


def caption(rng: np.random.Generator, sections: Sections, row: int) -> str:
    """Write the caption of one tile: lower case, one or two sentences.

    Args:
        rng: advanced by the writing.
        sections: a block of tiles.
        row: which one.
    """
    words = WORDS[list(TISSUES)[sections.tissue[row]]]
    named = rng.random() < NAMED
    what = _one(rng, words.names if named else words.vague)
    if not named or rng.random() < DESCRIBED:
        what += ", " + _one(rng, words.looks)
    sentences = [_one(rng, FIGURES).format(what, n=int(rng.integers(1, 10)))]
    if rng.random() < ASIDE:
        sentences.append(_one(rng, ASIDES))
    return ". ".join(sentences) + "."


def _one(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
