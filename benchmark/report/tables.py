"""The main table from the store: one row per method, ours beside the paper's, as numbers and as cells of text.

Zero-shot columns come first, then those of the other tasks that have been run, such as Dice and mAP.

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
HEADS = {"acc": "ACC", "balanced_acc": "bal. ACC", "auroc": "AUC"} | {
    "dice": "Dice", "dice_pooled": "pooled Dice", "iou": "IoU", "map": "mAP", "map_mgca_skip": "mAP (skip)"
}  # fmt: skip
PAPER_TABLES = {"acc": "1", "auroc": "1", "dice": "4", "map": "4"}
"""In which table of the paper a metric stands."""
_REFERENCES = {
    "Always the most frequent class": "majority_{}",
    "One answer for every image": "{}_trivial",
    "Untrained image tower": "{}_untrained",
}
"""Reference rows: title -> name of the metric that stands below another one."""
NOTE_MARK = "*"
SHARED_MARK = "(s)"
_DIFFERENCE = "In brackets behind them: measured minus paper, in points."


@dataclass(frozen=True)
class Column:
    """One rendered column: a score of a dataset, the paper's number for it, or a cost."""

    role: Role
    head: str
    dataset: str = ""
    group: str = ""
    metric: str = ""
    task: str = TASK

    @property
    def key(self) -> tuple[str, str, str]:
        """Key of the column's score."""
        return self.task, self.dataset, self.metric


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


def block_tasks(block: Block) -> list[str]:
    """Tasks with a score that has a column, zero-shot first, then by name."""
    found = {key[0] for row in block.rows for key in row.scores if key[2] in HEADS}
    return sorted(found, key=lambda task: (task != TASK, task))


def difference_reason(block: Block) -> str:
    """Why differences from the paper are left blank; empty when the suite says that they have a meaning."""
    paper = block.spec.get("paper") or {}
    if not paper:
        return "the suite names no counterpart in the paper"
    return "" if paper.get("comparable") else str(paper.get("why") or "the suite's data are not the paper's")


