"""Pictures of what a task found: test images with truth and predictions (like the paper's Figure A.5), PR curves.

Both are drawn from what cells have stored, whatever the task: ``predictions/<task>-<dataset>.npz`` with the keys

* ``panel_id`` [K], ``panel_pixels`` [K, H, W] or [K, H, W, 3] uint8, and ``panel_truth``, ``panel_prediction``: masks
  [K, H, W], or boxes [M, 4] (x1, y1, x2, y2) with ``..._image`` [M] (row 0..K-1) and, if any, ``..._score`` [M];
* ``pr_iou`` [T], ``pr_recall`` [P], ``pr_precision`` [T, P].

The task chooses the images, by a rule that looks at no result.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmark.report.collect import Block, Row
from benchmark.report.figures import COLOURS, DASHES, look, new_figure, write_each
from benchmark.report.labels import label_line_ends
from benchmark.store import CellFolder, UnreadableError

Array = np.ndarray[Any, Any]
_TRUTH, _FOUND = "#56B4E9", "#E69F00"  # told apart by all eyes, and light enough for a dark film
_SIDE = 1.15  # of a picture, in inches
_LETTERS = 20  # of a note that fit below a picture
_SHOWN_IOU = 0.5


@dataclass(frozen=True)
class Shown:
    """What several methods found: those with the same predictions stand together.

    Attributes:
        titles: of the methods.
        number: row of the first of them in the block, which gives the colour.
        arrays: of its first run.
        runs: arrays of all its runs.
    """

    titles: list[str]
    number: int
    arrays: Mapping[str, Array]
    runs: Sequence[Mapping[str, Array]]

    @property
    def title(self) -> str:
        """One title for all, short enough for a column."""
        return self.titles[0] + (f" and {len(self.titles) - 1} more" if len(self.titles) > 1 else "")


def write_panels(blocks: Sequence[Block], folder: Path) -> list[Path]:
    """Write figure_A5_<task>_<dataset> and figure_pr_<task>_<dataset>, PNG and PDF, where cells have stored them."""
    return write_each(blocks, folder, _figures)


def _figures(block: Block) -> Iterator[tuple[str, Figure | None]]:
    stored = {
        (task, dataset): None
        for row in block.rows
        for run in row.runs
        for task, result in run.tasks.items()
        for dataset in result.get("datasets") or {}
    }
    for task, dataset in stored:
        yield f"A5_{task}_{dataset}", panel_figure(block, task, dataset)
        yield f"pr_{task}_{dataset}", curve_figure(block, task, dataset)


def panel_figure(block: Block, task: str, dataset: str) -> Figure | None:
    """A row per image: the image, the truth, and what each method found there (its first seed)."""
    methods = _shown(block, task, dataset, ("panel_id", "panel_truth", "panel_prediction"))
    first = methods[0].arrays if methods else {}
    methods = [method for method in methods if np.array_equal(method.arrays["panel_id"], first["panel_id"])]
    count = len(first.get("panel_id", ()))
    if not count:
        return None
    columns = 2 + len(methods)
    figure = new_figure(width=_SIDE * columns + 0.3, height=_SIDE * count + 1.1)
    grid = figure.subplots(count, columns, squeeze=False)
    for image in range(count):
        for axes in grid[image]:
            _picture(axes, first["panel_pixels"][image])
        _draw(grid[image][1], first, "truth", image)
        for axes, method in zip(grid[image][2:], methods, strict=True):
            _draw(axes, first, "truth", image, dashed=True)
            _draw(axes, method.arrays, "prediction", image)
    for axes, title in zip(grid[0], ["Input", "Truth", *(method.title for method in methods)], strict=True):
        axes.set_title(title.replace(" and ", "\nand "), fontsize=8, parse_math=False)
    figure.suptitle(_heading(block, task, dataset), fontsize=9, parse_math=False)
    lines = [wrap(line, _LETTERS * columns) for line in _explained(methods)]
    figure.supxlabel("\n".join(itertools.chain(*lines)), fontsize=7.5, parse_math=False)
    return figure


def curve_figure(block: Block, task: str, dataset: str) -> Figure | None:
    """Precision against recall: at one overlap, and averaged over all of them; mean over seeds."""
    methods = _shown(block, task, dataset, ("pr_iou", "pr_recall", "pr_precision"))
    if not methods:
        return None
    overlaps = methods[0].arrays["pr_iou"]
    nearest = int(np.argmin(np.abs(overlaps - _SHOWN_IOU)))
    figure = new_figure(width=9.6, height=4.2)
    pair = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = (f"IoU {overlaps[nearest]:.2f}", f"Mean over IoU {overlaps[0]:.2f} to {overlaps[-1]:.2f}")
    curves: list[list[tuple[str, str, tuple[float, float]]]] = []
    for axes, title, rows in zip(pair, titles, ([nearest], range(len(overlaps))), strict=True):
        curves.append([_curve(axes, method, list(rows)) for method in methods])
        axes.set(title=title, xlabel="Recall (%)", xlim=(0, 100), ylim=(0, 100))
    pair[0].set_ylabel("Precision (%)")
    figure.suptitle(_heading(block, task, dataset), fontsize=10, parse_math=False)
    figure.draw_without_rendering()
    for axes, ends in zip(pair, curves, strict=True):
        label_line_ends(axes, ends)
    return figure


# --- what cells have stored -----------------------------------------------------------------------------------


def _shown(block: Block, task: str, dataset: str, keys: Sequence[str]) -> list[Shown]:
    """Return the methods that have stored these arrays, in the order of the block."""
    found: list[Shown] = []
    for number, row in enumerate(block.rows):
        runs = [arrays for arrays in _stored(row, task, dataset) if set(keys) <= set(arrays)]
        twin = next((other for other in found if runs and _equal(other.arrays, runs[0], keys)), None)
        if twin is not None:
            twin.titles.append(row.title)
        elif runs:
            found.append(Shown([row.title], number, runs[0], runs))
    return found


def _stored(row: Row, task: str, dataset: str) -> Iterator[Mapping[str, Array]]:
    for run in row.runs:
        if run.scores():
            # a damaged file costs its picture, not the report
            with contextlib.suppress(UnreadableError):
                yield CellFolder(run.folder).read_npz(f"predictions/{task}-{dataset}.npz")


def _equal(ones: Mapping[str, Array], others: Mapping[str, Array], keys: Sequence[str]) -> bool:
    return all(np.array_equal(ones[key], others[key]) for key in keys)


# --- drawing --------------------------------------------------------------------------------------------------


def _heading(block: Block, task: str, dataset: str) -> str:
    where = f"{block.spec.get('title') or block.suite}, backbone {block.backbone}"
    return f"{task.capitalize()} on {block.dataset_title(dataset, task)}: {where}"


def _explained(methods: Sequence[Shown]) -> list[str]:
    """Return what the colours mean and which methods share a column."""
    return [
        "Truth: blue (dashed beside predictions). Predictions: orange.",
        "Images: evenly spaced in the order of ids.",
        *(
            f"The same predictions: {', '.join(method.titles)}."
            for method in methods
            if len(method.titles) > 1
        ),
    ]


def _picture(axes: Axes, pixels: Array) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def _draw(axes: Axes, arrays: Mapping[str, Array], what: str, image: int, *, dashed: bool = False) -> None:
    """Draw the mask or the boxes of one image; dashed lines without filling are for comparison."""
    values, key = arrays[f"panel_{what}"], f"panel_{what}_image"
    colour, style = (_TRUTH if what == "truth" else _FOUND), ("dashed" if dashed else "solid")
    if key not in arrays:
        _draw_mask(axes, values[image].astype(bool), colour, style)
        return
    own = arrays[key] == image
    scores = arrays.get(f"panel_{what}_score")
    for corners, score in zip(
        values[own], scores[own] if scores is not None else [None] * own.sum(), strict=True
    ):
        _draw_box(axes, corners, colour, style, score)


def _draw_mask(axes: Axes, mask: Array, colour: str, style: str) -> None:
    if not mask.any():
        return
    if style == "solid":
        shade = np.zeros((*mask.shape, 4))
        shade[mask] = [*(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)), 0.35]
        axes.imshow(shade, interpolation="nearest")
    # one pixel more on each side, so that the line closes where the mask touches the edge
    edge = np.pad(mask.astype(float), 1)
    at = [np.arange(-1, side + 1) for side in mask.shape]
    axes.contour(at[1], at[0], edge, levels=[0.5], colors=[colour], linewidths=0.9, linestyles=style)


def _draw_box(axes: Axes, corners: Array, colour: str, style: str, score: float | None) -> None:
    x1, y1, x2, y2 = (float(value) - 0.5 for value in corners)  # imshow centres pixel 0 on 0
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.1, linestyle=style)
    )
    if score is not None:
        axes.text(x1, y1, f"{score:.2f}", color=colour, fontsize=5.5, va="bottom", clip_on=True)


def _curve(axes: Axes, method: Shown, rows: list[int]) -> tuple[str, str, tuple[float, float]]:
    """Draw the mean curve of a method's runs and return its label: title, colour and last point."""
    recall = 100 * method.arrays["pr_recall"]
    precision = 100 * np.mean([run["pr_precision"][rows].mean(axis=0) for run in method.runs], axis=0)
    reached = max(1, int(np.count_nonzero(precision)))
    colour, _ = look(method.number)
    dashes = DASHES[method.number // len(COLOURS) % len(DASHES)]
    axes.plot(recall[:reached], precision[:reached], color=colour, linestyle=dashes, linewidth=1.4)
    return method.title, colour, (float(recall[reached - 1]), float(precision[reached - 1]))
