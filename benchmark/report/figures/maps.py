"""Similarity maps beside ground-truth boxes, like the paper's Figure 3.

Drawn from what cells have stored, whatever the task: ``predictions/<task>-<dataset>.npz`` with ``panel_id`` [K],
``panel_pixels`` [K, H, W] or [K, H, W, 3] uint8, ``panel_map`` [K, h, w] on the tower's grid, and the boxes
``panel_truth`` [M, 4] with ``panel_truth_image`` [M]. The task chooses the images, by a rule that looks at no result.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmark.registry import register_figure
from benchmark.report.figures.panels import Tile, picture_grid, same_images
from benchmark.report.figures.stored import Array, Stored, shared_columns
from benchmark.report.figures.style import Drawing

_COLOURS = "cividis"  # lightness rises all the way, the same order for all eyes and in grey
_KEYS = ("panel_id", "panel_pixels", "panel_map", "panel_truth", "panel_truth_image")


@register_figure("maps", of="dataset")
def draw(stored: Stored) -> Iterator[Drawing]:
    """Yield, where maps are stored, a row per image: the image, and each method's map of it."""
    methods = same_images(stored.shown(_KEYS))
    if not methods:
        return
    first = methods[0].arrays
    title = f"Similarity maps on {stored.name}: {stored.block.heading}"
    titles, count = ["Image, boxes", *(one.title for one in methods)], len(first["panel_id"])
    figure, tiles = picture_grid(title, titles, count, _COLOURS, "cosine")
    for image, row in enumerate(tiles):
        row[0].pixels(first["panel_pixels"][image])
        for tile, method in zip(row[1:], methods, strict=True):
            _map(tile, method.arrays["panel_map"][image], first["panel_pixels"][image].shape[:2])
        for tile in row:
            for corners in first["panel_truth"][first["panel_truth_image"] == image]:
                tile.box(corners, "#FFFFFF", halo=True)
    caption = (
        "Cosine of each image patch with the text of the finding, first seed, drawn up to the image's size; light is "
        "high, dark is low, each map in its own range (the numbers on it). White: ground-truth boxes. Images: evenly "
        f"spaced in the order of ids.{shared_columns(methods)}"
    )
    yield Drawing(f"3_{stored.task}_{stored.dataset}", title, caption, figure)


def _map(tile: Tile, values: Array, size: tuple[int, int]) -> None:
    tile.image(values, size, cmap=_COLOURS, interpolation="bilinear")
    low, high = (
        f"{round(float(value), 2) + 0.0:.2f}" for value in (values.min(), values.max())
    )  # never -0.00
    tile.text(0.03 * size[1], 0.97 * size[0], f"{low} to {high}", va="bottom", color="white")
