"""The parts of the histology suite: one corpus of captioned tiles, its held-out patients, three shifted test sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.phantom.chest.render import IMAGE_SIZE
from benchmark.phantom.chest.studies import BLOCK, block_rng
from benchmark.phantom.histology.captions import caption
from benchmark.phantom.histology.sections import TILES, Sections, render, sample_sections
from benchmark.phantom.histology.tissues import ARTICLES, LC25000, MHIST, TISSUES, Lab
from benchmark.phantom.shapes import Array

if TYPE_CHECKING:
    import pandas as pd

GENERATOR_VERSION = 1  # raise it whenever the same seed would draw something else
NAMES = tuple(TISSUES)


@dataclass(frozen=True)
class Part:
    """One part of the suite.

    Attributes:
        lab: where its tiles were stained and scanned.
        count: its tiles when nothing else is asked for.
        classes: its tissues; patients have them in turn, those of a corpus by chance.
        masks: whether it has masks: never.
        split: what it is for; a "train" part has captions and no labels, as PMC-OA, the others labels (the truth).
    """

    lab: Lab
    count: int
    classes: tuple[str, ...]
    split: str
    masks: bool = False


PARTS: dict[str, Part] = {
    "pmc_oa": Part(ARTICLES, 1536, NAMES, "train"),
    "pmc_oa_val": Part(ARTICLES, 960, NAMES, "val"),
    "lc25000_lung": Part(LC25000, 960, NAMES[:3], "test"),
    "lc25000_colon": Part(LC25000, 960, NAMES[3:5], "test"),
    "mhist": Part(MHIST, 960, NAMES[5:7], "test"),
}


@dataclass(frozen=True)
class PartData:
    """A drawn part: images [n, S, S, 3] uint8, manifest, and the tissue [n] of every tile (index into TISSUES)."""

    images: Array
    manifest: pd.DataFrame
    tissue: Array
    masks: None = None


def draw_part(name: str, count: int, seed: int, advance: Callable[[int], None] | None = None) -> PartData:
    """Draw the first ``count`` tiles of a part; tile i is the same whatever the count.

    Args:
        name: a key of PARTS.
        count: tiles.
        seed: of the whole suite.
        advance: told the number of tiles of each block once it is drawn.
    """
    part, images, tissue, texts = PARTS[name], [], [], []
    for number in range(-(-count // BLOCK)):
        rng = block_rng(seed, f"histology-{name}", number)
        sections = sample_sections(rng, _patients(rng, part, number), part.lab)
        images.append(render(rng, sections, part.lab, IMAGE_SIZE))
        tissue.append(sections.tissue)
        if part.split == "train":
            texts += _captions(sections, name, seed, number)
        if advance is not None:
            advance(BLOCK)
    tissues = np.concatenate(tissue)[:count]
    return PartData(np.concatenate(images)[:count], _manifest(name, tissues, texts[:count], seed), tissues)


def _patients(rng: np.random.Generator, part: Part, number: int) -> Array:
    """Return the tissues of the patients of a block."""
    count = BLOCK // TILES
    chosen = np.array([NAMES.index(name) for name in part.classes])
    if part.split == "train":
        drawn: Array = rng.choice(chosen, count)
        return drawn
    return chosen[np.arange(number * count, (number + 1) * count) % len(chosen)]


def _captions(sections: Sections, name: str, seed: int, number: int) -> list[str]:
    """Return the captions of a block, from a stream of their own: other words, same pictures."""
    rng = block_rng(seed, f"histology-{name}-text", number)
    return [caption(rng, sections, row) for row in range(len(sections))]


def _manifest(name: str, tissue: Array, texts: list[str], seed: int) -> pd.DataFrame:
    import pandas as pd

    part, count = PARTS[name], len(tissue)
    patients = [f"{name}-{seed}-p{number // TILES:06d}" for number in range(count)]
    columns: dict[str, Any] = {
        "image_id": [f"{name}-{seed}-{number:06d}" for number in range(count)],
        "patient_id": patients,
        "study_id": patients,
        "split": [part.split] * count,
    }
    if part.split == "train":
        columns["text"] = texts
    else:
        columns |= {
            f"label_{label}": (tissue == NAMES.index(label)).astype(np.int8) for label in part.classes
        }
    columns |= {"original_width": [IMAGE_SIZE] * count, "original_height": [IMAGE_SIZE] * count}
    return pd.DataFrame(columns)


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
        "classes": list(part.classes),
        "laboratory": asdict(part.lab),
    }
