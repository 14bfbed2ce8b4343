"""Shared by all figures: one style, the look of each method, panels, and how a figure is written.

A colour and a marker that are the same method's in every figure, colours that the colour-blind can tell apart for the
paper's eleven, and direct labels, so that the figures also read in grey. Each is written as PNG and PDF, without dates:
the same store gives the same files.
"""

from __future__ import annotations

import colorsys
import functools
import itertools
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from benchmark.files import default_data_root, write_whole
from benchmark.metrics.classification import Metric
from benchmark.report.model import Block, Key, Row, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is too light for lines and text, and four of Tol's; then hues are made.
COLOURS = (
    "#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#8C6D31", "#D55E00", "#9467BD", "#882255",
    "#332288",
)  # fmt: skip
_MARKERS = "osD^vPXp<>h*d8"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)), (0, (9, 3)))
_MADE_FOR_METHODS = 29
"""Colours that are made for methods; those of datasets follow."""
_TURN = 0.381966
"""Of the circle of hues, between two colours that are made: by the golden ratio no two come close soon."""
GREY = "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 9,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42, "svg.hashsalt": "medpeft-bench",
}  # fmt: skip
DPI = 160
_LETTERS = 12
"""Of a title to an inch."""


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
        place: suite and backbone that it shows. folder: of its files.
    """

    name: str
    title: str
    caption: str
    place: str
    folder: Path

    @property
    def png(self) -> Path:
        """The file that is put into the page."""
        return self.folder / f"{self.name}.png"

    @property
    def files(self) -> tuple[Path, Path]:
        """Both files."""
        return self.png, self.folder / f"{self.name}.pdf"


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every figure."""

    colour: str
    marker: Any
    dashes: Any

    def line(self, *, first: int, steps: int) -> dict[str, Any]:
        """How ``plot`` draws its line, with markers at every ``steps``-th point from the ``first`` on."""
        shape = {"color": self.colour, "linestyle": self.dashes, "marker": self.marker}
        return {**shape, "markersize": 4.5, "markevery": (first, steps)}

    def mark(self, axes: Axes, x: float, y: float, *, solid: bool, **bars: Any) -> None:
        """Draw one value with the bars of ``errorbar``; hollow where it may not be compared with the others."""
        face = self.colour if solid else "white"
        shape = {"color": self.colour, "marker": self.marker, "markerfacecolor": face, "markersize": 5.5}
        axes.errorbar(x, y, **{**shape, **bars})


