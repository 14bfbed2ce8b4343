"""Bootstrap intervals, resampled by patient.

Images of one patient are not independent, so whole patients are drawn with replacement and every image of a
patient comes along as often as the patient was drawn. A resample is a column of counts; the metrics of
``benchmark.metrics`` take many columns at once, which replaces the loop over resamples. Intervals are
percentile intervals. They cover the sampling of test patients only, not the spread over training seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmark.metrics import Array, Floats, Kind, WeightedMetric, plain_value, zero_shot_metrics

# A block of resamples is kept near the size of a processor's cache; measured, larger blocks are slower.
_BLOCK_ELEMENTS = 200_000


def cluster_codes(clusters: Iterable[Any]) -> npt.NDArray[np.int64]:
    """Number each sample's cluster (patient) from 0; a sample without an id is a cluster of its own, [N]."""
    codes, found = pd.factorize(pd.Series(list(clusters), dtype=object).replace("", None))
    codes = np.array(codes, dtype=np.int64)
    missing = codes < 0
    codes[missing] = len(found) + np.arange(missing.sum())
    return codes


def resample_counts(codes: Array, *, resamples: int, seed: int) -> npt.NDArray[np.uint16]:
    """How often each sample occurs in each resample of whole clusters: [N, resamples], fixed by the seed."""
    num_clusters = int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    counts = np.empty((num_clusters, resamples), dtype=np.uint16)
    for column in range(resamples):
        drawn = rng.integers(0, num_clusters, size=num_clusters)
        counts[:, column] = np.bincount(drawn, minlength=num_clusters)
    return counts[codes]


def bootstrap_values(metric: WeightedMetric, counts: Array) -> Floats:
    """The metric of every resample of counts [N, R]: [R], NaN where a resample cannot define it."""
    return np.concatenate([metric(block) for block in _blocks(counts)])


def bootstrap_interval(
    metric: WeightedMetric,
    clusters: int | Sequence[Any] | Array,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of one metric; NaN twice if no resample defines the metric.

    Args:
        metric: from ``benchmark.metrics``.
        clusters: cluster id of each sample [N], or N when every sample stands for itself.
        resamples: number of resamples.
        seed: fixes the resamples.
        level: share of the resampled values inside the interval, half of the rest on each side.
    """
    codes = np.arange(clusters) if isinstance(clusters, int) else cluster_codes(clusters)
    counts = resample_counts(codes, resamples=resamples, seed=seed)
    return _percentiles(bootstrap_values(metric, counts), level)


def bootstrap_intervals(
    metrics: Mapping[str, WeightedMetric], counts: Array, *, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Intervals of several metrics over the same resamples of counts [N, R]."""
    parts: dict[str, list[Floats]] = {name: [] for name in metrics}
    for block in _blocks(counts):
        for name, metric in metrics.items():
            parts[name].append(metric(block))
    return {name: _percentiles(np.concatenate(values), level) for name, values in parts.items()}


def zero_shot_report(
    kind: Kind,
    similarity: Array,
    scale: float,
    targets: Array,
    clusters: Sequence[Any] | Array | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    positive: int = 1,
    min_positives: int = 1,
    final: bool = False,
) -> dict[str, dict[str, float | int | None]]:
    """Every metric of one zero-shot dataset with its bootstrap interval, as the store keeps them.

    Args:
        kind: "multiclass", "binary" or "multilabel".
        similarity: cosine of each image with each class, [N, C].
        scale: the model's logit scale (already exponentiated).
        targets: labels [N], or [N, C] for multilabel.
        clusters: patient id of each sample [N]; left out, every sample stands for itself.
        resamples: 0 for values without intervals.
        seed: fixes the resamples; the same seed gives every method the same resamples.
        level: coverage of the intervals.
        positive: binary only, the column that stands for the finding.
        min_positives: multilabel only, positives that a class needs to enter the macro mean.
        final: AUROC ranks the scores of a class as they are, without softmax over classes.

    Returns:
        metric name -> {"value", "ci_low", "ci_high", "n"}; fractions, None where the samples define none.
    """
    metrics = zero_shot_metrics(
        kind, similarity, scale, targets, positive=positive, min_positives=min_positives, final=final
    )
    return metrics_report(metrics, len(similarity), clusters, resamples=resamples, seed=seed, level=level)


def metrics_report(
    metrics: Mapping[str, WeightedMetric],
    num_samples: int,
    clusters: Sequence[Any] | Array | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, float | int | None]]:
    """Value and bootstrap interval of every metric, as the store keeps them.

    Args:
        metrics: name -> metric of the same N samples.
        num_samples: N.
        clusters: patient id of each sample [N]; left out, every sample stands for itself.
        resamples: 0 for values without intervals.
        seed: fixes the resamples; the same seed gives every method the same resamples.
        level: coverage of the intervals.

    Returns:
        metric name -> {"value", "ci_low", "ci_high", "n"}; fractions, None where the samples define none.

    Raises:
        ValueError: there are not as many cluster ids as samples.
    """
    codes = np.arange(num_samples) if clusters is None else cluster_codes(clusters)
    if len(codes) != num_samples:
        raise ValueError(f"expected one cluster id for each of {num_samples} samples, got {len(codes)}")
    intervals = {name: (float("nan"), float("nan")) for name in metrics}
    if resamples > 0:
        counts = resample_counts(codes, resamples=resamples, seed=seed)
        intervals = bootstrap_intervals(metrics, counts, level=level)
    return {
        name: {
            "value": _finite(plain_value(metric, num_samples)),
            "ci_low": _finite(intervals[name][0]),
            "ci_high": _finite(intervals[name][1]),
            "n": num_samples,
        }
        for name, metric in metrics.items()
    }


def _blocks(counts: Array) -> Iterator[Floats]:
    width = max(1, _BLOCK_ELEMENTS // len(counts))
    for start in range(0, counts.shape[1], width):
        yield np.ascontiguousarray(counts[:, start : start + width], dtype=np.float64)


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
