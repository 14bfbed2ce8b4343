"""Rendered tables as Markdown, LaTeX and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmark.report.tables.columns import (
    APART_MARK,
    NOTE_MARK,
    TIED_MARK,
    Cell,
    Column,
    Part,
    Rendered,
    column_groups,
)

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}
_TERMINAL_COSTS = ("trainable_parameters", "step_time_p50_s")
DIFFERENCES = "Which differences matter"
"""Heading of the words on differences."""
DOUBTS = "Doubts"


def markdown(rendered: Sequence[Rendered]) -> str:
    """The tables as Markdown, one section per block."""
    return "\n".join(_markdown_block(item) for item in rendered)


def latex(rendered: Sequence[Rendered]) -> str:
    """The tables as LaTeX (packages booktabs and graphicx), one ``table*`` per block."""
    return "\n".join(_latex_block(item) for item in rendered)


def terminal(rendered: Sequence[Rendered]) -> RenderableType:
    """The tables for the final screen: accuracy and AUC with their intervals below, parameters, step time; doubts last.

    A doubt that several tables share is told once.
    """
    tables = [item for item in rendered if item.block.rows]
    told: dict[tuple[str, str], str] = {}
    for doubt in (doubt for item in tables for doubt in item.doubts):
        told.setdefault((doubt.kind, doubt.text), f"{NOTE_MARK} {doubt}")
    ending = [Text(f"\n{DOUBTS}\n", style="bold yellow").append("\n".join(told.values()), style="not bold")]
    return Group(*(part for item in tables for part in _terminal_block(item)), *(ending if told else []))


# --- Markdown -----------------------------------------------------------------------------------------------


def _markdown_block(item: Rendered) -> str:
    lines = [f"### {_md(item.heading)}", "", *_md_table(item.columns, (*item.rows, *item.references))]
    lines += ["", _md(item.caption), "", *(f"- {_md(NOTE_MARK + ' ' + note)}" for note in item.notes)]
    if item.doubts:
        lines += [
            "",
            f"#### {DOUBTS}",
            "",
            *(f"- {_md(NOTE_MARK + ' ' + str(doubt))}" for doubt in item.doubts),
        ]
    if item.costs.columns:
        lines += ["", *_md_table(item.costs.columns, item.costs.rows), "", _md(item.costs.caption)]
    if item.words:
        lines += ["", f"#### {DIFFERENCES}", "", *(f"- {_md(line)}" for line in item.words)]
    return "\n".join(lines).rstrip() + "\n"


def _md_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[str]:
    heads = [_md(column.full) for column in columns]
    return [
        _md_row(heads),
        _md_row(["---", *["---:"] * (len(heads) - 1)]),
        *(_md_row([_md_cell(cell) for cell in row]) for row in rows),
    ]


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(cell: Cell) -> str:
    text = {"best": f"**{cell.text}**", "second": f"<u>{cell.text}</u>", "": _md(cell.text)}[cell.rank]
    return f"{text}{cell.mark} {_md(cell.detail)}".strip()


def _md(text: str) -> str:
    escaped = "".join("\\" + sign if sign in "\\`*_|<>#" else sign for sign in " ".join(text.split()))
    return escaped.replace("](", "]\\(")  # else a name could be a link, or an image that is fetched


# --- LaTeX --------------------------------------------------------------------------------------------------


def tex_escape(text: str) -> str:
    """Escape text for LaTeX; "+-" becomes the sign."""
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.split())).replace("+-", r"$\pm$")


def _latex_block(item: Rendered) -> str:
    told = (*item.notes, *item.doubts)
    caption = [f"{item.heading}.", item.caption, *(f"{NOTE_MARK} {line}" for line in told)]
    scores = _latex_table(item.columns, item.rows, item.references, caption)
    if not item.costs.columns:
        return scores
    costs: Part = item.costs
    return scores + "\n" + _latex_table(costs.columns, costs.rows, (), [f"{item.heading}.", costs.caption])


def _latex_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    references: Sequence[Sequence[Cell]],
    caption: Sequence[str],
) -> str:
    heads, rules, start = [], [], 1
    for title, span in column_groups(columns):
        heads.append(rf"\multicolumn{{{span}}}{{c}}{{{tex_escape(title)}}}" if title else "")
        rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if title else []
        start += span
    lines = [
        r"\begin{table*}",
        rf"\caption{{{' '.join(tex_escape(part) for part in caption)}}}",
        r"\centering",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        _tex_row(heads),
        "".join(rules),
        _tex_row([tex_escape(column.head) for column in columns]),
        r"\midrule",
        *(_tex_row([_tex_cell(cell) for cell in row]) for row in rows),
        r"\midrule" if references else "",
        *(_tex_row([_tex_cell(cell) for cell in row]) for row in references),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _tex_cell(cell: Cell) -> str:
    text = tex_escape(cell.text)
    text = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", "": text}[cell.rank]
    text += f"${cell.mark}$" if cell.tied else cell.mark
    return text + (rf" {{\scriptsize {tex_escape(cell.detail)}}}" if cell.detail else "")


# --- terminal -----------------------------------------------------------------------------------------------


def _terminal_block(item: Rendered) -> list[RenderableType]:
    table = Table(title=Text(item.heading), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    chosen = [number for number, column in enumerate(item.columns) if _on_terminal(column, item)]
    costs = [number for number, column in enumerate(item.costs.columns) if column.metric in _TERMINAL_COSTS]
    for number in chosen:
        column = item.columns[number]
        samples = [f"n={column.samples}"] if column.samples else []
        head = Text("\n".join([*column.title.split(), column.head, *samples]))
        fixed = column.role == "measured"
        table.add_column(head, justify="right" if number else "left", no_wrap=fixed, overflow="fold")
    for number in costs:
        column = item.costs.columns[number]
        words = [column.title.split()[0], *column.head.removeprefix("all").split()]
        table.add_column(Text("\n".join(words)), justify="right", overflow="fold")
    priced = item.costs.rows or ((),) * len(item.rows)
    for row, prices, measured in zip(item.rows, priced, item.block.rows, strict=True):
        if not measured.missing:
            table.add_row(*(_terminal_cell(row[at]) for at in chosen), *(prices[at].text for at in costs))
    for row in item.references:
        if any(row[number].text for number in chosen[1:]):
            table.add_row(*(_terminal_cell(row[number]) for number in chosen), style="dim")
    lines = [f"{NOTE_MARK} {note}" for note in item.notes]
    legend = "Mean over seeds; below: 95 % bootstrap interval. Best bold, second underlined"
    legend += f", {TIED_MARK} tied with best"
    legend += f", {APART_MARK} not compared: other data." if any(map(_is_apart, item.rows)) else "."
    return [table, Text("\n".join([legend, *lines, *item.short]), style="dim")]


def _is_apart(row: Sequence[Cell]) -> bool:
    return any(cell.apart for cell in row)


def _on_terminal(column: Column, item: Rendered) -> bool:
    measured = column.role == "measured" and column.metric in item.block.headline(column.task)
    return column.role == "method" or measured


def _terminal_cell(cell: Cell) -> Text:
    text = Text(cell.text, style={"best": "bold", "second": "underline", "": ""}[cell.rank])
    text.append(cell.mark, style="not bold not underline")
    # Six columns of scores must fit: no spread over seeds here, and the interval below, without brackets.
    bounds = cell.interval.strip("[]").replace(", ", "-")
    return text.append(f"\n{bounds}", style="not bold not underline dim") if bounds else text
