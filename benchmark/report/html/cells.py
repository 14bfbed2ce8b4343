"""The page's section on one cell: settings, origin, curves, numbers, and why it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import yaml

from benchmark.errors import StoreError
from benchmark.report.collect import Row, flat_numbers
from benchmark.report.html.curve import Chart, charts
from benchmark.report.runs import Run
from benchmark.store.cells import CellFolder
from benchmark.store.provenance import scrub

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LEVELS = 5  # runs/<suite>/<backbone>/<method>/seed-<n>


@dataclass(frozen=True)
class ScoreLine:
    """One metric of one dataset, as fraction."""

    dataset: str
    metric: str
    value: float | None
    text: str
    interval: str
    n: int | None


@dataclass(frozen=True)
class TaskPart:
    """Results of one task."""

    name: str
    status: str
    error: str
    scores: tuple[ScoreLine, ...]


@dataclass(frozen=True)
class History:
    """Rows of history.jsonl as a table of text."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CellView:
    """A cell as its part of the page shows it; plain text, the template escapes it.

    Attributes:
        anchor: id of its part, unique in a store.
        name: method with variant. title: the same in the words of the tables.
        marks: what a reader must know before using its numbers.
        origin: commit, torch version and device.
        folder: below the output folder.
    """

    anchor: str
    name: str
    title: str
    seed: str
    suite: str
    backbone: str
    status: str
    is_bad: bool
    marks: tuple[str, ...]
    error: str
    traceback: str
    created: str
    origin: str
    folder: str
    seconds: float | None
    trainable: float | None
    tasks: tuple[TaskPart, ...]
    charts: tuple[Chart, ...]
    history: History
    efficiency: tuple[tuple[str, str], ...]
    provenance: str
    config: str


def anchor(run: Run) -> str:
    """Id of a cell's part of the page: its folder, with what an id may not hold percent-encoded."""
    return quote("/".join(run.folder.parts[1 - _LEVELS :]), safe="/+=,-._~")


def cell_view(run: Run, row: Row) -> CellView:
    """Return what the page says of a run; ``row`` is the row of the tables that it belongs to."""
    provenance = {key: value for key, value in run.provenance.items() if key != "config"}
    return CellView(
        anchor=anchor(run),
        name=run.cell,
        title=row.title,
        seed=run.seed,
        suite=run.suite,
        backbone=run.backbone,
        status=run.status,
        is_bad=run.status != "success",
        marks=_marks(run),
        error=scrub(run.error),
        traceback=_traceback(run),
        created=str(run.provenance.get("created") or "").replace("T", " ")[:16],
        origin=origin(run),
        folder="/".join(run.folder.parts[-_LEVELS:]),
        seconds=_number(run.efficiency.get("wall_time_s")),
        trainable=_number(run.efficiency.get("trainable_parameters")),
        tasks=tuple(_task(name, result) for name, result in run.tasks.items()),
        charts=charts(run.history, _kept_step(run)),
        history=_history(run.history),
        efficiency=tuple(_efficiency(run.efficiency)),
        provenance=_yaml(provenance),
        config=_yaml(run.config),
    )


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a nested mapping, or an empty one."""
    inner = values.get(key)
    return inner if isinstance(inner, Mapping) else {}


def origin(run: Run) -> str:
    """Commit, torch version and device of a run, as far as its provenance tells."""
    packages, hardware = section(run.provenance, "packages"), section(run.provenance, "hardware")
    torch = f"torch {packages['torch']}" if packages.get("torch") else ""
    device = ", ".join(map(str, hardware.get("gpus") or [])) or str(hardware.get("cpu") or "")
    return "; ".join(part for part in (commit(run), torch, device) if part)


def commit(run: Run) -> str:
    """First ten digits of the commit, and whether files were changed."""
    git = section(run.provenance, "git")
    return str(git.get("commit") or "")[:10] + (" with changes" if git.get("dirty") else "")


def _marks(run: Run) -> tuple[str, ...]:
    marks = {
        f"limited to {run.limit} samples": run.limit is not None,
        "made with uncommitted changes": section(run.provenance, "git").get("dirty"),
        f"imported from {run.imported.get('file')}, not trained here": run.imported,
    }
    return tuple(text for text, holds in marks.items() if holds)


def _traceback(run: Run) -> str:
    lines = _stored(run, "status.json").get("traceback")
    return "\n".join(scrub([str(line) for line in lines])) if isinstance(lines, list) else ""


def _kept_step(run: Run) -> float | None:
    return _number(section(run.adapted, "best").get("step"))


def _stored(run: Run, name: str) -> Mapping[str, Any]:
    """Return a JSON file of the cell, empty where it is missing or damaged."""
    try:
        return CellFolder(run.folder).read_json(name)
    except StoreError:
        return {}


def _task(name: str, result: Mapping[str, Any]) -> TaskPart:
    scores = [
        _score(dataset, metric, entry)
        for dataset, found in section(result, "datasets").items()
        for metric, entry in section(found, "metrics").items()
    ]
    return TaskPart(
        name, str(result.get("status") or ""), scrub(str(result.get("error") or "")), tuple(scores)
    )


def _score(dataset: str, metric: str, entry: Mapping[str, Any]) -> ScoreLine:
    value, low, high, n = (_number(entry.get(key)) for key in ("value", "ci_low", "ci_high", "n"))
    interval = "" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
    text = "not defined" if value is None else f"{value:.4f}"
    return ScoreLine(dataset, metric, value, text, interval, None if n is None else int(n))


def _history(rows: Sequence[Mapping[str, Any]]) -> History:
    heads = tuple(dict.fromkeys(name for row in rows for name in row))
    return History(heads, tuple(tuple(_text(row.get(head)) for head in heads) for row in rows))


def _efficiency(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers first, then what describes them."""
    words = [(key, value) for key, value in values.items() if isinstance(value, str | list) and value]
    return [(key, _text(value)) for key, value in (*flat_numbers(values).items(), *words)]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _yaml(values: Mapping[str, Any]) -> str:
    """Return YAML without absolute paths: a report is made to be handed on."""
    if not values:
        return ""
    text: str = yaml.dump(scrub(values), Dumper=_Dumper, sort_keys=False, width=110)
    return text
