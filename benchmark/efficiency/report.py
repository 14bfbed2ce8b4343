"""Shows measured costs: tables on the terminal and in CSV files, efficiency.json with everything, a figure."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes

from benchmark.console import Console, duration
from benchmark.efficiency.throughput import PAPER_EPOCHS, PAPER_PAIRS
from benchmark.efficiency.timing import Times
from benchmark.efficiency.workbench import Workbench
from benchmark.files import csv_cell, write_whole
from benchmark.layout import Fitted
from benchmark.machine import hardware
from benchmark.report.figures.style import COLOURS, STYLE, new_figure
from benchmark.run.cost import FLOPS_CONVENTION, peak_memory
from benchmark.store.provenance import provenance, scrub

Row = Mapping[str, Any]
Columns = tuple[tuple[str, str, float], ...]
"""Head of a column, key of the row, and the factor that turns the stored value into the shown one."""


@dataclass
class Measured:
    """Everything that one call has measured so far.

    Attributes:
        surroundings: machine, versions, command, settings.
        rows: a method each. times: by "<name>|<what>". finished: whole rounds behind these.
        stages: of the input pipeline. feeding: whether it keeps up. rates: a method, batch size and form each.
        complete: whether nothing is left to measure.
    """

    surroundings: Mapping[str, Any]
    rows: Sequence[Row] = ()
    times: dict[str, Times] = field(default_factory=dict)
    finished: int = 0
    stages: Sequence[Row] = ()
    feeding: Mapping[str, Any] = field(default_factory=dict)
    rates: Sequence[Row] = ()
    complete: bool = False


_COUNTED: Columns = (
    ("trained", "trainable_parameters", 1),
    ("image", "trainable_image", 1),
    ("text", "trainable_text", 1),
    ("shared", "trainable_shared", 1),
    ("all", "total_parameters", 1),
    ("forward\nGFLOP/pair", "forward_flops_per_pair", 1e-9),
    ("step\nGFLOP/pair", "step_flops_per_pair", 1e-9),
    ("step, cached\nGFLOP/pair", "step_flops_per_pair_cached", 1e-9),
    ("memory of\na step, MB", "step_memory_bytes", 1e-6),
    ("adapter\nkB", "adapter_bytes", 1e-3),
    ("use", "inference_overhead", 1),
    ("use,\nmerged", "inference_overhead_merged", 1),
)
_TIMED: Columns = (
    ("step p50\nms", "step_time_p50_s", 1e3),
    ("p95\nms", "step_time_p95_s", 1e3),
    ("fastest\nround", "step_time_fastest_round_s", 1e3),
    ("slowest\nround", "step_time_slowest_round_s", 1e3),
    ("CPU time\nms", "step_cpu_time_p50_s", 1e3),
    ("pairs/s", "pairs_per_s", 1),
    ("evaluation\nimages/s", "evaluation_images_per_s", 1),
    ("use", "inference_time_overhead", 1),
    ("use,\nmerged", "inference_time_overhead_merged", 1),
)
_RATES: Columns = (
    ("step\nms", "step_time_p50_s", 1e3),
    ("pairs/s", "pairs_per_s", 1),
    ("TFLOP/s", "flops_per_s", 1e-12),
    ("% of\npeak", "share_of_peak", 100),
    ("memory of\na step, MB", "step_memory_bytes", 1e-6),
)
_GIVES_WAY = (
    "CPU time\nms", "slowest\nround", "fastest\nround", "use,\nmerged", "all", "adapter\nkB", "shared", "text", "image",
    "evaluation\nimages/s", "step, cached\nGFLOP/pair", "forward\nGFLOP/pair", "p95\nms", "TFLOP/s",
)  # fmt: skip
"""Heads of columns that are left out of a narrow terminal, the first one first; the files have all."""
_PIPELINE: Columns = tuple(
    (key.replace("cpu", "CPU").replace("_", " "), key, 1)
    for key in ("per_second", "slowest_round", "fastest_round", "per_cpu_second")
)


def surroundings(bench: Workbench, precision: str, rounds: int, command: str) -> dict[str, Any]:
    """Return machine, versions and settings, to read and repeat the figures."""
    about = provenance({}, "")
    gpu = bench.device.type == "cuda"
    return {
        "created": about["created"],
        "command": scrub(command),
        "backbone": bench.backbone.name,
        "backbone_parameters": sum(value.numel() for value in bench.backbone.parameters()),
        "batch_size": bench.batch_size,
        "text_length": bench.text_length,
        "precision": precision,
        "rounds": rounds,
        "device": str(bench.device),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "process_peak_resident_bytes": peak_memory("cpu"),
        "hardware": hardware(),
        "python": platform.python_version(),
        "packages": about["packages"],
        "git": about["git"],
        "flops_convention": FLOPS_CONVENTION,
        "memory_convention": "peak allocated by torch with the model's weights, other models left out"
        if gpu
        else "bytes of distinct tensors that autograd keeps for the backward pass; parameters and buffers left out",
        "time_convention": "turns in alternating order after a warm-up; median of the rounds' medians",
        "ratio_convention": f"median over rounds of ratios within a round, of {'wall' if gpu else 'CPU'} time",
    }


# ---------------------------------------------------------------------------- terminal
def show(found: Measured, console: Console) -> None:
    """Print the tables, machine and settings."""
    about = found.surroundings
    console.table(
        f"{about['backbone']}: {about['batch_size']} pairs, {about['text_length']} tokens, {about['precision']}, "
        f"{about['device']}, {about['threads']} thread(s), {about['rounds']} rounds"
    )
    for title, columns in (("counted", _COUNTED), ("timed", _TIMED)):
        _show(console, title, ("method",), columns, [((str(row["title"]),), row) for row in found.rows])
    for line in (
        f"memory: {about['memory_convention']}",
        f"this process at its peak, resident: {about['process_peak_resident_bytes'] / 1e6:,.0f} MB",
        "use: cost of scoring an image, frozen model = 1; merged: with the updates folded into its weights",
        "steps are timed as in a run: towers that a method leaves alone bring cached features",
    ):
        console.table(line)
    if found.stages:
        _show_pipeline(found, console)
    if found.rates:
        _show_rates(found, console)
    if answer := _answer(found.rows):
        console.table(f"\n{answer}")


def _show(
    console: Console,
    title: str,
    heads: Sequence[str],
    columns: Columns,
    rows: Sequence[tuple[Sequence[str], Row]],
) -> None:
    """Print texts and numbers; columns that tell less give way where there is no room."""
    numbers = [head for head, _, _ in columns]
    texts = [(*words, *_numbers(row, columns)) for words, row in rows]
    leaving = tuple(head for head in _GIVES_WAY if head in numbers)
    console.table(Fitted.of((*heads, *numbers), texts, title, numbers, gives_way=leaving))


def _answer(rows: Sequence[Row]) -> str:
    """Which method is the cheapest, cost by cost, among those that train."""
    told = []
    for what, key, text in (
        ("fewest trained values", "trainable_parameters", lambda value: f"{value:,.0f}"),
        ("fastest training step", "step_time_p50_s", lambda value: f"{1e3 * value:.3g} ms"),
        ("least memory of a step", "step_memory_bytes", lambda value: f"{1e-6 * value:,.0f} MB"),
    ):
        known = [row for row in rows if row.get(key)]
        if len(known) > 1:
            first = min(known, key=lambda row, key=key: row[key])  # type: ignore[misc]
            told.append(f"{what}: {first['title']} ({text(first[key])})")
    return "; ".join(told)


def _numbers(row: Row, columns: Columns) -> list[str]:
    return [_number(row[key], factor) for _, key, factor in columns]


def _number(value: float | None, factor: float = 1) -> str:
    """Return a number with three digits, all of them where there are more before the point; empty for None."""
    if value is None:
        return ""
    shown = value * factor
    whole = abs(shown) >= 100 or (isinstance(value, int) and factor == 1)
    return f"{shown:,.0f}" if whole else f"{shown:.3g}"


def _show_pipeline(found: Measured, console: Console) -> None:
    rows = []
    for row in found.stages:
        first, *others = _numbers(row, _PIPELINE)
        rows.append((row["what"], f"{first} {row['unit'].partition('/')[0]}", *others))
    heads = [head for head, _, _ in _PIPELINE]
    console.table(Fitted.of(("stage", *heads), rows, "input pipeline", heads))
    console.table(
        "the file of images lies in memory, so these are ceilings; normalising happens where the step runs"
    )
    if about := found.feeding:
        needs = _number(about["needs"])
        console.table(f"the fastest step that takes images ({about['fastest']}) needs {needs} pairs/s")
        for kind, rate in about["brings"].items():
            enough = about["keeps_up"][kind]
            words = "keeps up" if enough else "does NOT keep up: give a run more --num-workers"
            console.table(f"the loader brings up to {_number(rate)} {kind} pairs/s: it {words}")


def _show_rates(found: Measured, console: Console) -> None:
    rows = []
    for row in found.rates:
        length = "" if row["paper_training_s"] is None else duration(row["paper_training_s"])
        name = f"{row['title']}, {row['batch_size']}, {row['form']}"
        rows.append((name, *_numbers(row, _RATES), length, row["note"]))
    numbers = [*(head for head, _, _ in _RATES), f"{PAPER_EPOCHS} epochs of\n{PAPER_PAIRS:,} pairs"]
    heads = ("method, batch, form", *numbers, "")
    console.table(Fitted.of(heads, rows, "steps at the batch sizes of a run", numbers, gives_way=_GIVES_WAY))
    console.table(
        f"{found.rates[0]['precision']}; peak: {found.rates[0]['peak_flops_per_s'] / 1e12:,.3g} TFLOP/s, measured here "
        "with a large matrix product; FLOPs of a step as it runs; cached features take one pass over the data more"
    )


# ---------------------------------------------------------------------------- files
def write(found: Measured, folder: Path) -> list[Path]:
    """Write what has been measured, each file whole or not at all, and return the paths.

    efficiency.json holds everything; efficiency.csv the methods; input_pipeline.csv and rates.csv their parts. What an
    earlier run left of a table that has no rows now goes.
    """
    tables = {"efficiency": found.rows, "input_pipeline": found.stages, "rates": found.rates}
    paths = []
    for name, rows in tables.items():
        path = folder / f"{name}.csv"
        if rows:
            _write(path, _table(rows).encode())
            paths.append(path)
        else:
            path.unlink(missing_ok=True)
    content = {
        **found.surroundings,
        "complete": found.complete,
        "finished_rounds": found.finished,
        "methods": list(found.rows),
        "input_pipeline": {"stages": list(found.stages), **found.feeding},
        "rates": list(found.rates),
        "seconds": {name: {"wall": times.wall, "cpu": times.cpu} for name, times in found.times.items()},
    }
    paths.append(folder / "efficiency.json")
    _write(paths[-1], (json.dumps(content, indent=1) + "\n").encode())
    return paths


def _table(rows: Sequence[Row]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    return table.getvalue()


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def draw(found: Measured, folder: Path) -> list[Path]:
    """Draw figure_efficiency.png and .pdf; return their paths."""
    panels = (
        ("step_flops_as_run", "Step, GFLOP per pair", 1e-9),
        ("step_time_p50_s", "Step, ms", 1e3),
        ("step_memory_bytes", "Memory of a step, MB", 1e-6),
        ("evaluation_images_per_s", "Evaluation, images/s", 1.0),
    )
    about = found.surroundings
    with mpl.rc_context(STYLE):
        figure = new_figure(width=11, height=1.2 + 0.28 * len(found.rows))
        grid = list(figure.subplots(1, len(panels), sharey=True, squeeze=False).flat)
        for axes, (key, label, factor) in zip(grid, panels, strict=True):
            _bars(axes, found.rows, key, factor)
            axes.set_xlabel(label)
        grid[0].set_yticks(range(len(found.rows)), [str(row["title"]) for row in found.rows])
        grid[0].invert_yaxis()
        figure.suptitle(
            f"{about['backbone']}, {about['batch_size']} pairs, {about['text_length']} tokens, {about['precision']}, "
            f"{(about['hardware']['gpus'] or [about['hardware']['cpu']])[0]}, {about['threads']} thread(s)",
            fontsize=9, parse_math=False,
        )  # fmt: skip
        paths = []
        for kind, metadata in (("png", {"Software": "medpeft-bench"}), ("pdf", {"CreationDate": None})):
            path, drawn = folder / f"figure_efficiency.{kind}", io.BytesIO()
            figure.savefig(drawn, format=kind, metadata=metadata)
            _write(path, drawn.getvalue())
            paths.append(path)
    return paths


def _bars(axes: Axes, rows: Sequence[Row], key: str, factor: float) -> None:
    """Draw one bar per method; steps with their fastest and slowest round, nothing where nothing is trained."""
    for place, row in enumerate(rows):
        value = row.get(key)
        if key == "step_flops_as_run":
            value = row["step_flops_per_pair_cached"] or row["step_flops_per_pair"]
        if value is None:
            continue
        error = None
        if key == "step_time_p50_s":
            low, high = row["step_time_fastest_round_s"], row["step_time_slowest_round_s"]
            error = [[(value - low) * factor], [(high - value) * factor]]
        axes.barh(
            place, value * factor, xerr=error, color=COLOURS[1], height=0.7, error_kw={"elinewidth": 0.9}
        )
    axes.grid(axis="y", visible=False)
