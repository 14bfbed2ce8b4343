"""Figures of the report: score against cost, and validation curves.

One style: colours that the colour-blind can tell apart, a marker and a direct label for each method so that
the figures also read in grey, no legends to look up. Each is written as PNG and PDF.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmark.report.collect import Block, Row
from benchmark.report.labels import Segment, label_line_ends, place_labels
from benchmark.store import write_whole

# Okabe and Ito's palette without yellow, which is too light for lines and text; repeated with other markers.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = "osD^vPXp<>h*d"
DASHES = ("-", "--", "-.", ":")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "medpeft-bench",
}
_SCORES = {"auroc": "Mean AUROC (%)", "acc": "Mean accuracy (%)"}
_COSTS = {
    "trainable_parameters": "Trainable parameters",
    "step_flops_per_pair": "FLOPs of a training step per pair",
}


@dataclass(frozen=True)
class Point:
    """A method in a scatter: cost (0 when nothing is trained), score and its spread in percent."""

    title: str
    cost: float
    score: float
    spread: float
    colour: str
    marker: str
    solid: bool


@dataclass(frozen=True)
class Line:
    """A method's validation curve: step, mean, lowest and highest value over seeds, [S, 4]."""

    title: str
    colour: str
    marker: str
    curve: np.ndarray[Any, np.dtype[np.float64]]


def write_figures(blocks: Sequence[Block], folder: Path) -> list[Path]:
    """Write figure_efficiency and figure_training of each block; those of the first have no suffix.

    Returns:
        The files; a figure without any data to show is not written.
    """
    draws = {"efficiency": efficiency_figure, "training": training_figure}
    return write_each(blocks, folder, lambda block: [(name, draw(block)) for name, draw in draws.items()])


def write_each(
    blocks: Sequence[Block],
    folder: Path,
    draw: Callable[[Block], Iterable[tuple[str, Figure | None]]],
) -> list[Path]:
    """Write ``figure_<name>`` for each (name, figure) that ``draw`` gives for a block, as PNG and PDF.

    Names of the first block have no suffix. Where there is no figure, nothing is written.
    """
    written: list[Path] = []
    for number, block in enumerate(blocks):
        suffix = f"_{block.suite}_{block.backbone}" if number else ""
        with mpl.rc_context(_STYLE):
            for name, figure in draw(block):
                stem = f"figure_{name}{suffix}".replace("/", "-").replace(":", "-")
                if figure is not None:
                    written += [_save(figure, folder / f"{stem}.{kind}") for kind in ("png", "pdf")]
    return written


