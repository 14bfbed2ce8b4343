"""NIH ChestX-ray14: 112,120 frontal radiographs with 14 labels; a slice of its test list is the validation set.

The slice is the ACE-LoRA authors': of the images of the official test list, in the order of the data table, the first
fifth (5,119). These are the lowest patient numbers, not a random sample. RSNA's images are a subset of this dataset, so
the slice shares images with RSNA's test part; ``rsna_mapping`` leaves those out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmark.data.datasets._sources import RawFolder, parts, read_lines
from benchmark.data.datasets.rsna import nih_images
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.errors import DataError, unknown
from benchmark.registry import register_dataset
from benchmark.settings import setting

LABELS = (
    *(
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
    ),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
NO_FINDING = "No Finding"
SHARE = 0.2

ACCESS = Access(
    kind="open",
    url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    how="images_001 to images_012, Data_Entry_2017_v2020.csv, test_list.txt",
    licence="NIH Clinical Center: free use, with acknowledgement and citation",
)
LAYOUT = """\
images_001/ ... images_012/, each as it unpacks, or one folder of 00000001_000.png
Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv), test_list.txt"""


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    images: Literal["slice", "all"] = setting(
        "slice", "slice: the 5,119 validation images alone; all: also the others, as parts train and test"
    )
    rsna_mapping: str = setting("", "RSNA's mapping file; images that RSNA took over leave the slice")


def read(raw: Path, options: Options) -> RawTable:
    """Read the validation slice, or all images.

    Raises:
        DataError: a file is missing, or a finding is unknown.
    """
    source = RawFolder("NIH ChestX-ray14", ACCESS, raw)
    path = source.need("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    rows = source.table(path, ("Image Index", "Finding Labels", "View Position"))
    part = _parts(source, path, rows["Image Index"].tolist())
    steps = [(f"rows of {path.name}", len(rows))]
    if options.images == "slice":
        steps.append(("not in the validation slice", -int((part != "val").sum())))
        rows, part = rows[part == "val"], part[part == "val"]
    if options.rsna_mapping:
        taken = (part == "val") & rows["Image Index"].isin(
            set(nih_images(Path(options.rsna_mapping)).values())
        )
        steps.append(("of the slice, also images of RSNA's challenge", -int(taken.sum())))
        rows, part = rows[~taken], part[~taken]
    table = _manifest(source, path, rows, part)
    val = table["image_id"][table["split"] == "val"].tolist()
    lists = {"val_without_rsna" if options.rsna_mapping else "val": val}
    if options.images == "all" and not options.rsna_mapping:
        lists["all"] = table["image_id"].tolist()
    return RawTable(table, (*steps, ("kept", len(table))), lists)


def _parts(source: RawFolder, path: Path, names: list[str]) -> pd.Series[str]:
    """Return the part of every image: val, test (the rest of the official test list) or train."""
    test_list = set(read_lines(source.need("test_list.txt")))
    test = [name for name in names if name in test_list]
    if len(test) != len(test_list):
        raise DataError(
            f"{path} has {len(test):,} of the {len(test_list):,} images of test_list.txt; download both again"
        )
    count = int(SHARE * len(test))
    return pd.Series(parts(names, train=set(names) - test_list, val=test[:count], test=test[count:]))


def _manifest(source: RawFolder, path: Path, rows: pd.DataFrame, part: pd.Series[str]) -> pd.DataFrame:
    names = rows["Image Index"].tolist()
    found = source.files((".png",))
    files = source.located(names, found, lambda name: f"images_001/images/{name}")
    findings = [set(text.split("|")) for text in rows["Finding Labels"]]
    strange = set().union(*findings) - {*LABELS, NO_FINDING}
    if strange:
        raise DataError(f"{path}: " + unknown("finding", sorted(strange)[0], (*LABELS, NO_FINDING)))
    return pd.DataFrame(
        {
            "image_id": [name.removesuffix(".png") for name in names],
            "file": files,
            "split": part.tolist(),
            "patient_id": [name[:8] for name in names],
            "study_id": [name.removesuffix(".png") for name in names],
            "view": rows["View Position"].tolist(),
            **{f"label_{name}": ["1" if name in shown else "0" for shown in findings] for name in LABELS},
        }
    )


nih = register_dataset("nih")(
    RawDataset("nih", "NIH ChestX-ray14", ACCESS, LAYOUT, read, Options, patients="nih")
)
