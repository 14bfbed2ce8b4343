"""Feature maps of a frozen image tower, and batches of them for a head."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.backbone import to_device, tower_digest
from benchmark.backbones.towers.precision import autocast, resolve
from benchmark.data.augment import AS_IT_IS, Augment, View
from benchmark.preprocess import preprocess_of
from methods.base import Method
from tasks.base import TaskContext
from tasks.heads.images import PUBLISHED_DEPTH, DenseImages, Normed

CACHE_BYTES = 2 * 1024**3
"""Tap features of one part are kept in memory up to this size, and computed again each time beyond it."""
_VERSION = 1  # raise it whenever the same key would give other features


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
        self.preprocess = preprocess_of(method.backbone)
        indices = tap_indices(published, method.backbone.image.depth)
        self._indices = indices
        shapes = self._shapes()
        self.pyramid = len({shape[1:] for shape in shapes}) > 1
        if self.pyramid:
            self._indices = tuple(dict.fromkeys(indices))
            shapes = self._shapes()
        self.shapes = shapes

    @functools.cached_property
    def key(self) -> str | None:
        """All that the maps depend on beside the pixels; None where the method changed the tower.

        Such a tower is another one for every seed, so its maps are not worth keeping on disk.
        """
        if "image" in self._method.adapts:
            return None
        device = self._context.device
        how = (_VERSION, self._indices, self._normed, resolve(self._context.precision, device), device.type)
        return f"taps|{how}|{tower_digest(self._method.backbone)}"

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

    def _shapes(self) -> list[tuple[int, ...]]:
        blank = np.zeros((1, *self.spec.size), dtype=np.uint8)
        return [tuple(one.shape[1:]) for one in self(blank)]


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

    Those of a tower that the method left alone are then kept on disk too, once for all such methods and seeds.

    Args:
        taps: of the frozen tower.
        images: the part; kept as an attribute.
        context: batch size, device.
        augment: how training images are changed; the default takes them as they are.
    """

    def __init__(
        self, taps: Taps, images: DenseImages, context: TaskContext, augment: Augment | None = None
    ) -> None:
        self.images = images
        self._taps, self._context = taps, context
        self._augment = augment or Augment()
        views = self._augment.all_views()
        values = sum(math.prod(shape) for shape in taps.shapes)
        fits = views is not None and 4 * values * len(images) * len(views) <= CACHE_BYTES
        self._kept: dict[View, list[Tensor]] | None = {} if fits else None

    def steps(self, batch_size: int) -> int:
        """Return the batches of one epoch."""
        return math.ceil(len(self.images) / batch_size)

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[DenseBatch]:
        """Yield an epoch of augmented images; order and views depend on seed and number alone."""
        rng = np.random.default_rng([seed, number])
        order = rng.permutation(len(self.images))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield self._batch(rows, self._augment.draw(rng, len(rows)))

    def in_order(self, batch_size: int) -> Iterator[DenseBatch]:
        """Yield every image once, without augmentation."""
        for start in range(0, len(self.images), batch_size):
            rows = np.arange(start, min(len(self.images), start + batch_size))
            yield self._batch(rows, (AS_IT_IS,) * len(rows))

    def _batch(self, rows: np.ndarray, views: tuple[View, ...]) -> DenseBatch:
        if self._kept is None:
            return DenseBatch(self._computed(rows, views), rows, views)
        for view in set(views) - set(self._kept):
            self._kept[view] = self._whole(view)
        device, chosen = self._context.device, list(zip(rows, views, strict=True))
        maps = [
            to_device(torch.stack([self._kept[view][tap][int(row)] for row, view in chosen]), device)
            for tap in range(len(self._taps.shapes))
        ]
        return DenseBatch(maps, rows, views)

    def _whole(self, view: View) -> list[Tensor]:
        """Return the features of all images in one view, on the CPU."""
        key, images = self._taps.key, self.images
        if key is None:
            return self._made(view)
        rows = hashlib.sha256(images.rows.astype(np.int64).tobytes()).hexdigest()
        maps = self._context.frozen.keep(
            f"frozen maps of {images.title}",
            f"{key}|{images.digest}|{rows}|{view}",
            lambda: {str(tap): one for tap, one in enumerate(self._made(view))},
        )
        return [maps[str(tap)] for tap in range(len(self._taps.shapes))]

    def _made(self, view: View) -> list[Tensor]:
        count, size = len(self.images), self._context.batch_size
        parts = [
            [one.cpu() for one in self._computed(rows, (view,) * len(rows))]
            for rows in (np.arange(start, min(count, start + size)) for start in range(0, count, size))
        ]
        return [torch.cat(maps).contiguous() for maps in zip(*parts, strict=True)]

    def _computed(self, rows: np.ndarray, views: tuple[View, ...]) -> list[Tensor]:
        pixels = [view.pixels(self.images.pixels(row)) for row, view in zip(rows, views, strict=True)]
        return self._taps(np.stack(pixels))
