"""The table model: columns, text cells, caption and notes; each format is a rendering of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmark.report.model import Block, Doubt, Key
from benchmark.report.significance.decision import Decision
from benchmark.report.significance.wording import three_digits

Role = Literal["method", "switch", "paper", "measured", "difference", "cost"]
Rank = Literal["", "best", "second"]
NOTE_MARK, TIED_MARK, SHARED_MARK, APART_MARK = "*", "=", "(s)", "(d)"


@dataclass(frozen=True)
class Column:
    """One column: a score of a dataset, the paper's number for it, their difference, a cost, or text.

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
    def key(self) -> Key:
        """Key of the column's score."""
        return self.task, self.dataset, self.metric

    @property
    def full(self) -> str:
        """All of the head in one line: "RSNA ACC [%], n = 4003"."""
        samples = f", n = {self.samples}" if self.samples else ""
        return f"{self.title or self.group} {self.head}".strip() + samples

    @property
    def is_text(self) -> bool:
        """Whether it holds words, so that it stands at the left."""
        return self.role in ("method", "switch")


@dataclass(frozen=True)
class Cell:
    """Content of one cell, before escaping: number, what stands beside it, interval, and its rank.

    Attributes:
        tied: a paired test shows no difference that matters from the best of its column.
        apart: made of other data or by another version than the others, so that it is not compared with them.
        number: the number behind the text, as exact as it is known.
    """

    text: str
    spread: str = ""
    interval: str = ""
    rank: Rank = ""
    tied: bool = False
    apart: bool = False
    number: float | None = None

    @property
    def mark(self) -> str:
        """What stands right behind the number."""
        return TIED_MARK * self.tied + APART_MARK * self.apart

    @property
    def detail(self) -> str:
        """What stands beside the number."""
        return f"{self.spread} {self.interval}".strip()

    @property
    def sort_key(self) -> float | None:
        """What sorts a column of numbers: the number, else the text where that is one."""
        try:
            return float(self.text) if self.number is None else self.number
        except ValueError:
            return None


Cells = Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """A table with all that is said about it.

    Attributes:
        references: rows of what a score must beat, and ceilings; they are never sorted.
        block: whose rows these are; the tables of datasets have a block without rows.
        notes: what a reader must know of the rows. doubts: why numbers may not be what they seem.
        costs: the same rows with what they cost; None where nothing was run.
        words: in words, which differences matter. decision: what the table answers; None where it compares nothing.
        records: the rows as numbers, for CSV.
        name: id of a table that is of no experiment; empty for all others. screen: which of its columns the last screen
            of a run shows.
    """

    columns: Sequence[Column]
    rows: Sequence[Cells]
    caption: str
    block: Block
    heading: str = ""
    references: Sequence[Cells] = ()
    notes: Sequence[str] = ()
    doubts: Sequence[Doubt] = ()
    costs: Table | None = None
    words: Sequence[str] = ()
    decision: Decision | None = None
    records: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    name: str = ""
    screen: Sequence[int] = ()

    @property
    def table(self) -> str:
        """Id of the table in the paper, or the experiment's own."""
        return self.name or self.block.table

    @property
    def note_lines(self) -> list[str]:
        """Notes with their mark."""
        return [f"{NOTE_MARK} {note}" for note in self.notes]

    @property
    def doubt_lines(self) -> list[str]:
        """Doubts with their mark."""
        return [f"{NOTE_MARK} {doubt}" for doubt in self.doubts]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Heads above the heads: (title or empty, number of columns)."""
        groups: list[tuple[str, int]] = []
        for column in self.columns:
            if groups and column.group and groups[-1][0] == column.group:
                groups[-1] = (column.group, groups[-1][1] + 1)
            else:
                groups.append((column.group, 1))
        return groups


def parameters_text(value: float | None) -> str:
    """969217 -> "969 K", 196000000 -> "196 M"; three digits."""
    if value is None:
        return "-"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= size:
            return three_digits(value / size) + unit
    return f"{value:.0f}"
