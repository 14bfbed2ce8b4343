"""MHIST: 3,152 tiles of colorectal polyps, hyperplastic or sessile serrated (arXiv 2101.12355).

The ACE-LoRA paper evaluates all of them, the official test part has 977: a suite says which (``part: test`` or none).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmark.data.datasets._sources import RawFolder
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.errors import DataError
from benchmark.registry import register_dataset

CLASSES = {"HP": "Hyperplastic polyp", "SSA": "Sessile serrated adenoma"}
_LABEL = "Majority Vote Label"

ACCESS = Access(
    kind="registration",
    url="https://bmirds.github.io/MHIST/",
    how="images.zip and annotations.csv, after the form",
    licence="MHIST dataset research use agreement",
)
LAYOUT = """\
images/MHIST_aaa.png
annotations.csv"""


def read(raw: Path) -> RawTable:
    """Read all tiles; parts train and test are the official ones.

    Raises:
        DataError: a file is missing, or a label is neither HP nor SSA.
    """
    source = RawFolder("MHIST", ACCESS, raw)
    path = source.need("annotations.csv")
    rows = source.table(path, ("Image Name", _LABEL, "Partition"))
    for column, known in ((_LABEL, list(CLASSES)), ("Partition", ["train", "test"])):
        if (wrong := ~rows[column].isin(known)).any():
            raise DataError(
                f"{path}: {column}: expected {' or '.join(known)}, got '{rows[column][wrong].iloc[0]}'"
            )
    names = rows["Image Name"].tolist()
    files = source.located(names, source.files((".png",)), lambda name: f"images/{name}")
    table = pd.DataFrame(
        {
            "image_id": [name.removesuffix(".png") for name in names],
            "file": files,
            "split": rows["Partition"],
            **{
                f"label_{text}": (rows[_LABEL] == code).map({True: "1", False: "0"})
                for code, text in CLASSES.items()
            },
        }
    )
    counts = [(f"of these {text}", int((rows[_LABEL] == code).sum())) for code, text in CLASSES.items()]
    test = table["image_id"][table["split"] == "test"].tolist()
    steps = (("rows of annotations.csv", len(rows)), ("kept", len(table)), *counts)
    return RawTable(table, steps, {"all": table["image_id"].tolist(), "test": test})


mhist = register_dataset("mhist")(RawDataset("mhist", "MHIST", ACCESS, LAYOUT, read))
