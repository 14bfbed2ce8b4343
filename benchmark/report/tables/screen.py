"""The last screen of a run and of ``report``: scores, the answer, doubts, where the page is, what to type next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from benchmark.layout import GAP, Fitted
from benchmark.report.model import Row
from benchmark.report.significance.decision import Decision, Standing
from benchmark.report.significance.wording import column_text, least_text, step_text
from benchmark.report.tables.table import (
    APART_MARK,
    NOTE_MARK,
    TIED_MARK,
    Cell,
    Cells,
    Column,
    Table,
    parameters_text,
)

_STYLES = {"better": "green", "worse": "red", "tied": ""}
_HEADS = ("method", "better", "no difference", "worse", "trained", "step")


@dataclass(frozen=True)
class Screen:
    """What ends a run.

    Attributes:
        tables: of the report; those with rows that were not run are left to the files.
        page: path of index.html; empty when it was not written.
        command: what to type next; empty for nothing.
    """

    tables: Sequence[Table]
    page: str = ""
    command: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        tables = [table for table in self.tables if _is_whole(table)]
        for table in (table for table in self.tables if table.screen):
            yield from _named(table, options.max_width)
        for table in tables:
            yield from _scores(table, options.max_width)
        for table in tables:
            if table.decision is not None and table.decision.standings:
                yield from _answer(table.decision, options.max_width)
        yield from _doubts(tables)
        for label, text in (("page", self.page), ("next", self.command)):
            if text:
                # one line, whatever its length: so it can be copied
                whole = Text(f"\n{label}  ", style="bold", no_wrap=True, overflow="ignore")
                yield whole.append(text, style="not bold")


def _is_whole(table: Table) -> bool:
    """Whether it is the table of all methods, or one whose own rows were all run."""
    rows = [row for row in table.block.rows if row.difference is None]
    scored = [row for row in rows if row.scores]
    return bool(scored) if table.block.experiment is None else len(scored) == len(rows) > 1


# --- scores -------------------------------------------------------------------------------------------------


def _scores(table: Table, width: int) -> Iterator[RenderableType]:
    """Yield the headline scores: with intervals where there is room, in several grids where columns are many."""
    shown = [at for at, column in enumerate(table.columns) if _is_headline(column, table)]
    grids = [_grid(table, shown, gap, references=True) for gap in (" ", "\n", None)]
    fitting = next((grid for grid in grids if grid.width() <= width), None)
    with_intervals = fitting in grids[:2]
    yield Text(f"\n{table.heading}", style="bold")
    yield from [fitting] if fitting is not None else _split(table, shown, width)
    apart = any(cell.apart for cells in table.rows for cell in cells)
    parts = ["Mean over seeds" + "; small: 95 % interval over test patients" * with_intervals]
    parts += ["Best bold, second underlined", f"{TIED_MARK} tied with best"]
    parts += [f"{APART_MARK} not compared: other data"] * apart
    yield Text(f"{parts[0]}. {', '.join(parts[1:])}.", style="dim")


def _named(table: Table, width: int) -> Iterator[RenderableType]:
    """Yield a table that is of no experiment: with the spread over seeds where there is room."""
    spread = [[replace(cell, interval=cell.spread) for cell in cells] for cells in table.rows]
    grids = [_grid(replace(table, rows=spread), table.screen, gap) for gap in (" ", None)]
    fitting = next((grid for grid in grids if grid.width() <= width), None)
    yield Text(f"\n{table.heading}", style="bold")
    yield from [fitting] if fitting is not None else _split(table, table.screen, width)
    beside = "; in brackets: standard deviation over seeds" * (fitting is grids[0])
    yield Text(
        f"Mean over datasets and seeds{beside}. The page has labels, tests and every seed.", style="dim"
    )


def _split(table: Table, shown: Sequence[int], width: int) -> Iterator[RenderableType]:
    """Yield grids of as many columns as fit, of methods and numbers alone; a column at least each."""
    rest = list(shown)
    while rest:
        count = len(rest)
        while count > 1 and _grid(table, rest[:count], None).width() > width:
            count -= 1
        yield _grid(table, rest[:count], None)
        rest = rest[count:]
        if rest:
            yield Text()


def _grid(table: Table, shown: Sequence[int], gap: str | None, *, references: bool = False) -> Fitted:
    """The table of some columns; ``gap`` stands between a number and its interval, None: no interval."""
    columns = [table.columns[at] for at in shown]
    heads = ["\n".join([*column.title.split(), column.head, *_samples(column)]) for column in columns]
    lines = [(cells, "") for cells in (table.rows if table.name else _scored(table))]
    held = [(cells, "dim") for cells in table.references if any(cells[at].text for at in shown)]
    lines += held if references else []
    rows = [
        (_cell(cells[0], None, style), *(_cell(cells[at], gap, style) for at in shown))
        for cells, style in lines
    ]
    return Fitted(("method", *heads), tuple(rows), right=frozenset(heads))


def _scored(table: Table) -> list[Cells]:
    """The rows that have scores."""
    return [cells for cells, row in zip(table.rows, table.block.rows, strict=True) if row.scores]


def _samples(column: Column) -> list[str]:
    return [f"n={column.samples}"] if column.samples else []


def _is_headline(column: Column, table: Table) -> bool:
    return column.role == "measured" and column.metric in table.block.headline(column.task)


def _cell(cell: Cell, gap: str | None, style: str) -> Text:
    text = Text(cell.text, style={"best": "bold", "second": "underline", "": style}[cell.rank])
    text.append(cell.mark, style="not bold not underline")
    bounds = cell.interval.strip("[]").replace(", ", "-") if gap is not None else ""
    return text.append(f"{gap}{bounds}", style="not bold not underline dim") if bounds else text


# --- the answer ---------------------------------------------------------------------------------------------


def _answer(decision: Decision, width: int) -> Iterator[RenderableType]:
    """Yield a line of verdict per method, the best of each column with its ties, and what that means in words."""
    columns, base = len(decision.keys), decision.base
    against = f"against {base.title}" if base else "against the best of each column"
    yield Text(f"\nMethods {against}, in how many of {columns} columns", style="bold")
    rows = [*(_verdict(one) for one in decision.standings), *([_base_line(base)] if base else [])]
    yield Fitted(
        _HEADS,
        tuple(rows),
        right=frozenset(_HEADS[4:]),
        gives_way=("step", "trained"),
        whole=frozenset(_HEADS),
    )
    yield Text(
        "(>= 2.4): by 2.4 points at least, the near end of the 95 % interval. A difference counts from "
        f"{least_text(decision.block)} on (docs/statistics.md).",
        style="dim",
    )
    if decision.best:
        yield Text("\nBest of each column", style="bold")
        yield _best(decision, width)
    if decision.sentences:
        yield Text("\n" + "\n".join(decision.sentences))


def _verdict(one: Standing) -> tuple[Text, ...]:
    words = [
        Text(f"{count} (>= {least})" if (least := one.least(sign)) and sign != "tied" else f"{count}",
             style=_STYLES[sign])
        if (count := one.count(sign)) else Text("-", style="dim")
        for sign in ("better", "tied", "worse")
    ]  # fmt: skip
    return (Text(one.row.title), *words, *_costs(one.row))


def _base_line(row: Row) -> tuple[Text, ...]:
    return (Text(row.title, style="dim"), Text("baseline", style="dim"), Text(), Text(), *_costs(row))


def _costs(row: Row) -> tuple[Text, Text]:
    step = step_text(row.efficiency.get("step_time_p50_s")) or "-"
    return Text(parameters_text(row.efficiency.get("trainable_parameters"))), Text(step)


def _best(decision: Decision, width: int) -> Fitted:
    """The best row of each column; names of tied ones stay whole, so lines are broken between them."""
    block = decision.block
    heads = [column_text(block, one.key) for one in decision.best]
    values = [block.metric(one.key).text(one.row.scores[one.key].value) for one in decision.best]
    firsts = [f"{one.row.title} {value}" for one, value in zip(decision.best, values, strict=True)]
    room = width - sum(max(map(cell_len, texts)) for texts in (heads, firsts)) - 2 * GAP
    rows = tuple(
        (Text(head), Text(first, style="bold"), Text(_name_lines(one.tied, room) or "-"))
        for head, first, one in zip(heads, firsts, decision.best, strict=True)
    )
    return Fitted(("column", "best", "tied with it"), rows, whole=frozenset(("best", "tied with it")))


def _name_lines(rows: Sequence[Row], room: int) -> str:
    """Names by commas, in lines of at most ``room`` where that is possible."""
    lines = [""]
    for number, row in enumerate(rows):
        name = row.title + "," * (number < len(rows) - 1)
        if lines[-1] and cell_len(f"{lines[-1]} {name}") > room:
            lines.append(name)
        else:
            lines[-1] = f"{lines[-1]} {name}".strip()
    return "\n".join(lines)


# --- doubts -------------------------------------------------------------------------------------------------


def _doubts(tables: Sequence[Table]) -> Iterator[RenderableType]:
    """Yield the doubts of all tables, each told once."""
    told: dict[tuple[str, str], str] = {}
    for doubt in (doubt for table in tables for doubt in table.doubts):
        told.setdefault((doubt.kind, doubt.text), str(doubt))
    if told:
        yield Text("\nDoubts", style="bold yellow")
    for line in told.values():
        yield Text(f"{NOTE_MARK} {line}")
