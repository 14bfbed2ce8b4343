"""Bootstrap intervals, resampled by patient.

Images of one patient are not independent, so whole patients are drawn with replacement and every image of a
patient comes along as often as the patient was drawn. A resample is a column of counts; the metrics of
``benchmark.metrics.classification`` take many columns at once, which replaces the loop over resamples. Intervals are
percentile intervals. They cover the sampling of test patients only, not the spread over training seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.metrics.classification import Array, Floats, WeightedMetric

# A block of resamples is kept near the size of a processor's cache; measured, larger blocks are slower.
_BLOCK_ELEMENTS = 200_000
_LEVEL = 0.95


def cluster_codes(clusters: Iterable[Any]) -> npt.NDArray[np.int64]:
    """Number each sample's cluster (patient) from 0; a sample without an id is a cluster of its own, [N]."""
    import pandas as pd

    codes, found = pd.factorize(pd.Series(list(clusters), dtype=object).replace("", None))
    codes = np.array(codes, dtype=np.int64)
    missing = codes < 0
    codes[missing] = len(found) + np.arange(missing.sum())
    return codes


def patient_codes(clusters: Iterable[Any] | None, num_samples: int) -> npt.NDArray[np.int64]:
    """Number the patient of each of N samples, [N]; without ids, every sample is its own patient.

    Raises:
        ValueError: there are not as many ids as samples.
    """
    codes = np.arange(num_samples) if clusters is None else cluster_codes(clusters)
    if len(codes) != num_samples:
        raise ValueError(f"expected one patient id for each of {num_samples} samples, got {len(codes)}")
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


def metrics_report(
    metrics: Mapping[str, WeightedMetric],
    num_samples: int,
    clusters: Sequence[Any] | Array | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    kept: npt.NDArray[np.bool_] | None = None,
) -> dict[str, dict[str, float | int | None]]:
    """Value and 95 % bootstrap interval of every metric, as the store keeps them.

    Args:
        metrics: name -> metric of the same N samples.
        num_samples: N.
        clusters: patient id of each sample [N]; left out, every sample stands for itself.
        resamples: 0 for values without intervals.
        seed: fixes the resamples; the same seed gives every method the same resamples.
        kept: the samples that count, [N]; left out, all.

    Returns:
        metric name -> {"value", "ci_low", "ci_high", "n"}; None where the samples define none.

    Raises:
        ValueError: there are not as many cluster ids as samples.
    """
    codes = patient_codes(clusters, num_samples)
    kept = np.ones(num_samples, dtype=bool) if kept is None else kept
    n, counts = int(kept.sum()), np.zeros((num_samples, resamples), dtype=np.uint16)
    if n:
        patients = np.unique(codes[kept], return_inverse=True)[1]
        counts[kept] = resample_counts(patients, resamples=resamples, seed=seed)
    report = {}
    for name, metric in metrics.items():
        low, high = _interval(bootstrap_values(metric, counts)) if resamples and n else (None, None)
        value = _finite(float(metric(kept[:, None].astype(np.float64))[0])) if n else None
        report[name] = {"value": value, "ci_low": low, "ci_high": high, "n": n}
    return report


def _blocks(counts: Array) -> Iterator[Floats]:
    width = max(1, _BLOCK_ELEMENTS // len(counts))
    for start in range(0, counts.shape[1], width):
        yield np.ascontiguousarray(counts[:, start : start + width], dtype=np.float64)


def _interval(values: Floats) -> tuple[float | None, float | None]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None, None
    low, high = np.quantile(defined, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return _finite(float(low)), _finite(float(high))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
