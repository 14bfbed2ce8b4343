"""Renders a block as a table: text cells with ranks and ties, references, caption, notes, costs and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmark.config.experiments import Experiment
from benchmark.report.collect import Block, Row, Score
from benchmark.report.doubts import doubts
from benchmark.report.paper import PaperTables
from benchmark.report.significance.comparisons import BlockTests, block_tests
from benchmark.report.significance.wording import sentences, summary
from benchmark.report.tables.columns import (
    NOTE_MARK,
    SHARED_MARK,
    Cell,
    Column,
    Part,
    Rank,
    Rendered,
    parameters_text,
    reported,
    score_columns,
    switches,
    three_digits,
)
from benchmark.report.tables.notes import NOT_RUN, is_shared, lacks, table_caption, table_notes

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
        words=tuple(sentences(tests, tests.keys)),
        short=tuple(summary(tests)),
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


Form = Callable[[float | None], str]


def _scaled(size: float) -> Form:
    def form(value: float | None) -> str:
        return "-" if value is None else three_digits(value / size)

    return form


COSTS: dict[str, tuple[str, str, Form]] = {
    "trainable_parameters": ("Trainable parameters", "all", parameters_text),
    "by_tower_image": ("Trainable parameters", "image", parameters_text),
    "by_tower_text": ("Trainable parameters", "text", parameters_text),
    "by_tower_shared": ("Trainable parameters", "both", parameters_text),
    "total_parameters": ("Parameters in total", "all", parameters_text),
    "total_parameters_by_tower_image": ("Parameters in total", "image", parameters_text),
    "total_parameters_by_tower_text": ("Parameters in total", "text", parameters_text),
    "total_parameters_by_tower_shared": ("Parameters in total", "both", parameters_text),
    "adapter_bytes": ("On disk", "adapter [kB]", _scaled(1e3)),
    "forward_flops_per_pair": ("GFLOPs per pair", "forward", _scaled(1e9)),
    "step_flops_per_pair": ("GFLOPs per pair", "training step", _scaled(1e9)),
    "step_time_p50_s": ("Training", "step [ms]", _scaled(1e-3)),
    "images_per_s": ("Training", "images/s", _scaled(1)),
    "peak_memory_bytes": ("Training", "peak memory [MB]", _scaled(1e6)),
    "inference_flops_per_image": ("Inference, GFLOPs", "per image", _scaled(1e9)),
    "inference_flops_per_text": ("Inference, GFLOPs", "per text", _scaled(1e9)),
    "inference_overhead": ("Inference FLOPs, frozen = 1", "as trained", _scaled(1)),
    "inference_overhead_merged": ("Inference FLOPs, frozen = 1", "merged", _scaled(1)),
}
"""Number of efficiency.json (nested keys joined by "_") -> group of columns, head with unit, how it is written."""


_WORDS = (
    "Costs, means over seeds. Parameters: trainable ones with the logit scale, which is in no tower; 'both' act on "
    "both towers. Training step: median time until the next one, waits for data included; peak memory of the steps: "
    "largest allocation on a GPU, largest size of the process on a CPU. Inference FLOPs, frozen = 1: of an image and a "
    "text, relative to those of the frozen backbone; merged: with the adapter written into its weights. '-': not "
    "measured, or no merged form."
)


def cost_part(block: Block) -> Part:
    """The costs of the rows of a block that were run; no columns when none was."""
    if not any(row.efficiency for row in block.rows):
        return Part()
    columns = [
        Column("cost", head, group=group, metric=key, title=group) for key, (group, head, _) in COSTS.items()
    ]
    return Part(
        columns=(Column("method", "Method"), *columns),
        rows=tuple((Cell(row.title), *map(Cell, cost_texts(row))) for row in block.rows),
        caption=" ".join([_WORDS, *_conventions(block)]),
    )


def cost_texts(row: Row) -> list[str]:
    """The costs of a row as text, in the order of `COSTS`."""
    return [form(row.efficiency.get(key)) for key, (_, _, form) in COSTS.items()]


def _conventions(block: Block) -> list[str]:
    found = [run.efficiency.get("flops_convention") for row in block.rows for run in row.runs]
    return [f"FLOPs: {text}." for text in dict.fromkeys(str(item) for item in found if item)]
