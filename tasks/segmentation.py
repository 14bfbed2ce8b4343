"""Segmentation: a UPerNet decoder trained on the frozen image tower of an adapted method.

Protocol of the ACE-LoRA paper's Table 4 (SIIM): five tapped blocks, cross-entropy plus Tversky loss, flips and
rotations, AdamW, batches of four. The paper leaves open the learning rate, the loss weights, the rotation range and
which Dice it prints; the defaults here are stated with each option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.backbones.backbone import to_device
from benchmark.errors import ConfigError
from benchmark.metrics.classification import Metric, SampleMean, WeightedMetric
from benchmark.metrics.segmentation import Overlaps, best_fixed_mask, dice_per_image, segmentation_metrics
from benchmark.registry import register_task
from benchmark.settings import setting
from tasks.dense import DenseHead, DenseTask, references
from tasks.heads.images import DenseImages, DenseOptions
from tasks.heads.taps import DenseBatch, TapBatches, Taps
from tasks.heads.upernet import SCALES, UPerNet


@dataclass(frozen=True)
class SegmentationOptions(DenseOptions):
    """Options of the task.

    Raises:
        ConfigError: as for all dense tasks, or rescale factors that do not fit the taps.
    """

    taps: tuple[int, ...] = setting((2, 4, 7, 9, 11), "tapped blocks, counted from 0 in a tower of 12")
    rescale: tuple[float, ...] = setting((4.0, 4.0, 2.0, 1.0, 0.5), "factor on the side of each tapped map")
    width: int = setting(256, "channels of the decoder", low=1)
    dropout: float = setting(0.1, "dropout before the last convolution", low=0)
    ce_weight: float = setting(1.0, "weight of the cross-entropy", low=0)
    tversky_weight: float = setting(1.0, "weight of the Tversky loss", low=0)
    alpha: float = setting(0.3, "Tversky loss: weight of pixels marked in excess", low=0)
    beta: float = setting(0.7, "Tversky loss: weight of missed pixels", low=0)
    vflip: float = setting(0.5, "probability of an upside-down flip", low=0)
    rotation: float = setting(10.0, "half the images are turned by up to this many degrees", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.rescale) != len(self.taps) or not set(self.rescale) <= set(SCALES):
            raise ConfigError(
                f"rescale: expected {len(self.taps)} factors of {', '.join(map('{:g}'.format, SCALES))}, "
                f"one per tap, got {list(self.rescale)}"
            )


def tversky_loss(
    probability: Tensor, truth: Tensor, *, alpha: float = 0.3, beta: float = 0.7, eps: float = 1.0
) -> Tensor:
    """Return 1 - T over all pixels of a batch, T = TP / (TP + alpha FP + beta FN) (arXiv 1706.05721).

    Args:
        probability: of the foreground, ``[B, h, w]``.
        truth: 0 or 1, ``[B, h, w]``.
        alpha: weight of pixels marked in excess (FP).
        beta: weight of missed pixels (FN); with alpha = beta = 0.5 this is the soft Dice loss.
        eps: added above and below, so that a batch without foreground is defined.
    """
    hit = (probability * truth).sum()
    excess, missed = (probability * (1 - truth)).sum(), ((1 - probability) * truth).sum()
    return 1 - (hit + eps) / (hit + alpha * excess + beta * missed + eps)


@dataclass(frozen=True)
class Decoder(DenseHead[np.ndarray]):
    """A UPerNet and its loss; it finds masks, bool ``[N, H, W]``: the likelier class of each pixel."""

    head: UPerNet
    options: SegmentationOptions

    def loss(self, batch: DenseBatch, images: DenseImages) -> Tensor:
        """Return cross-entropy plus Tversky loss of the foreground."""
        options, pairs = self.options, zip(batch.rows, batch.views, strict=True)
        masks = np.stack([view.mask(images.mask(row)) for row, view in pairs])
        truth = to_device(torch.from_numpy(masks), batch.maps[0].device)
        logits = self.head(batch.maps, images.size).float()  # coarser under autocast
        foreground = logits.softmax(dim=1)[:, 1]
        return options.ce_weight * functional.cross_entropy(
            logits, truth.long()
        ) + options.tversky_weight * tversky_loss(
            foreground, truth.float(), alpha=options.alpha, beta=options.beta
        )

    @torch.no_grad()
    def predict(self, batches: TapBatches, batch_size: int) -> np.ndarray:
        """Return the masks of a part."""
        size = batches.images.size
        masks = [
            self.head(batch.maps, size).argmax(dim=1).bool().cpu().numpy()
            for batch in batches.in_order(batch_size)
        ]
        return np.concatenate(masks)


@register_task("segmentation")
class SegmentationTask(DenseTask[np.ndarray]):
    """Foreground Dice per image (headline), pooled Dice and IoU, each with an interval clustered by patient."""

    title, kind = "Segmentation", "segmentation"
    Options = SegmentationOptions
    metrics = (
        Metric("dice", "Dice", headline=True, references=references("dice")),
        Metric("dice_pooled", "pooled Dice"),
        Metric("iou", "IoU"),
    )
    truth = "masks"
    options: SegmentationOptions

    def new_head(self, taps: Taps, train: DenseImages, device: torch.device) -> Decoder:
        """Return an untrained decoder for these taps; a tower with its own pyramid needs no rescaling."""
        options = self.options
        rescales: Sequence[float] = [1.0] * len(taps.shapes) if taps.pyramid else options.rescale
        channels = [shape[0] for shape in taps.shapes]
        head = UPerNet(channels, rescales, width=options.width, dropout=options.dropout)
        return Decoder(head.to(device), options)

    def score(self, found: np.ndarray, images: DenseImages) -> float:
        """Return the mean Dice."""
        return float(dice_per_image(Overlaps.of(found, _masks(images))).mean())

    def constant(self, train: DenseImages, val: DenseImages) -> np.ndarray:
        """Return the mask ``[H, W]`` that fits best when it is given for every image."""
        return best_fixed_mask(_masks(train), _masks(val))

    def formulas(
        self, found: np.ndarray, constant: np.ndarray, test: DenseImages
    ) -> dict[str, WeightedMetric]:
        """Return all metrics; ``dice_trivial`` is that of the constant answer."""
        truth = _masks(test)
        trivial = Overlaps.of(np.broadcast_to(constant, found.shape), truth)
        return segmentation_metrics(Overlaps.of(found, truth)) | {
            "dice_trivial": SampleMean(dice_per_image(trivial))
        }

    def samples(self, found: np.ndarray, test: DenseImages, shown: np.ndarray) -> dict[str, np.ndarray]:
        """Return the pixel counts of every image, and the masks that are shown."""
        overlaps = Overlaps.of(found, _masks(test))
        return {
            **{key: np.asarray(getattr(overlaps, key)) for key in ("shared", "predicted", "actual")},
            "panel_truth": _masks(test, shown),
            "panel_prediction": found[shown],
        }


def _masks(images: DenseImages, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    chosen = range(len(images)) if rows is None else rows
    return (
        np.stack([images.mask(row) for row in chosen]) if len(chosen) else np.empty((0, *images.size), bool)
    )
