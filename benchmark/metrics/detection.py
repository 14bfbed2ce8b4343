"""Average precision of boxes, COCO's definition, written once as a function of image weights.

Detections of an image are matched to its boxes greedily, the most confident first, each to the free box that it
overlaps most (at least by the threshold). All detections of all images are then ranked by confidence; precision is
made non-increasing and read off at the recalls 0, 0.01, ..., 1. Nothing depends on how often an image counts except
the running sums along the ranking, so a resample of images needs neither new matches nor a new order.

Recalls are compared in float64: on a float32 grid an exact hundredth (20 of 40 boxes) falls on the wrong side.
Shapes: I images, D detections, G boxes, T IoU thresholds, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.metrics.classification import Array, Floats, SampleMean, WeightedMetric, macro_mean

IOU_THRESHOLDS = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75)
"""The thresholds that the paper averages over."""
RECALLS: Floats = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Boxes:
    """Boxes of a set of images, in one flat table.

    Attributes:
        corners: [M, 4] x1, y1, x2, y2.
        image: [M], the image (0..I-1) that each box lies in.
        scores: [M] confidences of detections; None for the true boxes.
    """

    corners: Floats
    image: npt.NDArray[np.int64]
    scores: Floats | None = None

    @classmethod
    def of(cls, corners: Sequence[Array], scores: Sequence[Array] | None = None) -> Boxes:
        """Join the boxes [m, 4] (and scores [m]) of images in order.

        Raises:
            ValueError: if an image has another number of scores than of boxes.
        """
        tables = [np.asarray(table, dtype=np.float64).reshape(-1, 4) for table in corners]
        counts = [len(table) for table in tables]
        if scores is not None and [len(values) for values in scores] != counts:
            raise ValueError("Boxes.of: expected one score for each box of each image")
        return cls(
            np.concatenate([np.empty((0, 4)), *tables]),
            np.repeat(np.arange(len(counts)), counts),
            None if scores is None else np.concatenate([np.empty(0), *scores]).astype(np.float64),
        )

    def of_images(self, images: Array) -> Boxes:
        """Return the boxes of some images, renumbered in this order."""
        rows = [np.flatnonzero(self.image == image) for image in images]
        chosen = np.concatenate([np.empty(0, np.int64), *rows])
        numbers = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        return Boxes(self.corners[chosen], numbers, None if self.scores is None else self.scores[chosen])

    def at_least(self, score: float) -> Boxes:
        """Return the detections with this confidence or more."""
        rows = np.flatnonzero(np.asarray(self.scores) >= score)
        return Boxes(self.corners[rows], self.image[rows], np.asarray(self.scores)[rows])


@dataclass(frozen=True)
class Matches:
    """Detections of all images in the order of their confidence, and which of them found a box.

    Attributes:
        image: [D], image of each detection. hit: [T, D] bool.
        num_boxes: [I], true boxes of each image. thresholds: T overlaps that a hit needs.
    """

    image: npt.NDArray[np.int64]
    hit: npt.NDArray[np.bool_]
    num_boxes: npt.NDArray[np.int64]
    thresholds: tuple[float, ...]

    @property
    def num_images(self) -> int:
        """Number of images I."""
        return len(self.num_boxes)

    def detections(self) -> npt.NDArray[np.int64]:
        """Return the number of detections of each image, [I]."""
        return np.bincount(self.image, minlength=self.num_images)


def box_iou(ones: Array, others: Array) -> Floats:
    """Intersection over union of boxes [N, 4] and [M, 4] (x1, y1, x2, y2): [N, M]; 0 for two empty boxes."""
    ones, others = np.asarray(ones, dtype=np.float64), np.asarray(others, dtype=np.float64)
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    area, other_area = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (ones, others))
    union = area[:, None] + other_area[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(
    detected: Boxes, truth: Boxes, num_images: int, thresholds: Sequence[float] = IOU_THRESHOLDS
) -> Matches:
    """Match the detections of every image with its boxes, at every threshold.

    Args:
        detected: with scores; of an image, the ``MAX_DETECTIONS`` most confident count.
        truth: the true boxes.
        num_images: I, images without any box included.
        thresholds: overlaps, each counts as reached with equality.
    """
    scores = np.asarray(detected.scores)
    parts = []
    for image in range(num_images):
        rows = np.flatnonzero(detected.image == image)
        rows = rows[np.argsort(-scores[rows], kind="stable")][:MAX_DETECTIONS]
        iou = box_iou(detected.corners[rows], truth.corners[truth.image == image])
        parts.append((rows, _greedy(iou, np.asarray(thresholds))))
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])
    hit = np.concatenate([np.empty((len(thresholds), 0), bool), *(hit for _, hit in parts)], axis=1)
    order = np.argsort(-scores[rows], kind="stable")
    return Matches(
        image=detected.image[rows[order]],
        hit=hit[:, order],
        num_boxes=np.bincount(truth.image, minlength=num_images),
        thresholds=tuple(thresholds),
    )


def _greedy(iou: Floats, thresholds: Floats) -> npt.NDArray[np.bool_]:
    """Which detections (rows of iou [D, G], most confident first) find a free box, at each threshold: [T, D]."""
    hit = np.zeros((len(thresholds), len(iou)), bool)
    free = np.ones((len(thresholds), iou.shape[1]), bool)
    for row in np.flatnonzero((iou >= thresholds.min()).any(axis=1)):
        overlap = np.where(free, iou[row], -1.0)
        # of equal overlaps the last box is taken, as COCO's own code does
        best = iou.shape[1] - 1 - np.argmax(overlap[:, ::-1], axis=1)
        found = overlap[np.arange(len(thresholds)), best] >= thresholds
        free[found, best[found]] = False
        hit[found, row] = True
    return hit


def average_precision(matches: Matches, threshold: int) -> WeightedMetric:
    """AP at one threshold (its index) as a metric of image weights [I, R]; NaN where no image has a box."""
    ranks = np.flatnonzero(matches.hit[threshold])
    hit_images = matches.image[ranks]
    shown_between = _counts_between(matches, ranks)

    def evaluate(weights: Floats) -> Floats:
        boxes = matches.num_boxes @ weights
        hits = np.cumsum(weights[hit_images], axis=0)
        shown = np.cumsum(shown_between @ weights, axis=0)
        precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
        recall = np.divide(hits, boxes, out=np.zeros_like(hits), where=boxes > 0)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        # grid points up to each recall, and from them those that each hit is the first to reach
        reached = np.searchsorted(RECALLS, recall.ravel(), side="right").reshape(recall.shape)
        new = np.diff(reached, axis=0, prepend=np.zeros((1, weights.shape[1]), np.int64))
        return np.where(boxes > 0, (envelope * new).sum(axis=0) / len(RECALLS), np.nan)

    return evaluate


def _counts_between(matches: Matches, ranks: npt.NDArray[np.int64]) -> Any:
    """Detections of each image after one hit up to and with the next: sparse [hits, I].

    Precision and recall are needed at hits alone, which are few; the false alarms between them are many.
    """
    from scipy.sparse import csr_array  # scipy takes half a second to import

    upto = matches.image[: ranks[-1] + 1] if len(ranks) else matches.image[:0]
    following = np.searchsorted(ranks, np.arange(len(upto)))
    return csr_array((np.ones(len(upto)), (following, upto)), shape=(len(ranks), matches.num_images))


def mean_average_precision(matches: Matches) -> WeightedMetric:
    """Mean of the APs at all thresholds."""
    return macro_mean([average_precision(matches, index) for index in range(len(matches.thresholds))])


def without_skipped(matches: Matches, metric: WeightedMetric) -> WeightedMetric:
    """The same metric over the images that have both a box and a detection, as MGCA evaluates.

    That hides every box of an image without detections, and every false alarm on an image without boxes.
    """
    kept = ((matches.num_boxes > 0) & (matches.detections() > 0)).astype(np.float64)[:, None]
    return lambda weights: metric(weights * kept)


def kaggle_precision(matches: Matches) -> WeightedMetric:
    """The score of the RSNA challenge: hits / (hits + false alarms + misses), mean over thresholds and images.

    An image without boxes counts 0 when it has a detection and is left out when it has none.
    """
    detections = matches.detections()
    hits = [np.bincount(matches.image[row], minlength=matches.num_images) for row in matches.hit]
    shares = [found / np.maximum(detections + matches.num_boxes - found, 1) for found in hits]
    score = SampleMean(np.mean(shares, axis=0))
    counted = ((matches.num_boxes > 0) | (detections > 0)).astype(np.float64)[:, None]
    return lambda weights: score(weights * counted)


def precision_at_recalls(matches: Matches, threshold: int) -> Floats:
    """The curve that AP is the mean of: precision [101] at ``RECALLS``, 0 beyond the highest recall reached."""
    ranks = np.flatnonzero(matches.hit[threshold])
    hits = np.arange(1, len(ranks) + 1)
    envelope = np.maximum.accumulate((hits / (ranks + 1))[::-1])[::-1]
    reaching = np.searchsorted(hits / max(int(matches.num_boxes.sum()), 1), RECALLS)
    return np.append(envelope, 0.0)[reaching]


def detection_metrics(found: Boxes, truth: Boxes, num_images: int, conf: float) -> dict[str, WeightedMetric]:
    """All metrics of one set of detections, of those with confidence ``conf`` or more unless the name says otherwise.

    ``map_low_conf`` is the mean AP of all detections that are given.
    """
    matches = match(found.at_least(conf), truth, num_images)
    mean = mean_average_precision(matches)
    single = {
        f"ap{round(100 * iou)}": average_precision(matches, index)
        for index, iou in enumerate(matches.thresholds)
    }
    return {
        "map": mean,
        "map_mgca_skip": without_skipped(matches, mean),
        "kaggle_rsna": kaggle_precision(matches),
        **single,
        "map_low_conf": mean_average_precision(match(found, truth, num_images)),
    }
