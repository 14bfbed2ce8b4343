"""The report as one HTML file that needs nothing else: tables, figures, and a part for each run.

``page.html`` and its parts are Jinja2 templates that escape everything; ``style.css`` and ``script.js`` are put into
the page. A content security policy forbids every request and every script but this one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmark.report.collect import Block
from benchmark.report.html.cells import cell_view
from benchmark.report.html.overview import Image, TableView, facts, image, subject, summary, table_view
from benchmark.report.tables.columns import Rendered, parameters_text

if TYPE_CHECKING:
    from benchmark.report.figures import Picture

_FOLDER = Path(__file__).parent


def page(blocks: Sequence[Block], rendered: Sequence[Rendered], pictures: Sequence[Picture]) -> str:
    """Return index.html: summary, tables, figures, the list of runs, and a part for each run.

    Args:
        blocks: the main blocks, which hold all runs.
        rendered: the tables to show, in this order.
        pictures: what ``write_figures`` returned; the PNGs are put into the page.
    """
    rows = [row for block in blocks for row in (*block.rows, *block.variants)]
    owners = {run.folder: (run, row) for row in rows for run in (*row.runs, *row.left_out)}
    cells = [cell_view(run, row) for run, row in owners.values()]
    anchors = {cell.anchor for cell in cells}
    runs = [run for run, _ in owners.values()]
    tables: list[TableView] = [
        table_view(item, f"table-{number}", anchors) for number, item in enumerate(rendered)
    ]
    images: list[Image] = [image(picture) for picture in pictures]
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
            tables=tables,
            pictures=images,
            cells=cells,
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
