"""Panels of test images with truth and predictions (like the paper's Figure A.5), and precision-recall curves.

Both are drawn from what cells have stored, whatever the task: ``predictions/<task>-<dataset>.npz`` with the keys

* ``panel_id`` [K], ``panel_pixels`` [K, H, W] or [K, H, W, 3] uint8, and ``panel_truth``, ``panel_prediction``: masks
  [K, H, W], or boxes [M, 4] (x1, y1, x2, y2) with ``..._image`` [M] (row 0..K-1) and, if any, ``..._score`` [M];
* ``pr_iou`` [T], ``pr_recall`` [P], ``pr_precision`` [T, P].

The task chooses the images, by a rule that looks at no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.registry import register_figure
from benchmark.report.figures.label_placement import Label, label_line_ends
from benchmark.report.figures.stored import Array, Shown, Stored, shared_columns
from benchmark.report.figures.style import Drawing, lay_out, look, new_figure, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRUTH, _FOUND = "#56B4E9", "#E69F00"  # told apart by all eyes, and light enough for a dark film
_SHOWN_IOU = 0.5
_SIDE = 1.15  # of a picture, in inches
_GAP = 0.045  # between two pictures, in sides
_BAR = 0.55  # for a bar of colours, in inches
_LEAST_WIDTH = 5.5  # that the heading needs, in inches


@register_figure("panels", of="dataset")
def draw(stored: Stored) -> Iterator[Drawing]:
    """Yield A5_<task>_<dataset> and pr_<task>_<dataset> where cells have stored what they need."""
    yield from _panels(stored)
    yield from _curves(stored)


def same_images(methods: Sequence[Shown]) -> list[Shown]:
    """Return the methods that were shown the images of the first one; none where that has no images."""
    if not methods or not len(methods[0].arrays["panel_id"]):
        return []
    ids = methods[0].arrays["panel_id"]
    return [method for method in methods if np.array_equal(method.arrays["panel_id"], ids)]


def _panels(stored: Stored) -> Iterator[Drawing]:
    """A row per image: the image, the truth, and what each method found there (its first seed)."""
    methods = same_images(stored.shown(("panel_id", "panel_pixels", "panel_truth", "panel_prediction")))
    if not methods:
        return
    first, title = methods[0].arrays, _heading(stored)
    titles = ["Input", "Truth", *(method.title for method in methods)]
    figure, tiles = picture_grid(title, titles, len(first["panel_id"]))
    # each model sees the image fitted in its own way, and answers in those pixels
    sources = [first, first, *(method.arrays for method in methods)]
    for image, row in enumerate(tiles):
        for tile, source in zip(row, sources, strict=True):
            tile.pixels(source["panel_pixels"][image])
        _answer(row[1], first, "truth", image)
        for tile, source in zip(row[2:], sources[2:], strict=True):
            _answer(tile, source, "truth", image, dashed=True)
            _answer(tile, source, "prediction", image)
    caption = (
        "Truth: blue, dashed beside predictions. Predictions: orange, solid, of the first seed. Images: evenly spaced "
        f"in the order of ids.{shared_columns(methods)}"
    )
    yield Drawing(f"A5_{stored.task}_{stored.dataset}", title, caption, figure)


def _curves(stored: Stored) -> Iterator[Drawing]:
    """Precision against recall: at one overlap, and averaged over all of them; mean over seeds."""
    methods = stored.shown(("pr_iou", "pr_recall", "pr_precision"))
    if not methods:
        return
    overlaps = methods[0].arrays["pr_iou"]
    nearest = int(np.argmin(np.abs(overlaps - _SHOWN_IOU)))
    title = f"Precision and recall. {_heading(stored)}"
    figure, pair = panels(title, 2, 2, (4.8, 4.2), sharex=True, sharey=True)
    titles = (f"IoU {overlaps[nearest]:.2f}", f"Mean over IoU {overlaps[0]:.2f} to {overlaps[-1]:.2f}")
    ends: list[list[Label]] = []
    for axes, name, rows in zip(pair, titles, ([nearest], list(range(len(overlaps)))), strict=True):
        ends.append([_curve(axes, method, rows) for method in methods])
        axes.set(title=name, xlabel="Recall (%)", xlim=(0, 100), ylim=(0, 100))
    pair[0].set_ylabel("Precision (%)")
    lay_out(figure)
    for axes, labels in zip(pair, ends, strict=True):
        label_line_ends(axes, labels)
    caption = (
        "Highest precision at each recall or beyond it, mean over seeds; a line ends where recall does."
        + shared_columns(methods)
    )
    yield Drawing(f"pr_{stored.task}_{stored.dataset}", title, caption, figure)


def _heading(stored: Stored) -> str:
    return f"{stored.task.capitalize()} on {stored.name}: {stored.block.heading}"


def _answer(tile: Tile, arrays: Mapping[str, Array], what: str, image: int, *, dashed: bool = False) -> None:
    """Draw the mask or the boxes of one image; dashed lines without filling are for comparison."""
    values, key = arrays[f"panel_{what}"], f"panel_{what}_image"
    colour, style = (_TRUTH if what == "truth" else _FOUND), ("dashed" if dashed else "solid")
    if key not in arrays:
        tile.mask(values[image].astype(bool), colour, style, filled=not dashed)
        return
    own = arrays[key] == image
    for corners in values[own]:
        tile.box(corners, colour, style)
    scores = arrays.get(f"panel_{what}_score")
    for corners, score in zip(values[own], () if scores is None else scores[own], strict=False):
        tile.text(float(corners[0]), float(corners[1]), f"{score:.2f}", color=colour, va="bottom")


def _curve(axes: Axes, method: Shown, rows: list[int]) -> Label:
    """Draw the mean curve of a method's runs and return its label: title, colour and last point."""
    recall = 100 * method.arrays["pr_recall"]
    precision = 100 * np.mean([run["pr_precision"][rows].mean(axis=0) for run in method.runs], axis=0)
    reached = max(1, int(np.count_nonzero(precision)))
    style = look(method.number)
    line = style.line(first=method.number % 5, steps=max(5, reached // 8))
    axes.plot(recall[:reached], precision[:reached], **line)
    return method.title, style.colour, (float(recall[reached - 1]), float(precision[reached - 1]))


# --- pictures -----------------------------------------------------------------------------------------------


def picture_grid(
    heading: str, titles: Sequence[str], rows: int, colours: str = "", meaning: str = ""
) -> tuple[Figure, list[list[Tile]]]:
    """Return a figure with a title over each column, and its tiles row by row.

    With a map of ``colours`` a bar at the right says what they mean, from low to high.
    """
    titles = [title.replace(" and ", "\nand ") for title in titles]  # a column of several methods
    top = 0.36 + 0.16 * max(title.count("\n") + 1 for title in titles)
    own, high = (_SIDE * (count + _GAP * (count - 1)) for count in (len(titles), rows))
    width, height = max(own + 0.1, _LEAST_WIDTH), high + top + 0.05
    left = (width - own) / 2
    if colours:
        width += _BAR
    figure = new_figure(width, height, layout=None)
    room = {"left": left / width, "right": (left + own) / width, "bottom": 0.05 / height}
    how = room | {"top": 1 - top / height, "wspace": _GAP, "hspace": _GAP}
    grid = figure.subplots(rows, len(titles), squeeze=False, gridspec_kw=how)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("NW")
    for axes, title in zip(grid[0], titles, strict=True):
        at_top = {"transform": axes.transAxes, "ha": "center", "va": "bottom"}
        axes.text(0.5, 1.04, title, fontsize=8, parse_math=False, **at_top)
    figure.suptitle(heading, fontsize=9, y=1 - 0.06 / height, va="top", parse_math=False)
    if colours:
        _colour_bar(figure, (1 - _BAR / width, 0.1, 0.1 / width, 0.7 * (1 - top / height)), colours, meaning)
    return figure, [[Tile(axes) for axes in row] for row in grid]


def _colour_bar(figure: Figure, place: tuple[float, float, float, float], colours: str, meaning: str) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=colours), cax=figure.add_axes(place), ticks=[0, 1])
    bar.ax.set_yticklabels(["low", "high"], fontsize=7)
    bar.set_label(meaning, fontsize=7, labelpad=-14)


