"""Forest plot: every score of every method with its interval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmark.registry import register_figure
from benchmark.report.figures.style import (
    GREY,
    Drawing,
    axis_label,
    bars_text,
    look,
    panels,
    seeds_text,
    unranked_text,
)
from benchmark.report.model import Block, Key, Row
from benchmark.report.significance.comparisons import block_tests

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 1.0  # length of the axis of scores


@register_figure("forest")
def draw(block: Block) -> Iterator[Drawing]:
    """Yield one panel per column that is tested and that two methods have, one line per method."""
    tests = block_tests(block)
    rows = [row for row in block.rows if row.scores]
    keys = [key for key in tests.keys if sum(key in row.scores for row in rows) > 1]
    keys.sort(key=lambda key: key[0] != block.first_task)  # the main task first, the others in their order
    if not keys:
        return
    base, title = tests.by_cell.get(tests.baseline), f"Scores with 95 % intervals: {block.heading}"
    size = (2.35, 0.75 + 0.21 * len(rows))
    figure, grid = panels(title, len(keys), 4, size, (1.5, 0.5), sharey=True)
    for axes, key in zip(grid, keys, strict=True):
        _panel(axes, block, key, rows, base)
    caption = (
        f"Mean scores over {seeds_text(rows)}; bars: {bars_text(rows)}; small ticks: single seeds."
        + (f" Band: {base.title} with its interval." if base else "")
        + " Intervals that overlap do not mean that two methods are alike: for that see the paired tests."
        + unranked_text(rows)
    )
    yield Drawing("forest", title, caption, figure)


def _panel(axes: Axes, block: Block, key: Key, rows: list[Row], base: Row | None) -> None:
    metric = block.metric(key)
    reference = base.scores.get(key) if base else None
    if reference is not None:
        axes.axvline(
            metric.scale * reference.value, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1
        )
        if reference.whole:
            below, above = reference.whole
            ends = (metric.scale * (reference.value + length) for length in (-below, above))
            axes.axvspan(*ends, color="#ececec", zorder=0)
    for place, row in enumerate(rows):
        if key in row.scores:
            _line(axes, place, row, key, metric.scale)
    low, high = axes.get_xlim()
    if high - low < _LEAST:  # values that are all alike
        axes.set_xlim((low + high - _LEAST) / 2, (low + high + _LEAST) / 2)
    axes.set_yticks(range(len(rows)), [row.title for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(axis_label(metric, rows, [key]))
    axes.set_title(f"{block.dataset_title(key[1], key[0])}\n{key[0]}", loc="left", parse_math=False)


def _line(axes: Axes, place: int, row: Row, key: Key, scale: float) -> None:
    score, style = row.scores[key], look(row.number)
    seeds = [scale * run.scores()[key]["value"] for run in score.runs]
    if len(seeds) > 1:
        axes.plot(seeds, [place] * len(seeds), "|", markersize=9, color=style.colour)
    style.mark(axes, scale * score.value, place, solid=row.compared(key), xerr=score.bars(scale))
