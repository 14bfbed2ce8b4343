"""Classification metrics of the zero-shot task, each written once as a function of sample weights.

A metric is built from the data once (sorting, comparing with the labels) and then evaluated for many weight
vectors at the same time: ``metric(weights)`` takes ``weights`` [N, R], how often sample n occurs in resample
r, and returns R values. The plain value is the one with all weights equal to one, so that a number and its
bootstrap interval cannot come from two different formulas.

Values are fractions in float64. A metric that the samples cannot define (a binary AUROC without positives) is
NaN here and ``null`` in files; constant scores are no such case, their AUROC is 0.5. Shapes: N samples,
C classes, R resamples, M (sample, class) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmark.errors import CellError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
WeightedMetric = Callable[[Floats], Floats]
Kind = Literal["multiclass", "binary", "multilabel"]


# --- building blocks: data -> WeightedMetric ---------------------------------------------------------------


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide element by element; NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def weighted_mean(values: Array) -> WeightedMetric:
    """Weighted mean of one value per sample [N]."""
    values = np.asarray(values, dtype=np.float64)
    return lambda weights: _ratio(values @ weights, weights.sum(axis=0))


def weighted_auroc(scores: Array, positive: Array, rows: Array | None = None) -> WeightedMetric:
    """Area under the ROC curve: P(positive scores higher) + P(tie) / 2, which is the midrank form.

    Args:
        scores: [M], larger means more positive.
        positive: [M], truth value of each score.
        rows: [M], sample whose weight each score carries; one score per sample if left out.

    Returns:
        A metric that is NaN where a resample has no positive or no negative.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    rows = np.arange(len(scores)) if rows is None else np.asarray(rows)
    order = np.argsort(scores, kind="stable")
    scores, positive, rows = scores[order], positive[order], rows[order]
    negative_rows, positive_rows = rows[~positive], rows[positive]
    below = np.searchsorted(scores[~positive], scores[positive], side="left")
    up_to = np.searchsorted(scores[~positive], scores[positive], side="right")

    def evaluate(weights: Floats) -> Floats:
        cumulated = np.zeros((len(negative_rows) + 1, weights.shape[1]))
        np.cumsum(weights[negative_rows], axis=0, out=cumulated[1:])
        chosen = weights[positive_rows]
        wins = np.einsum("pr,pr->r", chosen, cumulated[below] + cumulated[up_to]) / 2
        return _ratio(wins, chosen.sum(axis=0) * cumulated[-1])

    return evaluate


def macro_mean(metrics: Sequence[WeightedMetric]) -> WeightedMetric:
    """Unweighted mean over classes; a class that a resample cannot define is left out of its mean."""

    def evaluate(weights: Floats) -> Floats:
        total, defined = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for metric in metrics:
            values = metric(weights)
            total += np.where(np.isnan(values), 0.0, values)
            defined += ~np.isnan(values)
        return _ratio(total, defined)

    return evaluate


def plain_value(metric: WeightedMetric, num_samples: int) -> float:
    """The metric of the data as they are: every sample once."""
    return float(metric(np.ones((num_samples, 1)))[0])


# --- metrics as WeightedMetric ------------------------------------------------------------------------------


def _balanced_accuracy(scores: Array, y: Array) -> WeightedMetric:
    correct = np.argmax(scores, axis=1) == y

    def recall(label: int) -> WeightedMetric:
        member = (y == label).astype(np.float64)
        return lambda weights: _ratio((member * correct) @ weights, member @ weights)

    return macro_mean([recall(label) for label in np.unique(y)])


def _majority_accuracy(y: Array) -> WeightedMetric:
    # The constant answer is chosen once, on all samples: choosing it anew in every resample would take the
    # maximum of several noisy shares, whose interval lies above the value itself when classes are balanced.
    labels, counts = np.unique(y, return_counts=True)
    return weighted_mean(y == labels[np.argmax(counts)])


def _auroc_ovr(scores: Array, y: Array, labels: Iterable[int]) -> WeightedMetric:
    return macro_mean([weighted_auroc(scores[:, label], y == label) for label in labels])


def _auroc_flat(scores: Array, y: Array) -> WeightedMetric:
    num_samples, num_classes = scores.shape
    truth = np.arange(num_classes)[None, :] == y[:, None]
    return weighted_auroc(scores.ravel(), truth.ravel(), np.repeat(np.arange(num_samples), num_classes))


def _auroc_multilabel(scores: Array, targets: Array, min_positives: int) -> WeightedMetric:
    columns = np.flatnonzero(scored_classes(targets, min_positives=min_positives))
    return macro_mean([weighted_auroc(scores[:, column], targets[:, column] == 1) for column in columns])