@dataclass(frozen=True)
class Tile:
    """One picture of a grid, in pixel coordinates that start at its upper left corner."""

    axes: Axes

    def image(self, values: Array, size: tuple[int, int], **how: Any) -> None:
        """Fill a picture of ``size`` (height, width) pixels with an image, whatever its own size."""
        self.axes.imshow(values, extent=(0, size[1], size[0], 0), **how)

    def pixels(self, values: Array) -> None:
        """Show a film, uint8 ``[H, W]`` or ``[H, W, 3]``."""
        self.image(values, values.shape[:2], cmap="gray", vmin=0, vmax=255, interpolation="nearest")

    def box(self, corners: Array, colour: str, style: str = "solid", *, halo: bool = False) -> None:
        """Draw a box (x1, y1, x2, y2) in pixels; with a halo it stands out on any ground."""
        from matplotlib.patches import Rectangle

        x1, y1, x2, y2 = map(float, corners)
        shape: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.1, "linestyle": style}
        self.axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, path_effects=_halo(2.4) if halo else None, **shape)
        )

    def mask(self, mask: Array, colour: str, style: str, *, filled: bool) -> None:
        """Draw the edge of a mask, bool ``[H, W]``, and its inside if it is to be filled."""
        from matplotlib.colors import to_rgba

        if not mask.any():
            return
        if filled:
            shade = mask[..., None] * np.array(to_rgba(colour, alpha=0.35))
            self.image(shade, mask.shape, interpolation="nearest")
        # one pixel more on each side, so that the line closes where the mask touches the edge
        rows, columns = (np.arange(-1, side + 1) + 0.5 for side in mask.shape)
        edge = np.pad(mask.astype(float), 1)
        self.axes.contour(
            columns, rows, edge, levels=[0.5], colors=[colour], linewidths=0.9, linestyles=style
        )

    def text(self, x: float, y: float, text: str, **how: Any) -> None:
        """Write a small text at pixel coordinates that can be read on any ground."""
        self.axes.text(x, y, text, fontsize=5.5, clip_on=True, path_effects=_halo(1.2), **how)


def _halo(width: float) -> list[Any]:
    from matplotlib.patheffects import Normal, withStroke

    return [withStroke(linewidth=width, foreground="black"), Normal()]
