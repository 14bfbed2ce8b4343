"""Turns stored per-sample predictions into the values that paired tests compare.

The formulas are those of the stored numbers (``benchmark/metrics/classification.py`` and its neighbours). Which of
them a file can give is read off its arrays, never off the name of its task (results/README.md): cosines with
labels, overlaps of masks, boxes, or the stored form of any other metric. Samples are put in the order of their
image ids, so that runs which list them in another order still meet.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmark.errors import StoreError
from benchmark.metrics.bootstrap import bootstrap_values, cluster_codes, resample_counts
from benchmark.metrics.classification import (
    Array,
    Floats,
    Kind,
    MeanArea,
    SampleMean,
    WeightedMetric,
    formulas_of,
    plain_value,
    zero_shot_metrics,
)
from benchmark.metrics.detection import Boxes, detection_metrics
from benchmark.metrics.paired_tests import RESAMPLES, Placements
from benchmark.metrics.segmentation import Overlaps, segmentation_metrics
from benchmark.report.model import Key, Run
from benchmark.store.cells import CellFolder
from benchmark.store.contents import arrays_problem

_AGREES = 0.001
"""The metric computed again from stored float32 arrays may differ from the stored value by this much."""


Measure = SampleMean | Placements | Floats
"""What is known of a metric sample by sample; of any other its value, and those in resamples of patients, [1 + R]."""


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
    """What else a metric depends on.

    Attributes:
        kind: of the labels. scale: of the logits. final: whether scores stand for themselves, without softmax.
        conf: confidence that a detection needs.
    """

    kind: str = ""
    scale: float = 1.0
    final: bool = False
    conf: float = 0.5


def read_predictions(run: Run, task: str, dataset: str) -> tuple[Mapping[str, Array], Protocol]:
    """Return the arrays that a run has stored for a dataset, with the protocol behind its metrics.

    Raises:
        StoreError: the file is missing or damaged.
    """
    return _read(predictions_path(run, task, dataset)), _protocol(run, task, dataset)


def run_evidence(run: Run, key: Key) -> Evidence:
    """Return what a run brings to a paired test of one metric; kept in memory, for it serves many tests.

    Raises:
        StoreError: why it brings nothing: no predictions, no test for this metric, or predictions that do not give the
            stored score.
    """
    task, dataset, metric = key
    path = predictions_path(run, task, dataset)
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    found, value = _evidence(path, stamp, _protocol(run, task, dataset), metric)
    stored = float(run.scores()[key]["value"])
    if abs(value - stored) > _AGREES * max(1.0, abs(stored)):
        raise StoreError(f"its predictions give {value:.4f}, not the stored {stored:.4f}")
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
    if isinstance(first, SampleMean):
        values = [one.values for one in measures if isinstance(one, SampleMean)]
        return SampleMean(np.mean(values, axis=0), first.groups)
    return np.asarray(np.mean([one for one in measures if isinstance(one, np.ndarray)], axis=0))


# --- reading ------------------------------------------------------------------------------------------------


def predictions_path(run: Run, task: str, dataset: str) -> Path:
    """Return the file with what a run has stored for one dataset."""
    return run.folder / "predictions" / f"{task}-{dataset}.npz"


def _read(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise StoreError("its predictions are missing")
    arrays = CellFolder(path.parent.parent).read_npz(f"predictions/{path.name}")
    if problem := arrays_problem(arrays):
        raise StoreError(f"its predictions are damaged: {problem}")
    return arrays


def _protocol(run: Run, task: str, dataset: str) -> Protocol:
    info = run.info(task, dataset)
    settings = (run.config.get("tasks") or {}).get(task) or {}
    scale = 1.0 if info.get("logit_scale") is None else float(info["logit_scale"])
    # results from before "final" was stored: what a published rule gave was multiplied by nothing where it was final
    unsaid = info.get("rule", "global") != "global" and scale == 1.0
    return Protocol(
        kind=str(run.result(task, dataset).get("kind") or ""),
        scale=scale,
        final=bool(info.get("final", unsaid)),
        conf=float(info.get("conf", settings.get("conf", Protocol.conf))),
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
    try:
        formula = _formulas(arrays, protocol).get(metric)
    except ValueError as error:
        raise StoreError(f"its predictions are damaged: {error}") from error
    if formula is None:
        raise StoreError("there is no paired test for this metric")
    value, samples = plain_value(formula, len(ids)), _digest(ids, patients, truth)
    if isinstance(formula, SampleMean):
        values = np.asarray(formula.values, dtype=np.float64)[order]
        counted = ~np.isnan(values)  # an image that the metric leaves out is no sample of it
        groups = None if formula.groups is None else formula.groups[order][counted]
        ids, patients, truth = ids[counted], _renumbered(patients[counted]), truth[counted]
        return Evidence(_digest(ids, patients, truth), patients, SampleMean(values[counted], groups)), value
    if isinstance(formula, MeanArea):
        return Evidence(samples, patients, Placements.of(formula).rows(order)), value
    counts = patient_counts(patients)[np.argsort(order)]
    return Evidence(samples, patients, np.append(value, bootstrap_values(formula, counts))), value


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


def _formulas(arrays: Mapping[str, Array], protocol: Protocol) -> dict[str, WeightedMetric]:
    """Return all metrics that the arrays of a file can give."""
    found: dict[str, WeightedMetric] = {}
    kind: Any = protocol.kind or "multiclass"
    if {"similarity", "target"} <= arrays.keys() and kind in get_args(Kind):
        scores, target = arrays["similarity"], arrays["target"]
        found |= zero_shot_metrics(kind, scores, protocol.scale, target, final=protocol.final)
    if {"shared", "predicted", "actual"} <= arrays.keys():
        found |= segmentation_metrics(Overlaps(arrays["shared"], arrays["predicted"], arrays["actual"]))
    if {"found", "found_image", "found_score", "truth", "truth_image"} <= arrays.keys():
        boxes = Boxes(arrays["found"], arrays["found_image"], arrays["found_score"])
        truth = Boxes(arrays["truth"], arrays["truth_image"])
        found |= detection_metrics(boxes, truth, len(arrays["image_id"]), protocol.conf)
    return found | formulas_of(arrays)
