"""The report as one HTML file that needs nothing else: tables, figures, and a part for each run.

``page.html`` and its parts are Jinja2 templates that escape everything; ``style.css`` and ``script.js`` are put into
the page. A content security policy forbids every request and every script but this one.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmark.report.figures.style import Picture
from benchmark.report.html.answer import cards
from benchmark.report.html.cells import anchor, cell_view
from benchmark.report.html.overview import facts, subject, summary
from benchmark.report.model import Block, Row
from benchmark.report.significance.decision import SIGNS
from benchmark.report.tables.doubts import row_marks
from benchmark.report.tables.table import Table, parameters_text

_FOLDER = Path(__file__).parent


def page(blocks: Sequence[Block], tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """Return index.html: what each suite answers, and folded below tables, figures, runs and a part for each run.

    Args:
        blocks: the main blocks, which hold all runs.
        tables: those to show, in this order.
        pictures: what ``write_figures`` returned; the PNGs are put into the page.
    """
    rows = [row for block in blocks for row in (*block.rows, *block.variants)]
    owners = {run.folder: (run, row) for row in rows for run in (*row.runs, *row.left_out)}
    cells = [cell_view(run, row) for run, row in owners.values()]
    anchors = {cell["anchor"] for cell in cells}
    runs = [run for run, _ in owners.values()]

    def seeds(row: Row) -> list[tuple[str, str]]:
        """Seed and anchor of each run of a row that has a part in the page."""
        own = sorted((*row.runs, *row.left_out), key=lambda run: run.by_seed)
        return [(run.seed, anchor(run)) for run in own if anchor(run) in anchors]

    found = cards(blocks, pictures)
    beside = [card.plot for card in found if card.plot is not None]
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return (
        _environment()
        .get_template("page.html")
        .render(
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            subject=subject(blocks),
            facts=facts(runs),
            summary=summary(runs),
            cards=found,
            minus=SIGNS["worse"],
            plots={picture.name: _image(picture) for picture in beside},
            tables=tables,
            seeds=seeds,
            marks=lambda row: [] if row.missing else row_marks(row),
            pictures=[_image(picture) for picture in pictures if picture not in beside],
            runs=cells,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "signs": lambda text: text.replace("+-", "\u00b1"),
        "duration": lambda seconds: "" if seconds is None else f"{seconds:.0f} s",
        "count": parameters_text,
    }
    return environment


def _policy(style: str, script: str) -> str:
    """Allow this style, this script and images inside the page; nothing from outside, and no other script."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    style_hash, script_hash = hashes
    return (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'"
    )


def _image(picture: Picture) -> dict[str, Any]:
    """A figure inside the page, with its size in pixels; ``short`` is its title without the suite and backbone."""
    data = picture.png.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # the first chunk of a PNG
    return {
        "anchor": picture.name,
        "place": picture.place,
        "title": picture.title,
        "short": picture.title.removesuffix(f": {picture.place}"),
        "caption": picture.caption,
        "source": f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}",
        "width": width,
        "height": height,
    }
