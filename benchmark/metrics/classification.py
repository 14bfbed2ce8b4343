"""The contract of metrics, and the metrics of classification; each formula is written once.

A formula is built from the data once (sorting, comparing with the labels) and then evaluated for many weight vectors at
the same time: ``formula(weights)`` takes ``weights`` [N, R], how often sample n occurs in resample r, and returns R
values. The plain value is the one with all weights equal to one, so that a number and its bootstrap interval cannot
come from two formulas. :class:`SampleMean` and :class:`MeanArea` also bring what a paired test of two methods needs.

Values are fractions in float64, unless a metric has a unit of its own. A metric that the samples cannot define (a
binary AUROC without positives) is NaN here and ``null`` in files; constant scores are no such case, their AUROC is 0.5.
Shapes: N samples, C classes, R resamples, M (sample, class) pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmark.errors import CellError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
WeightedMetric = Callable[[Floats], Floats]
Kind = Literal["multiclass", "binary", "multilabel"]
UNTRAINED = "_untrained"
"""Ends the name of a metric that was measured on an untrained image tower."""
CLEAN = "_clean"
"""Ends the name of a metric of those test images that are in no data that the model has seen."""


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric in ``Task.metrics``; the report reads it from stored results.

    Attributes:
        name: in results. head: of its column; a metric without one has no column unless an experiment asks for it.
        unit: "%" for a fraction that is shown in percent, else what its values are in, or nothing.
        higher: whether more is better. headline: shown when a cell ends, and tested unless other metrics are asked for.
        chance: what guessing gets, where that is known; "classes": one of the number of classes.
        references: what it is held against: name of another metric -> title of the row where that stands.
    """

    name: str
    head: str = ""
    unit: str = "%"
    higher: bool = True
    headline: bool = False
    chance: float | Literal["classes"] | None = None
    references: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its head, or its name."""
        return self.head or self.name

    @property
    def scale(self) -> float:
        """What turns a stored value into the shown unit."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def difference_unit(self) -> str:
        """What differences are in: percentages differ by points."""
        return "points" if self.unit == "%" else self.unit

    def text(self, value: float | None) -> str:
        """A value in the shown unit, without it: 0.4123 -> "41.2", and "0.41" of another unit; a dash for None."""
        return "-" if value is None else f"{self.scale * value:.{self._digits}f}"

    def signed(self, value: float | None) -> str:
        """A difference of two values in the same way: 0.0123 -> "+1.2"; nothing for None."""
        return "" if value is None else f"{self.scale * value:+.{self._digits}f}"

    @property
    def least_shown(self) -> float:
        """The smallest difference that :meth:`signed` does not round to nothing."""
        return 0.5 * 10**-self._digits / self.scale

    @property
    def _digits(self) -> int:
        return 1 if self.unit == "%" else 2

    def clean(self) -> Metric:
        """Return the same metric of the test images without those that the model has seen."""
        return replace(self, name=self.name + CLEAN, head=f"{self.head} clean", headline=False, references={})

    def stored(self) -> dict[str, Any]:
        """Return the declared values that differ from the defaults, as JSON under the metric's name."""
        plain = Metric(self.name)
        said = {item.name: getattr(self, item.name) for item in fields(self)}
        return {key: value for key, value in said.items() if value != getattr(plain, key)}

    @classmethod
    def of_stored(cls, name: str, content: Mapping[str, Any]) -> Metric:
        """Return the metric of :meth:`stored`; keys of newer versions are ignored."""
        known = {item.name for item in fields(cls)} - {"name"}
        said = {key: value for key, value in content.items() if key in known and value is not None}
        if "head" in said:  # results of older versions say AUC
            said["head"] = re.sub(r"\bAUC\b", "AUROC", str(said["head"]))
        return cls(name, **said)


# --- building blocks: data -> WeightedMetric ---------------------------------------------------------------


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide element by element; NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


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


# --- formulas that a paired test knows ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SampleMean:
    """Mean of one value per sample, NaN left out; with groups the mean over groups of their means.

    Attributes:
        values: [N]. groups: [N], for balanced accuracy the labels.
    """

    values: Array
    groups: Array | None = None

    def __call__(self, weights: Floats) -> Floats:
        """Return the mean in every resample of weights [N, R]: [R]."""
        values, groups = np.asarray(self.values, dtype=np.float64), self.groups
        defined = ~np.isnan(values)
        if not defined.all():
            values, weights = values[defined], weights[defined]
            groups = None if groups is None else groups[defined]
        if groups is None:
            return _ratio(values @ weights, weights.sum(axis=0))
        return macro_mean([_mean_within(groups == label, values) for label in np.unique(groups)])(weights)


