"""What all figures share: one style, the look of each method, and how a figure is written.

Colours that the colour-blind can tell apart; a marker, a dash pattern and a direct label for each method, so that the
figures also read in grey. Each is written as PNG and PDF, without dates: the same store gives the same files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from benchmark.files import write_whole
from benchmark.metrics.classification import Metric
from benchmark.report.collect import Block, Row
from benchmark.report.runs import Key

# Okabe and Ito's palette without yellow, which is too light for lines and text; repeated with other markers.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = "osD^vPXp<>h*d"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)), (0, (9, 3)))
GREY = "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "svg.hashsalt": "medpeft-bench",
}
DPI = 160


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn but not written.

    Attributes:
        name: of its files, after ``figure_``. title: what it is, short. caption: what it shows, in sentences.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Picture:
    """A figure that is written.

    Attributes:
        name: stem of its files. title: what it is, short. caption: what it shows, in sentences.
        suite, backbone: of the block that it shows. png, pdf: its files.
    """

    name: str
    title: str
    caption: str
    suite: str
    backbone: str
    png: Path
    pdf: Path

    @property
    def files(self) -> tuple[Path, Path]:
        """Both files."""
        return self.png, self.pdf


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every figure."""

    colour: str
    marker: str
    dashes: Any


def look(number: int) -> Look:
    """Return the look of the method in row ``number`` of a block."""
    return Look(
        COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)], _DASHES[number % len(_DASHES)]
    )


def new_figure(width: float, height: float, *, layout: Any = "constrained") -> Figure:
    """Return an empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def lay_out(figure: Figure) -> None:
    """Lay the figure out as it is now; room for what is added afterwards is made when it is written."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def freeze_layout(figure: Figure) -> None:
    """Lay the figure out now and keep it so: what is placed in pixels afterwards stays where it is."""
    lay_out(figure)
    figure.set_layout_engine("none")


def write(drawings: Iterable[Drawing], block: Block, folder: Path, suffix: str) -> list[Picture]:
    """Write drawings of a block as they come, so that one at a time is in memory."""
    written = []
    with mpl.rc_context(STYLE):
        for drawing in drawings:
            stem = f"figure_{drawing.name}{suffix}".replace("/", "-").replace(":", "-")
            freeze_layout(drawing.figure)
            png, pdf = (_save(drawing, folder / f"{stem}.{kind}") for kind in ("png", "pdf"))
            written.append(
                Picture(stem, drawing.title, drawing.caption, block.suite, block.backbone, png, pdf)
            )
    return written


def _save(drawing: Drawing, path: Path) -> Path:
    content = BytesIO()
    # not savefig: it draws each figure twice, the first time only to lay it out, and the layout is frozen already
    if path.suffix == ".pdf":
        undated = {"CreationDate": None, "Title": drawing.title, "Subject": drawing.caption}
        FigureCanvasPdf(drawing.figure).print_pdf(content, metadata=undated)
    else:
        named = {"Software": "medpeft-bench", "Title": drawing.title, "Description": drawing.caption}
        FigureCanvasAgg(drawing.figure).print_png(content, metadata=named)
    write_whole(path, lambda temporary: temporary.write_bytes(content.getvalue()))
    return path


# --- words of a figure ----------------------------------------------------------------------------------------


def metric_label(metric: Metric) -> str:
    """Return the name of a metric with its unit: ``ACC (%)``."""
    return metric.title + (f" ({metric.unit})" if metric.unit else "")


def samples_text(rows: Iterable[Row], keys: Collection[Key]) -> str:
    """Return the samples behind scores, smallest and largest of the rows: ``n = 1000``; empty if nothing says it."""
    counts = sorted({row.scores[key].n or 0 for row in rows for key in keys if key in row.scores} - {0})
    if not counts:
        return ""
    return f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")


def seeds_text(rows: Iterable[Row]) -> str:
    """Return how many runs stand behind each method: ``one seed``, ``3 seeds``, ``1 to 3 seeds``."""
    counts = sorted({score.seeds for row in rows for score in row.scores.values()})
    if not counts:
        return "no seed"
    if counts[-1] == 1:
        return "one seed"
    return f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"


def unranked_text(rows: Iterable[Row]) -> str:
    """Return a sentence on what hollow markers are, if there are any."""
    solid = all(row.compared(key) for row in rows for key in row.scores)
    return "" if solid else " Hollow markers: not comparable with the others."


def set_title(axes: Axes, text: str) -> None:
    """Write a title at the left; nothing in it is mathematics."""
    axes.set_title(text, loc="left", parse_math=False)
