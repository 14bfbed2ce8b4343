"""Places labels in figures so that they do not overlap, in pixels of the drawn figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pixels = np.ndarray[Any, np.dtype[np.float64]]
# A text, its colour, and the point in data coordinates that it names.
Label = tuple[str, str, tuple[float, float]]
Segment = tuple[tuple[float, float], tuple[float, float]]
_FONT_SIZE = 8
# Beside a point is best, then above and below; argmin takes the first of equal places.
_ANGLES = np.deg2rad([0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202, 67, 293, 113, 247])


def place_labels(axes: Axes, labels: Sequence[Label], lines: Sequence[Segment] = ()) -> None:
    """Write each text beside its point where it covers no point, text or line; a thin line joins far ones.

    Args:
        axes: laid out (drawn once), with its final limits.
        labels: text, colour and point of each label.
        lines: what is drawn between two data points and should stay visible.
    """
    if not labels:
        return
    positions = axes.transData.transform(np.array([point for _, _, point in labels]))
    pixel = _pixels_per_point(axes)
    ends = [axes.transData.transform(np.array(line)) for line in lines]
    taken = [_boxes(position, 11 * pixel, 11 * pixel) for position in positions]
    taken += [np.hstack([end.min(axis=0) - 2 * pixel, end.max(axis=0) + 2 * pixel]) for end in ends]
    frame = np.array([axes.get_window_extent().extents])
    distances = np.hypot(*(positions[:, None] - positions[None, :]).T)
    # The crowded ones choose first: they have the fewest free places.
    for index in np.argsort(-(distances < 60 * pixel).sum(axis=1), kind="stable"):
        text, colour, _ = labels[index]
        artist = axes.text(0, 0, text, fontsize=_FONT_SIZE, color=colour, zorder=4, parse_math=False)
        size = artist.get_window_extent()
        candidates, rings = _candidates(positions[index], size.width + 2 * pixel, size.height, pixel)
        area = size.height * (size.width + 2 * pixel)
        covered = _shared_areas(candidates, np.array(taken)).sum(axis=1)
        outside = area - _shared_areas(candidates, frame)[:, 0]
        box = candidates[np.argmin(40 * (covered + outside) / area + rings)]
        taken.append(box)
        to_data = axes.transData.inverted()
        artist.set(position=to_data.transform((box[:2] + box[2:]) / 2), ha="center", va="center")
        anchor = np.clip(positions[index], box[:2], box[2:])
        if np.hypot(*(anchor - positions[index])) > 14 * pixel:
            axes.plot(*to_data.transform([positions[index], anchor]).T, color=colour, linewidth=0.5, zorder=2)


def label_line_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write texts right of the last points of lines, moved apart vertically where they would touch."""
    frame = axes.get_window_extent()
    ends = axes.transData.transform(np.array([point for _, _, point in labels]))[:, 1]
    heights = spread_apart(ends, 11 * _pixels_per_point(axes), frame.y0, frame.y1)
    for (text, colour, point), height in zip(labels, heights, strict=True):
        # from the text's left edge: a steep line would cross other labels
        line = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.5,
            "shrinkA": 0,
            "shrinkB": 2,
            "relpos": (0, 0.5),
        }
        place = (1.03, axes.transAxes.inverted().transform((0, height))[1])
        axes.annotate(
            text, point, place, textcoords="axes fraction", color=colour, fontsize=_FONT_SIZE, va="center",
            annotation_clip=False, arrowprops=line, parse_math=False,
        )  # fmt: skip


def spread_apart(positions: Pixels, gap: float, low: float, high: float) -> Pixels:
    """Move positions, as little as needed, to lie ``gap`` apart in their order and within [low, high].

    The gap shrinks when there is no room for it.
    """
    count = len(positions)
    gap = min(gap, (high - low) / max(1, count - 1))
    order = np.argsort(positions, kind="stable")
    offsets = gap * np.arange(count)
    # With the gaps taken out, "apart and in order" means "not falling", as the mean of these two series is.
    free = np.asarray(positions, dtype=np.float64)[order] - offsets
    upward, downward = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    placed = np.clip((upward + downward) / 2, low, high - offsets[-1]) + offsets
    result = np.empty(count)
    result[order] = placed
    return result


def _candidates(position: Pixels, width: float, height: float, pixel: float) -> tuple[Pixels, Pixels]:
    """Boxes around a point, [K, 4], and how many rings away each is, [K]."""
    rings, angles = (grid.ravel() for grid in np.meshgrid(np.arange(9), _ANGLES, indexing="ij"))
    reach = np.array([width / 2, height / 2]) + (7 + 8 * rings[:, None]) * pixel
    centres = position + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _boxes(centres, width, height), rings.astype(np.float64)


def _boxes(centres: Pixels, width: float, height: float) -> Pixels:
    """Boxes (left, bottom, right, top) of one size around centres [..., 2]: [..., 4]."""
    half = np.array([width / 2, height / 2])
    return np.concatenate([centres - half, centres + half], axis=-1)


def _shared_areas(ones: Pixels, others: Pixels) -> Pixels:
    """Area that each of ones [K, 4] shares with each of others [T, 4]: [K, T]."""
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.clip(high - low, 0, None).prod(axis=-1))


def _pixels_per_point(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    return 1.0 if figure is None else figure.dpi / 72
