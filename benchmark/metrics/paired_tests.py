"""Paired tests of two methods on the same test samples, clustered by patient, and ranks over datasets.

Three tests, by what the metric is. A mean over samples (accuracy, Dice): the signs of whole patients' differences are
flipped. An area under the ROC curve: DeLong's, in Obuchowski's form for patients with several images. All else (AP,
Dice of pooled pixels): a paired bootstrap. Formulas, sources and limits: docs/statistics.md.

They cover the choice of test patients. Training noise is not in these p values: of a method with several seeds, the
mean over seeds enters. Shapes: N samples, J patients, C classes, S seeds, R resamples, K pairs of methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

from benchmark.metrics.bootstrap import patient_codes, resample_counts
from benchmark.metrics.classification import Array, Floats, MeanArea

Clusters = Sequence[Any] | Array | None
TestName = Literal["permutation", "DeLong", "bootstrap"]
FLIPS = 10_000
RESAMPLES = 1000
_TAILS = (0.025, 0.975)
"""Between these quantiles lie 95 %."""
_BLOCK = 512
"""Patients whose signs are in memory at a time."""
_ROUNDING = 1e-9
"""Statistics closer than this share count as equal: they are sums of the same numbers in another order."""
_NOTHING = 1e-12
"""Differences below this are what rounding leaves of none."""


@dataclass(frozen=True)
class PairedTest:
    """One method against another on the same samples.

    Attributes:
        difference: first minus second, a fraction. ci_low, ci_high: its 95 % interval over patients.
        p_value: two-sided, not adjusted. test: which one. n: samples. clusters: patients.
    """

    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    test: TestName
    n: int
    clusters: int


# --- means over samples: permutation ------------------------------------------------------------------------


def permutation_tests(
    differences: Array, codes: Array, *, groups: Array | None = None, counts: Array | None = None
) -> list[PairedTest]:
    """Test whether the means of per-sample values differ, by flipping the signs of whole patients' differences.

    Args:
        differences: of K pairs of methods, [N, K]; the mean over seeds of each side comes first.
        codes: patient of each sample, numbered from 0, [N].
        groups: [N]; the metric is then the mean over groups of the groups' means (balanced accuracy: the labels).
        counts: [N, R] of ``benchmark.metrics.bootstrap.resample_counts``, behind the intervals; made here if left out.
    """
    differences = np.asarray(differences, dtype=np.float64)
    num_samples = len(differences)
    labels = np.zeros(num_samples, np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(labels)
    weighted = differences / (sizes[labels] * len(sizes))[:, None]
    sums = _per_patient(weighted, codes)
    sums[np.abs(sums) < _NOTHING] = 0.0
    if counts is None:
        counts = resample_counts(codes, resamples=RESAMPLES, seed=0)
    low, high = _mean_intervals(differences, labels, counts)
    p_values = flip_p_values(sums)
    return [
        PairedTest(float(total), float(low[k]), float(high[k]), float(p_values[k]), "permutation",
                   num_samples, len(sums))
        for k, total in enumerate(sums.sum(axis=0))
    ]  # fmt: skip


def flip_p_values(sums: Array, *, flips: int = FLIPS, seed: int = 0) -> Floats:
    """Two-sided p values of sums [J, K] over J patients under flips of the patients' signs: [K].

    A patient whose sum is zero takes no part. With few enough others all 2^J flips are made and p is their exact
    share; otherwise ``flips`` random ones, and p counts the data themselves as one more (Phipson and Smyth 2010), so
    that it is never 0. All pairs see the same flips.
    """
    sums = np.asarray(sums, dtype=np.float64)
    active = np.count_nonzero(sums, axis=0)
    few = active <= np.log2(flips)
    p_values = np.ones(sums.shape[1])
    for pair in np.flatnonzero(few & (active > 0)):
        p_values[pair] = _exact_p(sums[sums[:, pair] != 0, pair])
    if not few.all():
        p_values[~few] = _random_p(sums[:, ~few], flips, seed)
    return p_values


def _exact_p(sums: Floats) -> float:
    signs = 1.0 - 2.0 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
    return float((np.abs(signs @ sums) >= _reached(np.abs(sums.sum()))).mean())


def _random_p(sums: Floats, flips: int, seed: int) -> Floats:
    sums = sums[(sums != 0).any(axis=1)]
    rng = np.random.default_rng(seed)
    flipped = np.zeros((flips, sums.shape[1]))
    for start in range(0, len(sums), _BLOCK):
        part = sums[start : start + _BLOCK]
        bits = np.unpackbits(rng.integers(0, 256, (flips, -(-len(part) // 8)), dtype=np.uint8), axis=1)
        flipped += bits[:, : len(part)] @ (-2.0 * part)
    flipped += sums.sum(axis=0)
    extreme = np.abs(flipped) >= _reached(np.abs(sums.sum(axis=0)))
    return np.asarray((1.0 + extreme.sum(axis=0)) / (1.0 + flips))


def _reached(statistic: Any) -> Any:
    return statistic * (1.0 - _ROUNDING)


def _mean_intervals(differences: Floats, labels: Array, counts: Array) -> tuple[Floats, Floats]:
    """Bootstrap intervals of the mean over groups of the groups' mean difference [N, K]: two arrays [K]."""
    total = np.zeros((differences.shape[1], counts.shape[1]))
    defined = np.zeros(counts.shape[1])
    for label in range(labels.max() + 1):
        rows = labels == label
        drawn = counts[rows].astype(np.float64)
        size = drawn.sum(axis=0)
        total += np.divide(differences[rows].T @ drawn, size, out=np.zeros_like(total), where=size > 0)
        defined += size > 0
    bounds = np.quantile(total / defined, _TAILS, axis=1)
    return bounds[0], bounds[1]


