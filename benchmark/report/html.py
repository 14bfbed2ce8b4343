"""The report as one HTML file that needs nothing else: tables, figures, and where each number comes from."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from benchmark.report.collect import Block, Run
from benchmark.report.tables import NOTE_MARK, Cell, Column, Rendered, column_groups, parameters_text

_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d1d1f; margin: 2rem auto; max-width: 1400px;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead tr:first-child th { border-top: 2px solid #1d1d1f; text-align: center; }
thead tr:last-child th, tbody.methods tr:last-child td, tfoot tr:last-child td {
  border-bottom: 1px solid #1d1d1f; }
tbody tr:hover { background: #f4f6f8; }
td small { color: #6a6a70; font-size: 11.5px; } small.below { display: block; }
td.paper, th.paper { color: #7a4b00; background: #fdf8ef; }
.best { font-weight: 700; } .second { text-decoration: underline; }
tfoot td { color: #55555c; font-style: italic; }
td.left, thead tr:first-child th.left { text-align: left; } td.wrap { white-space: normal; min-width: 16rem; }
p.caption, li { color: #45454b; font-size: 13.5px; max-width: 62rem; }
img { max-width: 100%; height: auto; }
"""
_RUN_HEADS = ("Suite", "Backbone", "Method", "Seed", "Status", "Wall time", "Trainable", "Made by", "Problem")


def page(blocks: Sequence[Block], rendered: Sequence[Rendered], figures: Sequence[Path]) -> str:
    """Return index.html: one section per block with its table and figures, then all runs.

    Args:
        blocks: what ``collect_blocks`` found.
        rendered: the tables of the blocks.
        figures: files written by ``write_figures``; the PNGs are embedded.
    """
    images = [path for path in figures if path.suffix == ".png"]
    parts = [_table_section(item) for item in rendered]
    if images:
        parts += ["<h2>Figures</h2>", *map(_image, images)]
    runs = [run for block in blocks for row in block.rows for run in (*row.runs, *row.left_out)]
    parts += ["<h2>Runs</h2>", _runs_table(runs)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>medpeft-bench report</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        "<h1>medpeft-bench report</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _table_section(item: Rendered) -> str:
    groups = "".join(
        f'<th colspan="{span}">{escape(title)}</th>' for title, span in column_groups(item.columns)
    )
    heads = "".join(f'<th class="{column.role}">{escape(column.head)}</th>' for column in item.columns)
    notes = "".join(f"<li>{escape(f'{NOTE_MARK} {note}')}</li>" for note in item.notes)
    return (
        f"<h2>{escape(item.heading)}</h2>\n"
        f'<div class="scroll"><table><thead><tr>{groups}</tr><tr>{heads}</tr></thead>\n'
        f'<tbody class="methods">{_rows(item.columns, item.rows)}</tbody>\n'
        f"<tfoot>{_rows(item.columns, item.references)}</tfoot></table></div>\n"
        f'<p class="caption">{escape(item.caption).replace("+-", "&plusmn;")}</p>\n'
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _rows(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> str:
    return "\n".join(f"<tr>{''.join(map(_cell, columns, row))}</tr>" for row in rows)


def _cell(column: Column, cell: Cell) -> str:
    spread = f" <small>{escape(cell.spread).replace('+-', '&plusmn;')}</small>" if cell.spread else ""
    bounds = f'<small class="below">{escape(cell.interval)}</small>' if cell.interval else ""
    value = f'<span class="{cell.rank}">{escape(cell.text)}</span>' if cell.rank else escape(cell.text)
    return f'<td class="{column.role}">{value}{spread}{bounds}</td>'


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>'


def _runs_table(runs: Sequence[Run]) -> str:
    heads = "".join(f'<th class="left">{escape(head)}</th>' for head in _RUN_HEADS)
    rows = "\n".join(f"<tr>{_run_cells(run)}</tr>" for run in runs)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _run_cells(run: Run) -> str:
    seconds = run.efficiency.get("wall_time_s")
    status = run.status + (f", limited to {run.limit}" if run.limit is not None else "")
    values = [
        run.suite,
        run.backbone,
        run.method,
        run.seed,
        status,
        f"{seconds:.0f} s" if isinstance(seconds, int | float) else "",
        parameters_text(run.efficiency.get("trainable_parameters")),
        _origin(run),
    ]
    cells = "".join(f'<td class="left">{escape(str(value))}</td>' for value in values)
    return f'{cells}<td class="left wrap">{escape(run.error)}</td>'


def _origin(run: Run) -> str:
    """Commit, torch version and device of a run, as far as its provenance tells."""
    git, packages, hardware = (run.provenance.get(key) or {} for key in ("git", "packages", "hardware"))
    commit = str(git.get("commit") or "")[:10] + (" with changes" if git.get("dirty") else "")
    torch = f"torch {packages['torch']}" if packages.get("torch") else ""
    device = ", ".join(map(str, hardware.get("gpus") or [])) or str(hardware.get("cpu") or "")
    return "; ".join(part for part in (commit, torch, device) if part)
