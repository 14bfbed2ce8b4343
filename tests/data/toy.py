"""A small dataset of files with masks, for tests of the preparation; also a plugin of the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import PIL.Image

from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.registry import register_dataset
from benchmark.settings import setting

LABELS = ("1", "0", "-1", "")


def make_raw(folder: Path, count: int, *, colour: bool = False, size: tuple[int, int] = (12, 20)) -> Path:
    """Write ``count`` images of noise; with ``colour`` the last one is coloured."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        last = colour and i == count - 1
        pixels = generator.integers(0, 256, (*size, 3) if last else size, dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


@dataclass(frozen=True)
class Options:
    """Options of ``prepare``."""

    texts: Literal["short", "long"] = setting("short", "what the texts say")
    first: int = setting(0, "images to leave out at the start")


def read(raw: Path, options: Options) -> RawTable:
    """Read the folder: patients of two images, three test images in ten."""
    names = sorted(path.name for path in raw.glob("*.png"))[options.first :]
    rows = range(len(names))
    table = pd.DataFrame(
        {
            "image_id": [name.removesuffix(".png") for name in names],
            "file": names,
            "text": [f"{options.texts} text {i}" for i in rows],
            "split": ["test" if i % 10 < 3 else "train" for i in rows],
            "split_detection": ["test" if i % 10 == 0 else "" for i in rows],
            "patient_id": [f"p{i // 2}" for i in rows],
            "label_Edema": [LABELS[i % 4] for i in rows],
            "_left": [i % 5 for i in rows],
        }
    )
    test = [name.removesuffix(".png") for i, name in enumerate(names) if i % 10 < 3]
    return RawTable(table, (("files", len(names)),), {"test": test})


def mask(row: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the columns from ``_left`` on; slow, and counted, when a test asks for it."""
    if log := os.environ.get("TOY_LOG"):
        time.sleep(0.02)
        with open(log, "a") as file:
            file.write(f"{row['image_id']} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
    drawn = np.zeros(size, dtype=bool)
    drawn[:, int(row["_left"]) :] = True
    return drawn


toy = register_dataset("toy")(
    RawDataset(
        name="toy",
        title="Toy",
        access=Access("open", "https://example.org/toy", "toy.zip", "none"),
        layout="DIR/000.png ...",
        read=read,
        reader_options=Options,
        mask=mask,
    )
)
