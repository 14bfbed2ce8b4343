"""Augmentation for dense tasks: flips and small rotations, applied alike to pixels, masks and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class View:
    """One way to look at an image: flipped left-right, flipped upside down, then turned by ``angle`` degrees.

    What a turn brings in from outside is black, and no part of a mask.
    """

    hflip: bool = False
    vflip: bool = False
    angle: float = 0.0

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Return the view of uint8 pixels ``[H, W]`` or ``[H, W, 3]``."""
        return self._turned(self._flipped(image), "bilinear")

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Return the view of a mask, bool ``[H, W]``."""
        return self._turned(self._flipped(mask).astype(np.uint8), "nearest").astype(bool)

    def boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return the view of boxes ``[K, 4]`` (x1, y1, x2, y2) on an image of ``size`` (height, width); a new array.

        Raises:
            ValueError: if the view turns the image: the box of a turned box is looser than the finding.
        """
        if self.angle:
            raise ValueError("boxes cannot be turned: set the rotation of the augmentation to 0")
        height, width = size
        x1, y1, x2, y2 = np.array(boxes, dtype=np.float64).reshape(-1, 4).T
        if self.hflip:
            x1, x2 = width - x2, width - x1
        if self.vflip:
            y1, y2 = height - y2, height - y1
        return np.stack([x1, y1, x2, y2], axis=1)

    def _flipped(self, image: np.ndarray) -> np.ndarray:
        image = image[:, ::-1] if self.hflip else image
        return image[::-1] if self.vflip else image

    def _turned(self, image: np.ndarray, how: str) -> np.ndarray:
        if not self.angle:
            return image
        from torchvision.transforms import InterpolationMode  # torchvision takes seconds to import
        from torchvision.transforms.functional import rotate

        channels = torch.from_numpy(np.array(image)).reshape(*image.shape[:2], -1).movedim(-1, 0)
        turned = rotate(
            channels, self.angle, interpolation=InterpolationMode(how), fill=[0.0] * len(channels)
        )
        return turned.movedim(0, -1).reshape(image.shape).numpy()


AS_IT_IS = View()


@dataclass(frozen=True)
class Augment:
    """How views are drawn.

    Attributes:
        hflip, vflip: probability of each flip.
        rotation: half the images are turned by an angle between minus and plus this many degrees.
    """

    hflip: float = 0.0
    vflip: float = 0.0
    rotation: float = 0.0

    def draw(self, rng: np.random.Generator, count: int) -> tuple[View, ...]:
        """Return one view for each of ``count`` images."""
        chances = rng.random((count, 3))
        angles = rng.uniform(-self.rotation, self.rotation, count)
        return tuple(
            View(
                bool(h < self.hflip), bool(v < self.vflip), float(angle) if self.rotation and t < 0.5 else 0.0
            )
            for (h, v, t), angle in zip(chances, angles, strict=True)
        )

    def all_views(self) -> Sequence[View] | None:
        """Return every view that can be drawn, or None if there are infinitely many (any rotation)."""
        if self.rotation:
            return None
        sides = [[False], [False, True]]
        return [View(h, v) for h in sides[self.hflip > 0] for v in sides[self.vflip > 0]]
