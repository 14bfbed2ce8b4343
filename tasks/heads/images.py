"""The images of a dense task: its parts with masks or boxes, and a check that the parts share no image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmark.data.augment import Augment
from benchmark.data.entries import load_dataset, part_entry
from benchmark.data.prepared import MANIFEST, PIXELS, Prepared
from benchmark.errors import ConfigError, DataError
from benchmark.preprocess import Fitting
from benchmark.settings import setting
from tasks.base import IntervalOptions, TaskContext

Normed = Literal["last", "all", "none"]
PUBLISHED_DEPTH = 12
"""Depth of the towers whose blocks published tap positions count."""


@dataclass(frozen=True)
class DenseOptions(IntervalOptions):
    """Options of both dense tasks.

    Raises:
        ConfigError: if the taps are not positions in a tower of twelve blocks, in order.
    """

    taps: tuple[int, ...] = setting((2, 5, 8, 11), "tapped blocks, counted from 0 in a tower of 12")
    final_norm: Normed = setting("last", "tapped maps that the tower's final norm acts on: last, all or none")
    lr: float = setting(1e-4, "peak learning rate of the head", above=0)
    end_lr: float = setting(0.0, "learning rate at the end", low=0)
    power: float = setting(1.0, "power of the polynomial decay", above=0)
    weight_decay: float = setting(0.05, "AdamW weight decay", low=0)
    epochs: int = setting(50, "passes over the training part", low=1)
    warmup_epochs: float = setting(1.0, "length of the linear warm-up in epochs", low=0)
    max_steps: int | None = setting(
        None, "stop after this many steps (--max-steps sets it too)", low=1, hashed="unless default"
    )
    patience: int = setting(10, "epochs without a better validation score before training stops", low=1)
    batch_size: int = setting(4, "images per step", low=1)
    hflip: float = setting(0.5, "probability of a left-right flip", low=0)
    vflip: float = setting(0.0, "probability of an upside-down flip", low=0)
    rotation: float = setting(0.0, "half the images are turned by up to this many degrees", low=0)
    positives_only: bool = setting(True, "use only images that show the finding, as the paper does")
    untrained: bool = setting(True, "also train a head on an untrained image tower, for reference")
    panels: int = setting(6, "test images that are stored with truth and prediction", low=0)

    def __post_init__(self) -> None:
        inside = all(isinstance(tap, int) and 0 <= tap < PUBLISHED_DEPTH for tap in self.taps)
        if not self.taps or not inside or list(self.taps) != sorted(self.taps):
            raise ConfigError(
                f"taps: expected rising block numbers from 0 to {PUBLISHED_DEPTH - 1}, got {list(self.taps)}"
            )

    def augment(self) -> Augment:
        """Return how training images are changed."""
        return Augment(self.hflip, self.vflip, self.rotation)


@dataclass(frozen=True)
class DenseImages:
    """One part of a dense dataset.

    Attributes:
        title: of the dataset.
        store: where the pixels and masks are. rows: of the store that belong to the part.
        boxes: N float64 arrays ``[K, 4]`` (x1, y1, x2, y2) in pixels of the stored image, or None.
        ids: N image ids. clusters: N patient ids (the image id if unknown).
        digest: identifies the images.
    """

    title: str
    store: Prepared
    rows: np.ndarray
    boxes: tuple[np.ndarray, ...] | None
    ids: list[str]
    clusters: list[str]
    digest: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return int(self.store.pixels.shape[1]), int(self.store.pixels.shape[2])

    def pixels(self, row: int) -> np.ndarray:
        """Return image ``row``, uint8 ``[H, W]`` or ``[H, W, 3]``."""
        return np.asarray(self.store.pixels[int(self.rows[row])])

    def mask(self, row: int) -> np.ndarray:
        """Return the mask of image ``row``, bool ``[H, W]``."""
        assert self.store.masks is not None  # read_part saw to it
        return np.asarray(self.store.masks[int(self.rows[row])])


def read_part(
    entry: Mapping[str, Any],
    part: str,
    truth: Literal["masks", "boxes"],
    context: TaskContext,
    fitting: Fitting,
    *,
    positives_only: bool = True,
) -> DenseImages:
    """Open one part (``train``, ``val`` or ``test``) of a dense dataset.

    Args:
        entry: of the suite; what stands below the part's name is laid over the common keys.
        part: its name.
        truth: what the part must have.
        context: data root, limit.
        fitting: how the backbone wants its images.
        positives_only: keep only images with a non-empty mask, or at least one box.

    Raises:
        ConfigError: the entry has no such part.
        DataError: the dataset has no masks or boxes, or no image is left.
    """
    merged = part_entry(entry, part)
    data = load_dataset(merged, context.data_root, context.reporter, fitting)
    check_truth(data, truth)
    all_boxes = _boxes(data) if truth == "boxes" else None
    shown = [len(boxes) > 0 for boxes in all_boxes] if all_boxes is not None else _has_mask(data)
    rows = np.flatnonzero(shown) if positives_only else np.arange(len(data))
    rows = rows[: context.limit]
    if not len(rows):
        raise DataError(f"{data.folder}: part '{part}' of '{data.name}' has no image with {truth}")
    frame = data.manifest.iloc[rows]
    ids = frame["image_id"].astype(str).tolist()
    clusters = frame["patient_id"].astype(str).tolist() if "patient_id" in frame else ids
    return DenseImages(
        title=str(merged.get("title", merged["dataset"])),
        store=data,
        rows=rows,
        boxes=None if all_boxes is None else tuple(all_boxes[row] for row in rows),
        ids=ids,
        clusters=clusters,
        digest=f"{data.digests[PIXELS]}:{data.digests[MANIFEST]}:{truth}:{len(rows)}:{data.selection}",
    )


def check_truth(data: Prepared, truth: Literal["masks", "boxes"]) -> None:
    """Refuse data without any mask or box.

    Raises:
        DataError: says what is missing where.
    """
    if truth == "masks" and data.masks is None:
        raise DataError(f"{data.folder}: '{data.name}' has no masks, which this task needs")
    if truth == "boxes" and "boxes" not in data.manifest:
        raise DataError(f"{data.folder}/manifest.csv: column 'boxes' is missing, which this task needs")


def check_apart(parts: Mapping[str, DenseImages]) -> dict[str, int]:
    """Return how many patients two parts share, by "train/test"; images may not be shared.

    Raises:
        DataError: an image is in two parts.
    """
    names, crossing = list(parts), {}
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            if twice := sorted(set(parts[one].ids) & set(parts[other].ids)):
                raise DataError(
                    f"{parts[one].store.folder}: {len(twice)} images are in '{one}' and in '{other}', "
                    f"first '{twice[0]}': the parts of a dataset must not share images"
                )
            crossing[f"{one}/{other}"] = len((set(parts[one].clusters) & set(parts[other].clusters)) - {""})
    return crossing


def panel_rows(ids: Sequence[str], count: int) -> np.ndarray:
    """Return which images are shown: evenly spaced in the order of their ids, whatever the method finds there."""
    order = np.argsort(np.array(ids), kind="stable")
    places = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(np.int64)
    return order[places]


def _has_mask(data: Prepared) -> list[bool]:
    assert data.masks is not None
    return [bool(np.asarray(data.masks[row]).any()) for row in range(len(data))]


def _boxes(data: Prepared) -> list[np.ndarray]:
    """Return the boxes of every row in pixels of the stored images; a box that the crop cut away is dropped."""
    size = (int(data.pixels.shape[1]), int(data.pixels.shape[2]))
    fitting = Fitting.parse(data.info["transform"]) if "transform" in data.info else Fitting(size, "squash")
    columns = [data.manifest[name] for name in ("boxes", "original_width", "original_height")]
    found = []
    for text, width, height in zip(*columns, strict=True):
        fitted = [fitting.box(box, (int(width), int(height))) for box in json.loads(text or "[]")]
        boxes = np.array(fitted, dtype=np.float64).reshape(-1, 4)
        found.append(boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])])
    return found