# --- public metrics -----------------------------------------------------------------------------------------


def accuracy(scores: Array, y: Array) -> float:
    """Share of samples whose highest score [N, C] is at their label [N]; of equal scores the first counts."""
    scores, y = _check_single_label(scores, y)
    return plain_value(weighted_mean(np.argmax(scores, axis=1) == y), len(y))


def balanced_accuracy(scores: Array, y: Array) -> float:
    """Mean recall over the classes that occur in y [N], from scores [N, C]."""
    scores, y = _check_single_label(scores, y)
    return plain_value(_balanced_accuracy(scores, y), len(y))


def majority_accuracy(y: Array) -> float:
    """Accuracy of always answering the most frequent label of y [N]."""
    return plain_value(_majority_accuracy(np.asarray(y)), len(y))


def auroc_binary(score: Array, y: Array) -> float:
    """AUROC of one score per sample [N] against y [N] in {0, 1}; ties count one half, NaN for one class."""
    score, y = np.asarray(score, dtype=np.float64), np.asarray(y)
    if score.ndim != 1 or score.shape != y.shape:
        raise ValueError(f"auroc_binary: expected score and y of one shape, got {score.shape} and {y.shape}")
    _check_zero_one("auroc_binary", y)
    return plain_value(weighted_auroc(score, y == 1), len(y))


def auroc_ovr(prob: Array, y: Array) -> float:
    """Macro mean of the one-vs-rest AUROCs of prob [N, C] over the classes that occur in y [N]."""
    prob, y = _check_single_label(prob, y)
    return plain_value(_auroc_ovr(prob, y, np.unique(y)), len(y))


def auroc_flat(prob: Array, y: Array) -> float:
    """AUROC over all N * C pairs (prob[i, c], 1 if c is the label of i): what the paper's training log shows.

    With two classes it depends on the decision threshold: A^2 <= auroc_flat <= 2A - A^2 for accuracy A.
    """
    prob, y = _check_single_label(prob, y)
    return plain_value(_auroc_flat(prob, y), len(y))


def auroc_multilabel(sim: Array, targets: Array, *, min_positives: int = 1) -> float:
    """Macro mean of the AUROCs of sim [N, C] over the classes of targets [N, C] that can be scored.

    A class is scored when it has at least ``min_positives`` positives and one negative (``scored_classes``).
    """
    sim, targets = _check_multilabel(sim, targets)
    return plain_value(_auroc_multilabel(sim, targets, min_positives), len(targets))


def auroc_minmax(sim: Array, targets: Array, *, min_positives: int = 1) -> float:
    """``auroc_multilabel`` after the authors' rescaling within each image (``minmax_rescaled``)."""
    sim, targets = _check_multilabel(sim, targets)
    return plain_value(_auroc_multilabel(minmax_rescaled(sim), targets, min_positives), len(targets))


def scored_classes(targets: Array, *, min_positives: int = 1) -> npt.NDArray[np.bool_]:
    """Which columns of targets [N, C] enter a macro mean: enough positives and at least one negative, [C]."""
    positives = (np.asarray(targets) == 1).sum(axis=0)
    return np.asarray((positives >= max(1, min_positives)) & (positives < len(targets)))


def unscored_classes(kind: Kind, targets: Array, classes: Sequence[str]) -> dict[str, str]:
    """Return class -> why it has no AUROC, of the classes that a mean leaves out.

    Args:
        kind: of the dataset; a binary one asks for the second class alone.
        targets: labels [N], or [N, C] for multilabel.
        classes: C names.
    """
    targets = np.asarray(targets)
    shown = targets == 1 if kind == "multilabel" else targets[:, None] == np.arange(len(classes))
    counts = shown.sum(axis=0)
    asked = range(1, 2) if kind == "binary" else range(len(classes))
    lacking = {column: "no positives" if counts[column] == 0 else "no negatives" for column in asked}
    return {
        classes[column]: reason for column, reason in lacking.items() if counts[column] in (0, len(targets))
    }


def minmax_rescaled(sim: Array) -> Floats:
    """exp(sim) moved to [0, 1] within each row of sim [N, C]: the authors' score for their validation set.

    It changes how images rank within a class, so its AUROC is not the plain one. A row of equal values has no
    range and becomes 0.5 throughout (the authors' formula divides by zero there).
    """
    exponential = np.exp(np.asarray(sim, dtype=np.float64))
    low, high = exponential.min(axis=1, keepdims=True), exponential.max(axis=1, keepdims=True)
    width = np.broadcast_to(high - low, exponential.shape)
    middle = np.full_like(exponential, 0.5)
    return np.asarray(np.divide(exponential - low, width, out=middle, where=width > 0))


