"""Accuracy against the number of labelled images of a class: every seed a dot, means with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmark.registry import register_figure
from benchmark.report.few_rows import METRICS, FewRow, few_rows
from benchmark.report.figures.style import Drawing, bars_text, lay_out, look, panels, samples_text
from benchmark.report.model import Block

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4
_SIZE = (2.6, 2.1)


@register_figure("fewshot")
def draw(block: Block) -> Iterator[Drawing]:
    """Yield one figure per dataset and rule, a panel per method, where there are several numbers of shots."""
    rows = [one for one in few_rows(block) if one.rule[0] == "fewshot"]
    for dataset in dict.fromkeys(str(one.support["dataset"]) for one in rows):
        own = [one for one in rows if one.support["dataset"] == dataset]
        frozen = [one for one in own if not one.support["shots"]]
        for rule in dict.fromkeys(one.rule for one in own if one.support["shots"]):
            mine = [one for one in own if one.rule == rule]
            if len({one.support["shots"] for one in mine}) > 1:
                yield _figure(block, dataset, rule, mine, frozen)


def _figure(
    block: Block, dataset: str, rule: tuple[str, str, str], rows: Sequence[FewRow], frozen: Sequence[FewRow]
) -> Drawing:
    titles = list(dict.fromkeys(one.title for one in rows))
    words = ", ".join(rule[1:])
    title = f"Accuracy against shots ({words}): {block.heading}"
    figure, grid = panels(title, len(titles), _COLUMNS, _SIZE, sharex=True, sharey=True)
    for axes, name in zip(grid, titles, strict=True):
        _panel(axes, name, [one for one in rows if one.title == name], frozen)
    for axes in grid[::_COLUMNS]:
        axes.set_ylabel("ACC (%)")
    for axes in grid[-_COLUMNS:]:  # the last one of each column, whatever its row
        axes.set_xlabel("shots")
        axes.tick_params(labelbottom=True)
    lay_out(figure)
    keys = [key for one in rows for key in one.row.scores if key[1:] == (dataset, METRICS[0])]
    found = [one.row for one in rows]
    caption = (
        f"Accuracy on {dataset} ({samples_text(found, keys)}) with so many labelled images of a class. Dots: seeds, "
        f"each with its own support; lines: their means; bars: {bars_text(found)}. Dotted: the model without labels."
    )
    name = "-".join(["fewshot", dataset, *(() if rule[1:] == ("standard", "strict") else rule[1:])])
    return Drawing(name, title, caption, figure)


def _panel(axes: Axes, title: str, rows: Sequence[FewRow], frozen: Sequence[FewRow]) -> None:
    """Draw one method: a line through its means, with every seed."""
    from matplotlib.ticker import NullFormatter, NullLocator

    style = look(rows[0].row.number)
    rows = sorted(rows, key=lambda one: int(one.support["shots"]))
    places, means = [], []
    for one in rows:
        key = next((key for key in one.row.scores if key[2] == METRICS[0]), None)
        if key is None:
            continue
        score, shots = one.row.scores[key], int(one.support["shots"])
        seeds = [value for run in one.row.finished if (value := one.value(run, key)) is not None]
        axes.plot(
            [shots] * len(seeds), [100 * value for value in seeds], ".", color="0.6", markersize=3, zorder=1
        )
        axes.errorbar(
            shots, 100 * score.value, yerr=score.bars(100), color=style.colour, elinewidth=0.9, zorder=3
        )
        places.append(shots)
        means.append(100 * score.value)
    axes.plot(places, means, color=style.colour, marker="o", markersize=3.5, zorder=2)
    for one in frozen:
        for value in (score.value for key, score in one.row.scores.items() if key[2] == METRICS[0]):
            axes.axhline(100 * value, color="0.3", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, fontsize=8, parse_math=False)