def _comparable(block: Block, task: str, dataset: str) -> bool:
    """Whether a difference from the paper means something: its dataset, and nothing noted at its preparation."""
    return not difference_reason(block) and not block.data_notes(dataset, task)


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

    references = [*_reference_rows(block, columns), *([cells(block.ceiling)] if block.ceiling else [])]
    return Rendered(
        block=block,
        heading=f"{block.spec.get('title') or block.suite}, backbone {block.backbone}",
        columns=tuple(columns),
        rows=tuple(cells(row) for row in block.rows),
        references=tuple(references),
        caption=_caption(block),
        notes=(
            *(f"{row.title}: {'; '.join(row.notes)}." for row in block.rows if row.notes),
            *_shared(block),
            *_data_notes(block),
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
    present = {key for other in block.rows for key in other.scores}
    for task in block_tasks(block) or [TASK]:
        for dataset in block.datasets(task):
            for metric in HEADS:
                if (
                    task == TASK
                    and metric in ("acc", "balanced_acc", "auroc")
                    or (task, dataset, metric) in present
                ):
                    record |= _numbers(block, row, (task, dataset, metric), paper)
    for key in ("trainable_parameters", "trainable_parameters_without_logit_scale", "step_time_p50_s"):
        record[key] = row.efficiency.get(key)
    return record | {"difference_reason": difference_reason(block), "notes": "; ".join(row.notes)}


def _numbers(
    block: Block, row: Row, key: tuple[str, str, str], paper: PaperTables
) -> dict[str, float | None]:
    task, dataset, metric = key
    name = f"{dataset}_{metric}" if task == TASK else f"{task}_{dataset}_{metric}"
    score = row.scores.get(key)
    fields = ("value", "sd", "ci_low", "ci_high")
    numbers = {name if key == "value" else f"{name}_{key}": getattr(score, key, None) for key in fields}
    if metric in METRICS:
        reported = _reported(block, row, dataset, metric, paper)
        numbers[f"{name}_paper"] = numbers[f"{name}_difference"] = None
        if reported is not None:
            numbers[f"{name}_paper"] = reported / 100
            if score is not None and _comparable(block, task, dataset):
                numbers[f"{name}_difference"] = score.value - reported / 100
    return numbers


def _reported(block: Block, row: Row, dataset: str, metric: str, paper: PaperTables) -> float | None:
    table = PAPER_TABLES.get(metric, "")
    return paper.value(table, row.paper_row, paper_datasets(block, table).get(dataset, ""), metric)


def _columns(block: Block) -> list[Column]:
    present = {key for row in block.rows for key in row.scores}
    columns = [Column("method", "Method")]
    for task in block_tasks(block):
        for dataset in block.datasets(task):
            title = block.dataset_title(dataset, task)
            group = title if task == TASK else f"{title} {task}"
            for metric, head in HEADS.items():
                if (task, dataset, metric) in present:
                    columns.append(Column("measured", head, dataset, group, metric, task))
                    if dataset in paper_datasets(block, PAPER_TABLES.get(metric, "")):
                        columns.append(Column("paper", f"paper {head}", dataset, group, metric, task))
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
    score = row.scores.get(column.key)
    if column.role == "measured":
        return _score_cell(score, ranks[column].get(row.method, ""), is_shared(row, column.task))
    reported = _reported(block, row, column.dataset, column.metric, paper)
    if reported is None:
        return Cell("")
    known = score is not None and _comparable(block, column.task, column.dataset)
    return Cell(f"{reported:.2f}", f"({100 * score.value - reported:+.1f})" if known and score else "")


def _score_cell(score: Score | None, rank: Rank, shared: bool = False) -> Cell:
    if score is None:
        return Cell(percent(None))
    spread = "" if score.sd is None else f"+- {percent(score.sd)}"
    spread = f"{SHARED_MARK} {spread}".strip() if shared else spread
    has_interval = score.ci_low is not None and score.ci_high is not None
    bounds = f"[{percent(score.ci_low)}, {percent(score.ci_high)}]" if has_interval else ""
    return Cell(percent(score.value), spread, bounds, rank)


def _ranks(block: Block, column: Column) -> dict[str, Rank]:
    """Best and second best method of a column; equal values share a rank."""
    key = column.key
    values = {row.method: row.scores[key].value for row in block.rows if row.ranked and key in row.scores}
    top: dict[float, Rank] = dict(
        zip(sorted(set(values.values()), reverse=True), ("best", "second"), strict=False)
    )
    return {method: top[value] for method, value in values.items() if value in top} if len(values) > 1 else {}


def _reference_rows(block: Block, columns: Sequence[Column]) -> list[tuple[Cell, ...]]:
    """Rows of what a score must beat: the constant answer, a head on an untrained tower; only those measured."""
    rows = []
    for title, name in _REFERENCES.items():
        found = [_reference(block, column, name.format(column.metric)) for column in columns[1:]]
        if any(value is not None for value in found):
            texts = ["" if value is None else percent(value) for value in found]
            rows.append((Cell(title), *map(Cell, texts)))
    return rows


def _reference(block: Block, column: Column, metric: str) -> float | None:
    if column.role != "measured":
        return None
    key = (column.task, column.dataset, metric)
    return next((row.scores[key].value for row in block.rows if key in row.scores), None)


def is_shared(row: Row, task: str) -> bool:
    """Whether a row's result of a task is the one that methods share which leave the image tower as it is."""
    return any((run.tasks.get(task) or {}).get("shared") for run in row.runs)


def _shared(block: Block) -> list[str]:
    """One note per task on the methods that share a result."""
    titles = {task: [row.title for row in block.rows if is_shared(row, task)] for task in block_tasks(block)}
    return [
        f"{SHARED_MARK} {', '.join(names)}: these leave the image tower as it is and share one {task} result."
        for task, names in titles.items()
        if names
    ]


def _data_notes(block: Block) -> list[str]:
    """One note per dataset whose data are not as published."""
    found = [
        (block.dataset_title(dataset, task), block.data_notes(dataset, task))
        for task in block_tasks(block)
        for dataset in block.datasets(task)
    ]
    return [
        f"{title}: {'; '.join(notes)}."
        for title, notes in dict.fromkeys((t, tuple(n)) for t, n in found)
        if notes
    ]


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
    shown = {PAPER_TABLES[column.metric] for column in _columns(block) if column.role == "paper"}
    if shown:
        reason = difference_reason(block).rstrip(".")
        tables = f"Table{'s' * (len(shown) > 1)} {' and '.join(sorted(shown))}"
        lines += [
            f"Columns 'paper': as printed in {tables} of the ACE-LoRA paper (arXiv 2603.17079), in percent."
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