def log_odds(logits: Array) -> Floats:
    """log(p / (1 - p)) of the softmax p of logits [N, C] over classes: the order of p without its saturation.

    Softmax in float64 rounds to exactly 1 beyond a logit gap of about 37, which would tie samples that the
    model tells apart; with a logit scale of 100 that happens.
    """
    logits = np.asarray(logits, dtype=np.float64)
    columns = range(logits.shape[1])
    with np.errstate(invalid="ignore"):  # scores that are no numbers are told by who makes metrics of them
        rest = [np.logaddexp.reduce(np.delete(logits, column, axis=1), axis=1) for column in columns]
    return np.asarray(logits - np.stack(rest, axis=1), dtype=np.float64)


def zero_shot_metrics(
    kind: Kind,
    similarity: Array,
    scale: float,
    targets: Array,
    *,
    positive: int = 1,
    min_positives: int = 1,
    final: bool = False,
) -> dict[str, WeightedMetric]:
    """All metrics of one zero-shot dataset, ready for ``plain_value`` and for the bootstrap.

    Args:
        kind: multiclass and binary: one label per sample; multilabel: a yes or no per class.
        similarity: cosine of each image with each class, [N, C]; C = 2 for binary.
        scale: the model's logit scale (already exponentiated), used by the softmax of multiclass AUROC.
        targets: labels [N] in 0..C-1, or [N, C] in {0, 1} for multilabel.
        positive: binary only, the column that stands for the finding.
        min_positives: multilabel only, see ``scored_classes``.
        final: the scores stand for themselves: AUROC of a class ranks them as they are, and ``scale`` has no part.

    Raises:
        CellError: a similarity is not finite.
        ValueError: shapes or labels that do not fit the kind.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    if not np.isfinite(similarity).all():
        count = int((~np.isfinite(similarity)).any(axis=1).sum())
        raise CellError(
            f"scores of {count} of {len(similarity)} samples are not finite; the run has diverged"
        )
    if kind == "multilabel":
        similarity, targets = _check_multilabel(similarity, targets)
        return {
            "auroc": _auroc_multilabel(similarity, targets, min_positives),
            "auroc_minmax": _auroc_multilabel(minmax_rescaled(similarity), targets, min_positives),
        }
    similarity, targets = _check_single_label(similarity, targets)
    if kind == "binary" and similarity.shape[1] != 2:
        raise ValueError(f"zero_shot_metrics: binary needs similarity [N, 2], got {similarity.shape}")
    if similarity.shape[1] < 2:
        raise ValueError(f"zero_shot_metrics: {kind} needs at least two classes, got {similarity.shape}")
    odds = similarity if final else log_odds(similarity * float(scale))
    columns = [positive] if kind == "binary" else np.unique(targets)
    return {
        "acc": weighted_mean(np.argmax(similarity, axis=1) == targets),
        "balanced_acc": _balanced_accuracy(similarity, targets),
        "majority_acc": _majority_accuracy(targets),
        "auroc": _auroc_ovr(odds, targets, columns),
        "auroc_flat": _auroc_flat(odds, targets),
    }


# --- checks -------------------------------------------------------------------------------------------------


def _check_single_label(scores: Array, y: Array) -> tuple[Floats, Array]:
    scores, y = np.asarray(scores, dtype=np.float64), np.asarray(y)
    if scores.ndim != 2 or y.ndim != 1 or len(scores) != len(y) or not len(y):
        raise ValueError(f"expected scores [N, C], labels [N] and N > 0, got {scores.shape}, {y.shape}")
    if not np.isin(y, np.arange(scores.shape[1])).all():
        raise ValueError(f"expected labels in 0..{scores.shape[1] - 1}, got {np.unique(y)[:9]}")
    return scores, y.astype(np.int64)


def _check_multilabel(sim: Array, targets: Array) -> tuple[Floats, Array]:
    sim, targets = np.asarray(sim, dtype=np.float64), np.asarray(targets)
    if sim.ndim != 2 or sim.shape != targets.shape or not len(sim):
        raise ValueError(
            f"expected scores and targets of one shape [N, C], got {sim.shape} and {targets.shape}"
        )
    _check_zero_one("multilabel targets", targets)
    return sim, targets


def _check_zero_one(where: str, y: Array) -> None:
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"{where}: expected labels 0 or 1, got {np.unique(y)[:9]}")
