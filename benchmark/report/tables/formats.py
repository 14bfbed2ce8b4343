"""Tables as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmark.report.significance.decision import Decision, rule_text
from benchmark.report.tables.table import Cell, Table

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


# --- Markdown -----------------------------------------------------------------------------------------------


def markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown, one section each."""
    return "\n".join(_md_section(table) for table in tables)


def _md_section(table: Table) -> str:
    caption = _md(table.caption) + "\n" * (not table.notes)
    parts = [f"### {_md(table.heading)}", *_md_answer(table.decision)]
    parts += [_md_table(table), caption, _md_list(table.note_lines)]
    if table.doubts:
        parts += ["#### Doubts", _md_list(table.doubt_lines)]
    if table.costs:
        parts += [_md_table(table.costs), _md(table.costs.caption)]
    if table.words:
        parts += ["#### Which differences matter", _md_list(table.words)]
    return "\n\n".join(filter(None, parts)).rstrip() + "\n"


def _md_answer(decision: Decision | None) -> list[str]:
    """What the table answers: sentences, and one line per method."""
    if decision is None or not decision.sentences:
        return []
    lines = [f"{one.row.title}: {one.text}" for one in decision.standings]
    return [_md(" ".join(decision.sentences)), _md_list(lines), _md(rule_text(decision.block))]


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
