"""Confusion matrices of classification, from stored predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes

from benchmark.report.figures.stored import Array, Shown, Stored, Verdicts, shared_columns, verdicts
from benchmark.report.figures.style import Drawing, new_figure, set_title

_COLUMNS = 4
_LETTERS = 12


def draw(stored: Stored) -> Iterator[Drawing]:
    """Yield, where an image has one class, a matrix per method: shares of each true class."""
    found = verdicts(stored)
    if found is None:
        return
    wide = min(_COLUMNS, len(found.methods))
    high = -(-len(found.methods) // wide)
    side = max(1.9, 0.36 * len(found.classes) + 0.5)
    figure = new_figure(width=side * wide + 1.0, height=side * high + 1.0)
    grid = figure.subplots(high, wide, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(found.methods):
            left, bottom = place % wide == 0, place // wide == high - 1
            _matrix(axes, found, found.methods[place], left=left, bottom=bottom)
        else:
            axes.set_axis_off()
    title = f"Confusion on {stored.name} ({stored.task}): {stored.block.heading}"
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.supxlabel("Predicted class", fontsize=9)
    figure.supylabel("True class", fontsize=9)
    caption = (
        f"Confusion matrices on {stored.name}, n = {found.count} images: percent of the images of each true class "
        f"(rows sum to 100), mean over seeds. Images per class: {_sizes(found)}.{shared_columns(found.methods)}"
    )
    yield Drawing(f"confusion_{stored.task}_{stored.dataset}", title, caption, figure)


def confusion(similarity: Array, target: Array) -> Array:
    """Return the share of each true class that is given each class, ``[C, C]``, rows true; NaN for absent classes.

    Args:
        similarity: ``[N, C]``; the highest is the answer.
        target: true classes ``[N]``.
    """
    classes = similarity.shape[1]
    pairs = target.astype(np.int64) * classes + similarity.argmax(axis=1)
    counts = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def _matrix(axes: Axes, found: Verdicts, method: Shown, *, left: bool, bottom: bool) -> None:
    shares = np.mean([confusion(run["similarity"], run["target"]) for run in method.runs], axis=0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = "-" if np.isnan(share) else f"{100 * share:.0f}"
        colour = "white" if share > 0.65 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    names = [_short(name) for name in found.classes]
    places = range(len(names))
    axes.set_xticks(places, names if bottom else [], rotation=40, ha="right", fontsize=7, parse_math=False)
    axes.set_yticks(places, names if left else [], fontsize=7, parse_math=False)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    set_title(axes, method.title)


def _sizes(found: Verdicts) -> str:
    counts: Sequence[int] = np.bincount(found.target, minlength=len(found.classes)).tolist()
    return ", ".join(f"{name} {count}" for name, count in zip(found.classes, counts, strict=True))


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 2].rstrip()}.."
