"""Table 1 from the store: one row per method, ours beside the paper's, as numbers and as cells of text.

In files every number is a fraction; percent appears only in rendered cells. Best and second best are marked
among rows that may be compared: whole runs of one suite and backbone, never reference rows or the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from benchmark.report.collect import Block, Row, Score
from benchmark.report.paper import METRICS, PaperTables

TASK = "zeroshot"
Role = Literal["method", "measured", "paper", "cost"]
Rank = Literal["", "best", "second"]
HEADS = {"acc": "ACC", "balanced_acc": "bal. ACC", "auroc": "AUC"}
NOTE_MARK = "*"
_DIFFERENCE = "In brackets behind them: measured minus paper, in points."


@dataclass(frozen=True)
class Column:
    """One rendered column: a score of a dataset, the paper's number for it, or a cost."""

    role: Role
    head: str
    dataset: str = ""
    group: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Cell:
    """Rendered content of one cell, before escaping: number, spread or difference, interval, and its rank."""

    text: str
    spread: str = ""
    interval: str = ""
    rank: Rank = ""

    @property
    def detail(self) -> str:
        """What stands beside the number."""
        return f"{self.spread} {self.interval}".strip()


@dataclass(frozen=True)
class Rendered:
    """A block as columns and rows of text; ``lines`` say what a reader must know (caption, notes)."""

    block: Block
    heading: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    references: tuple[tuple[Cell, ...], ...]
    caption: str
    notes: tuple[str, ...]


# --- content ------------------------------------------------------------------------------------------------


def paper_datasets(block: Block, table: str = "1") -> dict[str, str]:
    """Our dataset name -> the paper's, as the suite file declares for this table."""
    declared = (block.spec.get("paper") or {}).get(f"table_{table}") or {}
    return {ours: theirs for theirs, ours in declared.items()}


def difference_reason(block: Block) -> str:
    """Why differences from the paper are left blank; empty when the suite says that they have a meaning."""
    paper = block.spec.get("paper") or {}
    if not paper:
        return "the suite names no counterpart in the paper"
    return "" if paper.get("comparable") else str(paper.get("why") or "the suite's data are not the paper's")


def table_frame(blocks: Sequence[Block], paper: PaperTables) -> pd.DataFrame:
    """Table 1 as numbers: fractions, seconds and counts, unrounded; the paper's values as fractions too.

    Returns:
        One row per method (and reference row). Columns: suite, backbone, method, title, kind (method or
        reference), ranked, seeds; per dataset and metric the value, ``_sd``, ``_ci_low``, ``_ci_high``,
        ``_paper`` and ``_difference`` (value - paper, empty where it has no meaning); trainable_parameters,
        trainable_parameters_without_logit_scale, step_time_p50_s; difference_reason, notes.
    """
    frame: pd.DataFrame = pd.DataFrame(
        _record(block, row, paper)
        for block in blocks
        for row in (*block.rows, *([block.ceiling] if block.ceiling else []))
    )
    return frame


def render(block: Block, paper: PaperTables) -> Rendered:
    """Turn a block into cells of text."""
    columns = _columns(block)
    ranks = {column: _ranks(block, column) for column in columns if column.role == "measured"}

    def cells(row: Row) -> tuple[Cell, ...]:
        return tuple(_cell(block, row, column, ranks, paper) for column in columns)

    references = [_majority_cells(block, columns), *([cells(block.ceiling)] if block.ceiling else [])]
    return Rendered(
        block=block,
        heading=f"{block.spec.get('title') or block.suite}, backbone {block.backbone}",
        columns=tuple(columns),
        rows=tuple(cells(row) for row in block.rows),
        references=tuple(references),
        caption=_caption(block),
        notes=(
            *(f"{row.title}: {'; '.join(row.notes)}." for row in block.rows if row.notes),
            *_changed(block),
        ),
    )


def _record(block: Block, row: Row, paper: PaperTables) -> dict[str, Any]:
    record: dict[str, Any] = {
        "suite": block.suite,
        "backbone": block.backbone,
        "method": row.method,
        "title": row.title,
        "kind": "reference" if row is block.ceiling else "method",
        "ranked": row.ranked,
        "seeds": len(row.runs) if row.scores else 0,
    }
    for dataset in block.datasets(TASK):
        for metric in HEADS:
            record |= _numbers(block, row, dataset, metric, paper)
    for key in ("trainable_parameters", "trainable_parameters_without_logit_scale", "step_time_p50_s"):
        record[key] = row.efficiency.get(key)
    return record | {"difference_reason": difference_reason(block), "notes": "; ".join(row.notes)}


def _numbers(
    block: Block, row: Row, dataset: str, metric: str, paper: PaperTables
) -> dict[str, float | None]:
    name = f"{dataset}_{metric}"
    score = row.scores.get((TASK, dataset, metric))
    fields = ("value", "sd", "ci_low", "ci_high")
    numbers = {name if key == "value" else f"{name}_{key}": getattr(score, key, None) for key in fields}
    if metric in METRICS:
        reported = _reported(block, row, dataset, metric, paper)
        numbers[f"{name}_paper"] = numbers[f"{name}_difference"] = None
        if reported is not None:
            numbers[f"{name}_paper"] = reported / 100
            if score is not None and not difference_reason(block):
                numbers[f"{name}_difference"] = score.value - reported / 100
    return numbers