# --- areas under the ROC curve: DeLong ----------------------------------------------------------------------


@dataclass(frozen=True)
class Placements:
    """What DeLong's variance is made of, for C areas of one method (their mean is the metric).

    A positive's placement is the share of negatives that it beats, a negative's the share of positives that beat it;
    ties count one half. A sample may bring several scores of one area (the flattened AUROC): its placements are summed.

    Attributes:
        areas: [C]. positive, negative: sums of placements, [N, C]. num_positive, num_negative: scores summed, [N, C].
    """

    areas: Floats
    positive: Floats
    negative: Floats
    num_positive: Floats
    num_negative: Floats

    @classmethod
    def of(cls, area: MeanArea) -> Placements:
        """Placements behind a metric: each column is one area, or all pairs are one.

        Raises:
            ValueError: scores and truth differ in shape.
        """
        scores, truth = np.asarray(area.scores, dtype=np.float64), np.asarray(area.truth, dtype=bool)
        if scores.shape != truth.shape or scores.ndim != 2:
            raise ValueError(f"expected scores and truth of one shape, got {scores.shape} and {truth.shape}")
        if area.pooled:
            placed = _placed(scores.ravel(), truth.ravel()).reshape(scores.shape)
        else:
            columns = [_placed(*column) for column in zip(scores.T, truth.T, strict=True)]
            placed = np.stack(columns, axis=1)
        parts = [np.where(truth, placed, 0.0), np.where(truth, 0.0, placed)]
        parts += [truth.astype(np.float64), 1.0 - truth]
        if area.pooled:
            parts = [part.sum(axis=1, keepdims=True) for part in parts]
        return cls(parts[0].sum(axis=0) / np.maximum(parts[2].sum(axis=0), 1), *parts)

    def rows(self, order: Array) -> Placements:
        """The same with its samples in another order, [N]."""
        return Placements(self.areas, *(getattr(self, name)[order] for name in _SUMMED))

    @classmethod
    def mean(cls, seeds: Sequence[Placements]) -> Placements:
        """The mean over seeds: the mean of the areas has the mean of the placements."""
        areas, positive, negative = (
            np.mean([getattr(seed, name) for seed in seeds], axis=0) for name in ("areas", *_SUMMED[:2])
        )
        return cls(areas, positive, negative, seeds[0].num_positive, seeds[0].num_negative)


_SUMMED = ("positive", "negative", "num_positive", "num_negative")


def _placed(scores: Floats, truth: Array) -> Floats:
    """The placement of every score [M] among the scores of the other kind: [M]; 0 where there are none."""
    placed = np.zeros(len(scores))
    for mine, sign in ((truth, 1.0), (~truth, -1.0)):
        others = np.sort(sign * scores[~mine])
        below, up_to = (np.searchsorted(others, sign * scores[mine], side=side) for side in ("left", "right"))
        placed[mine] = (below + up_to) / (2.0 * max(len(others), 1))
    return placed


