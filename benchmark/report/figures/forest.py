"""Forest plot: every score of every method with its interval."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes

from benchmark.report.collect import Block, Row
from benchmark.report.figures.style import (
    GREY,
    Drawing,
    look,
    metric_label,
    new_figure,
    samples_text,
    seeds_text,
    unranked_text,
)
from benchmark.report.runs import Key
from benchmark.report.significance.comparisons import block_tests

_COLUMNS = 4
_LEAST = 1.0  # length of the axis of scores


def draw(block: Block) -> Iterator[Drawing]:
    """Yield one panel per column that is tested, one line per method."""
    tests = block_tests(block)
    rows = [(number, row) for number, row in enumerate(block.rows) if row.scores]
    keys = [key for key in tests.keys if any(key in row.scores for _, row in rows)]
    keys.sort(key=lambda key: key[0] != block.first_task)  # the main task first, the others in their order
    if not keys:
        return
    base = tests.by_cell.get(tests.baseline)
    wide = min(_COLUMNS, len(keys))
    high = -(-len(keys) // wide)
    figure = new_figure(width=1.5 + 2.35 * wide, height=0.5 + high * (0.75 + 0.21 * len(rows)))
    grid = list(figure.subplots(high, wide, squeeze=False, sharey=True).flat)
    for axes, key in zip(grid, keys, strict=False):
        _panel(axes, block, key, rows, base)
    for axes in grid[len(keys) :]:
        axes.set_axis_off()
    figure.suptitle(block.heading, fontsize=10, parse_math=False)
    caption = (
        "Scores with 95 % bootstrap intervals over test patients, mean over "
        f"{seeds_text(row for _, row in rows)}; small ticks: single seeds."
        + (f" Band: {base.title} with its interval." if base else "")
        + " Intervals that overlap do not mean that two methods are alike: for that see the paired tests."
        + unranked_text(row for _, row in rows)
    )
    yield Drawing("forest", f"Scores with intervals: {block.heading}", caption, figure)


def _panel(axes: Axes, block: Block, key: Key, rows: list[tuple[int, Row]], base: Row | None) -> None:
    task, dataset, _ = key
    metric = block.metric(key)
    scale = metric.scale
    reference = base.scores.get(key) if base else None
    if reference is not None:
        axes.axvline(scale * reference.value, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        if reference.ci_low is not None and reference.ci_high is not None:
            axes.axvspan(scale * reference.ci_low, scale * reference.ci_high, color="#ececec", zorder=0)
    for place, (number, row) in enumerate(rows):
        if key in row.scores:
            _line(axes, place, number, row, key, scale)
    _widen(axes)
    axes.set_yticks(range(len(rows)), [row.title for _, row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    samples = samples_text((row for _, row in rows), [key])
    axes.set_xlabel(metric_label(metric) + (f", {samples}" if samples else ""))
    title = block.dataset_title(dataset, task)
    axes.set_title(f"{title}\n{task}", loc="left", parse_math=False)


def _widen(axes: Axes) -> None:
    """Give an axis of values that are all alike a length."""
    low, high = axes.get_xlim()
    if high - low < _LEAST:
        axes.set_xlim((low + high - _LEAST) / 2, (low + high + _LEAST) / 2)


def _line(axes: Axes, place: int, number: int, row: Row, key: Key, scale: float) -> None:
    score, style = row.scores[key], look(number)
    seeds = [run.scores()[key]["value"] for run in score.runs]
    if len(seeds) > 1:
        axes.plot(
            [scale * value for value in seeds],
            [place] * len(seeds),
            linestyle="none",
            marker="|",
            markersize=9,
            color=style.colour,
        )
    if score.ci_low is not None and score.ci_high is not None:
        axes.plot([scale * score.ci_low, scale * score.ci_high], [place, place], color=style.colour)
    axes.plot(
        scale * score.value,
        place,
        marker=style.marker,
        markersize=5.5,
        color=style.colour,
        markerfacecolor=style.colour if row.compared(key) else "white",
    )
