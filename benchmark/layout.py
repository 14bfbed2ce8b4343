"""What a terminal shows: tables for any width, and texts without control characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

GAP = 2
"""Empty characters between two columns of a table."""
LINE = 72
"""Characters of a line that reads well, also where there is room for more."""
LONG_WORD = 30
"""Words longer than this may be folded: paths and hashes."""


@dataclass(frozen=True)
class Fitted:
    """A table for any width: names never fold, texts fold between words, and columns give way before names do.

    Where even that does not fit, each row becomes a name with its texts below it.

    Attributes:
        heads: of the columns, of one or more lines; the first column has the names.
        rows: a text per column.
        title: above the table.
        right: heads of columns of numbers. whole: heads of other columns whose lines stay whole.
        gives_way: heads of columns that are left out where there is no room, the first one first.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    title: str = ""
    right: frozenset[str] = frozenset()
    gives_way: tuple[str, ...] = ()
    whole: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        heads: Sequence[str],
        rows: Iterable[Sequence[str]],
        title: str = "",
        right: Iterable[str] = (),
        **how: Any,
    ) -> Fitted:
        """Return a table of plain texts; ``how`` are other attributes."""
        texts = tuple(tuple(map(Text, row)) for row in rows)
        return cls(tuple(heads), texts, title, frozenset(right), **how)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        shown, leaving = list(range(len(self.heads))), list(self.gives_way)
        while leaving and self.width(shown) > options.max_width:
            head = leaving.pop(0)
            shown = [at for at in shown if self.heads[at] != head]
        if self.title:
            yield Text(self.title, style="bold")
        if self.width(shown) <= options.max_width:
            yield self._table(shown)
        else:
            yield from self._stack(shown)
        gone = [" ".join(head.split()) for at, head in enumerate(self.heads) if at not in shown]
        if gone:
            yield Text(f"no room here for: {', '.join(gone)}", style="dim")

    def width(self, shown: Sequence[int] | None = None) -> int:
        """The width that columns need, by their numbers; all of them if none are named."""
        columns = range(len(self.heads)) if shown is None else shown
        return sum(map(self._floor, columns)) + GAP * (len(columns) - 1)

    def _is_stiff(self, at: int) -> bool:
        return at == 0 or self.heads[at] in self.right | self.whole

    def _floor(self, at: int) -> int:
        """The width that a column needs: of its widest line, or of its longest word where it may fold."""
        texts, stiff = [self.heads[at], *(row[at].plain for row in self.rows)], self._is_stiff(at)
        parts = (part for text in texts for part in (text.splitlines() if stiff else text.split()))
        widest = max(map(cell_len, parts), default=1)
        return widest if stiff else min(widest, LONG_WORD)

    def _table(self, shown: Sequence[int]) -> Table:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for at in shown:
            table.add_column(
                Text(self.heads[at]), justify="right" if self.heads[at] in self.right else "left",
                overflow="fold", min_width=self._floor(at), no_wrap=self._is_stiff(at), vertical="top",
                max_width=None if self._is_stiff(at) else LINE,
            )  # fmt: skip
        for row in self.rows:
            table.add_row(*(row[at] for at in shown))
        return table

    def _stack(self, shown: Sequence[int]) -> Iterator[RenderableType]:
        for row in self.rows:
            yield row[0]
            for at in shown[1:]:
                if row[at].plain:
                    head = " ".join(self.heads[at].split())
                    yield Padding(Text(f"{head}: " if head else "").append_text(row[at]), (0, 0, 0, 2))


def visible(text: str) -> str:
    """Return a text whose control characters and bytes that are not UTF-8 are written as escapes."""
    if text.isprintable():  # nearly always
        return text
    text = "".join(x if x.isprintable() or x in "\n\t" else ascii(x)[1:-1] for x in text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
