"""Declares the content of a cell's files, and checks what is read against it.

Every key may be missing or null, and other keys may be there: older and newer results stay readable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from benchmark.errors import quoted
from benchmark.settings import Stored, read

if TYPE_CHECKING:
    import numpy.typing as npt

_LARGEST = 1e30
"""Absolute value that no number in a result reaches."""


_COUNT, _AMOUNT = Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0)]


def _file(name: str, **keys: Any) -> Any:
    """Return the declaration of a file or a section: key -> type."""
    optional = [(key, kind | None, None) for key, kind in keys.items()]
    return dataclasses.make_dataclass(name, optional, bases=(Stored,), frozen=True)


def _named(kind: Any) -> Any:
    """Return the type of a mapping of names of any kind."""
    return dict[str, kind | None]


_IDENTITY = _file(
    "Identity", numbers=int, weights=str, arithmetic=str, data=_named(str), code=str, adapter=str
)
_METRIC = _file(
    "Metric", head=str, unit=str, higher=bool, headline=bool, chance=float | Literal["classes"],
    references=_named(str),
)  # fmt: skip
_SCORE = _file("Score", value=float, ci_low=float, ci_high=float, n=_COUNT)
_FACTS = _file("Facts", data_notes=list, classes=list, overlaps=list, logit_scale=float)
_DATASET = _file("Dataset", metrics=_named(_SCORE), info=_FACTS, kind=str, n=_COUNT)
_TASK = _file("Task", datasets=_named(dict))
_SUITE = _file("Suite", tasks=_named(_TASK), corpus=dict, validation=dict, paper=dict, related=dict)

Result = _file("Result", metrics=_named(_METRIC), status=str, identity=_IDENTITY, datasets=_named(_DATASET))
"""``<task>.json``: scores by dataset and metric."""
Config = _file(
    "Config", suite_name=str, backbone=str, method=str, variant=str, seed=int, limit=int, suite=_SUITE, recipe=dict,
    beside=bool, options=dict, tasks=_named(_TASK),
)  # fmt: skip
"""``config.yaml``: the resolved settings."""
History = _file("History", rows=list[dict[str, float | None]])
"""``history.jsonl``: one row of numbers after each epoch."""
OWN: Mapping[str, Any] = {
    "status.json": _file("Status", status=str, error=str),
    "adapt.json": _file(
        "Adapted", imported=dict, identity=_IDENTITY, data_notes=list, best=_file("Kept", step=_COUNT)
    ),
    "provenance.json": _file("Provenance", git=dict, imported=dict),
    "efficiency.json": _file(
        "Costs", trainable_parameters=_COUNT, trainable_parameters_without_logit_scale=_COUNT, total_parameters=_COUNT,
        by_tower=_named(_COUNT), total_parameters_by_tower=_named(_COUNT), peak_memory_bytes=_COUNT,
        adapter_bytes=_COUNT, threads=_COUNT, processes=_COUNT, forward_flops_per_pair=_AMOUNT,
        step_flops_per_pair=_AMOUNT, step_flops_per_pair_cached=_AMOUNT, inference_flops_per_image=_AMOUNT,
        inference_flops_per_text=_AMOUNT, inference_overhead=_AMOUNT, inference_overhead_merged=_AMOUNT,
        step_time_p50_s=_AMOUNT, step_time_p95_s=_AMOUNT, data_wait_share=_AMOUNT, images_per_s=_AMOUNT,
        wall_time_s=_AMOUNT, device=str,
    ),
}  # fmt: skip
"""The files of a cell that are no results, with what they hold."""
CEILINGS = _named(_file("Ceiling", title=str, datasets=_named(_named(float))))
"""``ceilings.json``: "<suite>/<backbone>" -> reference values by dataset and metric."""


def content_problem(content: Any, hint: Any) -> str:
    """Return the first place where a content differs from its declaration, and how; empty when it does not.

    Args:
        content: of JSON or YAML.
        hint: a dataclass of this module, or `CEILINGS`.
    """
    problems = read(hint, content, lambda path: path or "content")[1]
    if problems:
        return problems[0]
    if hint is Config:  # the suite is what the user wrote: a rate of 1e30 makes a run fail, not a file wrong
        content = {key: value for key, value in content.items() if key != "suite"}
    try:
        extreme = next(_extreme(content), "")
    except RecursionError:
        return "nested too deeply"
    return extreme or (next(_out_of_range(content), "") if hint is Result else "")


def _extreme(value: Any, place: str = "") -> Iterator[str]:
    """Yield the numbers that are not finite, or larger than any result."""
    if isinstance(value, int | float) and not abs(value) < _LARGEST:
        yield f"{place}: expected a finite number below {_LARGEST:g}, got {quoted(value)}"
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value, start=1):
            yield from _extreme(item, f"{place}.{key}".lstrip("."))


def _out_of_range(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the scores that are shown in percent and are no fraction."""
    metrics = result.get("metrics") or {}
    shares = {name for name, metric in metrics.items() if (metric or {}).get("unit") == "%"}
    for dataset, one in (result.get("datasets") or {}).items():
        for name, score in ((one or {}).get("metrics") or {}).items():
            for key in ("value", "ci_low", "ci_high") if name in shares else ():
                value = (score or {}).get(key)
                if value is not None and abs(value) > 1 + 1e-6:
                    place = f"datasets.{dataset}.metrics.{name}.{key}"
                    yield f"{place}: expected a fraction between -1 and 1, got {quoted(value)}"


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
        return "'similarity' is not a table of finite numbers"
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
