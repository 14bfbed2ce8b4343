"""The geometry of a curve of history.jsonl; the template writes it as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# the frame in which curves are drawn, in the coordinates of cell.html
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 410, 12, 164


@dataclass(frozen=True)
class Chart:
    """One quantity against the training step, in the units of the drawing (y grows downward).

    Attributes:
        caption: what is drawn.
        alt: the same with first, lowest and highest value, for screen readers.
        points: x, y and a label of each value. line: the same as SVG wants it.
        levels: y and label of the horizontal lines. steps: x, label and anchor of the texts below.
        kept: x of the checkpoint that was kept.
    """

    caption: str
    alt: str
    points: tuple[tuple[float, float, str], ...]
    levels: tuple[tuple[float, str], ...]
    steps: tuple[tuple[float, str, str], ...]
    kept: float | None = None

    @property
    def line(self) -> str:
        """The points of the polyline."""
        return " ".join(f"{x:g},{y:g}" for x, y, _ in self.points)


def charts(history: Sequence[Mapping[str, Any]], kept_step: float | None = None) -> tuple[Chart, ...]:
    """Return a chart of the training loss and of each validation metric that has at least two values.

    Args:
        history: rows of history.jsonl.
        kept_step: step of the checkpoint that was kept.
    """
    names = dict.fromkeys(
        name for row in history for name in row if name == "train_loss" or name.startswith("val_")
    )
    found = {name: _values(history, name) for name in names}
    return tuple(_chart(name, values, kept_step) for name, values in found.items() if len(values) > 1)


def _values(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    pairs = [(row.get("step"), row.get(name)) for row in history]
    return [(x, y) for x, y in pairs if isinstance(x, int | float) and isinstance(y, int | float)]


def _chart(name: str, values: Sequence[tuple[float, float]], kept_step: float | None) -> Chart:
    steps, heights = zip(*values, strict=True)
    first, last = min(steps), max(steps)
    low, high = min(heights), max(heights)

    def across(step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (step - first) / ((last - first) or 1), 1)

    def up(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(_BOTTOM - 8 - (_BOTTOM - _TOP - 16) * share, 1)

    title = "Training loss" if name == "train_loss" else f"Validation {name.removeprefix('val_')}"
    kept = kept_step if kept_step is not None and first <= kept_step <= last else None
    note = f"; the dashed line is the checkpoint that was kept, step {kept:g}" if kept is not None else ""
    return Chart(
        caption=f"{title} against training step{note}.",
        alt=f"{title}: {heights[0]:.4g} at step {steps[0]:g}, {heights[-1]:.4g} at step {steps[-1]:g}, "
        f"lowest {low:.4g}, highest {high:.4g}",
        points=tuple((across(x), up(y), f"step {x:g}: {y:.4g}") for x, y in values),
        levels=tuple((up(y), f"{y:.4g}") for y in dict.fromkeys((low, high))),
        steps=((across(first), f"{first:g}", "start"), (across(last), f"{last:g}", "end")),
        kept=None if kept is None else across(kept),
    )
