"""Rendered tables as Markdown, LaTeX and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmark.report.tables import NOTE_MARK, Cell, Column, Rendered, column_groups

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}
_TERMINAL_METRICS = ("acc", "auroc", "dice", "map")


def markdown(rendered: Sequence[Rendered]) -> str:
    """The tables as Markdown, one section per block."""
    return "\n".join(_markdown_block(item) for item in rendered)


def latex(rendered: Sequence[Rendered]) -> str:
    """The tables as LaTeX (packages booktabs and graphicx), one ``table*`` per block."""
    return "\n".join(_latex_block(item) for item in rendered)


def terminal(rendered: Sequence[Rendered]) -> RenderableType:
    """The tables for the final screen: accuracy and AUC with their intervals below, parameters, step time."""
    return Group(*(part for item in rendered for part in _terminal_block(item)))


# --- Markdown -----------------------------------------------------------------------------------------------


def _markdown_block(item: Rendered) -> str:
    heads = [_md(f"{column.group} {column.head}".strip()) for column in item.columns]
    lines = [f"### {_md(item.heading)}", "", _md_row(heads), _md_row(["---", *["---:"] * (len(heads) - 1)])]
    lines += [_md_row([_md_cell(cell) for cell in row]) for row in (*item.rows, *item.references)]
    lines += ["", _md(item.caption), "", *(f"- {_md(NOTE_MARK + ' ' + note)}" for note in item.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(cell: Cell) -> str:
    text = {"best": f"**{cell.text}**", "second": f"<u>{cell.text}</u>", "": _md(cell.text)}[cell.rank]
    return f"{text} {_md(cell.detail)}".strip()


def _md(text: str) -> str:
    return "".join("\\" + sign if sign in "\\`*_|<>#" else sign for sign in " ".join(text.split()))


# --- LaTeX --------------------------------------------------------------------------------------------------


def tex_escape(text: str) -> str:
    """Escape text for LaTeX; "+-" becomes the sign."""
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.split())).replace("+-", r"$\pm$")


def _latex_block(item: Rendered) -> str:
    heads, rules, start = [], [], 1
    for title, span in column_groups(item.columns):
        heads.append(rf"\multicolumn{{{span}}}{{c}}{{{tex_escape(title)}}}" if title else "")
        rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if title else []
        start += span
    caption = [f"{item.heading}.", item.caption, *(f"{NOTE_MARK} {note}" for note in item.notes)]
    lines = [
        r"\begin{table*}",
        rf"\caption{{{' '.join(tex_escape(part) for part in caption)}}}",
        r"\centering",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(item.columns) - 1)}}}",
        r"\toprule",
        _tex_row(heads),
        "".join(rules),
        _tex_row([tex_escape(column.head) for column in item.columns]),
        r"\midrule",
        *(_tex_row([_tex_cell(cell) for cell in row]) for row in item.rows),
        r"\midrule",
        *(_tex_row([_tex_cell(cell) for cell in row]) for row in item.references),
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
    return text + (rf" {{\scriptsize {tex_escape(cell.detail)}}}" if cell.detail else "")


# --- terminal -----------------------------------------------------------------------------------------------


def _terminal_block(item: Rendered) -> list[RenderableType]:
    table = Table(title=Text(item.heading), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    chosen = [number for number, column in enumerate(item.columns) if _on_terminal(column)]
    for number in chosen:
        column = item.columns[number]
        head = Text("\n".join([*column.group.split(), column.head]))
        fixed = column.role == "measured"
        table.add_column(head, justify="right" if number else "left", no_wrap=fixed, overflow="fold")
    for row in (*item.rows, *item.references):
        is_reference = row in item.references
        table.add_row(
            *(_terminal_cell(row[number]) for number in chosen), style="dim" if is_reference else None
        )
    lines = [f"{NOTE_MARK} {note}" for note in item.notes]
    legend = "Percent, mean over seeds; below: 95 % bootstrap interval. Best bold, second underlined."
    return [table, Text("\n".join([legend, *lines]), style="dim")]


def _on_terminal(column: Column) -> bool:
    return column.role in ("method", "cost") or (
        column.role == "measured" and column.metric in _TERMINAL_METRICS
    )


def _terminal_cell(cell: Cell) -> Text:
    text = Text(cell.text, style={"best": "bold", "second": "underline", "": ""}[cell.rank])
    # Six columns of scores must fit: no spread over seeds here, and the interval below, without brackets.
    bounds = cell.interval.strip("[]").replace(", ", "-")
    return text.append(f"\n{bounds}", style="not bold not underline dim") if bounds else text
