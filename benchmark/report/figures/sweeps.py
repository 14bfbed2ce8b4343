"""Curves of the experiments that change one setting: scores against its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from benchmark.report.collect import Block, Row
from benchmark.report.figures.label_placement import Label, label_line_ends
from benchmark.report.figures.style import (
    Drawing,
    lay_out,
    look,
    metric_label,
    new_figure,
    samples_text,
    seeds_text,
    unranked_text,
)
from benchmark.report.runs import Key

_LEAST = 2  # points that make a curve
_DODGE = 0.012  # of the axis' length, between the lines of two datasets


@dataclass(frozen=True)
class _Curve:
    """Points of an experiment that were measured, by rising value, and its other rows."""

    values: tuple[float, ...]
    rows: tuple[Row, ...]
    beside: tuple[Row, ...]
    missing: tuple[str, ...]


def draw(block: Block) -> Iterator[Drawing]:
    """Yield one panel per metric with a line per dataset, for a block whose experiment sweeps a setting."""
    experiment, curve = block.experiment, _measured(block)
    if experiment is None or len(curve.values) < _LEAST:
        return
    metrics = [(task, metric) for task, names in experiment.tasks.items() for metric in names]
    shown = [pair for pair in metrics if block.keys(pair[1], pair[0])]
    if not shown:
        return
    figure = new_figure(width=5.6 * len(shown), height=4.2)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    ends = [
        _panel(axes, block, curve, [key for key in block.keys(metric, task)])
        for axes, (task, metric) in zip(panels, shown, strict=True)
    ]
    figure.suptitle(f"{experiment.title}: {block.heading}", fontsize=10, parse_math=False)
    lay_out(figure)
    for axes, labels in zip(panels, ends, strict=True):
        label_line_ends(axes, labels)
    yield Drawing(
        experiment.name.partition("_")[2],
        f"{experiment.title}: {block.heading}",
        _caption(block, curve),
        figure,
    )


def _measured(block: Block) -> _Curve:
    """Rows of a sweep stand in the order of the experiment's own."""
    experiment = block.experiment
    if experiment is None or not experiment.option:
        return _Curve((), (), (), ())
    pairs = [
        (declared.set.get(experiment.option), row)
        for declared, row in zip(experiment.rows, block.rows, strict=True)
    ]
    points = sorted(
        ((float(value), row) for value, row in pairs if value is not None and row.scores),
        key=lambda point: point[0],
    )
    return _Curve(
        values=tuple(value for value, _ in points),
        rows=tuple(row for _, row in points),
        beside=tuple(row for value, row in pairs if value is None and row.scores),
        missing=tuple(f"{row.title} ({row.missing or 'no scores'})" for _, row in pairs if not row.scores),
    )


def _caption(block: Block, curve: _Curve) -> str:
    experiment = block.experiment
    assert experiment is not None  # draw saw to it
    rows = (*curve.rows, *curve.beside)
    keys = [
        key
        for task, names in experiment.tasks.items()
        for metric in names
        for key in block.keys(metric, task)
    ]
    said = [
        f"Scores against {experiment.option} ({experiment.label} of the paper, measured here), mean over "
        f"{seeds_text(rows)}, {samples_text(rows, keys)}; bars: 95 % bootstrap intervals over test patients.",
        f"Dotted lines with a hollow marker: {', '.join(row.title for row in curve.beside)}."
        if curve.beside
        else "",
        experiment.note,
        f"Not shown: {', '.join(curve.missing)}." if curve.missing else "",
        "No values of the paper stand beside it: its text, from which the paper's tables here were copied, gives none.",
        unranked_text(rows).strip(),
    ]
    return " ".join(sentence for sentence in said if sentence)


def _panel(axes: Axes, block: Block, curve: _Curve, keys: Sequence[Key]) -> list[Label]:
    assert block.experiment is not None  # draw saw to it
    metric = block.metric(keys[0])
    wide = min(curve.values) > 0 and max(curve.values) >= 4 * min(curve.values)
    if wide:
        axes.set_xscale("log")
    labels: list[Label] = []
    for number, key in enumerate(keys):
        points = [
            (value, row) for value, row in zip(curve.values, curve.rows, strict=True) if key in row.scores
        ]
        if not points:
            continue
        shift = _DODGE * (number - (len(keys) - 1) / 2)
        _line(axes, curve, key, points, number, shift, metric.scale, wide=wide)
        end = (points[-1][0], metric.scale * points[-1][1].scores[key].value)
        labels.append((block.dataset_title(key[1], key[0]), look(number).colour, end))
    axes.set_xticks(curve.values, [f"{value:g}" for value in curve.values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{block.experiment.title} ({block.experiment.option})")
    samples = samples_text(curve.rows, keys)
    axes.set_ylabel(metric_label(metric) + (f", {samples}" if samples else ""))
    return labels


def _line(
    axes: Axes,
    curve: _Curve,
    key: Key,
    points: Sequence[tuple[float, Row]],
    number: int,
    shift: float,
    scale: float,
    *,
    wide: bool,
) -> None:
    """Draw one dataset's line, moved aside a little so that intervals do not lie on one another."""
    style = look(number)
    low, high = min(curve.values), max(curve.values)
    places = [value * (high / low) ** shift if wide else value + (high - low) * shift for value, _ in points]
    scores = [row.scores[key] for _, row in points]
    heights = [scale * score.value for score in scores]
    axes.plot(places, heights, color=style.colour, linestyle=style.dashes, zorder=2)
    for place, height, score, (_, row) in zip(places, heights, scores, points, strict=True):
        if score.ci_low is not None and score.ci_high is not None:
            axes.plot(
                [place] * 2, [scale * score.ci_low, scale * score.ci_high], color=style.colour, linewidth=0.9
            )
        face = style.colour if row.compared(key) else "white"
        axes.plot(
            place, height, marker=style.marker, color=style.colour, markerfacecolor=face, markersize=5.5
        )
    for row in curve.beside:
        if key in row.scores:
            height = scale * row.scores[key].value
            axes.axhline(height, color=style.colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            axes.plot(
                0.0,
                height,
                transform=axes.get_yaxis_transform(),
                marker=style.marker,
                color=style.colour,
                markerfacecolor="white",
                markersize=5.5,
                clip_on=False,
            )
