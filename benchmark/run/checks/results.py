"""Checks that a result is complete."""

from __future__ import annotations

import collections

import numpy as np

from benchmark.errors import CellError
from tasks.base import DatasetResult

PER_IMAGE = ("image_id", "patient_id", "similarity", "target")
"""Stored arrays that have one row per image in every task that has them."""


def check_result(result: DatasetResult, where: str) -> None:
    """Check what a task gives back against its own count of images.

    Args:
        result: of one dataset.
        where: names task and dataset.

    Raises:
        CellError: rows are missing or too many, an image occurs twice, or a score is not finite.
    """
    arrays = {name: np.asarray(result.predictions[name]) for name in PER_IMAGE if name in result.predictions}
    for name, values in arrays.items():
        if len(values) != result.n:
            raise CellError(f"{where}: {len(values)} rows of '{name}' for {result.n} images")
    ids = collections.Counter(arrays.get("image_id", np.empty(0)).tolist())
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise CellError(f"{where}: {len(twice)} images are answered more than once, first '{twice[0]}'")
    scores = arrays.get("similarity", np.zeros(1))
    if not np.isfinite(scores).all():
        raise CellError(f"{where}: {int((~np.isfinite(scores)).sum())} scores are not finite numbers")
