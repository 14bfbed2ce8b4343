"""Overlap metrics of segmentation, as functions of sample weights (``benchmark/metrics/classification.py``).

The headline Dice is the mean over images of 2 |P and G| / (|P| + |G|), foreground only. Pooled Dice takes the sums over
all images first: large findings weigh more there. An image without foreground that is left empty counts as 1, one with
foreground that is left empty as 0. Shapes: N images of h x w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmark.metrics.classification import Array, Floats, SampleMean, WeightedMetric


@dataclass(frozen=True)
class Overlaps:
    """Foreground pixels of every image.

    Attributes:
        shared, predicted, actual: int64 ``[N]``: in both masks, in the predicted one, in the true one.
    """

    shared: Array
    predicted: Array
    actual: Array

    @classmethod
    def of(cls, predicted: Array, actual: Array) -> Overlaps:
        """Count the foreground of masks, bool ``[N, h, w]`` each.

        Raises:
            ValueError: if the shapes differ.
        """
        predicted, actual = np.asarray(predicted, dtype=bool), np.asarray(actual, dtype=bool)
        if predicted.shape != actual.shape or predicted.ndim != 3:
            raise ValueError(
                f"expected masks of one shape [N, h, w], got {predicted.shape} and {actual.shape}"
            )
        counted = (mask.sum(axis=(1, 2), dtype=np.int64) for mask in (predicted & actual, predicted, actual))
        return cls(*counted)


def dice_per_image(overlaps: Overlaps) -> Floats:
    """Return the foreground Dice of every image, ``[N]``; 1 where both masks are empty."""
    return _fractions(2 * overlaps.shared, overlaps.predicted + overlaps.actual)


def iou_per_image(overlaps: Overlaps) -> Floats:
    """Return the foreground intersection over union of every image, ``[N]``; 1 where both masks are empty."""
    return _fractions(overlaps.shared, overlaps.predicted + overlaps.actual - overlaps.shared)


def segmentation_metrics(overlaps: Overlaps) -> dict[str, WeightedMetric]:
    """Return ``dice`` and ``iou`` (means over images) and ``dice_pooled`` (sums over all images first).

    All are NaN where no image has foreground.
    """
    if not overlaps.actual.any():  # nothing to find anywhere: an empty answer would count as perfect
        return dict.fromkeys(
            ("dice", "dice_pooled", "iou"), lambda weights: np.full(weights.shape[1], np.nan)
        )
    shared = 2.0 * overlaps.shared
    total = (overlaps.predicted + overlaps.actual).astype(np.float64)
    return {
        "dice": SampleMean(dice_per_image(overlaps)),
        "dice_pooled": lambda weights: _fractions(shared @ weights, total @ weights),
        "iou": SampleMean(iou_per_image(overlaps)),
    }


def best_fixed_mask(masks: Array, val_masks: Array) -> Array:
    """Return the answer that looks at no image: the training masks' mean, cut where it fits validation best.

    Args:
        masks: bool ``[N, h, w]`` of the training part.
        val_masks: bool ``[M, h, w]``; the cut with the highest mean Dice on them is taken. The lowest cut marks every
            pixel that was ever foreground.
    """
    mean = np.asarray(masks, dtype=np.float64).mean(axis=0)
    cuts = np.unique(np.concatenate([[mean[mean > 0].min(initial=1.0)], np.linspace(0, mean.max(), 21)[1:]]))
    answers = [mean >= cut for cut in cuts]
    scores = [
        dice_per_image(Overlaps.of(np.broadcast_to(one, val_masks.shape), val_masks)).mean()
        for one in answers
    ]
    return answers[int(np.argmax(scores))]


def _fractions(parts: Array, wholes: Array) -> Floats:
    """Divide element by element; 1 where the whole is zero."""
    parts, wholes = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    return np.divide(parts, wholes, out=np.ones_like(wholes), where=wholes > 0)
