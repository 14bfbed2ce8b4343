"""Tables as Markdown, LaTeX and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from benchmark.report.tables.table import APART_MARK, NOTE_MARK, TIED_MARK, Cell, Column, Table

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}
_TERMINAL_COSTS = ("trainable_parameters", "step_time_p50_s")


# --- Markdown -----------------------------------------------------------------------------------------------


def markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown, one section each."""
    return "\n".join(_md_section(table) for table in tables)


def _md_section(table: Table) -> str:
    caption = _md(table.caption) + "\n" * (not table.notes)
    parts = [f"### {_md(table.heading)}", _md_table(table), caption, _md_list(table.note_lines)]
    if table.doubts:
        parts += ["#### Doubts", _md_list(table.doubt_lines)]
    if table.costs:
        parts += [_md_table(table.costs), _md(table.costs.caption)]
    if table.words:
        parts += ["#### Which differences matter", _md_list(table.words)]
    return "\n\n".join(filter(None, parts)).rstrip() + "\n"


def _md_list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_md(line)}" for line in lines)


def _md_table(table: Table) -> str:
    heads = [_md(column.full) for column in table.columns]
    rows = [[_md_cell(cell) for cell in row] for row in (*table.rows, *table.references)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md_cell(cell: Cell) -> str:
    text = {"best": f"**{cell.text}**", "second": f"<u>{cell.text}</u>", "": _md(cell.text)}[cell.rank]
    return f"{text}{cell.mark} {_md(cell.detail)}".strip()


def _md(text: str) -> str:
    escaped = "".join("\\" + sign if sign in "\\`*_|<>#" else sign for sign in " ".join(text.split()))
    return escaped.replace("](", "]\\(")  # else a name could be a link, or an image that is fetched


# --- LaTeX --------------------------------------------------------------------------------------------------


def latex(tables: Sequence[Table]) -> str:
    """The tables as LaTeX (packages booktabs and graphicx), one ``table*`` each and one for its costs."""
    texts = []
    for table in tables:
        texts.append(
            _tex_table(table, [f"{table.heading}.", table.caption, *table.note_lines, *table.doubt_lines])
        )
        if table.costs:
            texts.append(_tex_table(table.costs, [f"{table.heading}.", table.costs.caption]))
    return "\n".join(texts)


def _tex(text: str) -> str:
    """Escape text for LaTeX; "+-" becomes the sign."""
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.split())).replace("+-", r"$\pm$")


def _tex_table(table: Table, caption: Sequence[str]) -> str:
    heads, rules, start = [], [], 1
    for title, span in table.groups:
        heads.append(rf"\multicolumn{{{span}}}{{c}}{{{_tex(title)}}}" if title else "")
        rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if title else []
        start += span
    rows, references = (
        [_tex_row(map(_tex_cell, row)) for row in part] for part in (table.rows, table.references)
    )
    lines = [
        r"\begin{table*}",
        rf"\caption{{{' '.join(map(_tex, caption))}}}",
        r"\centering",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        _tex_row(heads),
        "".join(rules),
        _tex_row(_tex(column.head) for column in table.columns),
        r"\midrule",
        *rows,
        r"\midrule" if references else "",
        *references,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    return "\n".join(filter(None, lines)) + "\n"


def _tex_row(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    text = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", "": text}[cell.rank]
    text += f"${cell.mark}$" if cell.tied else cell.mark
    return text + (rf" {{\scriptsize {_tex(cell.detail)}}}" if cell.detail else "")


# --- terminal -----------------------------------------------------------------------------------------------


def terminal(tables: Sequence[Table]) -> RenderableType:
    """The tables for the final screen: headline scores with their intervals below, parameters, step time; doubts last.

    A doubt that several tables share is told once.
    """
    tables = [table for table in tables if table.block.rows]
    told: dict[tuple[str, str], str] = {}
    for doubt in (doubt for table in tables for doubt in table.doubts):
        told.setdefault((doubt.kind, doubt.text), f"{NOTE_MARK} {doubt}")
    ending = [Text("\nDoubts\n", style="bold yellow").append("\n".join(told.values()), style="not bold")]
    return Group(*(part for table in tables for part in _screen(table)), *(ending if told else []))


def _screen(table: Table) -> list[RenderableType]:
    grid = Grid(title=Text(table.heading), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    scores = [number for number, column in enumerate(table.columns) if _is_headline(column, table)]
    priced = table.costs or Table((), ((),) * len(table.rows), "", table.block)
    costs = [number for number, column in enumerate(priced.columns) if column.metric in _TERMINAL_COSTS]
    grid.add_column(Text(table.columns[0].head), overflow="fold")
    for column in (table.columns[number] for number in scores):
        samples = [f"n={column.samples}"] if column.samples else []
        head = Text("\n".join([*column.title.split(), column.head, *samples]))
        grid.add_column(head, justify="right", no_wrap=True, overflow="fold")
    for column in (priced.columns[number] for number in costs):
        words = [column.title.split()[0], *column.head.removeprefix("all").split()]
        grid.add_column(Text("\n".join(words)), justify="right", overflow="fold")
    for cells, prices, row in zip(table.rows, priced.rows, table.block.rows, strict=True):
        if not row.missing:
            grid.add_row(
                *(_screen_cell(cells[at]) for at in (0, *scores)), *(prices[at].text for at in costs)
            )
    for cells in table.references:
        if any(cells[at].text for at in scores):
            grid.add_row(*(_screen_cell(cells[at]) for at in (0, *scores)), style="dim")
    apart = any(cell.apart for cells in table.rows for cell in cells)
    legend = "Mean over seeds; below: 95 % bootstrap interval. Best bold, second underlined"
    legend += f", {TIED_MARK} tied with best"
    legend += f", {APART_MARK} not compared: other data." if apart else "."
    lines = [legend, *table.note_lines, *table.short]
    return [grid, Text("\n".join(lines), style="dim")]


def _is_headline(column: Column, table: Table) -> bool:
    return column.role == "measured" and column.metric in table.block.headline(column.task)


def _screen_cell(cell: Cell) -> Text:
    text = Text(cell.text, style={"best": "bold", "second": "underline", "": ""}[cell.rank])
    text.append(cell.mark, style="not bold not underline")
    # Six columns of scores must fit: no spread over seeds here, and the interval below, without brackets.
    bounds = cell.interval.strip("[]").replace(", ", "-")
    return text.append(f"\n{bounds}", style="not bold not underline dim") if bounds else text