def _mean_within(group: Array, values: Floats) -> WeightedMetric:
    member = group.astype(np.float64)
    return lambda weights: _ratio((member * values) @ weights, member @ weights)


@dataclass(frozen=True, eq=False)
class MeanArea:
    """Mean over classes of the area under the ROC curve, or one area over all (sample, class) pairs.

    Attributes:
        scores: [N, C], larger means more positive. truth: [N, C] bool. pooled: whether all pairs are one area.
    """

    scores: Array
    truth: Array
    pooled: bool = False

    def __call__(self, weights: Floats) -> Floats:
        """Return the area in every resample of weights [N, R]: [R]; a class that it cannot define is left out."""
        return self._area(weights)

    @cached_property
    def _area(self) -> WeightedMetric:
        if self.pooled:
            rows = np.repeat(np.arange(len(self.scores)), self.scores.shape[1])
            return weighted_auroc(self.scores.ravel(), self.truth.ravel(), rows)
        return macro_mean(
            [weighted_auroc(*column) for column in zip(self.scores.T, self.truth.T, strict=True)]
        )


def weighted_precision(scores: Array, positive: Array) -> WeightedMetric:
    """Average precision: the sum over thresholds of precision times gain in recall; equal scores are one threshold.

    Args:
        scores: [N], larger means more positive.
        positive: [N], truth value of each score.

    Returns:
        A metric that is NaN where a resample has no positive.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last = np.append(scores[1:] != scores[:-1], True)  # of the samples with one score

    def evaluate(weights: Floats) -> Floats:
        ordered = weights[order]
        hits, found = np.cumsum(ordered * positive[:, None], axis=0)[last], np.cumsum(ordered, axis=0)[last]
        precision = np.divide(hits, found, out=np.zeros_like(hits), where=found > 0)
        gains = np.diff(hits, axis=0, prepend=0)
        return _ratio((precision * gains).sum(axis=0), hits[-1])

    return evaluate


@dataclass(frozen=True, eq=False)
class MeanPrecision:
    """Mean over classes of the average precision.

    Attributes:
        scores: [N, C], larger means more positive. truth: [N, C] bool.
    """

    scores: Array
    truth: Array

    def __call__(self, weights: Floats) -> Floats:
        """Return the mean in every resample of weights [N, R]: [R]; a class that it cannot define is left out."""
        return self._mean(weights)

    @cached_property
    def _mean(self) -> WeightedMetric:
        columns = zip(self.scores.T, self.truth.T, strict=True)
        return macro_mean([weighted_precision(*column) for column in columns])


def stored_form(formulas: Mapping[str, WeightedMetric]) -> dict[str, Array]:
    """Return the arrays of which :func:`formulas_of` makes the same formulas; one of another kind leaves none."""
    arrays: dict[str, Array] = {}
    for name, one in formulas.items():
        if isinstance(one, SampleMean):
            arrays[f"sample_{name}"] = one.values
            arrays |= {} if one.groups is None else {f"group_{name}": one.groups}
        elif isinstance(one, MeanPrecision):
            arrays |= {f"ranked_{name}": one.scores, f"truth_{name}": one.truth}
        elif isinstance(one, MeanArea):
            arrays |= {f"score_{name}": one.scores, f"truth_{name}": one.truth}
            arrays |= {f"pooled_{name}": np.array(True)} if one.pooled else {}
    return arrays


def formulas_of(arrays: Mapping[str, Array]) -> dict[str, WeightedMetric]:
    """Return the formulas whose :func:`stored_form` is among the arrays."""
    found: dict[str, WeightedMetric] = {}
    for key, values in arrays.items():
        form, _, name = key.partition("_")
        if form == "sample" and name:
            found[name] = SampleMean(values, arrays.get(f"group_{name}"))
        elif form == "ranked" and f"truth_{name}" in arrays:
            found[name] = MeanPrecision(values, arrays[f"truth_{name}"])
        elif form == "score" and f"truth_{name}" in arrays:
            found[name] = MeanArea(values, arrays[f"truth_{name}"], f"pooled_{name}" in arrays)
    return found


# --- classification -----------------------------------------------------------------------------------------


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
    with np.errstate(invalid="ignore"):  # the caller reports scores that are not finite
        rest = [np.logaddexp.reduce(np.delete(logits, column, axis=1), axis=1) for column in columns]
    return np.asarray(logits - np.stack(rest, axis=1), dtype=np.float64)


def zero_shot_metrics(
    kind: Kind, similarity: Array, scale: float, targets: Array, *, final: bool = False
) -> dict[str, WeightedMetric]:
    """All metrics of one zero-shot dataset, ready for ``plain_value``, the bootstrap and paired tests.

    AUROC of a binary set is that of the second class; of several classes the macro mean, one against the rest, on the
    softmax over classes; of several labels the macro mean over :func:`scored_classes`, on the scores as they are.
    ``auroc_flat`` is the one area over all (sample, class) pairs that the paper's training log shows: with two classes
    it depends on the decision threshold, A^2 <= auroc_flat <= 2A - A^2 for accuracy A. ``auroc_minmax`` follows the
    authors' rescaling within each image (:func:`minmax_rescaled`).

    Args:
        kind: multiclass and binary: one label per sample; multilabel: a yes or no per class.
        similarity: cosine of each image with each class, [N, C]; C = 2 for binary, the finding second.
        scale: the model's logit scale (already exponentiated), used by the softmax.
        targets: labels [N] in 0..C-1, or [N, C] in {0, 1} for multilabel.
        final: the scores stand for themselves: AUROC of a class ranks them as they are, and ``scale`` has no part.

    Raises:
        CellError: a similarity is not finite.
        ValueError: shapes or labels that do not fit the kind.
    """
    similarity, targets = np.asarray(similarity, dtype=np.float64), np.asarray(targets)
    if not np.isfinite(similarity).all():
        count = int((~np.isfinite(similarity)).any(axis=1).sum())
        raise CellError(
            f"scores of {count} of {len(similarity)} samples are not finite; the run has diverged"
        )
    _check(kind, similarity, targets)
    if kind == "multilabel":
        columns = scored_classes(targets)
        scores = {"auroc": similarity, "auroc_minmax": minmax_rescaled(similarity)}
        return {name: MeanArea(one[:, columns], targets[:, columns] == 1) for name, one in scores.items()}
    odds = similarity if final else log_odds(similarity * float(scale))
    truth = np.arange(similarity.shape[1]) == targets[:, None]
    asked = [1] if kind == "binary" else np.unique(targets).astype(np.int64)
    correct = np.argmax(similarity, axis=1) == targets
    # The constant answer is chosen once, on all samples: choosing it anew in every resample would take the
    # maximum of several noisy shares, whose interval lies above the value itself when classes are balanced.
    labels, counts = np.unique(targets, return_counts=True)
    return {
        "acc": SampleMean(correct),
        "balanced_acc": SampleMean(correct, targets),
        "majority_acc": SampleMean(targets == labels[np.argmax(counts)]),
        "auroc": MeanArea(odds[:, asked], truth[:, asked]),
        "auroc_flat": MeanArea(odds, truth, pooled=True),
    }


def _check(kind: Kind, scores: Array, targets: Array) -> None:
    classes = scores.shape[1] if scores.ndim == 2 else 0
    expected = (len(scores), classes) if kind == "multilabel" else (len(scores),)
    if not len(scores) or scores.ndim != 2 or targets.shape != expected:
        shape = "[N, C]" if kind == "multilabel" else "[N]"
        raise ValueError(
            f"expected scores [N, C], labels {shape} and N > 0, got {scores.shape}, {targets.shape}"
        )
    if kind != "multilabel" and (classes < 2 or (kind == "binary" and classes != 2)):
        count = "two" if kind == "binary" else "at least two"
        raise ValueError(f"{kind} needs scores of {count} classes, got {scores.shape}")
    known = (0, 1) if kind == "multilabel" else np.arange(classes)
    if not np.isin(targets, known).all():
        raise ValueError(f"expected labels in 0..{known[-1]}, got {np.unique(targets)[:9]}")
