"""Confusion matrices of classification, from stored predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.registry import register_figure
from benchmark.report.figures.stored import Array, Stored, answers, shared_columns
from benchmark.report.figures.style import Drawing, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4
_LETTERS = 12


@register_figure("confusion", of="dataset")
def draw(stored: Stored) -> Iterator[Drawing]:
    """Yield, where an image has one class, a matrix per method: shares of each true class."""
    found = answers(stored)
    if found is None:
        return
    names, count = found.classes, len(found.methods)
    side = max(1.9, 0.36 * len(names) + 0.5)
    title = f"Confusion on {stored.name} ({stored.task}): {stored.block.heading}"
    figure, grid = panels(title, count, _COLUMNS, (side, side), (1.8, 1.0))
    for place, (axes, method) in enumerate(zip(grid, found.methods, strict=True)):
        shares = np.mean([confusion(run["similarity"], run["target"]) for run in method.runs], axis=0)
        is_last = place + _COLUMNS >= count
        _matrix(axes, 100 * shares, names if place % _COLUMNS == 0 else [], names if is_last else [])
        axes.set_title(method.title, loc="left", parse_math=False)
    figure.colorbar(
        grid[0].collections[0], ax=grid, label="Images of the true class (%)", shrink=0.8, pad=0.02
    )
    figure.supxlabel("Predicted class", fontsize=9)
    figure.supylabel("True class", fontsize=9)
    sizes = np.bincount(found.target, minlength=len(names)).tolist()
    caption = (
        f"Confusion matrices on {stored.name}, n = {len(found.target)} images: percent of the images of each true "
        "class (rows sum to 100), mean over seeds. Images per class: "
        f"{', '.join(f'{name} {size}' for name, size in zip(names, sizes, strict=True))}."
        f"{shared_columns(found.methods)}"
    )
    yield Drawing(f"confusion_{stored.task}_{stored.dataset}", title, caption, figure)


def confusion(similarity: Array, target: Array) -> Array:
    """Return the share of each true class that is given each class, ``[C, C]``, rows true; NaN for absent classes.

    Args:
        similarity: ``[N, C]``; the highest is the answer.
        target: true classes ``[N]``.
    """
    classes = similarity.shape[1]  # sklearn, which has this too, takes seconds to import
    known = (target >= 0) & (target < classes)
    pairs = (classes * target.astype(np.int64) + similarity.argmax(axis=1))[known]
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _matrix(axes: Axes, shares: Array, rows: Sequence[str], columns: Sequence[str]) -> None:
    import seaborn as sns

    sns.heatmap(
        shares, vmin=0, vmax=100, cmap="Blues", cbar=False, annot=True, fmt=".0f", annot_kws={"fontsize": 7.5},
        xticklabels=False, yticklabels=False, ax=axes,
    )  # fmt: skip
    labels: dict[str, Any] = {"fontsize": 7, "parse_math": False}
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_short(name) for name in rows], **labels)
    axes.set_xticks(
        np.arange(len(columns)) + 0.5, [_short(name) for name in columns], rotation=40, ha="right", **labels
    )
    axes.tick_params(length=0)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 2].rstrip()}.."
