"""How well a map of an image shows where its boxes are; one value per image, NaN where the boxes cannot define it.

* Pointing game (arXiv 1608.00507): 1 if the highest pixel lies in a box. Pixels that tie for the highest count alike,
  so that a flat map scores the share of the image that is boxed.
* Contrast-to-noise ratio (arXiv 2204.09817, MS-CXR): (mean inside - mean outside) / sqrt(var inside + var outside).
  The source takes its absolute value; the signed one also says whether the inside is the higher one.
* Map AUROC: P(a pixel inside is higher than one outside) + P(tie) / 2.

Inside is the union of an image's boxes; a pixel belongs to a box when its centre does. Shapes: h x w pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from benchmark.metrics.classification import Array, Floats, plain_value, weighted_auroc

PER_IMAGE = ("map_auroc", "pointing", "cnr", "cnr_signed")


def boxed(boxes: Array, size: tuple[int, int]) -> Array:
    """Return the pixels inside any of the boxes, bool ``[h, w]``.

    Args:
        boxes: ``[K, 4]`` (x1, y1, x2, y2) in pixels.
        size: (h, w).
    """
    rows, columns = (np.arange(side) + 0.5 for side in size)
    x1, y1, x2, y2 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T[..., None]
    across, down = (x1 <= columns) & (columns < x2), (y1 <= rows) & (rows < y2)
    return np.asarray((down[:, :, None] & across[:, None, :]).any(axis=0))


def map_scores(values: Array, inside: Array) -> dict[str, float]:
    """Return the value of each of :data:`PER_IMAGE` for one map.

    Args:
        values: the map, ``[h, w]``.
        inside: bool ``[h, w]``.
    """
    values = np.asarray(values, dtype=np.float64)
    ours, others = values[inside], values[~inside]
    if not len(ours) or not len(others):
        return dict.fromkeys(PER_IMAGE, float("nan"))
    flat = values.max() == values.min()  # rounding would turn equal means over no noise into anything
    noise = np.sqrt(ours.var() + others.var())
    contrast = 0.0 if flat else float((ours.mean() - others.mean()) / noise) if noise > 0 else float("nan")
    return {
        "map_auroc": plain_value(weighted_auroc(values.ravel(), inside.ravel()), values.size),
        "pointing": float(inside[values == values.max()].mean()),
        "cnr": abs(contrast),
        "cnr_signed": contrast,
    }


def scores_of(maps: Iterable[Array], insides: Iterable[Array]) -> dict[str, Floats]:
    """Return the values of all images by metric, ``[N]`` each."""
    found = [map_scores(one, inside) for one, inside in zip(maps, insides, strict=True)]
    return {name: np.array([scores[name] for scores in found]) for name in PER_IMAGE}


def central_map(size: tuple[int, int]) -> Floats:
    """Return the map that is highest in the middle of the image, ``[h, w]``: what needs no image at all."""
    rows, columns = (np.arange(side) + 0.5 - side / 2 for side in size)
    return -np.hypot(rows[:, None], columns[None, :])
