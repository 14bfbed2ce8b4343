"""Reads the store and groups the runs of each method: means over seeds, notes on what is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmark.errors import BenchmarkError, StoreError
from benchmark.registry import METHODS
from benchmark.report.agreement import by_settings, comparable
from benchmark.report.model import (
    SMALLEST_DIFFERENCE,
    Block,
    Doubt,
    Row,
    Run,
    Score,
    known_numbers,
    mean_scores,
)
from benchmark.report.paper import PaperTables
from benchmark.store.cells import CellFolder, Store
from benchmark.store.contents import CEILINGS, content_problem
from benchmark.store.provenance import scrub


def read_runs(output_dir: Path, suite: str | None = None) -> list[Run]:
    """Read every cell below ``output_dir``; one that cannot be read is kept with status unreadable."""
    runs = [_read_run(cell) for cell in Store(output_dir).cells()]
    return [run for run in runs if suite is None or run.suite == suite]


def collect_blocks(
    output_dir: Path,
    paper: PaperTables,
    suite: str | None = None,
    *,
    baseline: str | None = None,
    smallest: float = SMALLEST_DIFFERENCE,
) -> list[Block]:
    """Group the runs of a store into comparable blocks, methods in the order of the paper's Table 1.

    Args:
        output_dir: folder of the store.
        paper: the paper's numbers.
        suite: only this one.
        baseline: as in `Block`.
        smallest: as in `Block`.
    """
    groups: dict[tuple[str, str], dict[tuple[str, str], list[Run]]] = {}
    for run in read_runs(output_dir, suite):
        groups.setdefault((run.suite, run.backbone), {}).setdefault((run.method, run.variant), []).append(run)
    ceilings = _read_ceilings(output_dir)
    order = {title: rank for rank, title in enumerate(paper.methods("1"))}
    blocks = []
    for (name, backbone), cells in sorted(groups.items()):
        rows = [row for (method, variant), runs in cells.items() for row in _rows(method, variant, runs)]
        rows = comparable(rows, baseline)
        rows.sort(key=lambda row: (order.get(row.paper_row, len(order)), row.title.lower(), row.cell))
        spec, entry = _spec(rows), ceilings.get(f"{name}/{backbone}")
        block = Block(
            suite=name,
            backbone=backbone,
            spec=spec,
            rows=tuple(row for row in rows if not row.variant or row.beside),
            ceiling=_ceiling(entry, next(iter(spec["tasks"]), "")) if entry else None,
            variants=tuple(row for row in rows if row.variant and not row.beside),
            unlike=other_backbone(spec, backbone),
            baseline=baseline,
            smallest=smallest,
        )
        blocks.append(block)
    return _numbered(blocks, order)


def _numbered(blocks: Sequence[Block], order: Mapping[str, int]) -> list[Block]:
    """Give each method its number: the paper's own come first, in its order; the same one in all blocks."""
    found: dict[str, int] = {}
    for row in (row for block in blocks for row in (*block.rows, *block.variants)):
        own = order.get(row.paper_row) if row.cell == row.method else None
        if row.cell not in found and (own is None or own in found.values()):
            own = len(order) + sum(number >= len(order) for number in found.values())
        found.setdefault(row.cell, own or 0)

    def numbered(rows: Sequence[Row]) -> tuple[Row, ...]:
        return tuple(replace(row, number=found[row.cell]) for row in rows)

    return [replace(block, rows=numbered(block.rows), variants=numbered(block.variants)) for block in blocks]


def other_backbone(spec: Mapping[str, Any], backbone: str) -> str:
    """Why numbers on this backbone are not the paper's; empty when it is the one of the suite."""
    own = spec.get("backbone") or backbone
    return "" if own == backbone else f"the suite stands for the paper's with backbone {own}, not {backbone}"


def method_titles(method: str) -> tuple[str, str]:
    """A method's title and its row in the paper's tables, from its card; its name if there is no plugin."""
    try:
        card = METHODS.get(method).card
        return str(card.title), str(card.paper_row or card.title)
    except (BenchmarkError, AttributeError, ImportError):
        return method, method


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested dict, keys joined by "_"."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{key}_")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "schema_version":
            flat[prefix + key] = float(value)
    return flat


# --- reading ------------------------------------------------------------------------------------------------


def _read_run(cell: CellFolder) -> Run:
    def read(name: str) -> dict[str, Any]:
        return cell.read_json(name) if cell.exists(name) else {}

    try:
        status = read("status.json")
        return Run(
            folder=cell.path,
            config=cell.read_config(),
            status=str(status.get("status", "running")),
            error=str(status.get("error") or ""),
            tasks={task: cell.read_json(f"{task}.json") for task in cell.results()},
            efficiency=read("efficiency.json"),
            provenance=read("provenance.json"),
            history=cell.read_history(),
            adapted=read("adapt.json"),
        )
    except StoreError as error:
        return Run(cell.path, {}, "unreadable", str(scrub(str(error))), {}, {}, {}, [])


