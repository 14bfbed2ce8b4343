"""Renders a block as a table: cells with ranks and ties, references, caption, notes, costs, sentences, CSV records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from benchmark.config.experiments import Experiment
from benchmark.report.model import NOT_RUN, Block, Key, Row, Score
from benchmark.report.paper import PaperTables
from benchmark.report.significance.comparisons import BlockTests, block_tests
from benchmark.report.significance.decision import decide
from benchmark.report.significance.wording import sentences, three_digits
from benchmark.report.tables.columns import (
    difference_reason,
    reported,
    score_columns,
    shown_keys,
    switches,
)
from benchmark.report.tables.doubts import doubts, row_marks
from benchmark.report.tables.notes import is_shared, lacks, table_caption, table_notes
from benchmark.report.tables.table import (
    NOTE_MARK,
    SHARED_MARK,
    Cell,
    Column,
    Rank,
    Table,
    parameters_text,
)


def render_block(block: Block, paper: PaperTables) -> Table:
    """Turn a block of the store, or the view of an experiment, into a table."""
    writer = _Writer(block, paper)
    ceiling = [replace(cell, number=None) for cell in writer.row(block.ceiling)] if block.ceiling else []
    return Table(
        columns=writer.columns,
        rows=[writer.row(row) for row in block.rows],
        caption=table_caption(block, writer.columns, paper, tied=any(writer.ties.values())),
        block=block,
        heading=f"{title_of(block.experiment)}. {block.heading}" if block.experiment else block.heading,
        references=[*writer.references(), *([ceiling] if ceiling else [])],
        notes=table_notes(block),
        doubts=doubts(block),
        costs=_costs(block),
        words=sentences(writer.tests, writer.tests.keys),
        decision=decide(block),
        records=_records(writer),
    )


def title_of(experiment: Experiment) -> str:
    """Number and title: "Table A.3: Placement"."""
    return f"{experiment.label[0].upper()}{experiment.label[1:]}: {experiment.title}"


class _Writer:
    """Writes rows of one block."""

    def __init__(self, block: Block, paper: PaperTables) -> None:
        self.block, self.paper, self.tests = block, paper, block_tests(block)
        self.columns = score_columns(block, paper)
        measured = [column.key for column in self.columns if column.role == "measured"]
        self.ranks = {key: _ranks(block, key) for key in measured}
        self.ties = {key: self.tests.tied_with_best(key) for key in measured if key in self.tests.keys}
        parts = switches(block)
        self.switches = {
            id(row): {name: words[at] for name, words in parts.items()} for at, row in enumerate(block.rows)
        }

    def row(self, row: Row) -> list[Cell]:
        return [self.cell(row, column) for column in self.columns]

    def cell(self, row: Row, column: Column) -> Cell:
        if column.role == "method":
            return Cell(row.title + NOTE_MARK * bool(row.notes or row.missing))
        if column.role == "switch":
            return Cell(self.switches.get(id(row), {}).get(column.head, ""))
        score, metric = row.scores.get(column.key), self.block.metric(column.key)
        if column.role == "measured":
            return self.measured(row, column.key, score)
        theirs = reported(self.block, row, column.key, self.paper)
        if column.role == "paper":
            sign = "+" if row.difference else ""
            return Cell("" if theirs is None else f"{metric.scale * theirs:{sign}.2f}")
        return Cell(metric.signed(_minus(score, theirs)))

    def measured(self, row: Row, key: Key, score: Score | None) -> Cell:
        if score is None:
            return Cell(_absent(row, key[0]))
        metric = self.block.metric(key)
        if row.difference:
            return Cell(metric.signed(score.value), number=score.value)
        spread = "" if score.sd is None else f"+- {metric.text(score.sd)}"
        spread = f"{SHARED_MARK} {spread}".strip() if is_shared(row, key[0]) else spread
        interval = f"[{', '.join(map(metric.text, score.bounds))}]" if score.bounds else ""
        rank = self.ranks[key].get(row.cell, "")
        tied = row.cell in self.ties.get(key, ()) and rank != "best"
        return Cell(metric.text(score.value), spread, interval, rank, tied, score.apart, score.value)

    def references(self) -> list[list[Cell]]:
        """Rows of what a score must beat: the constant answer, a head on an untrained tower; only those measured."""
        rows = []
        for title, values in self.reference_values().items():
            texts = [
                Cell(self.block.metric(column.key).text(values[column.key]))
                if column.role == "measured" and column.key in values
                else Cell("")
                for column in self.columns[1:]
            ]
            rows.append([Cell(title), *texts])
        return rows

    def reference_values(self) -> dict[str, dict[Key, float]]:
        """Title of a reference -> key of the score that must beat it -> its value."""
        found: dict[str, dict[Key, float]] = {}
        for key in self.ranks:
            for name, title in self.block.metric(key).references.items():
                reference = (key[0], key[1], name)
                rows = [*self.block.rows, *self.block.beside]
                rows.sort(key=lambda row: not row.compared(reference))  # noqa: B023  # used at once
                value = next((row.scores[reference].value for row in rows if reference in row.scores), None)
                if value is not None:
                    found.setdefault(title, {})[key] = value
        return found


def _minus(score: Score | None, theirs: float | None) -> float | None:
    return None if score is None or theirs is None else score.value - theirs


def _absent(row: Row, task: str) -> str:
    """What stands where a score is missing."""
    if row.missing == NOT_RUN or lacks(row, task):
        return NOT_RUN
    failed = bool(row.runs) and all(run.status in ("failed", "unreadable") for run in row.runs)
    return "failed" if failed else "-"


def _ranks(block: Block, key: Key) -> dict[str, Rank]:
    """Best and second best method of a column; equal values share a rank."""
    values = {row.cell: row.scores[key].value for row in block.rows if row.compared(key)}
    best = sorted(set(values.values()), reverse=block.metric(key).higher)
    top: dict[float, Rank] = dict(zip(best, ("best", "second"), strict=False))
    return {method: top[value] for method, value in values.items() if value in top} if len(values) > 1 else {}


# --- costs --------------------------------------------------------------------------------------------------


Form = Callable[[float | None], str]


def _scaled(size: float) -> Form:
    return lambda value: "-" if value is None else three_digits(value / size)


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
_COST_CAPTION = (
    "Costs, means over seeds. Parameters: trainable ones with the logit scale, which is in no tower; 'both' act on "
    "both towers. Training step: median time until the next one, waits for data included; peak memory of the steps: "
    "largest allocation on a GPU, largest size of the process on a CPU. Inference FLOPs, frozen = 1: of an image and a "
    "text, relative to those of the frozen backbone; merged: with the adapter written into its weights. '-': not "
    "measured, or no merged form."
)


def _costs(block: Block) -> Table | None:
    """The costs of the rows of a block that were run; None when none was."""
    if not any(row.efficiency for row in block.rows):
        return None
    columns = [Column("method", "Method")]
    for key, (group, head, _) in COSTS.items():
        columns.append(Column("cost", head, group=group, metric=key, title=group))
    found = [run.efficiency.get("flops_convention") for row in block.rows for run in row.runs]
    conventions = [f"FLOPs: {text}." for text in dict.fromkeys(str(item) for item in found if item)]
    rows = [[Cell(row.title), *_cost_cells(row)] for row in block.rows]
    return Table(columns, rows, " ".join([_COST_CAPTION, *conventions]), block)


def _cost_cells(row: Row) -> list[Cell]:
    values = [(form, row.efficiency.get(key)) for key, (_, _, form) in COSTS.items()]
    return [Cell(form(value), number=value) for form, value in values]


# --- numbers ------------------------------------------------------------------------------------------------


_FIRST_COSTS = ("trainable_parameters", "trainable_parameters_without_logit_scale", "step_time_p50_s")


def efficiency_frame(blocks: Sequence[Block]) -> pd.DataFrame:
    """Costs per method, means over seeds: all numbers of efficiency.json (nested keys joined by "_").

    Runs with few labels are variants, and have a row each where there is nothing else.
    """
    frame: pd.DataFrame = pd.DataFrame(
        {"suite": block.suite, "backbone": block.backbone, "method": row.method, "title": row.title}
        | {"seeds": len(row.runs), **row.efficiency}
        for block in blocks
        for row in block.rows or block.variants
        if not row.missing
    )
    return frame


def _records(writer: _Writer) -> list[dict[str, Any]]:
    """Rows and references as numbers: fractions, seconds and counts, unrounded; columns as in results/README.md."""
    block, records = writer.block, []
    for row in block.rows:
        kind = "difference" if row.difference else NOT_RUN if row.missing else "method"
        parts = writer.switches[id(row)]
        records.append(_identity(block, row, kind) | parts | _numbers(writer, row) | _last(block, row))
    for title, values in writer.reference_values().items():
        record = _identity(block, Row("", title, ranked=False), "reference")
        records.append(record | {_name(block, key): value for key, value in values.items()})
    if ceiling := block.ceiling:
        record = _identity(block, ceiling, "reference") | _numbers(writer, ceiling)
        records.append(record | _last(block, ceiling))
    return records


def _identity(block: Block, row: Row, kind: str) -> dict[str, Any]:
    return {
        "suite": block.suite,
        "backbone": row.place or block.backbone,
        "method": row.method,
        "title": row.title,
        "kind": kind,
        "ranked": row.ranked,
        "seeds": len(row.runs) if row.scores and not row.difference else 0,
    }


def _numbers(writer: _Writer, row: Row) -> dict[str, Any]:
    block, record, present = writer.block, {}, writer.block.present
    for key in shown_keys(block, writer.paper):
        if block.experiment is not None or key[0] == block.first_task or key in present:
            name, score = _name(block, key), row.scores.get(key)
            record[name] = getattr(score, "value", None)
            record |= {
                f"{name}_{field}": getattr(score, field, None) for field in ("sd", "ci_low", "ci_high")
            }
            if block.metric(key).head in writer.paper.metrics:
                theirs = reported(block, row, key, writer.paper)
                record |= {f"{name}_paper": theirs, f"{name}_difference": _minus(score, theirs)}
            record[f"{name}_n"] = getattr(score, "n", None)
            record |= _tested(name, row, key, writer.tests)
    return record


def _tested(name: str, row: Row, key: Key, tests: BlockTests) -> dict[str, Any]:
    """Against the baseline: difference, adjusted p value and verdict; and whether the row is tied with the best."""
    if key not in tests.keys or not row.compared(key):
        return {}
    test = tests.against_baseline.get((row.cell, key))
    fields = {"difference": "difference", "p": "p_adjusted", "verdict": "verdict"}
    found = {f"{name}_baseline_{short}": getattr(test, field, None) for short, field in fields.items()}
    return found | {f"{name}_tied_with_best": row.cell in tests.tied_with_best(key)}


def _last(block: Block, row: Row) -> dict[str, Any]:
    costs = {key: row.efficiency.get(key) for key in dict.fromkeys((*_FIRST_COSTS, *COSTS))}
    return {
        **costs,
        "smallest_difference": block.smallest,
        "difference_reason": difference_reason(block),
        "notes": "; ".join([*(note.text for note in row.notes), *([row.missing] if row.missing else [])]),
        "variant": row.variant,
        "marks": "; ".join(row_marks(row)),
    }


def _name(block: Block, key: Key) -> str:
    """Name of a score's column: ``<dataset>_<metric>``, behind the task where that is not the suite's first."""
    task, dataset, metric = key
    return f"{dataset}_{metric}" if task == block.first_task else f"{task}_{dataset}_{metric}"
