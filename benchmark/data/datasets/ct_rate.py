"""CT-RATE: chest CT volumes with reports and 18 findings that a classifier read from the reports (arXiv 2403.17834).

Two releases of the files are in use: the first has blank headers and raw values, the second ("fixed") headers and
Hounsfield units; one table of metadata belongs to both. benchmark/data/prepare/volumes.py tells them apart by content.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmark.data.datasets._sources import RawFolder, label_values, read_lines
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.data.prepare.reports import collapse
from benchmark.data.prepare.volumes import AXES, INTERCEPT, SLOPE, SPACING
from benchmark.registry import register_dataset
from benchmark.settings import setting

FINDINGS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis",
    "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
PARTS = {"train": "train", "valid": "validation"}
"""Part, as files of volumes and labels are called -> as files of reports and metadata are."""
_NAME, _ENDING = "VolumeName", ".nii.gz"
_ABSENT = "Not given."

ACCESS = Access(
    kind="registration",
    url="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE",
    how="dataset/ of one part at least: volumes, multi_abnormality_labels, radiology_text_reports, metadata",
    licence="CC BY-NC-SA 4.0",
)
LAYOUT = """\
dataset/valid/valid_1/valid_1_a/valid_1_a_1.nii.gz (or dataset/valid_fixed/..., and the same of train)
dataset/multi_abnormality_labels/valid_predicted_labels.csv
dataset/radiology_text_reports/validation_reports.csv
dataset/metadata/validation_metadata.csv"""


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    reconstructions: Literal["first", "all"] = setting(
        "first", "first: one volume for each scan; labels and reports never differ within a scan"
    )
    text: Literal["findings_impression", "findings"] = setting(
        "findings_impression", "what of a report becomes the text; CT-CLIP was trained on findings"
    )
    held_out: int = setting(
        0, "patients of the part train that become the part held_out: for thresholds and validation", low=0
    )


def read(raw: Path, options: Options) -> RawTable:
    """Read the parts that are there: train, valid, or both.

    Raises:
        DataError: no part is there, a table lacks columns, or labels are no labels.
    """
    source = RawFolder("CT-RATE", ACCESS, raw)
    found = {part: source.find(f"{part}_predicted_labels.csv") for part in PARTS}
    if not any(found.values()):
        raise source.error("neither train_predicted_labels.csv nor valid_predicted_labels.csv is there")
    tables: list[pd.DataFrame] = []
    steps: list[tuple[str, int]] = []
    ids: dict[str, list[str]] = {}
    for part, path in found.items():
        if path is None:
            continue
        table, counted = _part(source, part, path, options)
        tables.append(table)
        steps += counted
        names = source.table(path, (_NAME,))[_NAME].tolist()
        ids |= {f"{part} volumes": names, f"{part} first reconstruction": [n for n in names if _is_first(n)]}
    table = pd.concat(tables, ignore_index=True)
    wanted = [f"{name}{_ENDING}" for name in table["image_id"]]
    table["file"] = source.located(wanted, _volumes(source), _expected)
    return RawTable(table, tuple(steps), ids)


def _is_first(name: str) -> bool:
    return name.endswith(f"_1{_ENDING}")


def _expected(name: str) -> str:
    """Return where a volume should lie."""
    part, patient, scan, _ = name.removesuffix(_ENDING).split("_")
    return f"dataset/{part}/{part}_{patient}/{part}_{patient}_{scan}/{name}"


def _volumes(source: RawFolder) -> dict[str, str]:
    """Return volumes by name; of two releases, the one with headers."""
    fixed: dict[str, str] = {}
    for folder in source.folders():
        if folder.name.endswith("_fixed"):
            fixed |= source.files((_ENDING,), folder)
    return source.files((_ENDING,)) | fixed


def _part(
    source: RawFolder, part: str, labels: Path, options: Options
) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    rows = source.table(labels, (_NAME, *FINDINGS))
    steps = [(f"{part}: volumes with labels", len(rows))]
    if options.reconstructions == "first":
        first = rows[_NAME].map(_is_first)
        steps.append((f"{part}: further reconstructions", -int((~first).sum())))
        rows = rows[first]
    if (path := source.find(f"no_chest_{part}.txt")) is not None:
        listed = {Path(line).name for line in read_lines(path)}
        other = rows[_NAME].isin(listed)
        steps.append((f"{part}: not of the chest", -int(other.sum())))
        rows = rows[~other]
    rows = rows.reset_index(drop=True)
    names = rows[_NAME].str.removesuffix(_ENDING)
    patients = names.str.rsplit("_", n=2).str[0]
    held_out = _chosen(patients, options.held_out) if part == "train" else pd.Series(False, index=rows.index)
    table = pd.DataFrame(
        {
            "image_id": names,
            "study_id": names.str.rpartition("_")[0],
            "patient_id": patients,
            "split": held_out.map({True: "held_out", False: part}),
            "labelled": "1",
            **{f"label_{finding}": label_values(labels, rows[finding]) for finding in FINDINGS},
        }
    )
    table["text"] = _texts(source, PARTS[part], rows[_NAME], options.text)
    return _with_metadata(source, PARTS[part], rows[_NAME], table), steps


def _chosen(patients: pd.Series[str], count: int) -> pd.Series[bool]:
    """Return which rows are of ``count`` patients, who follow from their ids alone; fewer are among those of more."""
    order = sorted(
        patients.unique(), key=lambda name: hashlib.sha256(f"held out {name}".encode()).hexdigest()
    )
    return patients.isin(order[:count])


def _texts(source: RawFolder, stem: str, names: pd.Series[str], what: str) -> list[str]:
    """Return the texts of reports by name; empty where there is no file of reports."""
    path = source.find(f"{stem}_reports.csv")
    if path is None:
        return [""] * len(names)
    columns = ("Findings_EN", "Impressions_EN")[: 1 if what == "findings" else 2]
    reports = source.table(path, (_NAME, *columns)).drop_duplicates(_NAME).set_index(_NAME)
    joined = reports[list(columns)].agg(" ".join, axis=1).str.replace(_ABSENT, " ", regex=False)
    return [collapse(text) for text in joined.reindex(names).fillna("")]


def _with_metadata(source: RawFolder, stem: str, names: pd.Series[str], table: pd.DataFrame) -> pd.DataFrame:
    """Add what the first release's files do not say: spacing, slope, intercept; its arrays lie as DICOM has them."""
    path = source.find(f"{stem}_metadata.csv")
    if path is None:
        return table
    columns = ("XYSpacing", "ZSpacing", "RescaleSlope", "RescaleIntercept")
    told = (
        source.table(path, (_NAME, *columns))
        .drop_duplicates(_NAME)
        .set_index(_NAME)
        .reindex(names)
        .fillna("")
    )
    table[SPACING] = [_spacing(*pair) for pair in zip(told["XYSpacing"], told["ZSpacing"], strict=True)]
    table[AXES] = "LPS"
    table[SLOPE], table[INTERCEPT] = told["RescaleSlope"].to_numpy(), told["RescaleIntercept"].to_numpy()
    return table


def _spacing(in_plane: str, between: str) -> str:
    """Return the spacing of the axes of a file as JSON: "[0.7, 0.7]" and "1.5" -> "[0.7, 0.7, 1.5]"."""
    try:
        across, down = json.loads(in_plane)
        return json.dumps([float(across), float(down), float(between)])
    except (ValueError, TypeError):
        return ""


ct_rate = register_dataset("ct_rate")(
    RawDataset("ct_rate", "CT-RATE", ACCESS, LAYOUT, read, Options, volumes=True)
)
