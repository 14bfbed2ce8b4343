"""The parts of the suite: one corpus, one validation set and four shifted evaluation sets.

Each part is a hospital, a rule for which findings its studies carry, and what is published with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.phantom.chest.domains import CHEXPERT, MIMIC, NIH, RSNA, SIIM, Domain
from benchmark.phantom.chest.render import IMAGE_SIZE, Films, render
from benchmark.phantom.chest.reports import labels_of, report
from benchmark.phantom.chest.studies import (
    BLOCK,
    CHEXPERT_LABELS,
    FINDINGS,
    INDEX,
    NIH_LABELS,
    Studies,
    block_rng,
    chexpert_truth,
    concatenate,
    nih_truth,
    sample_present,
    sample_studies,
)
from benchmark.phantom.shapes import Array

if TYPE_CHECKING:
    import pandas as pd

GENERATOR_VERSION = 3  # raise it whenever the same seed would draw something else

FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# Opacities and other changes that a look for "something white" takes for pneumonia.
RSNA_OTHERS = ("edema", "lung_lesion", "atelectasis", "infiltration", "fibrosis", "pleural_effusion")
# Of the real set's 20,672 images without pneumonia, 11,821 are "No Lung Opacity / Not Normal" (RSNA 2018).
RSNA_ABNORMAL = 0.57
SIIM_OTHERS = ("cardiomegaly", "pleural_effusion", "atelectasis", "pneumonia", "fracture", "emphysema")
# The validation set draws its findings almost evenly (a lesion is a mass or a nodule, hence twice), so that
# each of its 14 classes has at least 60 positives among 1500 studies.
NIH_SHARES = {
    name: 2.0 if name == "lung_lesion" else 1.0
    for name in FINDINGS
    if name not in ("enlarged_cardiomediastinum", "fracture", "support_devices")
}

Present = Callable[[np.random.Generator, int, Domain], Array]


@dataclass(frozen=True)
class Part:
    """One part of the suite.

    Attributes:
        domain: its hospital.
        count: its studies when nothing else is asked for.
        present: (rng, index of the block's first study, hospital) -> findings of a block, [BLOCK, 16] bool.
        split: what it is for.
        labels: ``report`` (read from the report), ``chexpert`` or ``nih`` (truth).
        boxes, masks: whether boxes of pneumonia and consolidation, and pneumothorax masks, are published with it.
    """

    domain: Domain
    count: int
    present: Present
    split: str
    labels: str
    boxes: bool = False
    masks: bool = False


def _corpus(rng: np.random.Generator, first: int, domain: Domain) -> Array:
    del first
    return sample_present(rng, BLOCK, domain)


def _with_devices(rng: np.random.Generator, present: Array, domain: Domain) -> Array:
    present[:, INDEX["support_devices"]] = rng.random(len(present)) < domain.devices
    return present


def _five(rng: np.random.Generator, first: int, domain: Domain) -> Array:
    """Exactly one of the five findings per study, in turn."""
    present = np.zeros((BLOCK, len(FINDINGS)), bool)
    turn = [INDEX[FIVE[study % 5].lower().replace(" ", "_")] for study in range(first, first + BLOCK)]
    present[np.arange(BLOCK), turn] = True
    return _with_devices(rng, present, domain)


@dataclass(frozen=True)
class OneAgainst:
    """Every second study has the target; ``hard`` of the rest, ``beside`` of these has something else."""

    target: str
    others: tuple[str, ...]
    hard: float
    beside: float = 0.3

    def __call__(self, rng: np.random.Generator, first: int, domain: Domain) -> Array:
        """Draw the findings of a block, [BLOCK, 16] bool."""
        positive = np.arange(first, first + BLOCK) % 2 == 1
        findings = np.zeros((BLOCK, len(FINDINGS)), bool)
        other = np.array([INDEX[name] for name in self.others])[rng.integers(0, len(self.others), BLOCK)]
        findings[np.arange(BLOCK), other] = rng.random(BLOCK) < np.where(positive, self.beside, self.hard)
        findings[:, INDEX[self.target]] = positive
        return _with_devices(rng, findings, domain)


@dataclass(frozen=True)
class OneAmong:
    """Every study has the target, and ``beside`` different ones of the others."""

    target: str
    others: tuple[str, ...]
    beside: int

    def __call__(self, rng: np.random.Generator, first: int, domain: Domain) -> Array:
        """Draw the findings of a block, [BLOCK, 16] bool."""
        del first
        order = np.argsort(rng.random((BLOCK, len(self.others))), axis=1)[:, : self.beside]
        findings = np.zeros((BLOCK, len(FINDINGS)), bool)
        findings[np.arange(BLOCK)[:, None], np.array([INDEX[name] for name in self.others])[order]] = True
        findings[:, INDEX[self.target]] = True
        return _with_devices(rng, findings, domain)


def _even(rng: np.random.Generator, first: int, domain: Domain) -> Array:
    """One fifth normal; the rest carries one to three findings, drawn almost evenly."""
    del first
    columns = np.array([INDEX[name] for name in NIH_SHARES])
    shares = np.array(list(NIH_SHARES.values()))
    # Ranking exponential draws over weights is a weighted choice without replacement, for the whole block.
    order = np.argsort(rng.exponential(size=(BLOCK, len(columns))) / shares, axis=1)
    number = rng.choice(4, BLOCK, p=[0.20, 0.40, 0.28, 0.12])
    present = np.zeros((BLOCK, len(FINDINGS)), bool)
    for rank in range(3):
        present[np.arange(BLOCK), columns[order[:, rank]]] |= number > rank
    return _with_devices(rng, present, domain)


PARTS: dict[str, Part] = {
    "mimic": Part(MIMIC, 3072, _corpus, "train", "report"),
    "nih": Part(NIH, 1500, _even, "val", "nih"),
    "chexpert_5x200": Part(CHEXPERT, 1000, _five, "test", "chexpert"),
    "rsna": Part(
        RSNA, 1000, OneAgainst("pneumonia", RSNA_OTHERS, hard=RSNA_ABNORMAL), "test", "chexpert", boxes=True
    ),
    "rsna_boxes": Part(
        RSNA, 1000, OneAmong("consolidation", RSNA_OTHERS, beside=2), "test", "chexpert", boxes=True
    ),
    "siim": Part(
        SIIM, 1000, OneAgainst("pneumothorax", SIIM_OTHERS, hard=0.5), "test", "chexpert", masks=True
    ),
}


@dataclass(frozen=True)
class PartData:
    """A drawn part: images [n, S, S] uint8, manifest, pneumothorax masks [n, S, S] bool, and the truth."""

    images: Array
    manifest: pd.DataFrame
    masks: Array
    studies: Studies


def blocks(name: str, count: int, seed: int) -> Iterator[tuple[Studies, Films]]:
    """Yield the blocks of BLOCK studies that hold the first ``count`` studies of a part."""
    part = PARTS[name]
    for number in range(-(-count // BLOCK)):
        rng = block_rng(seed, name, number)
        studies = sample_studies(rng, part.present(rng, number * BLOCK, part.domain), part.domain)
        yield studies, render(rng, studies, part.domain)


def draw_part(name: str, count: int, seed: int, advance: Callable[[int], None] | None = None) -> PartData:
    """Draw the first ``count`` studies of a part; study i is the same whatever the count.

    Args:
        name: a key of PARTS.
        count: studies.
        seed: of the whole suite.
        advance: told the number of studies of each block once it is drawn.
    """
    drawn: list[tuple[Studies, Films]] = []
    for block in blocks(name, count, seed):
        drawn.append(block)
        if advance is not None:
            advance(BLOCK)
    studies = concatenate([block for block, _ in drawn], count)
    films = [film for _, film in drawn]
    boxes = [box for film in films for box in film.boxes][:count]
    return PartData(
        images=np.concatenate([film.images for film in films])[:count],
        manifest=_manifest(name, studies, boxes, seed),
        masks=np.concatenate([film.pneumothorax for film in films])[:count],
        studies=studies,
    )


def _manifest(name: str, studies: Studies, boxes: list[Any], seed: int) -> pd.DataFrame:
    import pandas as pd

    part, count = PARTS[name], len(studies)
    ids = [f"{name}-{seed}-{number:06d}" for number in range(count)]
    columns: dict[str, Any] = {
        "image_id": ids,
        "patient_id": ids,  # one study per patient
        "study_id": ids,
        "view": np.where(studies.portable, "AP", "PA"),
        "split": [part.split] * count,
    }
    if part.labels == "report":
        columns["text"], labels = _reports(name, studies, seed)
    else:
        labels = (nih_truth if part.labels == "nih" else chexpert_truth)(studies).astype(float)
    names = NIH_LABELS if part.labels == "nih" else CHEXPERT_LABELS
    columns |= {f"label_{label}": pd.array(labels[:, at]).astype("Int8") for at, label in enumerate(names)}
    if part.boxes:
        columns["boxes"] = [json.dumps(box) for box in boxes]
    columns |= {"original_width": [IMAGE_SIZE] * count, "original_height": [IMAGE_SIZE] * count}
    manifest: pd.DataFrame = pd.DataFrame(columns)
    return manifest


def _reports(name: str, studies: Studies, seed: int) -> tuple[list[str], Array]:
    """Return the reports of the studies and the labels [n, 14] read from them, drawn per block too."""
    said = []
    for row in range(len(studies)):
        if row % BLOCK == 0:
            rng = block_rng(seed, f"{name}-text", row // BLOCK)
        said.append(report(rng, studies, row))
    return [item.text for item in said], np.stack([labels_of(item) for item in said])


def describe(name: str, count: int, seed: int) -> dict[str, Any]:
    """Return everything that decides what a part looks like, as JSON: the key of its cache folder."""
    part = PARTS[name]
    return {
        "generator_version": GENERATOR_VERSION,
        "part": name,
        "n": count,
        "seed": seed,
        "image_size": IMAGE_SIZE,
        "split": part.split,
        "labels": part.labels,
        "composition": asdict(part.present) if isinstance(part.present, OneAgainst | OneAmong) else None,
        "hospital": asdict(part.domain),
    }
