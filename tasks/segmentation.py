"""Segmentation: a UPerNet decoder trained on the frozen image tower of an adapted method.

Protocol of the ACE-LoRA paper's Table 4 (SIIM): five tapped blocks, cross-entropy plus Tversky loss, flips and
rotations, AdamW, batches of four. The paper leaves open the learning rate, the loss weights, the rotation range and
which Dice it prints; the defaults here are stated with each option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.dense_metrics import Overlaps, best_fixed_mask, dice_per_image, segmentation_metrics
from benchmark.errors import ConfigError
from benchmark.metrics import weighted_mean
from benchmark.registry import register_task
from benchmark.settings import setting
from benchmark.statistics import metrics_report
from methods.base import Method
from tasks.base import DatasetResult, TaskContext
from tasks.dense import (
    DenseBatch,
    DenseImages,
    DenseOptions,
    DenseTask,
    TapBatches,
    Taps,
    panel_rows,
)
from tasks.heads.training import fit_head, seeded
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


@register_task("segmentation")
class SegmentationTask(DenseTask):
    """Foreground Dice per image (headline), pooled Dice and IoU, each with an interval clustered by patient."""

    title = "Segmentation"
    Options = SegmentationOptions
    headline = ("dice", "dice_pooled", "iou")
    truth = "masks"
    options: SegmentationOptions

    def evaluate(
        self, method: Method, entry: Mapping[str, Any], name: str, context: TaskContext
    ) -> DatasetResult:
        """Train the decoder, then measure it once on the test part."""
        options = self.options
        taps = Taps(method, options.taps, context, options.final_norm)
        parts = {part: self.part(entry, part, taps, context) for part in ("train", "val")}
        with seeded(context.seed, context.device):
            head = self.head(taps).to(context.device)
        train = TapBatches(taps, parts["train"], context, options.augment())
        val = TapBatches(taps, parts["val"], context)
        fit = fit_head(
            head,
            train,
            loss=lambda batch: self.loss(head, batch, parts["train"]),
            validate=lambda: float(dice_per_image(self.overlaps(head, val, parts["val"], context)[0]).mean()),
            options=options,
            context=context,
            stage=f"train decoder {parts['train'].title}",
        )
        fixed = best_fixed_mask(_masks(parts["train"]), _masks(parts["val"]))
        parts["test"] = self.part(entry, "test", taps, context)
        test = parts["test"]
        found, predicted = self.overlaps(head, TapBatches(taps, test, context), test, context)
        trivial = Overlaps.of(np.broadcast_to(fixed, predicted.shape), _masks(test))
        shown = panel_rows(test.ids, options.panels)
        return DatasetResult(
            n=len(test),
            kind="segmentation",
            metrics=self.report(found, trivial, test),
            predictions={
                "image_id": np.array(test.ids),
                "patient_id": np.array(test.clusters),
                **{key: np.asarray(getattr(found, key)) for key in ("shared", "predicted", "actual")},
                "panel_id": np.array(test.ids)[shown],
                "panel_pixels": np.stack([test.pixels(row) for row in shown]) if len(shown) else np.empty(0),
                "panel_truth": _masks(test, shown),
                "panel_prediction": predicted[shown],
            },
            info=self.facts(parts, taps, head, fit),
        )

    def head(self, taps: Taps) -> UPerNet:
        """Return an untrained decoder for these taps; a tower with its own pyramid needs no rescaling."""
        options = self.options
        rescales: Sequence[float] = [1.0] * len(taps.shapes) if taps.pyramid else options.rescale
        return UPerNet(
            [shape[0] for shape in taps.shapes], rescales, width=options.width, dropout=options.dropout
        )

    def loss(self, head: UPerNet, batch: DenseBatch, images: DenseImages) -> Tensor:
        """Return cross-entropy plus Tversky loss of the foreground."""
        options, pairs = self.options, zip(batch.rows, batch.views, strict=True)
        masks = np.stack([view.mask(images.mask(row)) for row, view in pairs])
        truth = torch.from_numpy(masks).to(batch.maps[0].device)
        logits = head(batch.maps, images.size)
        foreground = logits.softmax(dim=1)[:, 1]
        return options.ce_weight * functional.cross_entropy(
            logits, truth.long()
        ) + options.tversky_weight * tversky_loss(
            foreground, truth.float(), alpha=options.alpha, beta=options.beta
        )

    @torch.no_grad()
    def overlaps(
        self, head: UPerNet, batches: TapBatches, images: DenseImages, context: TaskContext
    ) -> tuple[Overlaps, np.ndarray]:
        """Return the overlaps of a part and its predicted masks, bool ``[N, H, W]``: the likelier class per pixel."""
        masks = [
            head(batch.maps, images.size).argmax(dim=1).bool().cpu().numpy()
            for batch in batches.in_order(context.batch_size)
        ]
        predicted = np.concatenate(masks)
        return Overlaps.of(predicted, _masks(images)), predicted

    def report(self, found: Overlaps, trivial: Overlaps, test: DenseImages) -> dict[str, dict[str, Any]]:
        """Return all metrics with intervals; ``dice_trivial`` is the best answer that looks at no image."""
        metrics = segmentation_metrics(found) | {"dice_trivial": weighted_mean(dice_per_image(trivial))}
        return metrics_report(
            metrics,
            len(test),
            test.clusters,
            resamples=self.options.bootstrap,
            seed=self.options.bootstrap_seed,
        )


def _masks(images: DenseImages, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    chosen = range(len(images)) if rows is None else rows
    return (
        np.stack([images.mask(row) for row in chosen]) if len(chosen) else np.empty((0, *images.size), bool)
    )
