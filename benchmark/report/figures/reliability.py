"""Reliability diagrams: accuracy against confidence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.registry import register_figure
from benchmark.report.figures.stored import Array, Shown, Stored, answers, shared_columns
from benchmark.report.figures.style import GREY, Drawing, look, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_BINS = 15  # of equal width, as in arXiv 1706.04599


@register_figure("reliability", of="dataset")
def draw(stored: Stored) -> Iterator[Drawing]:
    """Yield, where an image has one class, a diagram per method with its calibration error."""
    found = answers(stored)
    if found is None:
        return
    title = f"Calibration on {stored.name} ({stored.task}): {stored.block.heading}"
    size, room = (2.2, 2.15), (0.6, 1.0)
    figure, grid = panels(title, len(found.methods), 4, size, room, sharex=True, sharey=True)
    for axes, method in zip(grid, found.methods, strict=True):
        _diagram(axes, method)
    figure.supxlabel("Confidence in the answer (%)", fontsize=9)
    figure.supylabel("Answers that are right (%)", fontsize=9)
    caption = (
        f"Reliability on {stored.name}, n = {len(found.target)} images per seed, all seeds together: softmax at each "
        f"model's own logit scale, {_BINS} bins of confidence. Bars: share of right answers; dashed: perfect "
        "calibration; hatched: share of all answers that a bin holds. ECE: expected calibration error, in points, mean "
        f"over seeds.{shared_columns(found.methods)}"
    )
    yield Drawing(f"reliability_{stored.task}_{stored.dataset}", title, caption, figure)


def sureness(similarity: Array, target: Array, scale: float) -> pd.DataFrame:
    """Return one row per image: ``confidence`` in the answer, and whether it is ``right``.

    Args:
        similarity: cosines ``[N, C]``.
        target: true classes ``[N]``.
        scale: what multiplies cosines before softmax.
    """
    import pandas as pd
    from scipy.special import softmax

    chances = softmax(scale * np.asarray(similarity, dtype=np.float64), axis=1)
    right = (similarity.argmax(axis=1) == target).astype(np.float64)
    return pd.DataFrame({"confidence": chances.max(axis=1), "right": right})


def binned(answers: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each bin of confidence, and the ``share`` of all answers in it; NaN for empty bins."""
    bins = np.clip(np.ceil(answers["confidence"] * _BINS).astype(int) - 1, 0, _BINS - 1)
    groups = answers.groupby(bins.to_numpy())
    return groups.mean().assign(share=groups.size() / len(answers)).reindex(range(_BINS))


def calibration_error(answers: pd.DataFrame) -> float:
    """Return the expected calibration error: mean distance of right answers and confidence in the bins."""
    bins = binned(answers)
    return float((bins["share"] * (bins["right"] - bins["confidence"]).abs()).sum())


def _diagram(axes: Axes, method: Shown) -> None:
    import pandas as pd

    seeds = [
        sureness(run["similarity"], run["target"], scale)
        for run, scale in zip(method.runs, method.scales, strict=True)
    ]
    bins, width = 100 * binned(pd.concat(seeds)), 100 / _BINS
    centres = (np.arange(_BINS) + 0.5) * width
    edge: dict[str, Any] = {"linewidth": 0.5}
    axes.bar(
        centres, bins["right"], width, color=look(method.number).colour, alpha=0.55, edgecolor="black", **edge
    )
    axes.bar(centres, bins["share"], 0.5 * width, facecolor="white", edgecolor=GREY, hatch="////", **edge)
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.9, linestyle="--")
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=(0, 50, 100), yticks=(0, 50, 100))
    error = 100 * np.mean([calibration_error(one) for one in seeds])
    axes.set_title(f"{method.title}\nECE {error:.1f}", loc="left", parse_math=False)
