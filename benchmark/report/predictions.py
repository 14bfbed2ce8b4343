"""Stored per-sample predictions of runs, turned into what paired tests compare.

How a metric is made is read off the arrays that a cell has stored, never off the name of its task (results/README.md):
cosines with labels, overlaps of masks, boxes, or ``sample_<metric>`` for any other mean over samples. Samples are put
in the order of their image ids, so that runs which list them in another order still meet.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.dense_metrics import Overlaps, dice_per_image, iou_per_image, segmentation_metrics
from benchmark.detection_metrics import Boxes, detection_metrics, match, mean_average_precision
from benchmark.errors import StoreError
from benchmark.metrics import (
    Array,
    Floats,
    WeightedMetric,
    log_odds,
    minmax_rescaled,
    plain_value,
    scored_classes,
)
from benchmark.paired import RESAMPLES, Placements
from benchmark.report.collect import Key, Run
from benchmark.shapes import arrays_problem
from benchmark.statistics import bootstrap_values, cluster_codes, resample_counts
from benchmark.store import CellFolder

_AGREES = 0.005
"""The metric made anew from what was stored (in float32) may differ from the stored one by this much."""


@dataclass(frozen=True)
class PerSample:
    """A mean over samples: values [N]; with groups [N], the mean over groups of their means."""

    values: Floats
    groups: Array | None = None

    @property
    def value(self) -> float:
        """The metric."""
        groups = np.zeros(len(self.values)) if self.groups is None else self.groups
        return float(np.mean([self.values[groups == label].mean() for label in np.unique(groups)]))


@dataclass(frozen=True)
class Resampled:
    """A metric and its values in resamples of patients, [1 + R]."""

    values: Floats


Measure = PerSample | Placements | Resampled


@dataclass(frozen=True)
class Evidence:
    """What one run (or the mean over the seeds of a method) brings to a paired test of one metric.

    Attributes:
        samples: tells these images, patients and labels from all others: only equal ones can be paired.
        patients: number of each sample's patient, [N]. measure: the metric, sample by sample.
    """

    samples: str
    patients: Array
    measure: Measure


@dataclass(frozen=True)
class Protocol:
    """What else a metric depends on: kind of labels, logit scale, confidence that a detection needs."""

    kind: str = ""
    scale: float = 1.0
    conf: float = 0.5


@dataclass(frozen=True)
class Predictions:
    """The arrays that a run has stored for a dataset, as they are, with the protocol behind its metrics."""

    arrays: Mapping[str, Array]
    protocol: Protocol


def read_predictions(run: Run, task: str, dataset: str) -> Predictions:
    """Return what a run has stored for one dataset.

    Raises:
        StoreError: the file is missing or damaged.
    """
    path = _path(run, task, dataset)
    return Predictions(_read(path), _protocol(run, task, dataset))


def run_evidence(run: Run, key: Key) -> Evidence:
    """Return what a run brings to a paired test of one metric; kept in memory, for it serves many tests.

    Raises:
        StoreError: why it brings nothing: no predictions, no test for this metric, or predictions that do not give the
            stored score.
    """
    task, dataset, metric = key
    path = _path(run, task, dataset)
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    found, value = _evidence(path, stamp, _protocol(run, task, dataset), metric)
    stored = float(run.scores()[key]["value"])
    if abs(value - stored) > _AGREES:
        raise StoreError(f"its predictions give {100 * value:.1f}, not the stored {100 * stored:.1f}")
    return found


def mean_evidence(seeds: Sequence[Evidence]) -> Evidence:
    """Return the mean over the seeds of one method.

    Raises:
        StoreError: the seeds were not evaluated on the same samples.
    """
    first = seeds[0]
    if any(other.samples != first.samples for other in seeds[1:]):
        raise StoreError("its seeds were evaluated on different samples")
    measures = [seed.measure for seed in seeds]
    return Evidence(first.samples, first.patients, _mean(measures))


def _mean(measures: Sequence[Measure]) -> Measure:
    first = measures[0]
    if isinstance(first, Placements):
        return Placements.mean([one for one in measures if isinstance(one, Placements)])
    values = np.mean([one.values for one in measures if not isinstance(one, Placements)], axis=0)
    return PerSample(values, first.groups) if isinstance(first, PerSample) else Resampled(values)


# --- reading ------------------------------------------------------------------------------------------------


def _path(run: Run, task: str, dataset: str) -> Path:
    return run.folder / "predictions" / f"{task}-{dataset}.npz"


def _read(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise StoreError("its predictions are missing")
    arrays = CellFolder(path.parent.parent).read_npz(f"predictions/{path.name}")
    if problem := arrays_problem(arrays):
        raise StoreError(f"its predictions are damaged: {problem}")
    return arrays


def _protocol(run: Run, task: str, dataset: str) -> Protocol:
    result = ((run.tasks.get(task) or {}).get("datasets") or {}).get(dataset) or {}
    settings = (run.config.get("tasks") or {}).get(task) or {}
    scale = (result.get("info") or {}).get("logit_scale")
    return Protocol(
        kind=str(result.get("kind") or ""),
        scale=1.0 if scale is None else float(scale),
        conf=float(settings.get("conf", Protocol.conf)),
    )


@functools.lru_cache(maxsize=1024)
def _evidence(path: Path, stamp: int, protocol: Protocol, metric: str) -> tuple[Evidence, float]:
    """Return the evidence of one file and its value of the metric; ``stamp`` tells when it was written anew."""
    del stamp
    arrays = {name: array for name, array in _read(path).items() if not name.startswith("panel_")}
    if not {"image_id", "patient_id"} <= arrays.keys():
        raise StoreError("its predictions name no images and patients")
    # methods that leave the image tower alone may share a result: what was stored twice is worked out once
    content = (_digest(*(arrays[name] for name in sorted(arrays))), protocol, metric)
    if content not in _MADE:
        _MADE[content] = _made(arrays, protocol, metric)
    return _MADE[content]


_MADE: dict[tuple[str, Protocol, str], tuple[Evidence, float]] = {}


def _made(arrays: Mapping[str, Array], protocol: Protocol, metric: str) -> tuple[Evidence, float]:
    """Return the evidence of arrays and their value of the metric."""
    ids, order = np.unique(arrays["image_id"], return_index=True)
    if len(ids) < len(arrays["image_id"]):
        raise StoreError("its predictions name an image twice")
    patients = _renumbered(cluster_codes(arrays["patient_id"][order].tolist()))
    truth = _truth(arrays)[order]
    found = _measure(arrays, protocol, metric)
    if found is None:
        raise StoreError("there is no paired test for this metric")
    if isinstance(found, PerSample):
        values = found.values[order]
        counted = ~np.isnan(values)  # an image that the metric leaves out is no sample of it
        groups = None if found.groups is None else found.groups[order][counted]
        mean = PerSample(values[counted], groups)
        ids, patients, truth = ids[counted], _renumbered(patients[counted]), truth[counted]
        return Evidence(_digest(ids, patients, truth), patients, mean), mean.value
    samples = _digest(ids, patients, truth)
    if isinstance(found, Placements):
        return Evidence(samples, patients, found.rows(order)), float(found.areas.mean())
    counts = patient_counts(patients)[np.argsort(order)]
    values = np.append(plain_value(found, len(ids)), bootstrap_values(found, counts))
    return Evidence(samples, patients, Resampled(values)), float(values[0])


def _digest(*arrays: Array) -> str:
    digest = hashlib.blake2b()
    for array in arrays:
        digest.update(f"{array.dtype.kind} {array.shape}".encode())
        digest.update("\n".join(array).encode() if array.dtype.kind == "U" else array.tobytes())
    return digest.hexdigest()


def _renumbered(patients: Array) -> Array:
    return np.unique(patients, return_inverse=True)[1].astype(np.int64)


@functools.lru_cache(maxsize=4)
def _counts(patients: bytes) -> Array:
    return resample_counts(np.frombuffer(patients, dtype=np.int64), resamples=RESAMPLES, seed=0)


def patient_counts(patients: Array) -> Array:
    """Return how often each sample occurs in each resample of patients, [N, R]: the same for all methods."""
    return _counts(patients.tobytes())


# --- from arrays to metrics ---------------------------------------------------------------------------------


def _truth(arrays: Mapping[str, Array]) -> Array:
    """Return what tells that labels are the same: labels, sizes of masks or numbers of boxes; zeros if unknown."""
    for name in ("target", "actual"):
        if name in arrays:
            return arrays[name]
    num_images = len(arrays["image_id"])
    if "truth_image" in arrays:
        return np.bincount(arrays["truth_image"], minlength=num_images)
    return np.zeros(num_images)


def _measure(
    arrays: Mapping[str, Array], protocol: Protocol, metric: str
) -> PerSample | Placements | WeightedMetric | None:
    if f"sample_{metric}" in arrays:
        return PerSample(np.asarray(arrays[f"sample_{metric}"], dtype=np.float64))
    for names, build in _FAMILIES:
        if names <= arrays.keys():
            return build(arrays, protocol, metric)
    return None


def _of_similarity(
    arrays: Mapping[str, Array], protocol: Protocol, metric: str
) -> PerSample | Placements | None:
    """Accuracies and areas of cosines [N, C] with labels [N] or [N, C]."""
    similarity, target = np.asarray(arrays["similarity"], dtype=np.float64), arrays["target"]
    if protocol.kind == "multilabel":
        scores = {"auroc": lambda: similarity, "auroc_minmax": lambda: minmax_rescaled(similarity)}.get(
            metric
        )
        columns = np.flatnonzero(scored_classes(target))
        return None if scores is None else Placements.of(scores()[:, columns], target[:, columns] == 1)
    if metric in ("acc", "balanced_acc"):
        right = (similarity.argmax(axis=1) == target).astype(np.float64)
        return PerSample(right, target if metric == "balanced_acc" else None)
    if metric not in ("auroc", "auroc_flat"):
        return None
    odds = log_odds(similarity * protocol.scale)
    truth = np.arange(odds.shape[1])[None, :] == target[:, None]
    if metric == "auroc_flat":
        return Placements.flat(odds, truth)
    columns = np.array([1]) if protocol.kind == "binary" else np.unique(target)
    return Placements.of(odds[:, columns], truth[:, columns])


def _of_overlaps(
    arrays: Mapping[str, Array], protocol: Protocol, metric: str
) -> PerSample | WeightedMetric | None:
    """Dice and IoU of foreground pixels."""
    del protocol
    overlaps = Overlaps(arrays["shared"], arrays["predicted"], arrays["actual"])
    per_image = {"dice": dice_per_image, "iou": iou_per_image}.get(metric)
    return PerSample(per_image(overlaps)) if per_image else segmentation_metrics(overlaps).get(metric)


def _of_boxes(arrays: Mapping[str, Array], protocol: Protocol, metric: str) -> WeightedMetric | None:
    """Average precisions of boxes."""
    found = Boxes(arrays["found"], arrays["found_image"], arrays["found_score"])
    truth = Boxes(arrays["truth"], arrays["truth_image"])
    num_images = len(arrays["image_id"])
    if metric == "map_low_conf":
        return mean_average_precision(match(found, truth, num_images))
    return detection_metrics(match(found.at_least(protocol.conf), truth, num_images)).get(metric)


_Build = Callable[[Mapping[str, Array], Protocol, str], PerSample | Placements | WeightedMetric | None]
_FAMILIES: tuple[tuple[frozenset[str], _Build], ...] = (
    (frozenset({"similarity", "target"}), _of_similarity),
    (frozenset({"shared", "predicted", "actual"}), _of_overlaps),
    (frozenset({"found", "found_image", "found_score", "truth", "truth_image"}), _of_boxes),
)
