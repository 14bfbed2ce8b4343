"""Curves of the experiments that change one setting: scores against its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.registry import register_figure
from benchmark.report.figures.label_placement import Label, label_line_ends
from benchmark.report.figures.style import (
    Drawing,
    axis_label,
    bars_text,
    dataset_look,
    lay_out,
    panels,
    samples_text,
    seeds_text,
    unranked_text,
)
from benchmark.report.model import Block, Key, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmark.config.experiments import Experiment

_LEAST = 2  # points that make a curve
_DODGE = 0.012  # of the axis' length, between the lines of two datasets


@dataclass(frozen=True)
class Curve:
    """Points of an experiment that were measured, (value, row) by rising value, and its other rows."""

    points: list[tuple[float, Row]]
    beside: list[Row]
    missing: list[str]

    @property
    def rows(self) -> list[Row]:
        """Rows of the points."""
        return [row for _, row in self.points]


@register_figure("sweeps", of="curve")
def draw(block: Block) -> Iterator[Drawing]:
    """Yield one panel per metric with a line per dataset, for a block whose experiment sweeps a setting."""
    experiment = block.experiment
    if experiment is None or not experiment.option:
        return
    curve = _measured(block, experiment)
    asked = [(metric, task) for task, names in experiment.tasks.items() for metric in names]
    columns = [keys for one in asked if (keys := block.keys(*one))]
    if len(curve.points) < _LEAST or not columns:
        return
    swept = f"{experiment.title[0].lower()}{experiment.title[1:]}"
    title = f"Scores against {swept}: {block.heading}"
    figure, grid = panels(title, len(columns), len(columns), (5.6, 4.2))
    ends = [_panel(axes, block, experiment, curve, keys) for axes, keys in zip(grid, columns, strict=True)]
    lay_out(figure)
    for axes, labels in zip(grid, ends, strict=True):
        label_line_ends(axes, labels)
    caption = _caption(experiment, curve, [key for keys in columns for key in keys])
    yield Drawing(experiment.name.partition("_")[2], title, caption, figure)


def _measured(block: Block, experiment: Experiment) -> Curve:
    """Rows of a sweep stand in the order of the experiment's own."""
    values = [row.set.get(experiment.option) for row in experiment.rows]
    pairs = list(zip(values, block.rows, strict=True))
    points = [(float(value), row) for value, row in pairs if value is not None and row.scores]
    return Curve(
        sorted(points, key=lambda point: point[0]),
        [row for value, row in pairs if value is None and row.scores],
        [f"{row.title} ({row.missing or 'no scores'})" for _, row in pairs if not row.scores],
    )


def _caption(experiment: Experiment, curve: Curve, keys: Sequence[Key]) -> str:
    rows = [*curve.rows, *curve.beside]
    beside, missing = ", ".join(row.title for row in curve.beside), ", ".join(curve.missing)
    said = [
        f"Scores against {experiment.option} ({experiment.label} of the paper, measured here), mean over "
        f"{seeds_text(rows)}, {samples_text(rows, keys)}; bars: {bars_text(rows)}.",
        f"Dotted lines with a hollow marker: {beside}." if beside else "",
        experiment.note,
        f"Not shown: {missing}." if missing else "",
        "No values of the paper stand beside it: its text, from which the paper's tables here were copied, gives none.",
        unranked_text(rows).strip(),
    ]
    return " ".join(filter(None, said))


def _panel(
    axes: Axes, block: Block, experiment: Experiment, curve: Curve, keys: Sequence[Key]
) -> list[Label]:
    """Draw a line per dataset, moved aside a little so that intervals do not lie on one another; return the labels."""
    from matplotlib.ticker import NullFormatter, NullLocator

    values, metric = [value for value, _ in curve.points], block.metric(keys[0])
    low, high = values[0], values[-1]
    wide = low > 0 and high >= 4 * low
    if wide:
        axes.set_xscale("log")
    labels: list[Label] = []
    for number, key in enumerate(keys):
        shift = _DODGE * (number - (len(keys) - 1) / 2)
        points = [
            (value * (high / low) ** shift if wide else value + (high - low) * shift, row)
            for value, row in curve.points
            if key in row.scores
        ]
        if points:
            end = _line(axes, points, curve.beside, key, number, metric.scale)
            last = max(value for value, row in curve.points if key in row.scores)
            labels.append((block.dataset_title(key[1], key[0]), dataset_look(number).colour, (last, end)))
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{experiment.title} ({experiment.option})")
    axes.set_ylabel(axis_label(metric, curve.rows, keys))
    return labels


def _line(
    axes: Axes,
    points: Sequence[tuple[float, Row]],
    beside: Sequence[Row],
    key: Key,
    number: int,
    scale: float,
) -> float:
    """Draw one dataset's line and what stands beside it; return the height of the line's end."""
    style = dataset_look(number)
    heights = [scale * row.scores[key].value for _, row in points]
    axes.plot([place for place, _ in points], heights, color=style.colour, linestyle=style.dashes, zorder=2)
    for (place, row), height in zip(points, heights, strict=True):
        bars = row.scores[key].bars(scale)
        style.mark(axes, place, height, solid=row.compared(key), yerr=bars, elinewidth=0.9)
    for height in (scale * row.scores[key].value for row in beside if key in row.scores):
        axes.axhline(height, color=style.colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        style.mark(axes, 0.0, height, solid=False, transform=axes.get_yaxis_transform(), clip_on=False)
    return heights[-1]
