"""Validation curves of adaptation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmark.registry import register_figure
from benchmark.report.figures.label_placement import label_line_ends
from benchmark.report.figures.style import Drawing, lay_out, look, panels
from benchmark.report.model import Block, Row

if TYPE_CHECKING:
    import pandas as pd


@register_figure("training")
def draw(block: Block) -> Iterator[Drawing]:
    """Yield the validation metric against training steps: mean over seeds, band from the lowest to the highest."""
    metric = _validation_metric(block)
    curves = [(row.title, look(row.number), _curve(row, metric)) for row in block.rows]
    curves = [one for one in curves if len(one[2])]
    if not curves:
        return
    name = metric.removeprefix("val_").upper()
    title = f"{name} on the validation set during adaptation: {block.heading}"
    figure, (axes,) = panels(title, 1, 1, (8.0, 4.6))
    ends = []
    for number, (title, style, curve) in enumerate(curves):
        steps, mean = curve.index.to_numpy(), curve.mean(axis=1).to_numpy()
        low, high = curve.min(axis=1), curve.max(axis=1)
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.13, linewidth=0)
        axes.plot(steps, mean, **style.line(first=number % 3, steps=max(1, len(steps) // 6)))
        ends.append((title, style.colour, (float(steps[-1]), float(mean[-1]))))
    axes.set(xlabel="Training step", ylabel=f"Validation {name} (%)")
    lay_out(figure)
    label_line_ends(axes, ends)
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


def _curve(row: Row, metric: str) -> pd.DataFrame:
    """Values in percent, one column per seed, at the steps that every seed has."""
    import pandas as pd

    curves = [
        {int(line["step"]): 100 * float(line[metric]) for line in run.history if line.get(metric) is not None}
        for run in row.runs
        if run.status in ("success", "partial")
    ]
    return pd.DataFrame([curve for curve in curves if curve]).T.dropna().sort_index()
