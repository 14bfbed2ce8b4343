"""The page's section on one cell: settings, origin, curves, numbers, and why it failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import yaml

from benchmark.errors import StoreError
from benchmark.report.collect import flat_numbers
from benchmark.report.html.curve import charts
from benchmark.report.model import Row, Run
from benchmark.store.cells import CellFolder
from benchmark.store.provenance import scrub

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LEVELS = 5  # runs/<suite>/<backbone>/<method>/seed-<n>


def anchor(run: Run) -> str:
    """Id of a cell's part of the page: its folder, with what an id may not hold percent-encoded."""
    return quote("/".join(run.folder.parts[1 - _LEVELS :]), safe="/+=,-._~")


def cell_view(run: Run, row: Row) -> dict[str, Any]:
    """Return what the page says of a run, as plain text by the names of ``cell.html``, which escapes it.

    Args:
        run: the cell.
        row: of the tables, to which it belongs.
    """
    heads = list(dict.fromkeys(name for line in run.history for name in line))
    numbers = flat_numbers(run.efficiency)
    words = {key: value for key, value in run.efficiency.items() if isinstance(value, str | list) and value}
    return {
        "anchor": anchor(run),
        "name": run.cell,
        "title": row.title,
        "seed": run.seed,
        "suite": run.suite,
        "backbone": run.backbone,
        "status": run.status,
        "is_bad": run.status != "success",
        "marks": _marks(run),
        "error": scrub(run.error),
        "traceback": _traceback(run),
        "created": run.created.replace("T", " ")[:16],
        "origin": origin(run),
        "folder": "/".join(run.folder.parts[-_LEVELS:]),
        "seconds": _number(run.efficiency.get("wall_time_s")),
        "trainable": _number(run.efficiency.get("trainable_parameters")),
        "tasks": [_task(name, result) for name, result in run.tasks.items()],
        "charts": charts(run.history, _number(section(run.adapted, "best").get("step"))),
        "heads": heads,
        "history": [[_text(line.get(head)) for head in heads] for line in run.history],
        "efficiency": [(key, _text(value)) for key, value in (*numbers.items(), *words.items())],
        "provenance": _yaml({key: value for key, value in run.provenance.items() if key != "config"}),
        "config": _yaml(run.config),
    }


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a nested mapping, or an empty one."""
    inner = values.get(key)
    return inner if isinstance(inner, Mapping) else {}


def origin(run: Run) -> str:
    """Commit, torch version and device of a run, as far as its provenance tells."""
    packages, hardware = section(run.provenance, "packages"), section(run.provenance, "hardware")
    torch = f"torch {packages['torch']}" if packages.get("torch") else ""
    device = ", ".join(map(str, hardware.get("gpus") or [])) or str(hardware.get("cpu") or "")
    return "; ".join(filter(None, (commit(run), torch, device)))


def commit(run: Run) -> str:
    """First ten digits of the commit, and whether files were changed."""
    git = section(run.provenance, "git")
    return str(git.get("commit") or "")[:10] + (" with changes" if git.get("dirty") else "")


def _marks(run: Run) -> list[str]:
    """What a reader must know before using its numbers."""
    marks = {
        f"limited to {run.limit} samples": run.limit is not None,
        "made with uncommitted changes": section(run.provenance, "git").get("dirty"),
        f"imported from {run.imported.get('file')}, not trained here": run.imported,
    }
    return [text for text, holds in marks.items() if holds]


def _traceback(run: Run) -> str:
    try:
        lines = CellFolder(run.folder).read_json("status.json").get("traceback")
    except StoreError:
        return ""
    return "\n".join(scrub([str(line) for line in lines])) if isinstance(lines, list) else ""


def _task(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    scores = [
        _score(dataset, metric, entry)
        for dataset, found in section(result, "datasets").items()
        for metric, entry in section(found, "metrics").items()
    ]
    status, error = str(result.get("status") or ""), scrub(str(result.get("error") or ""))
    return {"name": name, "status": status, "error": error, "scores": scores}


def _score(dataset: str, metric: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One metric of one dataset, as fraction."""
    value, low, high, n = (_number(entry.get(key)) for key in ("value", "ci_low", "ci_high", "n"))
    interval = "" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
    text = "not defined" if value is None else f"{value:.4f}"
    count = None if n is None else int(n)
    return {
        "dataset": dataset,
        "metric": metric,
        "value": value,
        "text": text,
        "interval": interval,
        "n": count,
    }


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
