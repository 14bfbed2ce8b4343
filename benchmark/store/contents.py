"""Declares the content of a cell's files, and checks what is read against it.

Every key may be missing or null, and other keys may be there: older and newer results stay readable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmark.errors import quoted
from benchmark.settings import Stored, read, setting

if TYPE_CHECKING:
    import numpy.typing as npt

_LARGEST = 1e30
"""Absolute value that no number in a result reaches."""


@dataclass(frozen=True)
class Identity(Stored):
    """What a result was made of: versions and checksums."""

    numbers: int | None = None
    weights: str | None = None
    arithmetic: str | None = None
    data: dict[str, str | None] | None = None
    code: str | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class _Metric(Stored):
    head: str | None = None
    unit: str | None = None
    higher: bool | None = None
    headline: bool | None = None
    chance: float | Literal["classes"] | None = None
    references: dict[str, str | None] | None = None


@dataclass(frozen=True)
class _Score(Stored):
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = setting(None, "samples", low=0)


@dataclass(frozen=True)
class _Facts(Stored):
    data_notes: list[Any] | None = None
    classes: list[Any] | None = None
    overlaps: list[Any] | None = None


@dataclass(frozen=True)
class _Dataset(Stored):
    metrics: dict[str, _Score | None] | None = None
    info: _Facts | None = None
    kind: str | None = None
    n: int | None = setting(None, "samples", low=0)


@dataclass(frozen=True)
class Result(Stored):
    """``<task>.json``: scores by dataset and metric."""

    metrics: dict[str, _Metric | None] | None = None
    status: str | None = None
    identity: Identity | None = None
    datasets: dict[str, _Dataset | None] | None = None


@dataclass(frozen=True)
class _Task(Stored):
    datasets: dict[str, dict[str, Any] | None] | None = None


@dataclass(frozen=True)
class _Suite(Stored):
    tasks: dict[str, _Task | None] | None = None
    paper: dict[str, Any] | None = None
    related: dict[str, Any] | None = None


@dataclass(frozen=True)
class Config(Stored):
    """``config.yaml``: the resolved settings."""

    suite_name: str | None = None
    backbone: str | None = None
    method: str | None = None
    variant: str | None = None
    seed: int | None = None
    limit: int | None = None
    suite: _Suite | None = None
    recipe: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    tasks: dict[str, _Task | None] | None = None


@dataclass(frozen=True)
class History(Stored):
    """``history.jsonl``: one row of numbers after each epoch."""

    rows: list[dict[str, float | None]]


@dataclass(frozen=True)
class _Status(Stored):
    status: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class _Adapted(Stored):
    imported: dict[str, Any] | None = None
    identity: Identity | None = None
    data_notes: list[Any] | None = None


_COUNTS = (
    "trainable_parameters", "trainable_parameters_without_logit_scale", "total_parameters", "peak_memory_bytes",
    "adapter_bytes", "threads", "processes",
)  # fmt: skip
_AMOUNTS = (
    "forward_flops_per_pair", "step_flops_per_pair", "step_flops_per_pair_cached", "inference_flops_per_image",
    "inference_flops_per_text", "inference_overhead", "inference_overhead_merged", "step_time_p50_s",
    "step_time_p95_s", "data_wait_share", "images_per_s", "wall_time_s",
)  # fmt: skip
_BY_TOWER = ("by_tower", "total_parameters_by_tower")
_Costs = make_dataclass(
    "_Costs",
    [
        (name, kind, setting(None, "", low=0))
        for names, kind in (
            (_COUNTS, int | None), (_AMOUNTS, float | None), (_BY_TOWER, dict[str, int | None] | None)
        )
        for name in names
    ],
    bases=(Stored,),
    frozen=True,
)  # fmt: skip


@dataclass(frozen=True)
class _Provenance(Stored):
    git: dict[str, Any] | None = None
    imported: dict[str, Any] | None = None


OWN: Mapping[str, type] = {
    "status.json": _Status,
    "adapt.json": _Adapted,
    "efficiency.json": _Costs,
    "provenance.json": _Provenance,
}
"""The files of a cell that are no results, with what they hold."""


@dataclass(frozen=True)
class _Ceiling(Stored):
    title: str | None = None
    datasets: dict[str, dict[str, float | None] | None] | None = None


CEILINGS = dict[str, _Ceiling]


def content_problem(content: Any, hint: Any) -> str:
    """Return the first place where a content differs from its declaration, and how; empty when it does not.

    Args:
        content: of JSON or YAML.
        hint: a dataclass of this module, or `CEILINGS`.
    """
    problems = read(hint, content, lambda path: path or "content")[1]
    if problems:
        return problems[0]
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
