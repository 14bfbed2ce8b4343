"""Score against cost: trainable parameters, FLOPs, memory and time, with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.registry import register_figure
from benchmark.report.figures.label_placement import Segment, place_labels
from benchmark.report.figures.style import (
    GREY,
    Drawing,
    Look,
    axis_label,
    bars_text,
    freeze_layout,
    look,
    panels,
    samples_text,
    seeds_text,
    unranked_text,
)
from benchmark.report.model import Block, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cost:
    """A number of efficiency.json.

    Attributes:
        key: its name there. label: of the axis. unit: shown at its ticks. trained: whether it is a cost of training, so
            that a method which trains nothing has none of it.
    """

    key: str
    label: str
    unit: str = ""
    trained: bool = True


_TRAINABLE = Cost("trainable_parameters", "Trainable parameters")
_COSTS = (
    _TRAINABLE,
    Cost("step_flops_per_pair", "FLOPs of a training step per pair"),
    Cost("peak_memory_bytes", "Peak memory of training", "B"),
    Cost("step_time_p50_s", "Median time of a training step", "s"),
)
DECISION = "cost"
"""Name of the plot that stands beside the decision on the page."""
_LEAST = 3
"""Methods that make a plot of score against cost."""
_MOST_TICKS = 6
_FORWARD = Cost("forward_flops_per_pair", "FLOPs of a forward pass per pair", trained=False)


@dataclass(frozen=True)
class Point:
    """A method in a scatter: cost (0 when nothing is trained), score and lengths of its interval, in the shown unit."""

    title: str
    cost: float
    score: float
    below: float
    above: float
    look: Look
    solid: bool


@register_figure("efficiency")
def draw(block: Block) -> Iterator[Drawing]:
    """Yield the plot of the page (a score against parameters), A1 (the paper's), and all scores against all costs.

    Scores are the headline of the suite's first task, as far as more of them is better. Fewer than three methods make
    no plot.
    """
    task = block.first_task
    all_scores = [name for name in block.headline(task) if block.metric((task, "", name)).higher]
    heads = " and ".join(block.metric((task, "", name)).title for name in all_scores)
    first = heads.partition(" and ")[0]
    for name, title, scores, costs in (
        (DECISION, f"Mean {first} against trained parameters", all_scores[:1], (_TRAINABLE,)),
        ("A1", f"Mean {first} against parameters and FLOPs", all_scores[:1], (_TRAINABLE, _FORWARD)),
        ("efficiency", f"Mean {heads} against costs", all_scores, _COSTS),
    ):
        figure = _figure(block, f"{title}: {block.heading}", scores, costs)
        if figure is not None:
            yield Drawing(name, f"{title}: {block.heading}", _caption(block, scores), figure)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score) pairs those that no cheaper or equally cheap one reaches in score, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _figure(block: Block, title: str, scores: Sequence[str], costs: Sequence[Cost]) -> Figure | None:
    found = [(score, cost, _points(block, score, cost)) for cost in costs for score in scores]
    found = [
        (score, cost, points)
        for score, cost, points in found
        if any(point.cost for point in points) and len(points) >= _LEAST
    ]
    if not found:
        return None
    alone = len(found) == 1
    figure, grid = panels(title, len(found), 2, (6.4, 4.4) if alone else (4.8, 3.6), (0, 0.3))
    for axes, (score, cost, points) in zip(grid, found, strict=True):
        _scatter(axes, points)
        label = axis_label(block.metric((block.first_task, "", score)))
        axes.set(xlabel=cost.label, ylabel=f"Mean {label}")
        _cost_ticks(axes, points, cost.unit)
    freeze_layout(figure)
    for axes, (_, _, points) in zip(grid, found, strict=True):
        _label_points(axes, points)
    return figure


def _caption(block: Block, scores: Sequence[str]) -> str:
    task = block.first_task
    keys = [key for score in scores for key in block.keys(score, task)]
    titles = [block.dataset_title(dataset, task) for dataset in dict.fromkeys(key[1] for key in keys)]
    return (
        f"Scores ({task}), mean over {', '.join(titles)} ({samples_text(block.rows, keys)} each) and over "
        f"{seeds_text(block.rows)}; bars: {bars_text(block.rows)}. Costs as efficiency.csv has them. Dashed: Pareto "
        f"front, what nothing cheaper reaches.{unranked_text(block.rows)}"
    )


def _points(block: Block, metric: str, cost: Cost) -> list[Point]:
    points, scale = [], block.metric((block.first_task, "", metric)).scale
    for row in block.rows:
        score, price = row.mean_over(block.keys(metric, block.first_task)), _price(row, cost)
        if score is not None and price is not None:
            below, above = (scale * length for length in score.whole or (0.0, 0.0))
            solid = row.ranked and not score.apart
            value = scale * score.value
            points.append(Point(row.title, price, value, below, above, look(row.number), solid))
    return points


def _price(row: Row, cost: Cost) -> float | None:
    """A cost; 0 for what is paid in training by a method that trains nothing, whatever the key."""
    return row.efficiency.get(cost.key) if row.trains or not cost.trained else 0.0


def _scatter(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_xscale("log")
    free, low, high = _cost_range(points)
    margin = max(2.0, (high / low) ** 0.12)
    has_free = any(point.cost == 0 for point in points)
    axes.set_xlim(free / margin**0.5 if has_free else low / margin, high * margin)
    bottom = min(point.score - point.below for point in points)
    top = max(point.score + point.above for point in points)
    room = max(1.0, 0.12 * (top - bottom))
    axes.set_ylim(bottom - room, top + room)
    for point in points:
        bars = {"yerr": [[point.below], [point.above]], "elinewidth": 0.9, "capsize": 2}
        point.look.mark(
            axes, point.cost or free, point.score, solid=point.solid, markersize=7, zorder=3, **bars
        )
    for start, end in _front_lines(points):
        axes.plot(*zip(start, end, strict=True), color="#888888", linewidth=1.0, linestyle="--", zorder=1)


def _cost_range(points: Sequence[Point]) -> tuple[float, float, float]:
    """Where "nothing trained" stands on the cost axis, and the lowest and highest cost of the others."""
    positive = [point.cost for point in points if point.cost > 0]
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


def _cost_ticks(axes: Axes, points: Sequence[Point], unit: str) -> None:
    """Ticks with unit prefixes; the axis is cut between "nothing trained" and the lowest cost."""
    from matplotlib.ticker import EngFormatter

    free, low, _ = _cost_range(points)
    has_free = any(point.cost == 0 for point in points)
    cut = (free * low) ** 0.5 if has_free else 0.0
    start, end = max(cut, axes.get_xlim()[0]), axes.get_xlim()[1]
    decades = [10.0**power for power in range(-5, 17)]
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * tick for tick in decades for digit in digits if start < digit * tick < end]
        if len(ticks) <= _MOST_TICKS:
            break
    texts = [EngFormatter(unit=unit)(tick) for tick in ticks]
    axes.set_xticks([free, *ticks] if has_free else ticks, ["none\ntrained", *texts] if has_free else texts)
    axes.minorticks_off()
    if has_free:
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        at_axis = axes.get_xaxis_transform()
        axes.axvline(cut, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.text(cut, 0, "//", transform=at_axis, ha="center", va="center", clip_on=False, bbox=white)


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    free = _cost_range(points)[0]
    labels = [(point.title, point.look.colour, (point.cost or free, point.score)) for point in points]
    ends = ((point.cost or free, point) for point in points)
    bars: list[Segment] = [((at, one.score - one.below), (at, one.score + one.above)) for at, one in ends]
    place_labels(axes, labels, [*bars, *_front_lines(points)])
