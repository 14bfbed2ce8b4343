"""What the files of a cell must look like to be read: a file that was damaged or edited by hand is told, not shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmark.errors import quoted

if TYPE_CHECKING:
    import numpy.typing as npt

NUMBER, WHOLE, TEXT, MAPPING, LIST = "a number", "a whole number", "a text", "keys and values", "a list"


class Each:
    """Keys and values of which every value has one shape."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


IDENTITY = {
    "numbers": WHOLE,
    "weights": TEXT,
    "arithmetic": TEXT,
    "data": Each(TEXT),
    "code": TEXT,
    "adapter": TEXT,
}
_SCORE = {"value": NUMBER, "ci_low": NUMBER, "ci_high": NUMBER, "n": WHOLE}
_METRIC = {"head": TEXT, "unit": TEXT, "references": Each(TEXT)}
RESULT = {
    "metrics": Each(_METRIC),
    "status": TEXT,
    "identity": IDENTITY,
    "datasets": Each(
        {
            "metrics": Each(_SCORE),
            "info": dict.fromkeys(("data_notes", "classes", "overlaps"), LIST),
            "kind": TEXT,
        }
    ),
}
CONFIG = {
    **dict.fromkeys(("suite_name", "backbone", "method", "variant"), TEXT),
    **dict.fromkeys(("seed", "limit"), WHOLE),
    "suite": {"tasks": Each({"datasets": Each(MAPPING)}), "paper": MAPPING, "related": MAPPING},
    "recipe": MAPPING,
    "options": MAPPING,
    "tasks": Each({"datasets": Each(MAPPING)}),
}
OWN: Mapping[str, Any] = {
    "status.json": {"status": TEXT, "error": TEXT},
    "adapt.json": {"imported": MAPPING, "identity": IDENTITY, "data_notes": LIST},
    "efficiency.json": {"by_tower": MAPPING},
    "provenance.json": {"git": MAPPING, "imported": MAPPING},
}
"""Name -> shape, of the files of a cell that are no results."""
ROW = {"step": NUMBER}
CEILINGS = Each({"title": TEXT, "datasets": Each(Each(NUMBER))})


def problem(value: Any, shape: Any, place: str = "") -> str:
    """Return where a value differs from its shape, and how; empty when it does not. What is missing or None is right.

    Args:
        value: of JSON or YAML.
        shape: one of the words of this module, keys with their shapes, or :class:`Each`.
        place: keys down to the value.
    """
    if value is None:
        return ""
    if isinstance(shape, str):
        return "" if _is(value, shape) else f"{place}: expected {shape}, got {quoted(value)}"
    if not isinstance(value, Mapping):
        return f"{place or 'content'}: expected {MAPPING}, got {quoted(value)}"
    shapes = dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape
    found = (problem(value[key], shapes[key], f"{place}.{key}".lstrip(".")) for key in shapes if key in value)
    return next(filter(None, found), "")


def _is(value: Any, word: str) -> bool:
    if word == NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    kinds: Any = {WHOLE: int, TEXT: str, MAPPING: Mapping, LIST: list}[word]
    return isinstance(value, kinds) and not isinstance(value, bool)


def arrays_problem(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return why the arrays of a predictions file do not fit together; empty when they do."""
    import numpy as np

    count = len(arrays["image_id"]) if "image_id" in arrays and arrays["image_id"].ndim else None
    forms = [name for name in arrays if name.startswith(("sample_", "group_"))]
    forms += [name for name in arrays if name.startswith("score_") and f"truth_{name[6:]}" in arrays]
    for name in ("image_id", "patient_id", "similarity", "target", *forms):
        if name in arrays and (arrays[name].ndim == 0 or len(arrays[name]) != count):
            return f"'{name}' has not one entry per image"
    scores, target = arrays.get("similarity"), arrays.get("target")
    if scores is not None and (scores.ndim != 2 or scores.dtype.kind != "f" or not np.isfinite(scores).all()):
        return "'similarity' is no table of finite numbers"
    if target is not None and (target.dtype.kind not in "iub" or target.ndim > 2):
        return "'target' holds no classes"
    if scores is None or target is None or not target.size:
        return ""
    fits = (
        target.shape == scores.shape
        if target.ndim == 2
        else 0 <= target.min() <= target.max() < scores.shape[1]
    )
    return "" if fits else "'target' names classes that 'similarity' has not"
