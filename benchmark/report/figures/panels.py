"""Pictures of what a task found: test images with truth and predictions (like the paper's Figure A.5), PR curves.

Both are drawn from what cells have stored, whatever the task: ``predictions/<task>-<dataset>.npz`` with the keys

* ``panel_id`` [K], ``panel_pixels`` [K, H, W] or [K, H, W, 3] uint8, and ``panel_truth``, ``panel_prediction``: masks
  [K, H, W], or boxes [M, 4] (x1, y1, x2, y2) with ``..._image`` [M] (row 0..K-1) and, if any, ``..._score`` [M];
* ``pr_iou`` [T], ``pr_recall`` [P], ``pr_precision`` [T, P].

The task chooses the images, by a rule that looks at no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, withStroke

from benchmark.report.figures.label_placement import Label, label_line_ends
from benchmark.report.figures.stored import Array, Shown, Stored, shared_columns
from benchmark.report.figures.style import Drawing, lay_out, look, new_figure

_TRUTH, _FOUND = "#56B4E9", "#E69F00"  # told apart by all eyes, and light enough for a dark film


_SHOWN_IOU = 0.5


def draw(stored: Stored) -> Iterator[Drawing]:
    """Yield A5_<task>_<dataset> and pr_<task>_<dataset> where cells have stored what they need."""
    yield from _panels(stored)
    yield from _curves(stored)


def _panels(stored: Stored) -> Iterator[Drawing]:
    """A row per image: the image, the truth, and what each method found there (its first seed)."""
    methods = stored.shown(("panel_id", "panel_pixels", "panel_truth", "panel_prediction"))
    first = methods[0].arrays if methods else {}
    methods = [method for method in methods if np.array_equal(method.arrays["panel_id"], first["panel_id"])]
    count = len(first.get("panel_id", ()))
    if not count:
        return
    title = _heading(stored)
    titles = ["Input", "Truth", *(column_title(method.title) for method in methods)]
    grid = PictureGrid.of(count, titles, title)
    # each model sees the image fitted in its own way, and answers in those pixels
    sources = [first, first, *(method.arrays for method in methods)]
    for image in range(count):
        seen = [source["panel_pixels"][image] for source in sources]
        places = [grid.place(image, column, pixels.shape[:2]) for column, pixels in enumerate(seen)]
        for place, pixels in zip(places, seen, strict=True):
            place.pixels(pixels)
        _draw(places[1], first, "truth", image)
        for place, source in zip(places[2:], sources[2:], strict=True):
            _draw(place, source, "truth", image, dashed=True)
            _draw(place, source, "prediction", image)
    caption = (
        "Truth: blue, dashed beside predictions. Predictions: orange, solid, of the first seed. Images: evenly spaced "
        f"in the order of ids.{shared_columns(methods)}"
    )
    yield Drawing(f"A5_{stored.task}_{stored.dataset}", title, caption, grid.figure)


def _curves(stored: Stored) -> Iterator[Drawing]:
    """Precision against recall: at one overlap, and averaged over all of them; mean over seeds."""
    methods = stored.shown(("pr_iou", "pr_recall", "pr_precision"))
    if not methods:
        return
    overlaps = methods[0].arrays["pr_iou"]
    nearest = int(np.argmin(np.abs(overlaps - _SHOWN_IOU)))
    figure = new_figure(width=9.6, height=4.2)
    pair = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = (f"IoU {overlaps[nearest]:.2f}", f"Mean over IoU {overlaps[0]:.2f} to {overlaps[-1]:.2f}")
    curves: list[list[Label]] = []
    for axes, name, rows in zip(pair, titles, ([nearest], range(len(overlaps))), strict=True):
        curves.append([_curve(axes, method, list(rows)) for method in methods])
        axes.set(title=name, xlabel="Recall (%)", xlim=(0, 100), ylim=(0, 100))
    pair[0].set_ylabel("Precision (%)")
    title = f"Precision and recall. {_heading(stored)}"
    figure.suptitle(title, fontsize=10, parse_math=False)
    lay_out(figure)
    for axes, ends in zip(pair, curves, strict=True):
        label_line_ends(axes, ends)
    caption = (
        "Highest precision at each recall or beyond it, mean over seeds; a line ends where recall does."
        + shared_columns(methods)
    )
    yield Drawing(f"pr_{stored.task}_{stored.dataset}", title, caption, figure)


def _heading(stored: Stored) -> str:
    return f"{stored.task.capitalize()} on {stored.name}: {stored.block.heading}"


def _draw(place: Place, arrays: Mapping[str, Array], what: str, image: int, *, dashed: bool = False) -> None:
    """Draw the mask or the boxes of one image; dashed lines without filling are for comparison."""
    values, key = arrays[f"panel_{what}"], f"panel_{what}_image"
    colour, style = (_TRUTH if what == "truth" else _FOUND), ("dashed" if dashed else "solid")
    if key not in arrays:
        place.mask(values[image].astype(bool), colour, style, filled=not dashed)
        return
    own = arrays[key] == image
    for corners in values[own]:
        place.box(corners, colour, style)
    scores = arrays.get(f"panel_{what}_score")
    for corners, score in zip(values[own], () if scores is None else scores[own], strict=False):
        place.text(float(corners[0]), float(corners[1]), f"{score:.2f}", color=colour, va="bottom")


def _curve(axes: Axes, method: Shown, rows: list[int]) -> Label:
    """Draw the mean curve of a method's runs and return its label: title, colour and last point."""
    recall = 100 * method.arrays["pr_recall"]
    precision = 100 * np.mean([run["pr_precision"][rows].mean(axis=0) for run in method.runs], axis=0)
    reached = max(1, int(np.count_nonzero(precision)))
    style = look(method.number)
    axes.plot(
        recall[:reached],
        precision[:reached],
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        markersize=4,
        markevery=(method.number % 5, max(5, reached // 8)),
    )
    return method.title, style.colour, (float(recall[reached - 1]), float(precision[reached - 1]))


_SIDE = 1.15  # of a picture, in inches


_GAP = 0.045  # between two pictures, in sides


_LEAST_WIDTH = 5.5  # that the heading needs, in inches


_HALO = withStroke(linewidth=2.4, foreground="black")


_SMALL_HALO = withStroke(linewidth=1.2, foreground="black")


@dataclass(frozen=True)
class Place:
    """Where a picture of (height, width) pixels stands; pixel coordinates start at its upper left corner."""

    axes: Axes
    left: float
    top: float
    size: tuple[int, int]

    @property
    def unit(self) -> float:
        """Length of a pixel's side in the axes."""
        return 1 / max(self.size)

    def at(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return where pixel coordinates lie in the axes."""
        return self.left + self.unit * x, self.top + self.unit * y

    def image(self, values: Array, **how: Any) -> None:
        """Fill the place with an image, whatever its own size."""
        right, bottom = self.at(self.size[1], self.size[0])
        self.axes.imshow(values, extent=(self.left, right, bottom, self.top), **how)

    def pixels(self, values: Array) -> None:
        """Show a film, uint8 ``[H, W]`` or ``[H, W, 3]``."""
        self.image(values, cmap="gray", vmin=0, vmax=255, interpolation="nearest")

    def box(self, corners: Array, colour: str, style: str = "solid", *, halo: bool = False) -> None:
        """Draw a box (x1, y1, x2, y2) in pixels; with a halo it stands out on any ground."""
        (x1, y1), (x2, y2) = self.at(*map(float, corners[:2])), self.at(*map(float, corners[2:]))
        self.axes.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=colour,
                linewidth=1.1,
                linestyle=style,
                path_effects=[_HALO, Normal()] if halo else None,
            )
        )

    def mask(self, mask: Array, colour: str, style: str, *, filled: bool) -> None:
        """Draw the edge of a mask, bool ``[H, W]``, and its inside if it is to be filled."""
        if not mask.any():
            return
        if filled:
            shade = np.zeros((*mask.shape, 4))
            shade[mask] = [*(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)), 0.35]
            self.image(shade, interpolation="nearest")
        # one pixel more on each side, so that the line closes where the mask touches the edge
        edge = np.pad(mask.astype(float), 1)
        rows, columns = (np.arange(-1, side + 1) + 0.5 for side in mask.shape)
        x, y = self.at(columns, rows)
        self.axes.contour(x, y, edge, levels=[0.5], colors=[colour], linewidths=0.9, linestyles=style)

    def text(self, x: float, y: float, text: str, **how: Any) -> None:
        """Write a small text at pixel coordinates that can be read on any ground."""
        self.axes.text(*self.at(x, y), text, fontsize=5.5, clip_on=True, path_effects=[_SMALL_HALO], **how)


@dataclass(frozen=True)
class PictureGrid:
    """A figure of ``rows`` x ``columns`` pictures."""

    figure: Figure
    axes: Axes

    @classmethod
    def of(cls, rows: int, titles: Sequence[str], heading: str) -> PictureGrid:
        """Return an empty grid with a title over each column and a heading over all."""
        lines = max(title.count("\n") + 1 for title in titles)
        columns, top = len(titles), 0.36 + 0.16 * lines
        own = _SIDE * (columns + _GAP * (columns - 1))
        width, height = max(own + 0.1, _LEAST_WIDTH), _SIDE * (rows + _GAP * (rows - 1)) + top + 0.05
        figure = new_figure(width=width, height=height, layout=None)
        share = own / width
        axes = figure.add_axes(((1 - share) / 2, 0.05 / height, share, 1 - (top + 0.05) / height))
        axes.set(xlim=(0, columns + _GAP * (columns - 1)), ylim=(rows + _GAP * (rows - 1), 0))
        axes.set_axis_off()
        for column, title in enumerate(titles):
            axes.text(
                column * (1 + _GAP) + 0.5,
                -0.04,
                title,
                fontsize=8,
                ha="center",
                va="bottom",
                parse_math=False,
            )
        figure.suptitle(heading, fontsize=9, y=1 - 0.06 / height, va="top", parse_math=False)
        return cls(figure, axes)

    def place(self, row: int, column: int, size: tuple[int, int]) -> Place:
        """Return the place of one picture of ``size`` (height, width) pixels."""
        return Place(self.axes, column * (1 + _GAP), row * (1 + _GAP), size)


def column_title(title: str) -> str:
    """Return the title of a column of several methods on two lines."""
    return title.replace(" and ", "\nand ")
