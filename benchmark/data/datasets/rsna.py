"""RSNA Pneumonia Detection Challenge (2018), stage 2: 26,684 frontal radiographs with pneumonia boxes.

Labels, boxes and the 15 % test part follow the ACE-LoRA authors' preparation; the test part depends on the sorted image
ids alone. ``patientId`` names an image, not a person: patients come from RSNA's mapping to NIH files where it is given.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from benchmark.data.datasets._sources import RawFolder, hold_out, parts, read_json
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.errors import DataError
from benchmark.registry import register_dataset

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
_BOX = ("x", "y", "width", "height")

ACCESS = Access(
    kind="registration",
    url="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
    how="stage_2_train_images/, stage_2_train_labels.csv, stage_2_detailed_class_info.csv; from rsna.org also "
    + MAPPING,
    licence="RSNA challenge rules, non-commercial research and education",
)
LAYOUT = f"""\
stage_2_train_images/<patientId>.dcm
stage_2_train_labels.csv, stage_2_detailed_class_info.csv
{MAPPING}    (optional: patients, overlap with NIH)"""


def read(raw: Path) -> RawTable:
    """Read all labelled images.

    Raises:
        DataError: a file is missing, or tables contradict each other.
    """
    source = RawFolder("RSNA pneumonia", ACCESS, raw)
    stage_1 = (
        "stage_1_train_labels.csv is the first stage, whose images differ"
        if source.find("stage_1_train_labels.csv")
        else ""
    )
    path = source.need("stage_2_train_labels.csv", why=stage_1)
    rows = source.table(path, ("patientId", *_BOX, "Target"))
    boxes = _boxes(path, rows)
    ids = sorted(boxes)
    positives = [item for item in ids if boxes[item]]
    rest, test = hold_out(ids, 0.15)
    detection_train, held_out = hold_out(positives, 0.3)
    detection_val, detection_test = hold_out(held_out, 0.5)
    table = pd.DataFrame(
        {
            "image_id": ids,
            "file": _files(source, ids),
            "split": parts(ids, train=rest, test=test),
            "split_detection": parts(ids, train=detection_train, val=detection_val, test=detection_test),
            "label_Pneumonia": ["1" if boxes[item] else "0" for item in ids],
            "label_No Finding": ["0" if boxes[item] else "1" for item in ids],
            "boxes": [json.dumps(boxes[item]) for item in ids],
        }
    )
    _add_class_info(source, table)
    patients = _add_patients(source, table)
    lists = {"all": ids, "test": test, "detection_train": detection_train, "detection_val": detection_val}
    steps = [
        ("rows of the label table", len(rows)),
        ("further boxes of the same image", len(ids) - len(rows)),
        ("kept", len(ids)),
        ("of these with pneumonia", len(positives)),
        ("of these with a known patient", patients),
    ]
    return RawTable(table, tuple(steps), {**lists, "detection_test": detection_test})


def _boxes(path: Path, rows: pd.DataFrame) -> dict[str, list[list[float]]]:
    """Return [x1, y1, x2, y2] of every box by image, none where Target is 0."""
    numbers = rows[list(_BOX)].apply(pd.to_numeric, errors="coerce")
    boxed = numbers.notna().all(axis=1) & (numbers[["width", "height"]] > 0).all(axis=1)
    wrong = ~rows["Target"].isin(["0", "1"]) | (boxed != (rows["Target"] == "1"))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"{path}: row {row + 2}: Target must be 1 where a box stands and 0 elsewhere; download it again"
        )
    boxes: dict[str, list[list[float]]] = {}
    for item, target, x, y, width, height in zip(
        rows["patientId"], rows["Target"], *(numbers[name].tolist() for name in _BOX), strict=True
    ):
        found = boxes.setdefault(item, [])
        if target == "1":
            found.append([x, y, x + width, y + height])
    return boxes


def _files(source: RawFolder, ids: list[str]) -> list[str]:
    folder = source.need("stage_2_train_images", why="stage_2_test_images has no labels and is not used")
    files = source.files((".dcm", ".png", ".jpg", ".jpeg"), folder)
    by_id = {name.rpartition(".")[0]: path for name, path in files.items()}
    return source.located(ids, by_id, lambda item: f"{source.relative(folder)}/{item}.dcm")


def _add_class_info(source: RawFolder, table: pd.DataFrame) -> None:
    """Add the three-way class: images without pneumonia are normal, or abnormal in another way."""
    path = source.find("stage_2_detailed_class_info.csv")
    if path is None:
        return
    rows = source.table(path, ("patientId", "class")).drop_duplicates()
    classes = dict(zip(rows["patientId"], rows["class"], strict=True))
    if (
        len(classes) != len(rows)
        or (table["image_id"].map(classes).eq("Lung Opacity") != table["label_Pneumonia"].eq("1")).any()
    ):
        raise DataError(f"{path} contradicts stage_2_train_labels.csv; both must be of stage 2")
    table["class_info"] = table["image_id"].map(classes)


def _add_patients(source: RawFolder, table: pd.DataFrame) -> int:
    """Add patient and study of the NIH file behind each image, where RSNA's mapping is given; return how many."""
    path = source.find(MAPPING)
    if path is None:
        return 0
    images = nih_images(path)
    table["study_id"] = [images.get(item, "").rpartition(".")[0] for item in table["image_id"]]
    # an image without a known patient is a patient of its own: intervals are drawn over patients
    known = table["study_id"] != ""
    table["patient_id"] = table["study_id"].str.partition("_")[0].where(known, table["image_id"])
    return int(known.sum())


def nih_images(path: Path) -> dict[str, str]:
    """Return RSNA image id -> file name in NIH ChestX-ray14.

    Raises:
        DataError: not RSNA's mapping file.
    """
    try:
        return {str(record["subset_img_id"]): str(record["img_id"]) for record in read_json(path)}
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: expected a list of records with subset_img_id and img_id") from error


rsna = register_dataset("rsna")(RawDataset("rsna", "RSNA pneumonia", ACCESS, LAYOUT, read, patients="nih"))
