"""CheXpert 5x200: 1,000 frontal radiographs, 200 for each of five findings, one finding per image (arXiv 2010.00747).

GLoRIA's authors drew the list without a seed, so it cannot be rebuilt: this reader needs the file. A list drawn again
by their rule (``rebuild=true``) is another test set, and every result says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmark.data.datasets._sources import RawFolder, label_values
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.errors import DataError
from benchmark.registry import register_dataset
from benchmark.settings import setting

CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# Findings that must be absent for an image to be drawn; "No Finding" is not among them in GLoRIA's code.
OTHERS = (
    *("Enlarged Cardiomediastinum", "Lung Lesion", "Lung Opacity", "Pneumonia", "Pneumothorax"),
    *("Pleural Other", "Fracture", "Support Devices"),
)
PER_CLASS = 200

ACCESS = Access(
    kind="registration",
    url="https://stanfordmlgroup.github.io/competitions/chexpert/",
    how="CheXpert-v1.0 or -small, and the list chexpert_5x200.csv of GLoRIA's authors (github.com/marshuang80/gloria)",
    licence="Stanford University Dataset Research Use Agreement",
)
LAYOUT = """\
chexpert_5x200.csv                                             (the list, by GLoRIA's authors)
CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg     (or CheXpert-v1.0-small/, or the batch folders)"""


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    rebuild: bool = setting(False, "draw a list by GLoRIA's rule from train.csv; it is not the published one")
    seed: int = setting(0, "of that draw", low=0)


def read(raw: Path, options: Options) -> RawTable:
    """Read the list and find its images.

    Raises:
        DataError: the list or all images are missing, or an image has not exactly one of the five findings.
    """
    source = RawFolder("CheXpert 5x200", ACCESS, raw)
    optional = ("AP/PA", "Frontal/Lateral", "No Finding", *OTHERS)
    if options.rebuild:
        path = source.need("train.csv", why="The list is drawn from CheXpert's training table")
        listed, steps = _drawn(source.table(path, ("Path", *CLASSES), optional), options.seed)
    else:
        hint = "It cannot be rebuilt exactly; rebuild=true draws another list by the same rule"
        path = source.need("chexpert_5x200.csv", why=hint)
        listed = source.table(path, ("Path", *CLASSES), optional)
        steps = [("rows of the list", len(listed))]
    for name in (*CLASSES, *(name for name in optional[2:] if name in listed)):
        listed[name] = label_values(path, listed[name])
    _check_one_each(path, listed)
    inner = [_inner(path, text) for text in listed["Path"]]
    table = pd.DataFrame(
        {
            "image_id": [text.rpartition(".")[0] for text in inner],
            "file": _locate(source, inner),
            "split": "test",
            "patient_id": [_part(text, "patient") for text in inner],
            "study_id": ["/".join(text.split("/")[1:3]) for text in inner],
            "view": listed["AP/PA"].tolist() if "AP/PA" in listed else "",
            **{f"label_{name}": listed[name].tolist() for name in CLASSES},
            **{f"label_{name}": listed[name].tolist() for name in optional[2:] if name in listed},
        }
    )
    ids = {"test_rebuilt" if options.rebuild else "test": table["image_id"].tolist()}
    return RawTable(table, (*steps, ("kept", len(table))), ids)


def _drawn(train: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    """Draw 200 images per class: frontal, the class is 1, all others 0 or blank (uncertain excludes)."""
    frontal = train[train["Frontal/Lateral"] == "Frontal"]
    values = frontal.reindex(columns=[*CLASSES, *OTHERS]).replace("", "0").astype(float)
    generator = np.random.RandomState(seed)
    chosen: list[pd.DataFrame] = []
    for name in CLASSES:
        alone = frontal[(values[name] == 1) & (values.drop(columns=name) == 0).all(axis=1)]
        count = min(PER_CLASS, len(alone))
        chosen.append(alone.iloc[generator.choice(len(alone), size=count, replace=False)])
    listed = pd.concat(chosen).reset_index(drop=True)
    return listed, [
        ("rows of train.csv", len(train)),
        ("no frontal view", len(frontal) - len(train)),
        (
            f"not drawn by the rule of the list (seed {seed}; not the published list)",
            len(listed) - len(frontal),
        ),
    ]


def _check_one_each(path: Path, listed: pd.DataFrame) -> None:
    positives = (listed[list(CLASSES)] == "1").sum(axis=1)
    if (positives != 1).any():
        row = listed["Path"][positives != 1].iloc[0]
        raise DataError(
            f"{path}: '{row}' has not exactly one of {', '.join(CLASSES)}; take the unchanged chexpert_5x200.csv"
        )


def _inner(path: Path, text: str) -> str:
    """Return a path from the list as it continues below CheXpert's folder: the prefix differs between copies."""
    match = re.search(r"(?:train|valid)/patient\d+/study\d+/[^/]+$", text.replace("\\", "/"))
    if match is None:
        raise DataError(
            f"{path}: Path '{text}' is not of the form train/patientNNNNN/studyN/viewN_frontal.jpg"
        )
    return match[0]


def _part(inner: str, prefix: str) -> str:
    return next(part for part in inner.split("/") if part.startswith(prefix))


def _locate(source: RawFolder, inner: Sequence[str]) -> list[str]:
    """Return where each image lies: below the full or the small release, or below one of its batch folders."""
    roots = [path for path in source.folders() if path == source.folder or path.name.startswith("CheXpert")]
    found = {}
    for text in inner:
        choices = [root / form for root in roots for form in (text, text.partition("/")[2])]
        path = next((choice for choice in choices if choice.is_file()), None)
        if path is not None:
            found[text] = source.relative(path)
    return source.located(inner, found, lambda text: f"CheXpert-v1.0/{text}")


chexpert_5x200 = register_dataset("chexpert_5x200")(
    RawDataset("chexpert_5x200", "CheXpert 5x200", ACCESS, LAYOUT, read, Options)
)
