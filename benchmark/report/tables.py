"""What a table of the report is made of, before any format: columns, cells and parts of text; numbers as text.

In files every number is a fraction; percent appears only in rendered cells. Best and second best are marked
among rows that may be compared: whole runs of one suite and backbone, never reference rows or the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.report.collect import Block, Doubt

Role = Literal["method", "switch", "paper", "measured", "difference", "cost"]
Rank = Literal["", "best", "second"]
NOTE_MARK = "*"
TIED_MARK = "="
SHARED_MARK = "(s)"
APART_MARK = "(d)"


@dataclass(frozen=True)
class Column:
    """One rendered column: a score of a dataset, the paper's number for it, their difference, or a cost.

    Attributes:
        head: what stands in the column, with its unit.
        group: what several columns stand under, with the number of samples.
        title: the group without it.
        samples: number of samples as text, such as "1000"; empty where it has no meaning.
    """

    role: Role
    head: str
    dataset: str = ""
    group: str = ""
    metric: str = ""
    task: str = ""
    title: str = ""
    samples: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Key of the column's score."""
        return self.task, self.dataset, self.metric

    @property
    def full(self) -> str:
        """All of the head in one line: "RSNA ACC [%], n = 4003"."""
        return f"{self.title or self.group} {self.head}".strip() + (
            f", n = {self.samples}" if self.samples else ""
        )


@dataclass(frozen=True)
class Cell:
    """Rendered content of one cell, before escaping: number, what stands beside it, interval, and its rank.

    Attributes:
        tied: a paired test shows no difference that matters from the best of its column.
        apart: made of other data or by another version than the others, so that it is not compared with them.
    """

    text: str
    spread: str = ""
    interval: str = ""
    rank: Rank = ""
    tied: bool = False
    apart: bool = False

    @property
    def mark(self) -> str:
        """What stands right behind the number."""
        return (TIED_MARK if self.tied else "") + (APART_MARK if self.apart else "")

    @property
    def detail(self) -> str:
        """What stands beside the number."""
        return f"{self.spread} {self.interval}".strip()


@dataclass(frozen=True)
class Part:
    """Columns and rows of text under one caption."""

    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Rendered:
    """A block as columns and rows of text.

    Attributes:
        table: id of the table in the paper, or the experiment's own.
        references: rows of what a score must beat, and ceilings.
        notes: what a reader must know of the rows. doubts: why numbers may not be what they seem.
        costs: the same rows with what they cost; empty where nothing was run.
        words: in words, which differences matter.
        short: the same for the terminal.
    """

    block: Block
    heading: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    references: tuple[tuple[Cell, ...], ...]
    caption: str
    notes: tuple[str, ...]
    doubts: tuple[Doubt, ...] = ()
    table: str = "1"
    costs: Part = Part()
    words: tuple[str, ...] = ()
    short: tuple[str, ...] = ()


def column_groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Runs of columns under one head: (title or empty, number of columns)."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and column.group and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups


# --- numbers as text ----------------------------------------------------------------------------------------


def parameters_text(value: float | None) -> str:
    """969217 -> "969 K", 196000000 -> "196 M"; three digits."""
    if value is None:
        return "-"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= size:
            return three_digits(value / size) + unit
    return f"{value:.0f}"


def three_digits(value: float) -> str:
    """A positive number with three digits, or all of those before the point: 0.0123, 1.50, 969, 4003."""
    if value == 0 or value >= 100:
        return f"{value:.0f}"
    decimals = 3 - len(str(int(value))) if value >= 1 else 4 if value < 0.1 else 3
    return f"{value:.{decimals}f}"
