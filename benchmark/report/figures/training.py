"""Validation curves of adaptation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmark.report.collect import Block, Row
from benchmark.report.figures.label_placement import label_line_ends
from benchmark.report.figures.style import Drawing, Look, lay_out, look, new_figure


@dataclass(frozen=True)
class Line:
    """A method's validation curve: step, mean, lowest and highest value over seeds, [S, 4]."""

    title: str
    look: Look
    curve: np.ndarray[Any, np.dtype[np.float64]]


def draw(block: Block) -> Iterator[Drawing]:
    """Yield the validation metric against training steps: mean over seeds, band from the lowest to the highest."""
    metric = _validation_metric(block)
    lines = [Line(row.title, look(number), _curve(row, metric)) for number, row in enumerate(block.rows)]
    lines = [line for line in lines if len(line.curve)]
    if not lines:
        return
    figure = new_figure(width=8.0, height=4.6)
    axes = figure.subplots()
    for number, line in enumerate(lines):
        step, mean, low, high = line.curve.T
        axes.fill_between(step, 100 * low, 100 * high, color=line.look.colour, alpha=0.13, linewidth=0)
        axes.plot(
            step,
            100 * mean,
            color=line.look.colour,
            linestyle=line.look.dashes,
            marker=line.look.marker,
            markersize=4.5,
            markevery=(number % 3, max(1, len(step) // 6)),
        )
    name = metric.removeprefix("val_").upper()
    axes.set_xlabel("Training step")
    axes.set_ylabel(f"Validation {name} (%)")
    figure.suptitle(block.heading, fontsize=10, parse_math=False)
    lay_out(figure)
    label_line_ends(
        axes, [(line.title, line.look.colour, (line.curve[-1, 0], 100 * line.curve[-1, 1])) for line in lines]
    )
    caption = (
        f"{name} on the validation set during adaptation: mean over seeds; band: lowest to highest seed, where there "
        "are several. Methods that train nothing have no curve."
    )
    yield Drawing("training", f"Validation during adaptation: {block.heading}", caption, figure)


def _validation_metric(block: Block) -> str:
    declared = (block.spec.get("validation") or {}).get("metric")
    keys = {key for row in block.rows for run in row.runs for line in run.history for key in line}
    found = sorted(key for key in keys if key.startswith("val_") and key != "val_loss")
    return f"val_{declared}" if declared else next(iter(found), "val_auroc")


def _curve(row: Row, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Step, mean, lowest and highest value over seeds, for the steps that every seed has: [S, 4]."""
    curves = [
        {int(line["step"]): float(line[metric]) for line in run.history if line.get(metric) is not None}
        for run in row.runs
        if run.status in ("success", "partial")
    ]
    curves = [curve for curve in curves if curve]
    if not curves:
        return np.empty((0, 4))
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step] for curve in curves] for step in steps]).reshape(len(steps), len(curves))
    return np.column_stack([steps, values.mean(axis=1), values.min(axis=1), values.max(axis=1)])