def _read_ceilings(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Reference rows: "<suite>/<backbone>" -> {"title", "datasets": {name: {metric: value}}}."""
    path = output_dir / "ceilings.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        problem = content_problem(content, CEILINGS)
    except (OSError, ValueError, RecursionError):
        problem = "not valid JSON"
    if problem:
        raise StoreError(f"{path}: expected suite/backbone -> title, datasets -> metrics ({problem})")
    return {key: {"title": key, **entry} for key, entry in content.items()}


def _ceiling(entry: Mapping[str, Any], task: str) -> Row:
    scores = {
        (task, dataset, metric): Score(float(value))
        for dataset, metrics in (entry.get("datasets") or {}).items()
        for metric, value in metrics.items()
    }
    return Row("ceiling", str(entry["title"]), scores=scores, ranked=False)


def _spec(rows: Sequence[Row]) -> dict[str, Any]:
    """The suite of the rows' runs, with the tasks of all of them: each run names only those it was asked for."""
    runs = [run for row in rows for run in row.runs]
    suites = [run.config["suite"] for run in runs if isinstance(run.config.get("suite"), Mapping)]
    spec = dict(next(iter(suites), {}))
    asked = [spec.get("tasks"), *(run.config.get("tasks") for run in runs)]
    spec["tasks"] = {name: task for item in asked for name, task in (item or {}).items()}
    return spec


# --- rows ---------------------------------------------------------------------------------------------------


def _rows(method: str, variant: str, runs: Sequence[Run]) -> Iterator[Row]:
    """Yield the row of a cell, or one per settings that its seeds were run with."""
    groups = by_settings(runs)
    for number, (label, group) in enumerate(groups):
        row = make_row(method, group, variant, label)
        if len(groups) > 1:
            seeds = ", ".join(run.seed for run in row.runs)
            text = (
                f"seed{'s' * (len(row.runs) > 1)} {seeds} with {label}; other seeds ran with other settings"
            )
            note = Doubt("settings differ", text)
            row = replace(row, settings=label if number else "", notes=(*row.notes, note))
        yield row


def make_row(method: str, runs: Sequence[Run], variant: str = "", label: str = "") -> Row:
    """Average the runs of a method or variant; limited and imported runs count only when there are no others.

    Args:
        method: its name.
        runs: of one cell, all with the same settings.
        variant: what is changed against the method as the suite has it.
        label: what else the title says of the settings.
    """
    runs = sorted(runs, key=lambda run: run.by_seed)
    usable = [run for run in runs if run.scores()]
    trained = [run for run in usable if not run.imported] or usable
    whole = [run for run in trained if run.limit is None]
    used = whole or trained or runs
    title, paper_row = method_titles(method)
    changes = ",".join(filter(None, (variant, label)))
    title += f" ({changes})" if changes else ""
    only_imported = bool(used) and all(run.imported for run in used)
    return Row(
        method=method,
        title=f"{title} (imported)" if only_imported else title,
        paper_row=paper_row,
        runs=tuple(used),
        left_out=tuple(run for run in runs if run not in used),
        scores=mean_scores(used),
        efficiency=_mean_efficiency(used),
        notes=tuple(_notes(runs, usable, trained, whole)),
        ranked=bool(whole) and not only_imported,
        variant=variant,
    )


_UNFINISHED = {"running": "is unfinished", "partial": "is partial"}


def _notes(
    runs: Sequence[Run], usable: Sequence[Run], trained: Sequence[Run], whole: Sequence[Run]
) -> Iterator[Doubt]:
    """What is wrong with single runs, and which are left out of the means."""
    for run in (run for run in runs if run.status != "success"):
        kind = "unfinished" if run.status in _UNFINISHED else "failed"
        reason = f" ({run.error})" if run.error else ""
        yield Doubt(kind, f"seed {run.seed} {_UNFINISHED.get(run.status, run.status)}{reason}")
    if files := sorted({str(run.imported.get("file")) for run in usable if run.imported}):
        kind, outcome = ("imported", "not ranked") if trained is usable else ("left out", "left out")
        yield Doubt(kind, f"imported from {', '.join(files)}, not trained by this recipe: {outcome}")
    numbers = sorted({int(run.limit) for run in trained if run.limit is not None})
    limits = " and ".join(map(str, numbers))
    if limits and whole:
        yield Doubt("left out", f"runs limited to {limits} samples are left out")
    elif limits:
        yield Doubt("limited", f"limited to {limits} samples: not comparable, not ranked")


def _mean_efficiency(runs: Sequence[Run]) -> dict[str, float]:
    numbers = [flat_numbers(run.efficiency) for run in runs]
    names = dict.fromkeys(name for one in numbers for name in one)
    return {name: fmean(known_numbers(numbers, name)) for name in names}
