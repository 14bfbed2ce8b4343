"""Metrics of several findings per image, each answered yes or no: accuracy and F1, and choice of thresholds.

Every number is worked out for each finding and then averaged over the findings. Shapes: N samples, C findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmark.metrics.classification import (
    Array,
    Floats,
    MeanArea,
    MeanPrecision,
    SampleMean,
    WeightedMetric,
    macro_mean,
)

CORNER_STEPS = 100
"""Thresholds that CT-CLIP's evaluation tries, from 0 to 1 (`CT-CLIP: scripts/bootstrap_values.py`)."""


def corner(scores: Array, truth: Array, candidates: Array) -> float:
    """Return the candidate whose point of the ROC curve lies nearest to no false and all true positives; the first one.

    Args:
        scores: [N].
        truth: [N] bool, with positives and negatives.
        candidates: thresholds; a sample at or above one is positive.
    """
    positives, negatives = np.sort(scores[truth]), np.sort(scores[~truth])
    missed = np.searchsorted(positives, candidates, side="left") / len(positives)
    false = (len(negatives) - np.searchsorted(negatives, candidates, side="left")) / len(negatives)
    return float(candidates[np.argmin(missed**2 + false**2)])


def thresholds(scores: Array, truth: Array, *, steps: int | None = None) -> Floats:
    """Return a threshold [C] for each finding by :func:`corner`; 0.5 (of a grid) or 0 where all or none have it.

    Args:
        scores: [N, C]; probabilities where ``steps`` are given.
        truth: [N, C] bool.
        steps: of an even grid from 0 to 1; None: in the middle between scores that occur.
    """
    found = np.full(scores.shape[1], 0.5 if steps else 0.0)
    for column, (values, there) in enumerate(zip(scores.T, truth.T, strict=True)):
        if there.any() and not there.all():
            known = np.unique(values)
            between = np.concatenate([known[:1], (known[1:] + known[:-1]) / 2])
            found[column] = corner(values, there, np.linspace(0, 1, steps) if steps else between)
    return found


def pair_metrics(scores: Array, truth: Array) -> dict[str, WeightedMetric]:
    """Return what needs no threshold: ``auroc``, ``ap``, and the share of positives, ``prevalence``."""
    return {
        "auroc": MeanArea(scores, truth),
        "ap": MeanPrecision(scores, truth),
        "prevalence": SampleMean(truth.mean(axis=1)),
    }


def answer_metrics(answers: Array, truth: Array, ending: str = "") -> dict[str, WeightedMetric]:
    """Return ``acc``, ``balanced_acc``, ``f1`` (of positives) and ``f1_weighted`` (scikit-learn's) of answers.

    Args:
        answers: [N, C] bool.
        truth: [N, C] bool.
        ending: of the names.
    """
    correct = answers == truth
    columns = list(zip(answers.T, truth.T, strict=True))
    found: dict[str, WeightedMetric] = {
        "acc": SampleMean(correct.mean(axis=1)),
        "balanced_acc": macro_mean(
            [SampleMean(right, there) for right, there in zip(correct.T, truth.T, strict=True)]
        ),
        "f1": macro_mean([f1(*column) for column in columns]),
        "f1_weighted": macro_mean([weighted_f1(*column) for column in columns]),
    }
    return {name + ending: metric for name, metric in found.items()}


def constant_metrics(truth: Array) -> dict[str, WeightedMetric]:
    """Return what two answers get that look at no image: ``acc_all_negative`` and ``f1_all_positive``."""
    always, never = np.ones_like(truth), np.zeros_like(truth)
    return {
        "acc_all_negative": answer_metrics(never, truth)["acc"],
        "f1_all_positive": answer_metrics(always, truth)["f1"],
    }


def f1(answers: Array, truth: Array) -> WeightedMetric:
    """Return 2 TP / (2 TP + FP + FN) of answers [N]; NaN in a resample without positives and positive answers."""
    hits = (answers & truth).astype(np.float64)
    said = answers.astype(np.float64) + truth

    def evaluate(weights: Floats) -> Floats:
        top, below = 2 * (hits @ weights), said @ weights
        return np.divide(top, below, out=np.full_like(top, np.nan), where=below > 0)

    return evaluate


def weighted_f1(answers: Array, truth: Array) -> WeightedMetric:
    """Return the F1 of positives and that of negatives, weighted by how many samples are each."""
    parts: Sequence[tuple[WeightedMetric, Array]] = (
        (f1(answers, truth), truth.astype(np.float64)),
        (f1(~answers, ~truth), (~truth).astype(np.float64)),
    )

    def evaluate(weights: Floats) -> Floats:
        shares = [np.nan_to_num(metric(weights)) * (members @ weights) for metric, members in parts]
        return np.asarray(sum(shares) / weights.sum(axis=0))

    return evaluate


def named(findings: Sequence[str], values: Floats) -> Mapping[str, float]:
    """Return values by finding."""
    return {name: round(float(value), 6) for name, value in zip(findings, values, strict=True)}
