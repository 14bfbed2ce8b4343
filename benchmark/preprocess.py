"""Fitting images, masks and boxes to a model: grey levels, resizing, borders and crop, as uint8 pixels.

A :class:`Fitting` has a name such as ``shortest_crop-224x224`` or ``longest_pad256-224x224-area-grey``; prepared pixel
files are called by it, and results say it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import PIL.Image

from benchmark.errors import ConfigError, unknown

Crop = Literal["squash", "shortest_crop", "longest_pad"]
Interpolation = Literal["bicubic", "bilinear", "area"]
Channels = Literal["rgb", "grey"]
CROPS: tuple[str, ...] = get_args(Crop)
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
CHANNELS: tuple[str, ...] = get_args(Channels)
Pixels = npt.NDArray[np.uint8]

_PILLOW = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "nearest": PIL.Image.Resampling.NEAREST,
}
_NAME = re.compile(r"([a-z_]+?)(\d*)-(\d+(?:x\d+)*)((?:-[a-z]+)*)")


@dataclass(frozen=True)
class Fitting:
    """What is done to an image, in this order: grey levels, resizing, black borders, crop.

    Attributes:
        size: (h, w) of the result.
        crop: "squash" ignores the aspect ratio; "shortest_crop" covers the target and keeps its middle; "longest_pad"
            puts the whole image on a black square and keeps its middle; None: each dataset brings its default.
        side: pixels that the shortest or longest side is resized to before the middle is cut out; None: just the size.
        interpolation: "bicubic" and "bilinear" as Pillow has them, with antialiasing; "area": the mean over the area
            of a pixel, parts of source pixels counted as such.
        channels: "grey" makes one grey channel of colours (ITU-R 601, as Pillow does); "rgb" leaves them.
        minmax: stretch the grey levels of each image to 0..255 first.
    """

    size: tuple[int, ...]
    crop: str | None = None
    side: int | None = None
    interpolation: str = "bicubic"
    channels: str = "rgb"
    minmax: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown choice, or a side that is smaller than the crop or has no meaning."""
        for key, known in (("crop", CROPS), ("interpolation", INTERPOLATIONS), ("channels", CHANNELS)):
            value = getattr(self, key)
            if value not in known and not (key == "crop" and value is None):
                raise ConfigError(unknown(key, str(value), known))
        if any(not isinstance(n, int) or n < 1 for n in self.size):
            raise ConfigError(f"size: expected height and width, got {self.size!r}")
        if self.side is not None and (self.crop in (None, "squash") or self.side < max(self.size)):
            raise ConfigError(
                f"side: expected at least {max(self.size)}, with shortest_crop or longest_pad, got {self.side}"
            )

    @property
    def name(self) -> str:
        """Name of a fitting whose crop is known; :meth:`parse` reads it back."""
        words = [f"{self.crop}{self.side or ''}", "x".join(map(str, self.size))]
        words += [word for word in (self.interpolation, self.channels) if word not in ("bicubic", "rgb")]
        return "-".join([*words, *["minmax"] * self.minmax])

    @classmethod
    def parse(cls, name: str) -> Fitting:
        """Return the fitting of a name; ConfigError where no fitting is called so."""
        found = _NAME.fullmatch(name)
        words = found[4].split("-")[1:] if found else []
        made = found and cls(
            tuple(map(int, found[3].split("x"))),
            found[1],
            int(found[2]) if found[2] else None,
            next((word for word in words if word in INTERPOLATIONS), "bicubic"),
            "grey" if "grey" in words else "rgb",
            "minmax" in words,
        )
        if not made or made.name != name:
            raise ConfigError(
                f"expected a name such as shortest_crop-224x224 or longest_pad256-224x224-area-grey, got '{name}'"
            )
        return made

    def on(self, crop: str) -> Fitting:
        """Return the fitting on a dataset whose default is ``crop``."""
        return self if self.crop is not None else replace(self, crop=crop)

    # ------------------------------------------------------------------ use
    def pixels(self, pixels: Pixels) -> Pixels:
        """Return uint8 pixels ``[H, W]`` or ``[H, W, 3]`` at the fitting's size."""
        if self.minmax:
            pixels = _stretched(pixels)
        if self.channels == "grey" and pixels.ndim == 3:
            pixels = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
        shape, corner = self._geometry(pixels.shape[:2])
        return self._window(_resized(pixels, shape, self.interpolation), corner)

    def mask(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return a bool mask ``[H, W]`` at the fitting's size: the geometry of :meth:`pixels`, nearest pixels."""
        shape, corner = self._geometry(mask.shape)
        return self._window(_resized(mask.astype(np.uint8), shape, "nearest"), corner) != 0

    def box(self, box: Sequence[float], original: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return a box x1, y1, x2, y2 in fitted pixels, without area where the crop cut it away.

        Args:
            box: x1, y1, x2, y2 in pixels of the original.
            original: width and height of the original.
        """
        width, height = original
        (resized_h, resized_w), (top, left) = self._geometry((height, width))
        scales = (resized_w, width, left, self.size[1]), (resized_h, height, top, self.size[0])
        x1, y1, x2, y2 = (
            min(max(value * resized / edge - start, 0.0), float(target))
            for value, (resized, edge, start, target) in zip(box, (*scales, *scales), strict=True)
        )
        return x1, y1, x2, y2

    def _geometry(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the (h, w) to resize to, and the (top, left) of the target in it, negative where borders are added."""
        (height, width), (h, w) = shape, self.size
        if self.crop == "squash":
            return (h, w), (0, 0)
        if self.crop == "longest_pad":
            side = self.side or max(h, w)
            scale = side / max(height, width)  # the factor first, then the product: as GLoRIA rounds
            resized = [side if edge == max(height, width) else int(edge * scale) for edge in (height, width)]
            borders = [(side - edge) // 2 for edge in resized]
            top, left = (round((side - target) / 2) - b for target, b in zip((h, w), borders, strict=True))
            return (max(1, resized[0]), max(1, resized[1])), (top, left)
        cover_h, cover_w = (self.side, self.side) if self.side else (h, w)
        tall = cover_h * width < cover_w * height  # the width is what limits; rounding as torchvision's
        resized_h = max(cover_h, int(cover_w * height / width)) if tall else cover_h
        resized_w = cover_w if tall else max(cover_w, int(cover_h * width / height))
        return (resized_h, resized_w), (round((resized_h - h) / 2), round((resized_w - w) / 2))

    def _window(self, pixels: npt.NDArray[Any], corner: tuple[int, int]) -> npt.NDArray[Any]:
        """Return the target's part of an image, black where it goes beyond it."""
        edges = [
            (max(0, -start), max(0, start + target - have))
            for start, target, have in zip(corner, self.size, pixels.shape[:2], strict=True)
        ]
        if any(map(any, edges)):
            pixels = np.pad(pixels, [*edges, (0, 0)][: pixels.ndim])
        top, left = (max(0, start) for start in corner)
        return pixels[top : top + self.size[0], left : left + self.size[1]]


THUMBNAIL = Fitting((32, 32), "squash", None, "bilinear", "grey")
"""The whole image in small, whatever a model's crop: near copies are found by it."""


def _resized(pixels: Pixels, shape: tuple[int, int], how: str) -> Pixels:
    if pixels.shape[:2] == shape:
        return pixels
    if how == "area":
        wide = _area(_area(pixels.astype(np.float64), shape[0]).swapaxes(0, 1), shape[1]).swapaxes(0, 1)
        return np.rint(wide.round(6)).astype(np.uint8)
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels)).resize((shape[1], shape[0]), _PILLOW[how])
    return np.asarray(image)


def _area(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Return means over ``count`` equal stretches of the first axis, as OpenCV's INTER_AREA does.

    A value that is cut counts by its share.
    """
    length = len(values)
    edges = np.arange(count + 1) * (length / count)
    whole = np.minimum(edges.astype(np.intp), length - 1)
    share = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    sums = np.concatenate([np.zeros_like(values[:1]), values.cumsum(axis=0)])
    return np.diff(sums[whole] + share * values[whole], axis=0) * (count / length)


def _stretched(pixels: Pixels) -> Pixels:
    """Return grey levels stretched to 0..255 and cut off to whole ones, step by step as BioViL's loader does."""
    wide = pixels.astype(np.float64)
    wide -= wide.min()
    wide /= max(wide.max(), 1e-300)  # a constant image stays black
    wide *= 255
    return wide.astype(np.uint8)


@dataclass(frozen=True)
class Preprocess:
    """One model's own preprocessing.

    Attributes:
        size, side, interpolation, channels, minmax: as in :class:`Fitting`.
        mean, std: per input channel, of pixels scaled to [0, 1], applied when a batch is made; one channel takes grey
            pixels as they are, three have them repeated.
        resize: the crop of :class:`Fitting`; None: the model has no rule of its own, each dataset brings its default.
    """

    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Crop | None = None
    side: int | None = None
    interpolation: Interpolation = "bicubic"
    channels: Channels = "rgb"
    minmax: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError as :class:`Fitting` does, and for mean and std of different lengths."""
        if len(self.mean) != len(self.std):
            raise ConfigError(f"preprocess: {len(self.mean)} means but {len(self.std)} standard deviations")
        _ = self.fitting

    @property
    def fitting(self) -> Fitting:
        """What is done to pixels once, when a dataset is prepared."""
        return Fitting(self.size, self.resize, self.side, self.interpolation, self.channels, self.minmax)

    def facts(self) -> dict[str, Any]:
        """Return what results say of it; nothing for a model without a rule of its own."""
        return {"preprocess": self.as_json()} if self.resize else {}

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        items = asdict(self).items()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def preprocess_of(model: Any) -> Preprocess:
    """Return the preprocessing of a backbone, or of what ``check_backbone`` has found.

    One that brings none is fitted as open_clip's models are: bicubic, to its input size, by the dataset's rule.

    Args:
        model: has ``preprocess`` (a :class:`Preprocess`), else ``input_spec``, else ``image_size``.
    """
    record = getattr(model, "preprocess", None)
    if isinstance(record, Preprocess):
        return record
    spec = getattr(model, "input_spec", None)
    if spec is None:
        return Preprocess(tuple(model.image_size), (), ())
    return Preprocess(tuple(spec.size), tuple(spec.mean), tuple(spec.std))
