"""A block becomes a table: cells of text with ranks and ties, references, caption, notes, costs and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmark.experiments import Experiment
from benchmark.report.collect import Block, Row, Score
from benchmark.report.columns import reported, score_columns, switches
from benchmark.report.costs import cost_part
from benchmark.report.doubts import doubts
from benchmark.report.marks import NOT_RUN, is_shared, lacks, table_caption, table_notes
from benchmark.report.paper import PaperTables
from benchmark.report.significance import BlockTests, block_tests
from benchmark.report.tables import (
    NOTE_MARK,
    SHARED_MARK,
    Cell,
    Column,
    Rank,
    Rendered,
)

Ranks = Mapping[Column, Mapping[str, Rank]]


def render_block(block: Block, paper: PaperTables) -> Rendered:
    """Turn a block of the store, or the view of an experiment, into cells of text."""
    columns = score_columns(block, paper)
    tests = block_tests(block)
    writer = _Writer(block, columns, tests, paper)
    references = [*reference_rows(block, columns), *([writer.row(block.ceiling)] if block.ceiling else [])]
    return Rendered(
        block=block,
        heading=heading(block),
        columns=tuple(columns),
        rows=tuple(writer.row(row) for row in block.rows),
        references=tuple(references),
        caption=table_caption(block, columns, paper, tied=any(writer.ties.values())),
        notes=tuple(table_notes(block)),
        doubts=doubts(block),
        table=block.table,
        costs=cost_part(block),
        words=tuple(tests.words()),
        short=tuple(tests.short()),
    )


def heading(block: Block) -> str:
    """Title of a table: that of the experiment, then the suite's and the backbone."""
    named = block.experiment
    return block.heading if named is None else f"{title_of(named)}. {block.heading}"


def title_of(experiment: Experiment) -> str:
    """Number and title: "Table A.3: Placement"."""
    return f"{experiment.label[0].upper()}{experiment.label[1:]}: {experiment.title}"


def reference_rows(block: Block, columns: Sequence[Column]) -> list[tuple[Cell, ...]]:
    """Rows of what a score must beat: the constant answer, a head on an untrained tower; only those measured."""
    rows = []
    for title, scores in references(block, columns).items():
        texts = [
            block.metric(column.key).text(scores[column]) if column in scores else ""
            for column in columns[1:]
        ]
        rows.append((Cell(title), *map(Cell, texts)))
    return rows


def references(block: Block, columns: Sequence[Column]) -> dict[str, dict[Column, float]]:
    """Reference title -> measured column -> its value."""
    found: dict[str, dict[Column, float]] = {}
    for column in columns:
        held = block.metric(column.key).references if column.role == "measured" else {}
        for name, title in held.items():
            if (value := _reference(block, column, name)) is not None:
                found.setdefault(title, {})[column] = value
    return found


def _reference(block: Block, column: Column, metric: str) -> float | None:
    key = (column.task, column.dataset, metric)
    rows = sorted((*block.rows, *block.beside), key=lambda row: not row.compared(key))
    return next((row.scores[key].value for row in rows if key in row.scores), None)


class _Writer:
    """Writes rows of one block."""

    def __init__(
        self, block: Block, columns: Sequence[Column], tests: BlockTests, paper: PaperTables
    ) -> None:
        self.block, self.columns, self.paper = block, columns, paper
        measured = [column for column in columns if column.role == "measured"]
        self.ranks: Ranks = {column: _ranks(block, column) for column in measured}
        self.ties = {
            column: tests.tied_with_best(column.key) if column.key in tests.keys else frozenset()
            for column in measured
        }
        self.switches = switches(block)

    def row(self, row: Row) -> tuple[Cell, ...]:
        return tuple(self.cell(row, column) for column in self.columns)

    def cell(self, row: Row, column: Column) -> Cell:
        if column.role == "method":
            return Cell(row.title + (NOTE_MARK if row.notes or row.missing else ""))
        if column.role == "switch":
            parts = dict(zip((id(item) for item in self.block.rows), self.switches[column.head], strict=True))
            return Cell(parts.get(id(row), ""))
        score, theirs = row.scores.get(column.key), reported(self.block, row, column.key, self.paper)
        if column.role == "measured":
            return self.measured(row, column, score)
        metric = self.block.metric(column.key)
        if column.role == "paper":
            sign = "+" if row.difference else ""
            return Cell("" if theirs is None else f"{metric.scale * theirs:{sign}.2f}")
        return Cell(metric.signed(score.value - theirs if score is not None and theirs is not None else None))

    def measured(self, row: Row, column: Column, score: Score | None) -> Cell:
        if score is None:
            return Cell(_absent(row, column.task))
        metric = self.block.metric(column.key)
        if row.difference:
            return Cell(metric.signed(score.value))
        spread = "" if score.sd is None else f"+- {metric.text(score.sd)}"
        spread = f"{SHARED_MARK} {spread}".strip() if is_shared(row, column.task) else spread
        has_interval = score.ci_low is not None and score.ci_high is not None
        bounds = f"[{metric.text(score.ci_low)}, {metric.text(score.ci_high)}]" if has_interval else ""
        rank = self.ranks[column].get(row.cell, "")
        tied = row.cell in self.ties[column] and rank != "best"
        return Cell(metric.text(score.value), spread, bounds, rank, tied, score.apart)


def _absent(row: Row, task: str) -> str:
    """What stands where a score is missing."""
    if row.missing == NOT_RUN or lacks(row, task):
        return NOT_RUN
    failed = bool(row.runs) and all(run.status in ("failed", "unreadable") for run in row.runs)
    return "failed" if failed else "-"


def _ranks(block: Block, column: Column) -> dict[str, Rank]:
    """Best and second best method of a column; equal values share a rank."""
    key = column.key
    values = {row.cell: row.scores[key].value for row in block.rows if row.compared(key)}
    top: dict[float, Rank] = dict(
        zip(sorted(set(values.values()), reverse=block.metric(key).higher), ("best", "second"), strict=False)
    )
    return {method: top[value] for method, value in values.items() if value in top} if len(values) > 1 else {}
