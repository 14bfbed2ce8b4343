"""How a decoded image becomes the input of a model: one record per model, part of every result's provenance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmark.data.fitting import Channels, Crop, Fitting, Interpolation
from benchmark.errors import ConfigError


@dataclass(frozen=True)
class Preprocess:
    """One model's own preprocessing.

    Attributes:
        size: spatial size of the input, (h, w) for images.
        mean, std: per input channel, of pixels scaled to [0, 1], applied when a batch is made; one channel takes grey
            pixels as they are, three have them repeated.
        resize: "squash", "shortest_crop" or "longest_pad" (:class:`Fitting`); None: the model has no rule of its own,
            each dataset brings its default.
        side: what the shortest or longest side is resized to before the crop; None: the size itself.
        interpolation: "bicubic", "bilinear" or "area".
        channels: "rgb": colours stay; "grey": they become one grey channel first.
        minmax: stretch each image from its darkest to its brightest pixel before it is resized.
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
        """Check what fits together.

        Raises:
            ConfigError: an unknown choice, a side smaller than the crop, or mean and std of different lengths.
        """
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
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


def preprocess_of(model: Any) -> Preprocess:
    """Return the record of a backbone, or of what ``check_backbone`` has found.

    One that brings no record is fitted as open_clip's models are: bicubic, to its input size, by the dataset's rule.

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
