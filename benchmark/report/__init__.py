"""Tables, figures and one HTML page from the result store; nothing here trains or evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmark.errors import ConfigError, StoreError, unknown
from benchmark.report.collect import Block, collect_blocks
from benchmark.report.formats import latex, markdown, terminal
from benchmark.report.paper import load_paper
from benchmark.report.tables import render, table_frame
from benchmark.store import write_whole

if TYPE_CHECKING:
    from rich.console import RenderableType

TABLES = ("1",)
FORMATS = ("md", "tex", "csv", "html")


def write_report(
    output_dir: Path,
    *,
    suite: str | None = None,
    tables: Sequence[str] = TABLES,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Write ``<output_dir>/report/``: tables, efficiency.csv, figures and index.html.

    Args:
        output_dir: folder of the store.
        suite: only runs of this suite; all of them if left out.
        tables: table ids, of ``TABLES``.
        formats: of ``FORMATS``; "html" is the page and the figures in it.

    Returns:
        The files written.

    Raises:
        ConfigError: a table or format is not known.
        StoreError: the store has no runs (of this suite).
    """
    problems = [unknown("table", item, TABLES) for item in tables if item not in TABLES]
    problems += [unknown("format", item, FORMATS) for item in formats if item not in FORMATS]
    if problems:
        raise ConfigError(problems)
    paper = load_paper()
    blocks = _blocks(output_dir, suite)
    rendered = [render(block, paper) for block in blocks]
    folder = output_dir / "report"
    texts = {f"table_{name}.md": markdown(rendered) for name in tables if "md" in formats}
    texts |= {f"table_{name}.tex": latex(rendered) for name in tables if "tex" in formats}
    if "csv" in formats:
        texts |= {f"table_{name}.csv": table_frame(blocks, paper).to_csv(index=False) for name in tables}
        texts["efficiency.csv"] = efficiency_frame(blocks).to_csv(index=False)
    written = [_write(folder / name, text) for name, text in texts.items()]
    if "html" in formats:
        # Imported here: the final screen of a run needs no matplotlib.
        from benchmark.report.figures import write_figures
        from benchmark.report.html import page
        from benchmark.report.panels import write_panels

        figures = [*write_figures(blocks, folder), *write_panels(blocks, folder)]
        written += [*figures, _write(folder / "index.html", page(blocks, rendered, figures))]
    return written


def console_table(output_dir: Path, *, suite: str | None = None) -> RenderableType:
    """The table of the final screen, for ``rich``: scores with intervals, trainable parameters, step time.

    Raises:
        StoreError: the store has no runs (of this suite).
    """
    paper = load_paper()
    return terminal([render(block, paper) for block in _blocks(output_dir, suite)])


def efficiency_frame(blocks: Sequence[Block]) -> pd.DataFrame:
    """Costs per method, means over seeds: all numbers of efficiency.json (nested keys joined by "_")."""
    frame: pd.DataFrame = pd.DataFrame(
        {
            "suite": block.suite,
            "backbone": block.backbone,
            "method": row.method,
            "title": row.title,
            "seeds": len(row.runs),
            **row.efficiency,
        }
        for block in blocks
        for row in block.rows
    )
    return frame


def _blocks(output_dir: Path, suite: str | None) -> list[Block]:
    blocks = collect_blocks(output_dir, load_paper(), suite)
    if not blocks:
        wanted = f" of suite '{suite}'" if suite else ""
        raise StoreError(
            f"{output_dir}: no runs{wanted} to report. Run the benchmark with this --output-dir first"
        )
    return blocks


def _write(path: Path, text: str) -> Path:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
