"""UPerNet: a feature pyramid with a pyramid pooling module on top, for segmentation.

Paper: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018 (arXiv 1807.10221). The neck that
turns maps of one size (a ViT's) into a pyramid follows the usual practice for ViTs (transposed convolutions, pooling).
GroupNorm replaces BatchNorm, because a batch of one image meets 1 x 1 maps here. No auxiliary head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.errors import ConfigError

BINS = (1, 2, 3, 6)
"""Sides of the grids that the coarsest map is averaged to."""
SCALES = (4.0, 2.0, 1.0, 0.5)
_GROUPS, _LEAST = 32, 8


def norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm with 32 groups, fewer in narrow layers: a group of one channel would erase a 1 x 1 map."""
    return nn.GroupNorm(math.gcd(_GROUPS, channels, max(1, channels // _LEAST)), channels)


def conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return convolution (without bias), norm and ReLU; the size stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        norm(outputs),
        nn.ReLU(inplace=True),
    )


def rescale(channels: int, factor: float) -> nn.Module:
    """Return what changes the side of a map by a factor: 4, 2, 1 or 0.5.

    Raises:
        ConfigError: another factor.
    """

    def double() -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(channels, channels, 2, stride=2)

    if factor == 4:
        return nn.Sequential(double(), norm(channels), nn.GELU(), double())
    if factor == 2:
        return double()
    if factor == 0.5:
        return nn.MaxPool2d(2, ceil_mode=True)  # a map of one cell stays one cell
    if factor == 1:
        return nn.Identity()
    raise ConfigError(f"rescale: expected factors of {', '.join(map('{:g}'.format, SCALES))}, got {factor}")


class PyramidPooling(nn.Module):
    """Averages of a map over coarse grids beside the map itself, ``[B, inputs, h, w]`` to ``[B, width, h, w]``."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(conv(inputs, width, 1) for _ in BINS)
        self.merge = conv(inputs + len(BINS) * width, width, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Return the map with its surroundings."""
        pooled = [
            _resize(reduce(functional.adaptive_avg_pool2d(features, side)), features)
            for side, reduce in zip(BINS, self.reduce, strict=True)
        ]
        return self.merge(torch.cat([features, *pooled], dim=1))


class UPerNet(nn.Module):
    """Decoder from tapped maps to per-pixel logits.

    Args:
        channels: channels of each map, finest level first.
        rescales: factor on the side of each map, 4, 2, 1 or 0.5; all 1 for towers with a pyramid of their own.
        width: channels C of the decoder.
        classes: number of classes.
        dropout: before the last convolution.

    Raises:
        ConfigError: not one factor per map, or a factor that is not known.
    """

    def __init__(
        self,
        channels: Sequence[int],
        rescales: Sequence[float],
        *,
        width: int = 256,
        classes: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(channels) != len(rescales):
            raise ConfigError(f"rescale: expected {len(channels)} factors, one per tap, got {len(rescales)}")
        self.neck = nn.ModuleList(map(rescale, channels, rescales))
        self.pooling = PyramidPooling(channels[-1], width)
        self.lateral = nn.ModuleList(conv(count, width, 1) for count in channels[:-1])
        self.smooth = nn.ModuleList(conv(width, width, 3) for _ in channels[:-1])
        self.fuse = conv(len(channels) * width, width, 3)
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the rescaled maps, finest first."""
        return [scale(one) for scale, one in zip(self.neck, maps, strict=True)]

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits ``[B, classes, *size]`` of maps ``[B, C_l, h_l, w_l]``."""
        levels = self.pyramid(maps)
        merged = [self.pooling(levels[-1])]
        for lateral, level in zip(reversed(self.lateral), reversed(levels[:-1]), strict=True):
            own = lateral(level)
            merged.insert(0, own + _resize(merged[0], own))
        smooth = [layer(one) for layer, one in zip(self.smooth, merged[:-1], strict=True)] + merged[-1:]
        fused = self.fuse(torch.cat([_resize(one, smooth[0]) for one in smooth], dim=1))
        return functional.interpolate(self.classify(fused), size=size, mode="bilinear", align_corners=False)


def _resize(features: Tensor, like: Tensor) -> Tensor:
    """Resize a map bilinearly to the height and width of another one."""
    if features.shape[2:] == like.shape[2:]:
        return features
    return functional.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)