def look(number: int) -> Look:
    """Return the look of the method with this number (``Row.number``): no two share a colour or a marker."""
    more = number - len(COLOURS)
    colour = COLOURS[number] if more < 0 else _made_colour(more)
    stars = number - len(_MARKERS)
    marker = _MARKERS[number] if stars < 0 else (4 + stars // 2, 1 + stars % 2, 0)  # stars, then asterisks
    return Look(colour, marker, _DASHES[number % len(_DASHES)])


def dataset_look(number: int) -> Look:
    """Return the look of a dataset's line, where lines are datasets: no colour is a method's."""
    return Look(
        _made_colour(_MADE_FOR_METHODS + number),
        _MARKERS[number % len(_MARKERS)],
        _DASHES[number % len(_DASHES)],
    )


def _made_colour(number: int) -> str:
    """A colour dark enough for text on white: the hue goes round, lightness and strength alternate."""
    rgb = colorsys.hls_to_rgb(
        (0.03 + number * _TURN) % 1.0, (0.42, 0.27, 0.35)[number % 3], (0.85, 0.6)[number % 2]
    )
    return "#" + "".join(f"{round(255 * part):02X}" for part in rgb)


def new_figure(width: float, height: float, *, layout: Any = "constrained") -> Figure:
    """Return an empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def panels(
    title: str,
    count: int,
    columns: int,
    size: tuple[float, float],
    room: tuple[float, float] = (0, 0),
    **how: Any,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a title and ``count`` panels in rows of at most ``columns``.

    Args:
        title: of the figure; nothing in it is mathematics.
        count: number of panels.
        columns: panels side by side.
        size: of a panel, in inches.
        room: inches for what all panels share.
        how: more for ``subplots``.
    """
    wide = min(columns, count)
    high = -(-count // wide)
    figure = new_figure(size[0] * wide + room[0], size[1] * high + room[1])
    grid = list(figure.subplots(high, wide, squeeze=False, **how).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    width = figure.get_size_inches()[0]
    figure.suptitle(fill(title, int(_LETTERS * width)), fontsize=10, parse_math=False)
    return figure, grid[:count]


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
    import matplotlib as mpl

    written = []
    with mpl.rc_context({**STYLE, "font.family": fonts()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # of a name that the font cannot write: it is a box
        for drawing in drawings:
            stem = f"figure_{drawing.name}{suffix}".replace("/", "-").replace(":", "-")
            freeze_layout(drawing.figure)
            written.append(Picture(stem, drawing.title, drawing.caption, block.heading, folder))
            _save(drawing, written[-1])
    return written


_SIGNS = (range(0x20, 0x7F), range(0xA0, 0x180), range(0x391, 0x3CA), range(0x2010, 0x2040), (0x2212,))
"""Latin, Greek, punctuation and the minus sign."""
_NAMES = (1, 4, 6, 16)
"""Of a font: family, full name, name in PostScript (without spaces), family of several."""


@functools.cache
def fonts() -> list[str]:
    """Return the fonts of figures: matplotlib's own, before it a copy with Western letters alone, once one is made.

    A PDF holds a part of its font, which takes twice as long to cut out of the whole one; the letters are the same.
    """
    import matplotlib as mpl
    from matplotlib import font_manager

    own, short = "DejaVu Sans", "medpeft sans"
    path = default_data_root() / "fonts" / f"{short.replace(' ', '-')}-{mpl.__version__}.ttf"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(
                path, lambda temporary: _write_short_font(font_manager.findfont(own), short, temporary)
            )
    except OSError:
        return [own]
    font_manager.fontManager.addfont(path)
    return [short, own]


def _write_short_font(whole: str, family: str, path: Path) -> None:
    from fontTools import subset

    options = subset.Options(glyph_names=True, layout_features=["*"], legacy_kern=True, name_IDs=["*"])
    options.drop_tables += ["MATH", "FFTM"]
    with subset.load_font(whole, options) as font:
        cut = subset.Subsetter(options)
        cut.populate(unicodes=itertools.chain(*_SIGNS))
        cut.subset(font)
        for record in font["name"].names:
            if record.nameID in _NAMES:  # another font has another name, as its licence wants
                record.string = family.replace(" ", "-") if record.nameID == 6 else family
        subset.save_font(font, str(path), options)


def _save(drawing: Drawing, picture: Picture) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    # not savefig: it draws each figure twice, the first time only to lay it out, and the layout is frozen already
    named = {"Software": "medpeft-bench", "Title": drawing.title, "Description": drawing.caption}
    undated = {"CreationDate": None, "Title": drawing.title, "Subject": drawing.caption}
    png, pdf = BytesIO(), BytesIO()
    FigureCanvasAgg(drawing.figure).print_png(png, metadata=named)
    FigureCanvasPdf(drawing.figure).print_pdf(pdf, metadata=undated)
    for path, content in zip(picture.files, (png.getvalue(), pdf.getvalue()), strict=True):
        write_whole(path, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]


# --- words of a figure ----------------------------------------------------------------------------------------


def axis_label(metric: Metric, rows: Iterable[Row] = (), keys: Collection[Key] = ()) -> str:
    """Return the name of a metric with its unit and the samples behind its scores: ``ACC (%), n = 1000``."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return ", ".join(filter(None, (metric.title + unit, samples_text(rows, keys))))


def samples_text(rows: Iterable[Row], keys: Collection[Key]) -> str:
    """Return the samples behind scores, smallest and largest of the rows: ``n = 1000``; empty if nothing says it."""
    counts = {row.scores[key].n for row in rows for key in keys if key in row.scores} - {0, None}
    return f"n = {span(filter(None, counts))}" if counts else ""


def seeds_text(rows: Iterable[Row]) -> str:
    """Return how many runs stand behind each method: ``one seed``, ``3 seeds``, ``1 to 3 seeds``."""
    counts = [score.seeds for row in rows for score in row.scores.values()]
    if max(counts, default=0) < 2:
        return "one seed" if counts else "no seed"
    return f"{span(counts)} seeds"


def bars_text(rows: Iterable[Row]) -> str:
    """Return what the bars at scores are, as far as these rows know their seeds."""
    known = any(score.sd is not None for row in rows for score in row.scores.values())
    seeds = " and training seeds" if known else "; one seed, so training is not in it"
    return f"95 % intervals over test patients{seeds}"


def unranked_text(rows: Iterable[Row]) -> str:
    """Return a sentence on what hollow markers are, if there are any."""
    solid = all(row.compared(key) for row in rows for key in row.scores)
    return "" if solid else " Hollow markers: not comparable with the others."
