"""Forest plot: every score of every method with its interval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmark.registry import register_figure
from benchmark.report.figures.style import (
    GREY,
    Drawing,
    axis_label,
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
    """Yield one panel per column that is tested, one line per method."""
    tests = block_tests(block)
    rows = [(number, row) for number, row in enumerate(block.rows) if row.scores]
    keys = [key for key in tests.keys if any(key in row.scores for _, row in rows)]
    keys.sort(key=lambda key: key[0] != block.first_task)  # the main task first, the others in their order
    if not keys:
        return
    base, shown = tests.by_cell.get(tests.baseline), [row for _, row in rows]
    size = (2.35, 0.75 + 0.21 * len(rows))
    figure, grid = panels(block.heading, len(keys), 4, size, (1.5, 0.5), sharey=True)
    for axes, key in zip(grid, keys, strict=True):
        _panel(axes, block, key, rows, base)
    caption = (
        f"Scores with 95 % bootstrap intervals over test patients, mean over {seeds_text(shown)}; small ticks: single "
        "seeds."
        + (f" Band: {base.title} with its interval." if base else "")
        + " Intervals that overlap do not mean that two methods are alike: for that see the paired tests."
        + unranked_text(shown)
    )
    yield Drawing("forest", f"Scores with intervals: {block.heading}", caption, figure)


def _panel(axes: Axes, block: Block, key: Key, rows: list[tuple[int, Row]], base: Row | None) -> None:
    metric = block.metric(key)
    reference = base.scores.get(key) if base else None
    if reference is not None:
        axes.axvline(
            metric.scale * reference.value, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1
        )
        if reference.bounds:
            axes.axvspan(*(metric.scale * bound for bound in reference.bounds), color="#ececec", zorder=0)
    for place, (number, row) in enumerate(rows):
        if key in row.scores:
            _line(axes, place, number, row, key, metric.scale)
    low, high = axes.get_xlim()
    if high - low < _LEAST:  # values that are all alike
        axes.set_xlim((low + high - _LEAST) / 2, (low + high + _LEAST) / 2)
    axes.set_yticks(range(len(rows)), [row.title for _, row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(axis_label(metric, [row for _, row in rows], [key]))
    axes.set_title(f"{block.dataset_title(key[1], key[0])}\n{key[0]}", loc="left", parse_math=False)


def _line(axes: Axes, place: int, number: int, row: Row, key: Key, scale: float) -> None:
    score, style = row.scores[key], look(number)
    seeds = [scale * run.scores()[key]["value"] for run in score.runs]
    if len(seeds) > 1:
        axes.plot(seeds, [place] * len(seeds), "|", markersize=9, color=style.colour)
    style.mark(axes, scale * score.value, place, solid=row.compared(key), xerr=score.bars(scale))
