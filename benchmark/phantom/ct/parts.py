"""The parts of the CT suite: pairs of one hospital, its held-out patients, and a second hospital."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.phantom.chest.studies import BLOCK, block_rng
from benchmark.phantom.ct.anatomy import FINDINGS, PREVALENCE, SIZE, Scanner, draw_scan
from benchmark.phantom.ct.reports import report
from benchmark.phantom.shapes import Array

if TYPE_CHECKING:
    import pandas as pd

GENERATOR_VERSION = 1  # raise it whenever the same seed would draw something else
SOURCE = Scanner(noise=18)
"""Of the volumes that the embedded backbone was pretrained on."""
HERE = Scanner(noise=45, blur=1.0, sharpen=30, offset=25)
ELSEWHERE = Scanner(noise=30, blur=0.5, offset=15)
TWICE = 8
"""Patients of a block with two scans; the others have one."""


@dataclass(frozen=True)
class Part:
    """One part of the suite: its scanner, its volumes when nothing else is asked for, what it is for."""

    scanner: Scanner
    count: int
    split: str
    masks: bool = False


PARTS: dict[str, Part] = {
    "train": Part(HERE, 1024, "train"),
    "val": Part(HERE, 384, "val"),
    "test": Part(HERE, 512, "test"),
    "elsewhere": Part(ELSEWHERE, 384, "test"),
}


@dataclass(frozen=True)
class PartData:
    """A drawn part: volumes [n, D, H, W] int16 in HU, and its manifest."""

    images: Array
    manifest: pd.DataFrame
    masks: None = None


def draw_part(name: str, count: int, seed: int, advance: Callable[[int], None] | None = None) -> PartData:
    """Draw the first ``count`` volumes of a part; volume i is the same whatever the count.

    Args:
        name: a key of PARTS.
        count: volumes.
        seed: of the whole suite.
        advance: told the number of volumes of each block once it is drawn.
    """
    volumes, present = np.empty((count, *SIZE), dtype=np.int16), np.empty((count, len(FINDINGS)), dtype=bool)
    patients, texts = [], []
    for block in range(-(-count // BLOCK)):
        rng = block_rng(seed, f"ct-{name}", block)
        found, numbers = _findings(rng)
        words = block_rng(seed, f"ct-{name}-text", block)
        for row in range(min(BLOCK, count - block * BLOCK)):
            at = block * BLOCK + row
            present[at] = found[row]
            volumes[at], _ = draw_scan(
                block_rng(seed, f"ct-{name}-scan", at), found[row], PARTS[name].scanner
            )
            texts.append(report(words, found[row]))
            patients.append(f"{name}-{seed}-p{block * BLOCK + numbers[row]:06d}")
        if advance is not None:
            advance(BLOCK)
    return PartData(volumes, _manifest(name, patients, texts, present, seed))


def _findings(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the findings ``[BLOCK, K]`` and patients of a block of scans; a second scan shows much the same."""
    found = rng.random((BLOCK, len(FINDINGS))) < PREVALENCE
    first = np.arange(BLOCK)
    first[BLOCK - TWICE :] = np.arange(TWICE)
    again = rng.random((TWICE, len(FINDINGS))) < 0.8
    found[BLOCK - TWICE :] = np.where(again, found[:TWICE], found[BLOCK - TWICE :])
    return found, first


def _manifest(name: str, patients: list[str], texts: list[str], present: Array, seed: int) -> pd.DataFrame:
    import pandas as pd

    ids = [f"{name}-{seed}-{number:06d}" for number in range(len(patients))]
    labels = {f"label_{label}": present[:, column].astype(np.int8) for column, label in enumerate(FINDINGS)}
    columns: dict[str, Any] = {
        "image_id": ids, "patient_id": patients, "study_id": ids, "split": PARTS[name].split, "text": texts, **labels,
        "original_width": SIZE[2], "original_height": SIZE[1],
    }  # fmt: skip
    return pd.DataFrame(columns)


def describe(name: str, count: int, seed: int) -> dict[str, Any]:
    """Return everything that decides what a part looks like, as JSON: the key of its cache folder."""
    part = PARTS[name]
    return {
        "generator_version": GENERATOR_VERSION, "part": name, "n": count, "seed": seed, "size": list(SIZE),
        "split": part.split, "scanner": asdict(part.scanner),
    }  # fmt: skip
