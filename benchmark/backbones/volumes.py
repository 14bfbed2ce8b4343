"""Fitting CT volumes to a model: axes, spacing, window, crop; and the check that values are Hounsfield units (HU).

A :class:`VolumeFitting` has a name such as ``volume-240x480x480-1.5x0.75x0.75mm-slp-m1000to1000-ct_clip``; prepared
files are called by it.
Shape letters: D slices, H rows, W columns, each in the order of the fitting's axes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from benchmark.errors import ConfigError, DataError, unknown
from benchmark.preprocess import Fitting, Pixels, Preprocess

Volume = npt.NDArray[Any]
_NAME = re.compile(r"volume-([\dx]+)-([\d.x]+)mm-([a-z]{3})-(m?\d+)to(m?\d+)-([a-z_]+)")
Rule = Literal["ct_clip", "hlip"]

AIR, SOFT = -900.0, (-200.0, 200.0)
"""A chest has air around it and soft tissue in it: bounds of the check of values, in HU."""
SOFT_SHARE = 0.05
_SAMPLED = 2_000_000


@dataclass(frozen=True)
class VolumeFitting(Fitting):
    """What is done to a volume: axes, resampling, window, crop.

    Attributes:
        size: (D, H, W) of the result, in voxels.
        spacing: millimetres between voxels along each axis.
        axes: where each axis points, of L/R, A/P, S/I: "SLP" goes up, then to the patient's left, then to the back.
        window: (low, high) in HU; what lies beyond is cut off, and what is padded is low.
        rule: whose loader is followed. "ct_clip" cuts off to the window before it resamples, in double precision, to
            n (old / new) voxels; "hlip" after it, in single precision, to (n old) / new voxels. Both numbers are cut
            off to whole ones; they differ by one where the true number is whole.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    axes: str = "SPL"
    window: tuple[int, int] = (-1000, 1000)
    rule: Rule = "ct_clip"

    def __post_init__(self) -> None:
        """Raise ConfigError for a size or spacing that is not positive, axes that are not three, an empty window."""
        planes = {"L": "x", "R": "x", "A": "y", "P": "y", "S": "z", "I": "z"}
        if len(self.size) != 3 or any(not isinstance(n, int) or n < 1 for n in self.size):
            raise ConfigError(f"size: expected slices, rows and columns, got {self.size!r}")
        if len(self.spacing) != 3 or any(not 0 < step < math.inf for step in self.spacing):
            raise ConfigError(
                f"spacing: expected three positive numbers of millimetres, got {self.spacing!r}"
            )
        if sorted(planes.get(letter, "") for letter in self.axes) != ["x", "y", "z"]:
            raise ConfigError(f"axes: expected one letter each of L/R, A/P and S/I, got '{self.axes}'")
        if self.window[0] >= self.window[1]:
            raise ConfigError(f"window: expected the lower value first, got {self.window!r}")
        if self.rule not in get_args(Rule):
            raise ConfigError(unknown("rule", self.rule, get_args(Rule)))

    @property
    def name(self) -> str:
        """Name of the fitting; prepared files are called by it."""
        size, spacing = "x".join(map(str, self.size)), "x".join(f"{step:g}" for step in self.spacing)
        window = "to".join(f"m{-edge}" if edge < 0 else str(edge) for edge in self.window)
        return f"volume-{size}-{spacing}mm-{self.axes.lower()}-{window}-{self.rule}"

    @classmethod
    def parse(cls, name: str) -> Fitting:
        """Return the fitting of a name, of volumes or of pictures; ConfigError where no fitting is called so."""
        if not name.startswith("volume"):
            return Fitting.parse(name)
        found = _NAME.fullmatch(name)
        if found:
            size, steps = tuple(map(int, found[1].split("x"))), tuple(map(float, found[2].split("x")))
            low, high = (int(edge.replace("m", "-")) for edge in (found[4], found[5]))
            rule: Any = found[6]
            made = cls(size, spacing=steps, axes=found[3].upper(), window=(low, high), rule=rule)  # type: ignore[arg-type]
            if made.name == name:
                return made
        raise ConfigError(f"expected a name such as {DEFAULT.name}, got '{name}'")

    def on(self, crop: str) -> VolumeFitting:
        """Return the fitting itself: volumes have no rule that a dataset brings."""
        return self

    def pixels(self, pixels: Pixels) -> Pixels:
        """Refuse a picture."""
        raise ConfigError(
            "this backbone takes CT volumes, and the dataset has pictures: choose another of the two"
        )

    def volume(self, hounsfield: Volume, spacing: tuple[float, ...]) -> npt.NDArray[np.float32]:
        """Return a volume ``[D, H, W]`` as the model takes it, in HU.

        Args:
            hounsfield: HU ``[d, h, w]``, its axes those of the fitting.
            spacing: millimetres between its voxels.
        """
        return self.cropped(self.resampled(hounsfield, spacing))

    def resampled(self, hounsfield: Volume, spacing: tuple[float, ...]) -> npt.NDArray[np.float32]:
        """Return a volume at the fitting's spacing, cut off to its window; arguments as in :meth:`volume`."""
        import torch  # seconds; commands that only plan fit no volumes
        from torch.nn import functional

        first = self.rule == "ct_clip"
        values = torch.from_numpy(np.array(hounsfield, dtype=np.float64 if first else np.float32))
        values = values.clamp_(*self.window) if first else values
        counts = self.counts(tuple(values.shape), spacing)
        # between the centres of voxels; steps follow from the two numbers of voxels, not from the spacing
        values = functional.interpolate(values[None, None], counts, mode="trilinear", align_corners=False)
        return values[0, 0].clamp_(*self.window).float().numpy()

    def counts(self, shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
        """Return how many voxels a volume has at the fitting's spacing, at least one along each axis."""
        steps = zip(shape, spacing, self.spacing, strict=True)
        if self.rule == "ct_clip":
            return tuple(max(1, int(n * (old / new))) for n, old, new in steps)
        return tuple(max(1, int(n * old / new)) for n, old, new in steps)

    def cropped(self, values: Volume) -> Volume:
        """Return the middle of a volume at the fitting's size; the smaller half of what is padded lies in front."""
        starts = [(have - want) // 2 for have, want in zip(values.shape, self.size, strict=True)]
        inner = values[
            tuple(slice(max(0, start), max(0, start) + n) for start, n in zip(starts, self.size, strict=True))
        ]
        missing = [want - have for have, want in zip(inner.shape, self.size, strict=True)]
        edges = [(n // 2, n - n // 2) for n in missing]
        return np.pad(inner, edges, constant_values=self.window[0]) if any(missing) else inner


DEFAULT = VolumeFitting((240, 480, 480), spacing=(1.5, 0.75, 0.75), axes="SLP")
"""What volumes are prepared at unless asked otherwise: what CT-CLIP takes."""


@dataclass(frozen=True)
class VolumePreprocess(Preprocess):
    """One model's own preprocessing of volumes.

    Attributes:
        mean, std: one number each, of values scaled to [0, 1] over the window.
        spacing, axes, window, rule: as in :class:`VolumeFitting`.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    axes: str = "SPL"
    window: tuple[int, int] = (-1000, 1000)
    rule: Rule = "ct_clip"

    @property
    def fitting(self) -> VolumeFitting:
        """What is done to volumes once, when a dataset is prepared."""
        return VolumeFitting(
            self.size, spacing=self.spacing, axes=self.axes, window=self.window, rule=self.rule
        )

    def facts(self) -> dict[str, Any]:
        """Return what results say of it."""
        return {"preprocess": self.as_json()}

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON types, without what only pictures have."""
        pictures = {item.name for item in fields(Preprocess)} - {"size", "mean", "std"}
        return {key: value for key, value in super().as_json().items() if key not in pictures}


def check_hounsfield(values: Volume, where: str) -> None:
    """Make sure that a chest volume holds HU, by its content: no header and no table says so reliably.

    Air lies below -900 HU (first percentile), and at least 5 % of the voxels are soft tissue, -200 to 200 HU. A volume
    whose offset of -1024 was added twice fails by the second rule.

    Args:
        values: any shape.
        where: file, for the message.

    Raises:
        DataError: they are not HU, with the reason that fits best.
    """
    flat = np.asarray(values).reshape(-1)
    low, high = float(flat.min()), float(flat.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise DataError(f"{where}: holds values that are not finite numbers. Fetch the volume again")
    if low == high:
        raise DataError(
            f"{where}: every voxel is {low:g}. The volume is empty, or was clipped after a wrong scale"
        )
    first = float(np.percentile(flat[:: max(1, flat.size // _SAMPLED)], 1))
    soft = _share(flat, *SOFT)
    if first <= AIR and soft >= SOFT_SHARE:
        return
    shifted = {offset: _share(flat, SOFT[0] + offset, SOFT[1] + offset) for offset in (-1024, -8192, 1024)}
    offset = max(shifted, key=lambda key: shifted[key])
    if offset < 0 and shifted[offset] >= SOFT_SHARE and soft < SOFT_SHARE:
        raise DataError(
            f"{where}: not Hounsfield units: soft tissue lies near {offset}, so the intercept was added twice (the "
            "file holds HU already). Leave slope and intercept of the table out for this file"
        )
    if offset > 0 and first > AIR:
        raise DataError(
            f"{where}: not Hounsfield units: the lowest values lie near {first:.0f}, so slope and intercept were not "
            "applied. Give the table that holds them"
        )
    raise DataError(
        f"{where}: not Hounsfield units of a chest: 1st percentile {first:.0f} (expected at most {AIR:.0f}), "
        f"{100 * soft:.1f} % of the voxels between {SOFT[0]:.0f} and {SOFT[1]:.0f} (expected at least 5 %)"
    )


def _share(values: npt.NDArray[Any], low: float, high: float) -> float:
    return float(np.mean((values >= low) & (values <= high)))
