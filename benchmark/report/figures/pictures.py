"""Grids of small pictures: images with what is drawn over them.

All pictures of a figure stand in one set of axes, a unit square for each: a set of axes per picture would take most of
the report's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, withStroke

from benchmark.report.figures.stored import Array
from benchmark.report.figures.style import new_figure

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
