"""Critical-difference diagram: average ranks, and which methods Nemenyi's test does not tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmark.registry import register_figure
from benchmark.report.figures.style import Drawing, look, new_figure
from benchmark.report.model import Block
from benchmark.report.significance.comparisons import Ranks
from benchmark.report.significance.decision import decide
from benchmark.report.significance.wording import p_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEP = 0.26  # between two names, in inches
_BAR = 0.13  # between two bars


@register_figure("ranks")
def draw(block: Block) -> Iterator[Drawing]:
    """Yield the diagram (Demsar, JMLR 7, 2006) where there are enough methods and test sets to rank."""
    ranks = decide(block).ranks
    if ranks is None:
        return
    numbers = {row.cell: row.number for row in block.rows}
    lines = -(-len(ranks.names) // 2)
    bars = len(ranks.groups)
    below = 0.25 + _BAR * bars + _STEP * lines
    figure = new_figure(width=7.6, height=1.05 + below, layout=None)
    axes = figure.add_axes((0.24, 0.0, 0.52, 1.0))
    count = len(ranks.names)
    axes.set(xlim=(0.7, count + 0.3), ylim=(-below, 1.05))
    axes.set_axis_off()
    _axis(axes, count, ranks.critical_difference)
    for place, (name, title, average) in enumerate(
        zip(ranks.names, ranks.titles, ranks.average, strict=True)
    ):
        from_top = place if place < lines else count - 1 - place
        height = -0.25 - _BAR * bars - _STEP * from_top
        _name(axes, f"{title}  {average:.2f}", average, height, left=place < lines, number=numbers[name])
    by_name = dict(zip(ranks.names, ranks.average, strict=True))
    for at, group in enumerate(ranks.groups):
        ends = [by_name[group[0]] - 0.06, by_name[group[-1]] + 0.06]
        axes.plot(ends, [-0.13 - _BAR * at] * 2, color="black", linewidth=3, solid_capstyle="butt")
    title = f"Average ranks: {block.heading}"
    figure.suptitle(title, fontsize=10, parse_math=False, y=0.985)
    yield Drawing("ranks", title, _caption(ranks), figure)


def _caption(ranks: Ranks) -> str:
    return (
        f"Average rank of each method over {len(ranks.columns)} columns of scores (1 is best). Thick bars join methods "
        f"that Nemenyi's test at 0.05 does not tell apart (critical difference CD = {ranks.critical_difference:.2f}); "
        f"Friedman's test that all are alike: {p_text(ranks.p_value)}. Columns of one dataset are not independent, and "
        "few columns make a weak test; ranks say nothing of how large a difference is."
    )


def _axis(axes: Axes, count: int, critical: float) -> None:
    axes.plot([1, count], [0, 0], color="black", linewidth=1)
    for rank in range(1, count + 1):
        axes.plot([rank, rank], [0, 0.08], color="black", linewidth=1)
        axes.text(rank, 0.13, str(rank), ha="center", va="bottom")
    shown = min(critical, count - 1)
    axes.plot([1, 1 + shown], [0.46, 0.46], color="black", linewidth=1, marker="|", markersize=7)
    axes.text(1 + shown / 2, 0.5, f"CD = {critical:.2f}", ha="center", va="bottom")
    axes.text(count + 0.45, 0.0, "average rank", ha="left", va="center", fontsize=8)


def _name(axes: Axes, text: str, rank: float, height: float, *, left: bool, number: int) -> None:
    style = look(number)
    edge = axes.get_xlim()[0] - 0.1 if left else axes.get_xlim()[1] + 0.1
    axes.plot([rank, rank, edge], [0, height, height], color=style.colour, linewidth=0.9, clip_on=False)
    axes.plot(rank, 0, marker=style.marker, color=style.colour, markersize=6, clip_on=False, zorder=3)
    at: dict[str, Any] = {"ha": "right" if left else "left", "va": "center", "parse_math": False}
    axes.text(edge + (-0.08 if left else 0.08), height, text, color=style.colour, **at)
