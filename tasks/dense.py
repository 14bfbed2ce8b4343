"""What segmentation and detection share: a small head trained on the frozen image tower of an adapted method.

The tower only gives feature maps (:class:`Taps`): it runs in eval mode, without gradients, and nothing of it changes.
The head is trained on the part ``train``, selected on ``val``, and the part ``test`` is opened afterwards, once.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.backbones.backbone import InputSpec
from benchmark.data.augment import AS_IT_IS, Augment, View
from benchmark.data.images import fit_box
from benchmark.data.load import load_dataset, part_entry
from benchmark.data.prepared import MANIFEST, PIXELS, Prepared
from benchmark.errors import ConfigError, DataError
from benchmark.settings import setting
from benchmark.trainer import autocast
from methods.base import Method
from tasks.base import DatasetResult, Task, TaskContext
from tasks.heads.training import HeadFit

Normed = Literal["last", "all", "none"]
PUBLISHED_DEPTH = 12
"""Depth of the towers that published tap positions count blocks of."""
CACHE_BYTES = 2 * 1024**3
"""Tap features of one part are kept in memory up to this size, and computed again each time beyond it."""


@dataclass(frozen=True)
class DenseOptions:
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
    patience: int = setting(10, "epochs without a better validation score before training stops", low=1)
    batch_size: int = setting(4, "images per step", low=1)
    hflip: float = setting(0.5, "probability of a left-right flip", low=0)
    vflip: float = setting(0.0, "probability of an upside-down flip", low=0)
    rotation: float = setting(0.0, "half the images are turned by up to this many degrees", low=0)
    positives_only: bool = setting(True, "use only images that show the finding, as the paper does")
    untrained: bool = setting(True, "also train a head on an untrained image tower, for reference")
    panels: int = setting(6, "test images that are stored with truth and prediction", low=0)
    bootstrap: int = setting(1000, "resamples behind every interval", low=1)
    bootstrap_seed: int = setting(0, "seed of the resamples, the same for all methods", low=0)

    def __post_init__(self) -> None:
        inside = all(isinstance(tap, int) and 0 <= tap < PUBLISHED_DEPTH for tap in self.taps)
        if not self.taps or not inside or list(self.taps) != sorted(self.taps):
            raise ConfigError(
                f"taps: expected rising block numbers from 0 to {PUBLISHED_DEPTH - 1}, got {list(self.taps)}"
            )

    def augment(self) -> Augment:
        """Return how training images are changed."""
        return Augment(self.hflip, self.vflip, self.rotation)


# --- data ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenseImages:
    """One part of a dense dataset.

    Attributes:
        title: of the dataset.
        store: where the pixels and masks are. rows: of the store that belong to the part.
        boxes: N float64 arrays ``[K, 4]`` (x1, y1, x2, y2) in pixels of the stored image, or None.
        ids: N image ids. clusters: N patient ids (the image id where there is none).
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
    spec: InputSpec,
    *,
    positives_only: bool = True,
) -> DenseImages:
    """Open one part (``train``, ``val`` or ``test``) of a dense dataset.

    Args:
        entry: of the suite; what stands below the part's name is laid over the common keys.
        part: its name.
        truth: what the part must have.
        context: data root, limit.
        spec: of the backbone: which size the images must have.
        positives_only: keep only images with a non-empty mask, or at least one box.

    Raises:
        ConfigError: the entry has no such part.
        DataError: the dataset has no masks or boxes, or no image is left.
    """
    merged = part_entry(entry, part)
    data = load_dataset(merged, context.data_root, context.reporter, spec.size)
    if truth == "masks" and data.masks is None:
        raise DataError(f"{data.folder}: '{data.name}' has no masks, which segmentation needs")
    if truth == "boxes" and "boxes" not in data.manifest:
        raise DataError(f"{data.folder}/manifest.csv: column 'boxes' is missing, which detection needs")
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
    crop = str(data.info.get("transform", "squash")).partition("-")[0]
    columns = [data.manifest[name] for name in ("boxes", "original_width", "original_height")]
    found = []
    for text, width, height in zip(*columns, strict=True):
        fitted = [fit_box(box, crop, (int(width), int(height)), size) for box in json.loads(text or "[]")]
        boxes = np.array(fitted, dtype=np.float64).reshape(-1, 4)
        found.append(boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])])
    return found


# --- features of the frozen tower -----------------------------------------------------------------------------