def efficiency_figure(block: Block) -> Figure | None:
    """Mean AUROC and mean accuracy against trainable parameters and FLOPs, with the Pareto front."""
    panels = list(itertools.product(_SCORES, _COSTS))
    points = {panel: _points(block, *panel) for panel in panels}
    rows = [score for score in _SCORES if any(points[score, cost] for cost in _COSTS)]
    if not rows:
        return None
    figure = new_figure(width=9.6, height=3.7 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), len(_COSTS), squeeze=False)
    for (line, score), (column, cost) in itertools.product(enumerate(rows), enumerate(_COSTS)):
        axes = grid[line][column]
        _scatter(axes, points[score, cost])
        axes.set_xlabel(_COSTS[cost])
        axes.set_ylabel(_SCORES[score])
    figure.suptitle(
        f"{block.spec.get('title') or block.suite}, backbone {block.backbone}", fontsize=10, parse_math=False
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are placed in the layout as it is now
    for axes, panel in zip(grid.flat, itertools.product(rows, _COSTS), strict=True):
        _label_points(axes, points[panel])
    return figure


def training_figure(block: Block) -> Figure | None:
    """Validation metric against training steps: mean over seeds, band from the lowest to the highest."""
    metric = _validation_metric(block)
    curves = [Line(row.title, *look(number), _curve(row, metric)) for number, row in enumerate(block.rows)]
    curves = [line for line in curves if len(line.curve)]
    if not curves:
        return None
    figure = new_figure(width=8.0, height=4.6)
    axes = figure.subplots()
    for number, line in enumerate(curves):
        step, mean, low, high = line.curve.T
        axes.fill_between(step, 100 * low, 100 * high, color=line.colour, alpha=0.13, linewidth=0)
        axes.plot(
            step,
            100 * mean,
            color=line.colour,
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
            marker=line.marker,
            markersize=4.5,
            markevery=(number % 3, max(1, len(step) // 6)),
        )
    axes.set_xlabel("Training step")
    axes.set_ylabel(f"Validation {metric.removeprefix('val_').upper()} (%)")
    axes.set_title(
        f"{block.spec.get('title') or block.suite}, backbone {block.backbone}", loc="left", parse_math=False
    )
    figure.draw_without_rendering()
    label_line_ends(
        axes, [(line.title, line.colour, (line.curve[-1, 0], 100 * line.curve[-1, 1])) for line in curves]
    )
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score) pairs those that no cheaper or equally cheap one reaches in score, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


# --- data of a figure ---------------------------------------------------------------------------------------


def look(number: int) -> tuple[str, str]:
    """Return colour and marker of the method in row ``number`` of a block, the same in every figure."""
    return COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]


def _points(block: Block, metric: str, cost: str) -> list[Point]:
    points = []
    for number, row in enumerate(block.rows):
        score, price = row.mean_over(block.keys(metric)), _cost(row, cost)
        if score is not None and price is not None:
            spread = 100 * (score.sd or 0.0)
            points.append(Point(row.title, price, 100 * score.value, spread, *look(number), row.ranked))
    return points


def _cost(row: Row, key: str) -> float | None:
    """A cost of training; 0 for a method that trains nothing, whatever the key."""
    return 0.0 if row.efficiency.get("trainable_parameters") == 0 else row.efficiency.get(key)


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


# --- drawing ------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    # No dates inside: the same store gives the same files.
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": "medpeft-bench"}
    content = BytesIO()
    figure.savefig(content, format=path.suffix[1:], metadata=metadata)
    write_whole(path, lambda temporary: temporary.write_bytes(content.getvalue()))
    return path


def _scatter(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_xscale("log")
    free, low, high = _cost_range(points)
    has_free = any(point.cost == 0 for point in points)
    margin = max(2.0, (high / low) ** 0.12)
    axes.set_xlim(free / margin**0.5 if has_free else low / margin, high * margin)
    tops = [point.score + point.spread for point in points] or [1.0]
    bottoms = [point.score - point.spread for point in points] or [0.0]
    room = max(1.0, 0.12 * (max(tops) - min(bottoms)))
    axes.set_ylim(min(bottoms) - room, max(tops) + room)
    for point in points:
        axes.errorbar(
            point.cost or free,
            point.score,
            yerr=point.spread or None,
            color=point.colour,
            marker=point.marker,
            markersize=7,
            markerfacecolor=point.colour if point.solid else "white",
            elinewidth=0.9,
            capsize=2,
            zorder=3,
        )
    for start, end in _front_lines(points):
        axes.plot(*zip(start, end, strict=True), color="#888888", linewidth=1.0, linestyle="--", zorder=1)
    _cost_ticks(axes, low if has_free else 0.0, free)


def _cost_range(points: Sequence[Point]) -> tuple[float, float, float]:
    """Where "nothing trained" stands on the cost axis, and the lowest and highest cost of the others."""
    positive = [point.cost for point in points if point.cost > 0] or [1.0]
    low, high = min(positive), max(positive)
    return low / max(4.0, (high / low) ** 0.16), low, high


def _front_lines(points: Sequence[Point]) -> list[Segment]:
    """The steps of the Pareto front of whole runs."""
    free = _cost_range(points)[0]
    front = pareto_front([(point.cost or free, point.score) for point in points if point.solid])
    lines: list[Segment] = []
    for (cost, score), (next_cost, next_score) in itertools.pairwise(front):
        corner = (next_cost, score)
        lines += [((cost, score), corner), (corner, (next_cost, next_score))]
    return lines


def _cost_ticks(axes: Axes, low: float, free: float) -> None:
    """Ticks with unit prefixes; with ``low`` > 0 the axis is cut between "nothing trained" and ``low``."""
    cut = (free * low) ** 0.5
    start, end = max(cut, axes.get_xlim()[0]), axes.get_xlim()[1]
    decades = [10.0**power for power in range(-1, 17)]
    ticks = [tick for tick in decades if start < tick < end]
    if len(ticks) < 3:
        ticks = [digit * tick for tick in decades for digit in (1, 2, 5) if start < digit * tick < end]
    texts = [EngFormatter()(tick) for tick in ticks]
    axes.set_xticks([free, *ticks] if low else ticks, ["none\ntrained", *texts] if low else texts)
    axes.minorticks_off()
    if low:
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        at_axis = axes.get_xaxis_transform()
        axes.axvline(cut, color="#bbbbbb", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.text(cut, 0, "//", transform=at_axis, ha="center", va="center", clip_on=False, bbox=white)


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    free = _cost_range(points)[0]
    labels = [(point.title, point.colour, (point.cost or free, point.score)) for point in points]
    bars: list[Segment] = [
        ((cost, score - point.spread), (cost, score + point.spread))
        for point, (_, _, (cost, score)) in zip(points, labels, strict=True)
    ]
    place_labels(axes, labels, [*bars, *_front_lines(points)])
