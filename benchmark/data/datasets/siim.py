"""SIIM-ACR Pneumothorax Segmentation (2019): 12,047 frontal radiographs with run-length masks.

The labelled images are those of the first stage, train and test together; Kaggle's page still has the table of the
second stage (``stage_2_train.csv``) but only its unlabelled images. Three layouts are around: (a) the DICOM trees of
stage 1, (b) what Kaggle offers now, which cannot be used alone, (c) PNG copies named by image id or by number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import PIL.Image

from benchmark.data.datasets._sources import RawFolder, hold_out, parts, sample_rows
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.errors import DataError
from benchmark.registry import register_dataset

SIDE = 1024
"""Masks are encoded on a square of this side, whatever size a copy of the image has."""
_IMAGES = (".dcm", ".png", ".jpg", ".jpeg")
_NAMES = ("new_filename", "ImageId")

ACCESS = Access(
    kind="registration",
    url="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    how="stage_2_train.csv, and the stage-1 images dicom-images-train/ and dicom-images-test/ from a copy of them "
    "(Kaggle's page has stage_2_images/ only, which have no labels)",
    licence="Kaggle competition rules, non-commercial research and education",
)
LAYOUT = """\
stage_2_train.csv                                             (12,047 images; train-rle.csv has stage-1 train only)
(a) dicom-images-train/<study>/<series>/<ImageId>.dcm and dicom-images-test/<study>/<series>/<ImageId>.dcm
(c) or any folder of <ImageId>.png
    or <n>_train_<0|1>_.png with stage_1_train_images.csv and stage_1_test_images.csv (new_filename, ImageId)"""


def read(raw: Path) -> RawTable:
    """Read all labelled images; rows of one image are merged, its mask is their union.

    Raises:
        DataError: a file is missing, or the layout has no labelled images.
    """
    source = RawFolder("SIIM-ACR pneumothorax", ACCESS, raw)
    path = source.need("stage_2_train.csv", "train-rle.csv")
    rows = source.table(path, ("ImageId", "EncodedPixels"))
    runs: dict[str, list[str]] = {}
    for item, code in zip(rows["ImageId"], rows["EncodedPixels"], strict=True):
        runs.setdefault(item, []).extend([] if code in ("-1", "") else [code])
    ids = list(runs)  # in the order of the table: the test part is drawn from it
    positives = sorted(item for item in ids if runs[item])
    test = [ids[row] for row in sample_rows(len(ids), int(0.3 * len(ids)), seed=42)]
    train, held_out = hold_out(positives, 0.3)
    val, segmentation_test = hold_out(held_out, 0.5)
    table = pd.DataFrame(
        {
            "image_id": ids,
            "file": _files(source, ids),
            "split": parts(ids, train=set(ids) - set(test), test=test),
            "split_segmentation": parts(ids, train=train, val=val, test=segmentation_test),
            "label_Pneumothorax": ["1" if runs[item] else "0" for item in ids],
            "label_No Finding": ["0" if runs[item] else "1" for item in ids],
            "_runs": [json.dumps(runs[item]) for item in ids],
        }
    )
    steps = [
        (f"rows of {path.name}", len(rows)),
        ("further rows of the same image", len(ids) - len(rows)),
        ("kept", len(ids)),
        ("of these with pneumothorax", len(positives)),
    ]
    lists = {"all": ids, "test": test, "segmentation_train": train, "segmentation_val": val}
    return RawTable(table, tuple(steps), {**lists, "segmentation_test": segmentation_test})


def mask(row: Mapping[str, Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the union of an image's masks, at the size (h, w) of this copy of the image."""
    union = np.zeros((SIDE, SIDE), dtype=bool)
    for code in json.loads(row["_runs"]):
        union |= decode_runs(code, (SIDE, SIDE))
    if size == union.shape:
        return union
    resized = PIL.Image.fromarray(union).resize((size[1], size[0]), PIL.Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=bool)


def decode_runs(code: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the mask of a run-length code: pairs of offset and length, columns first.

    Each offset counts from the end of the run before it, so "1 2 3 1" on 4 rows and 3 columns is 0 1 1 0 in the first
    column and 0 0 1 0 in the second.

    Raises:
        DataError: no such code, or it runs over the end.
    """
    height, width = size
    try:
        numbers = [int(number) for number in code.split()]
    except ValueError:
        numbers = [-1]
    rest = height * width - sum(numbers)
    if len(numbers) % 2 or min(numbers, default=0) < 0 or rest < 0:
        raise DataError(f"SIIM-ACR: '{code[:40]}' is not a run-length code of {height}x{width} pixels")
    inside = np.arange(len(numbers) + 1) % 2 == 1
    return np.repeat(inside, [*numbers, rest]).reshape(width, height).T


def _files(source: RawFolder, ids: Sequence[str]) -> list[str]:
    found = source.files(_IMAGES)
    by_id = {name.rpartition(".")[0]: path for name, path in found.items() if "masks" not in path}
    for listing in ("stage_1_train_images.csv", "stage_1_test_images.csv"):
        if (path := source.find(listing)) is not None:
            names = source.table(path, _NAMES)
            numbered = zip(names["ImageId"], names["new_filename"].str.rpartition(".")[0], strict=True)
            by_id |= {item: by_id[name] for item, name in numbered if name in by_id}
    expected = "dicom-images-train/<study>/<series>/{}.dcm".format
    return source.located(ids, by_id, expected, _hint(source, by_id))


def _hint(source: RawFolder, files: Mapping[str, str]) -> str:
    """Say what the folder lacks when images are missing and it is one of the known layouts."""
    if source.find("stage_2_images") is not None:
        return (
            "stage_2_images/ID_*.dcm are the unlabelled images of stage 2; the labelled ones are stage 1, which Kaggle "
            "no longer offers (Academic Torrents and PNG copies do)"
        )
    if any("_train_" in name or "_test_" in name for name in files):
        return (
            "images named <n>_train_<0|1>_.png need stage_1_train_images.csv and stage_1_test_images.csv, "
            "which say their ids"
        )
    if source.find("dicom-images-train") is not None and source.find("dicom-images-test") is None:
        return "stage_2_train.csv covers both trees of stage 1, and dicom-images-test/ is missing"
    return ""


siim = register_dataset("siim")(RawDataset("siim", "SIIM-ACR pneumothorax", ACCESS, LAYOUT, read, mask=mask))