def tap_indices(published: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return where published tap positions (of 12 blocks) lie in a tower of another depth.

    The last block stays the last: block t is tapped after the share (t + 1) / 12 of the tower.
    """
    return tuple(math.ceil((tap + 1) * depth / PUBLISHED_DEPTH) - 1 for tap in published)


class Taps:
    """Feature maps of a method's frozen image tower.

    Args:
        method: adapted; put into eval mode here.
        published: tap positions in a tower of 12 blocks. Towers whose stages have maps of several sizes (ResNet)
            give each stage once.
        context: device and precision.
        normed: on which maps the tower's final norm acts.
    """

    def __init__(
        self, method: Method, published: Sequence[int], context: TaskContext, normed: Normed = "last"
    ) -> None:
        self._method, self._context, self._normed = method.eval(), context, normed
        self.spec = method.backbone.input_spec
        indices = tap_indices(published, method.backbone.image.depth)
        self._indices = indices
        shapes = self._shapes()
        self.pyramid = len({shape[1:] for shape in shapes}) > 1
        if self.pyramid:
            self._indices = tuple(dict.fromkeys(indices))
            shapes = self._shapes()
        self.shapes = shapes

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> list[Tensor]:
        """Return one fp32 map ``[B, C, h, w]`` per tap of uint8 pixels ``[B, H, W]`` or ``[B, H, W, 3]``."""
        tower = self._method.backbone.image
        images = self.spec.to_input(pixels, self._context.device)
        with autocast(self._context.precision, self._context.device):
            output = tower.forward(
                images, interventions=self._method.image_interventions(), taps=set(self._indices)
            )
            maps = [output.taps[index] for index in self._indices]
            if self._normed == "last" and self._indices[-1] == tower.depth - 1:
                maps[-1] = tower.tap(output.sequence)
            elif self._normed == "all":
                maps = [tower.final_norm(one.movedim(1, -1)).movedim(-1, 1) for one in maps]
        return [one.float() for one in maps]

    def _shapes(self) -> list[tuple[int, int, int]]:
        blank = np.zeros((1, *self.spec.size), dtype=np.uint8)
        return [(one.shape[1], one.shape[2], one.shape[3]) for one in self(blank)]


@dataclass(frozen=True)
class DenseBatch:
    """Some images on their way to the head.

    Attributes:
        maps: one ``[B, C, h, w]`` per tap, on the device. rows: which images. views: how each is looked at.
    """

    maps: list[Tensor]
    rows: np.ndarray
    views: tuple[View, ...]


class TapBatches:
    """Batches of tap features of one part; kept in memory where the views are few and all of it fits.

    Args:
        taps: of the frozen tower.
        images: the part.
        augment: how training images are changed; the default takes them as they are.
    """

    def __init__(
        self, taps: Taps, images: DenseImages, context: TaskContext, augment: Augment | None = None
    ) -> None:
        self._taps, self._images, self._context = taps, images, context
        self._augment = augment or Augment()
        views = self._augment.all_views()
        values = sum(math.prod(shape) for shape in taps.shapes)
        fits = views is not None and 4 * values * len(images) * len(views) <= CACHE_BYTES
        self._kept: dict[View, list[Tensor]] | None = {} if fits else None

    def steps(self, batch_size: int) -> int:
        """Return the batches of one epoch."""
        return math.ceil(len(self._images) / batch_size)

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[DenseBatch]:
        """Yield an epoch of augmented images; order and views depend on seed and number alone."""
        rng = np.random.default_rng([seed, number])
        order = rng.permutation(len(self._images))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield self._batch(rows, self._augment.draw(rng, len(rows)))

    def in_order(self, batch_size: int) -> Iterator[DenseBatch]:
        """Yield every image once, as it is."""
        for start in range(0, len(self._images), batch_size):
            rows = np.arange(start, min(len(self._images), start + batch_size))
            yield self._batch(rows, (AS_IT_IS,) * len(rows))

    def _batch(self, rows: np.ndarray, views: tuple[View, ...]) -> DenseBatch:
        if self._kept is None:
            return DenseBatch(self._computed(rows, views), rows, views)
        for view in set(views) - set(self._kept):
            self._kept[view] = self._whole(view)
        device, chosen = self._context.device, list(zip(rows, views, strict=True))
        maps = [
            torch.stack([self._kept[view][tap][int(row)] for row, view in chosen]).to(device)
            for tap in range(len(self._taps.shapes))
        ]
        return DenseBatch(maps, rows, views)

    def _whole(self, view: View) -> list[Tensor]:
        """Return the features of all images in one view, on the CPU."""
        count, size = len(self._images), self._context.batch_size
        parts = [
            [one.cpu() for one in self._computed(rows, (view,) * len(rows))]
            for rows in (np.arange(start, min(count, start + size)) for start in range(0, count, size))
        ]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _computed(self, rows: np.ndarray, views: tuple[View, ...]) -> list[Tensor]:
        pixels = [view.pixels(self._images.pixels(row)) for row, view in zip(rows, views, strict=True)]
        return self._taps(np.stack(pixels))


# --- the task -------------------------------------------------------------------------------------------------


class DenseTask(Task):
    """A task that trains a head on taps of the image tower.

    Class attributes:
        truth: what images must bring.
    """

    image_only = True
    Options: ClassVar[type] = DenseOptions
    truth: ClassVar[Literal["masks", "boxes"]]

    @abstractmethod
    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Train on ``train``, select on ``val``, then open ``test`` and measure there."""

    def part(self, entry: Mapping[str, Any], part: str, taps: Taps, context: TaskContext) -> DenseImages:
        """Open a part as the options ask for it."""
        return read_part(
            entry, part, self.truth, context, taps.spec, positives_only=self.options.positives_only
        )

    def facts(
        self, parts: Mapping[str, DenseImages], taps: Taps, head: nn.Module, fit: HeadFit
    ) -> dict[str, Any]:
        """Return what identifies the protocol of a result, for its ``info``."""
        store = parts["test"].store
        known = {key: store.info[key] for key in ("transform", "notes") if store.info.get(key)}
        return {
            "title": parts["test"].title,
            **{f"data_{key}": value for key, value in known.items()},
            "images": {name: len(part) for name, part in parts.items()},
            "data": {name: part.digest for name, part in parts.items()},
            "shared_patients": check_apart(parts),
            "taps": list(taps.shapes),
            "head_parameters": sum(value.numel() for value in head.parameters()),
            "epochs": len(fit.history),
            "best_epoch": fit.best_epoch,
            "validation_score": fit.best_score,
            "history": fit.history,
        }