def delong_test(a: Placements, b: Placements, clusters: Clusters = None) -> PairedTest:
    """Test whether two (mean) areas under the ROC curve differ on the same samples.

    One area, every patient with one image: DeLong et al. 1988. One area, patients with several: Obuchowski 1997. A mean
    over classes: the variance of the mean, with the covariances between classes.

    Args:
        a: of the first method (``Placements.mean`` of its seeds).
        b: of the second, on the same samples.
        clusters: patient of each sample, [N]; left out, every sample stands for itself.

    Returns:
        The test; p is NaN when some class has fewer than two patients with, or without, it.

    Raises:
        ValueError: the samples differ.
    """
    if a.num_positive.shape != b.num_positive.shape or (a.num_positive != b.num_positive).any():
        raise ValueError("expected placements of the same samples with the same truth")
    codes = patient_codes(clusters, len(a.positive))
    difference = float((a.areas - b.areas).mean())
    spread = float(np.sqrt(_area_variance(a, b, codes)))
    p_value = float(2 * special.ndtr(-abs(difference) / spread)) if spread else float(difference == 0)
    half = float(special.ndtri(_TAILS[1])) * spread
    return PairedTest(difference, difference - half, difference + half, p_value, "DeLong",
                      len(codes), int(codes.max()) + 1)  # fmt: skip


def _area_variance(a: Placements, b: Placements, codes: Array) -> float:
    """Variance of the difference of two mean areas: Obuchowski's S10/M + S01/N + 2 S11/(M N), summed over classes."""
    area = a.areas - b.areas
    patients, classes = int(codes.max()) + 1, len(area)
    centred, scaled = [], []
    for placed, counts in (
        (a.positive - b.positive, a.num_positive),
        (a.negative - b.negative, a.num_negative),
    ):
        size = _per_patient(counts, codes)
        holders = np.count_nonzero(size, axis=0)
        if (holders < 2).any():
            return float("nan")
        part = (_per_patient(placed, codes) - size * area) / size.sum(axis=0) / classes
        centred.append(part.sum(axis=1))
        scaled.append((part * np.sqrt(holders / (holders - 1))).sum(axis=1))
    shared = 2 * patients / (patients - 1) * (centred[0] @ centred[1])
    return max(float(scaled[0] @ scaled[0] + scaled[1] @ scaled[1] + shared), 0.0)


# --- all else: bootstrap ------------------------------------------------------------------------------------


def resampled_test(a: Floats, b: Floats, num_samples: int, clusters: int) -> PairedTest:
    """Test whether two metrics differ, from their values on the same resamples of whole patients.

    p is twice the smaller share of resampled differences at or beyond 0, the data counted as one more.

    Args:
        a: of the first method, [1 + R]: the metric itself, then that of every resample.
        b: of the second.
        num_samples: N.
        clusters: number of patients.
    """
    difference = a - b
    drawn = difference[1:][~np.isnan(difference[1:])]
    if not len(drawn):
        drawn = np.array([np.nan])
    low, high = np.quantile(drawn, _TAILS)
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_value = float("nan") if np.isnan(low) else min(1.0, 2 * (1 + beyond) / (1 + len(drawn)))
    return PairedTest(
        float(difference[0]), float(low), float(high), p_value, "bootstrap", num_samples, clusters
    )


# --- several methods and datasets ---------------------------------------------------------------------------


def holm(p_values: Sequence[float] | Array) -> Floats:
    """Holm's step-down adjustment of one family of p values, in their order; NaN stays NaN and does not count."""
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def average_ranks(values: Array) -> Floats:
    """Mean rank of each method over datasets, values [datasets, methods], 1 = highest value; equal ones share."""
    from scipy import stats  # takes a second to import

    ranks = stats.rankdata(-np.asarray(values, dtype=np.float64), axis=1)
    return np.asarray(ranks.mean(axis=0))


def friedman(values: Array) -> float:
    """P value of Friedman's test (corrected for ties) that all methods rank alike, values [datasets, methods].

    NaN for fewer than three methods; 1 where every dataset ties all methods.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape[1] < 3:
        return float("nan")
    if (values == values[:, :1]).all():
        return 1.0
    from scipy import stats  # takes a second to import

    return float(stats.friedmanchisquare(*values.T).pvalue)


def nemenyi_critical_difference(num_methods: int, num_datasets: int, alpha: float = 0.05) -> float:
    """Difference of average ranks from which two methods differ: q_alpha sqrt(k (k + 1) / (6 N)) (Demsar 2006)."""
    from scipy import stats  # takes a second to import

    q = stats.studentized_range.ppf(1 - alpha, num_methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(num_methods * (num_methods + 1) / (6 * num_datasets)))


def indistinct(ranks: Sequence[float], critical_difference: float) -> list[tuple[int, int]]:
    """Longest runs (first, last) of rising average ranks that span less than the critical difference, two or more."""
    runs: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(i for i in range(first, len(ranks)) if ranks[i] - rank < critical_difference or i == first)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def _per_patient(values: Array, codes: Array) -> Floats:
    """Sums [J, K] of values [N, K] over the samples of each patient."""
    return np.stack([np.bincount(codes, weights=column) for column in values.T], axis=1)