def _reported(block: Block, row: Row, dataset: str, metric: str, paper: PaperTables) -> float | None:
    return paper.value("1", row.paper_row, paper_datasets(block).get(dataset, ""), metric)


def _columns(block: Block) -> list[Column]:
    present = {(key[1], key[2]) for row in block.rows for key in row.scores if key[0] == TASK}
    columns = [Column("method", "Method")]
    for dataset in block.datasets(TASK):
        group = block.dataset_title(dataset, TASK)
        for metric, head in HEADS.items():
            if (dataset, metric) in present:
                columns.append(Column("measured", head, dataset, group, metric))
                if metric in METRICS and dataset in paper_datasets(block):
                    columns.append(Column("paper", f"paper {head}", dataset, group, metric))
    columns.append(Column("cost", "Trainable", metric="trainable_parameters"))
    columns.append(Column("cost", "Step", metric="step_time_p50_s"))
    return columns


def _cell(
    block: Block, row: Row, column: Column, ranks: dict[Column, dict[str, Rank]], paper: PaperTables
) -> Cell:
    if column.role == "method":
        return Cell(row.title + (NOTE_MARK if row.notes else ""))
    if column.role == "cost":
        form = parameters_text if column.metric == "trainable_parameters" else seconds_text
        return Cell(form(row.efficiency.get(column.metric)))
    score = row.scores.get((TASK, column.dataset, column.metric))
    if column.role == "measured":
        return _score_cell(score, ranks[column].get(row.method, ""))
    reported = _reported(block, row, column.dataset, column.metric, paper)
    if reported is None:
        return Cell("")
    known = score is not None and not difference_reason(block)
    return Cell(f"{reported:.2f}", f"({100 * score.value - reported:+.1f})" if known and score else "")


def _score_cell(score: Score | None, rank: Rank) -> Cell:
    if score is None:
        return Cell(percent(None))
    spread = "" if score.sd is None else f"+- {percent(score.sd)}"
    has_interval = score.ci_low is not None and score.ci_high is not None
    bounds = f"[{percent(score.ci_low)}, {percent(score.ci_high)}]" if has_interval else ""
    return Cell(percent(score.value), spread, bounds, rank)


def _ranks(block: Block, column: Column) -> dict[str, Rank]:
    """Best and second best method of a column; equal values share a rank."""
    key = (TASK, column.dataset, column.metric)
    values = {row.method: row.scores[key].value for row in block.rows if row.ranked and key in row.scores}
    top: dict[float, Rank] = dict(
        zip(sorted(set(values.values()), reverse=True), ("best", "second"), strict=False)
    )
    return {method: top[value] for method, value in values.items() if value in top} if len(values) > 1 else {}


def _majority_cells(block: Block, columns: Sequence[Column]) -> tuple[Cell, ...]:
    """The row of the constant answer: what an accuracy must beat."""
    cells = [Cell("Always the most frequent class")]
    for column in columns[1:]:
        key = (TASK, column.dataset, "majority_acc")
        found = next((row.scores[key].value for row in block.rows if key in row.scores), None)
        cells.append(Cell(percent(found) if column.role == "measured" and column.metric == "acc" else ""))
    return tuple(cells)


def _caption(block: Block) -> str:
    counts = sorted({len(row.runs) for row in block.rows if row.scores})
    seeds = " to ".join(str(count) for count in sorted({counts[0], counts[-1]})) if counts else "0"
    ranked = any(row.ranked for row in block.rows)
    lines = [
        f"Measured here on suite {block.suite} with backbone {block.backbone}, in percent:",
        f"mean over {seeds} seed(s), +- standard deviation over seeds,",
        "[95 % bootstrap interval over test patients, bounds averaged over seeds].",
        "Best bold, second underlined, among whole runs." if ranked else "No row is ranked: no whole run.",
    ]
    if paper_datasets(block):
        reason = difference_reason(block).rstrip(".")
        lines += [
            "Columns 'paper': as printed in Table 1 of the ACE-LoRA paper (arXiv 2603.17079), in percent."
        ]
        lines += [f"Differences from the paper are left blank: {reason}." if reason else _DIFFERENCE]
    else:
        lines += ["The paper has no numbers for these datasets."]
    return " ".join(
        [*lines, "Trainable: parameters with the logit scale. Step: median time of a training step."]
    )


def _changed(block: Block) -> list[str]:
    """A note on runs whose program differed from its commit."""
    runs = [run for row in block.rows for run in (*row.runs, *row.left_out)]
    changed = sum(bool((run.provenance.get("git") or {}).get("dirty")) for run in runs)
    return [f"{changed} of {len(runs)} runs were made with uncommitted changes to the program."] * bool(
        changed
    )


def column_groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Runs of columns under one head: (title or empty, number of columns)."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and column.group and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups


# --- formats of single values -------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    """0.4123 -> "41.2"; a missing value is a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def parameters_text(value: float | None) -> str:
    """969217 -> "969 K", 196000000 -> "196 M"; three digits."""
    if value is None:
        return "-"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{3 - len(str(int(scaled)))}f}{unit}"
    return f"{value:.0f}"


def seconds_text(value: float | None) -> str:
    """0.0123 -> "12 ms", 1.5 -> "1.50 s"."""
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"
