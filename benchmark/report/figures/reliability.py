"""Reliability diagrams: how often a method is right when it says that it is sure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from benchmark.report.figures.stored import Array, Shown, Stored, shared_columns, verdicts
from benchmark.report.figures.style import GREY, Drawing, look, new_figure, set_title

_COLUMNS = 4
_BINS = 15  # of equal width, as in arXiv 1706.04599
_HATCH = "////"


@dataclass(frozen=True)
class Reliability:
    """Answers by how sure they were; bins without answers are NaN.

    Attributes:
        accuracy, confidence: means of each bin, [B]. share: of all answers, [B].
    """

    accuracy: Array
    confidence: Array
    share: Array

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance of accuracy and confidence, weighted by share."""
        return float(np.nansum(self.share * np.abs(self.accuracy - self.confidence)))


def draw(stored: Stored) -> Iterator[Drawing]:
    """Yield, where an image has one class, a diagram per method with its calibration error."""
    found = verdicts(stored)
    if found is None:
        return
    wide = min(_COLUMNS, len(found.methods))
    high = -(-len(found.methods) // wide)
    figure = new_figure(width=2.2 * wide + 0.6, height=2.15 * high + 1.0)
    grid = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place < len(found.methods):
            _diagram(axes, found.methods[place])
        else:
            axes.set_axis_off()
    title = f"Calibration on {stored.name} ({stored.task}): {stored.block.heading}"
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.supxlabel("Confidence in the answer (%)", fontsize=9)
    figure.supylabel("Answers that are right (%)", fontsize=9)
    caption = (
        f"Reliability on {stored.name}, n = {found.count} images per seed, all seeds together: softmax at each model's "
        f"own logit scale, {_BINS} bins of confidence. Bars: share of right answers; dashed: perfect calibration; "
        "hatched: share of all answers that a bin holds. ECE: expected calibration error, in points, mean over "
        "seeds."
        f"{shared_columns(found.methods)}"
    )
    yield Drawing(f"reliability_{stored.task}_{stored.dataset}", title, caption, figure)


def reliability(similarity: Array, target: Array, scale: float) -> Reliability:
    """Return the bins of one set of answers.

    Args:
        similarity: cosines ``[N, C]``.
        target: true classes ``[N]``.
        scale: what multiplies cosines before softmax.
    """
    logits = scale * np.asarray(similarity, dtype=np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
    right = (logits.argmax(axis=1) == target).astype(np.float64)
    bins = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS).astype(np.float64)

    def mean(values: Array) -> Array:
        sums = np.bincount(bins, weights=values, minlength=_BINS)
        return np.divide(sums, counts, out=np.full(_BINS, np.nan), where=counts > 0)

    return Reliability(mean(right), mean(confidence), counts / len(target))


def _diagram(axes: Axes, method: Shown) -> None:
    each = [
        reliability(run["similarity"], run["target"], scale)
        for run, scale in zip(method.runs, method.scales, strict=True)
    ]
    share = np.mean([one.share for one in each], axis=0)
    right = np.nansum([one.share * one.accuracy for one in each], axis=0) / len(each)
    accuracy = np.divide(right, share, out=np.full(_BINS, np.nan), where=share > 0)
    centres, width = (np.arange(_BINS) + 0.5) * 100 / _BINS, 100 / _BINS
    axes.bar(
        centres,
        100 * accuracy,
        width,
        color=look(method.number).colour,
        alpha=0.55,
        edgecolor="black",
        linewidth=0.5,
    )
    axes.bar(
        centres, 100 * share, 0.5 * width, facecolor="white", edgecolor=GREY, hatch=_HATCH, linewidth=0.5
    )
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.9, linestyle="--")
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=(0, 50, 100), yticks=(0, 50, 100))
    axes.text(
        0.04,
        0.95,
        f"ECE {100 * np.mean([one.ece for one in each]):.1f}",
        transform=axes.transAxes,
        va="top",
        fontsize=8,
    )
    set_title(axes, method.title)
