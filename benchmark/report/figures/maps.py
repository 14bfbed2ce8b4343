"""Similarity maps beside ground-truth boxes, like the paper's Figure 3.

Drawn from what cells have stored, whatever the task: ``predictions/<task>-<dataset>.npz`` with ``panel_id`` [K],
``panel_pixels`` [K, H, W] or [K, H, W, 3] uint8, ``panel_map`` [K, h, w] on the tower's grid, and the boxes
``panel_truth`` [M, 4] with ``panel_truth_image`` [M]. The task chooses the images, by a rule that looks at no result.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmark.report.figures.panels import PictureGrid, Place, column_title
from benchmark.report.figures.stored import Array, Stored, shared_columns
from benchmark.report.figures.style import Drawing

_KEYS = ("panel_id", "panel_pixels", "panel_map", "panel_truth", "panel_truth_image")
_COLOURS = "cividis"  # lightness rises all the way: the same order for all eyes and in grey
_EDGE = "#FFFFFF"


def draw(stored: Stored) -> Iterator[Drawing]:
    """Yield, where maps are stored, a row per image: the image, and each method's map of it."""
    methods = stored.shown(_KEYS)
    first = methods[0].arrays if methods else {}
    methods = [one for one in methods if np.array_equal(one.arrays["panel_id"], first["panel_id"])]
    if not len(first.get("panel_id", ())):
        return
    title = f"Similarity maps on {stored.name}: {stored.block.heading}"
    titles = ["Image, boxes", *(column_title(method.title) for method in methods)]
    grid = PictureGrid.of(len(first["panel_id"]), titles, title)
    for row, pixels in enumerate(first["panel_pixels"]):
        places = [grid.place(row, column, pixels.shape[:2]) for column in range(len(titles))]
        places[0].pixels(pixels)
        for place, method in zip(places[1:], methods, strict=True):
            _map(place, method.arrays["panel_map"][row])
        for place in places:
            for corners in first["panel_truth"][first["panel_truth_image"] == row]:
                place.box(corners, _EDGE, halo=True)
    caption = (
        "Cosine of each image patch with the text of the finding, first seed, drawn up to the image's size; light is "
        "high, dark is low, each map in its own range (the numbers on it). White: ground-truth boxes. Images: evenly "
        f"spaced in the order of ids.{shared_columns(methods)}"
    )
    yield Drawing(f"3_{stored.task}_{stored.dataset}", title, caption, grid.figure)


def _map(place: Place, values: Array) -> None:
    place.image(values, cmap=_COLOURS, interpolation="bilinear")
    place.text(
        0.03 * place.size[1],
        0.97 * place.size[0],
        f"{_hundredths(values.min())} to {_hundredths(values.max())}",
        va="bottom",
        color="white",
    )


def _hundredths(value: float) -> str:
    return f"{round(float(value), 2) + 0.0:.2f}"  # adding 0 turns -0 into 0
