"""The numbers of tables for CSV files: fractions, seconds, bytes and counts, unrounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from benchmark.report.collect import Block, Row
from benchmark.report.doubts import row_marks
from benchmark.report.paper import PaperTables
from benchmark.report.runs import Key
from benchmark.report.significance.comparisons import BlockTests, block_tests
from benchmark.report.tables.columns import (
    difference_reason,
    reported,
    score_columns,
    shown_datasets,
    shown_metrics,
    shown_tasks,
    switches,
)
from benchmark.report.tables.notes import NOT_RUN
from benchmark.report.tables.render import COSTS, references

_FIRST_COSTS = ("trainable_parameters", "trainable_parameters_without_logit_scale", "step_time_p50_s")


def table_frame(blocks: Sequence[Block], paper: PaperTables) -> pd.DataFrame:
    """A table as numbers: fractions, seconds and counts, unrounded; the paper's values as fractions too.

    Returns:
        One row per row of the table and per reference row; columns as in results/README.md.
    """
    frame: pd.DataFrame = pd.DataFrame(
        record for block in blocks for record in _records(block, paper, block_tests(block))
    )
    counts = [name for name in frame.columns if name.endswith("_n")]
    return frame.astype(dict.fromkeys(counts, "Int64"))


def efficiency_frame(blocks: Sequence[Block]) -> pd.DataFrame:
    """Costs per method, means over seeds: all numbers of efficiency.json (nested keys joined by "_")."""
    frame: pd.DataFrame = pd.DataFrame(
        {
            "suite": block.suite,
            "backbone": block.backbone,
            "method": row.method,
            "title": row.title,
            "seeds": len(row.runs),
            **row.efficiency,
        }
        for block in blocks
        for row in block.rows
        if not row.missing
    )
    return frame


def _records(block: Block, paper: PaperTables, tests: BlockTests) -> Iterator[dict[str, Any]]:
    parts = switches(block)
    for number, row in enumerate(block.rows):
        kind = "difference" if row.difference else NOT_RUN if row.missing else "method"
        record = _identity(block, row, kind) | {name: words[number] for name, words in parts.items()}
        yield record | _scores(block, row, paper, tests) | _last(block, row)
    for title, scores in references(block, score_columns(block, paper)).items():
        values = {_name(block, column.key): value for column, value in scores.items()}
        yield _identity(block, Row("", title, ranked=False), "reference") | values
    if block.ceiling:
        scored = _scores(block, block.ceiling, paper, tests)
        yield _identity(block, block.ceiling, "reference") | scored | _last(block, block.ceiling)


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


def _scores(block: Block, row: Row, paper: PaperTables, tests: BlockTests) -> dict[str, Any]:
    record: dict[str, Any] = {}
    present = {key for other in block.rows for key in other.scores}
    for task in shown_tasks(block) or [block.first_task]:
        for dataset in shown_datasets(block, task, paper):
            for metric in shown_metrics(block, task):
                key = (task, dataset, metric)
                always = block.experiment is not None or task == block.first_task
                if always or key in present:
                    record |= _numbers(block, row, key, paper) | _tested(block, row, key, tests)
    return record


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


def _numbers(block: Block, row: Row, key: Key, paper: PaperTables) -> dict[str, float | None]:
    name, score = _name(block, key), row.scores.get(key)
    fields = ("value", "sd", "ci_low", "ci_high")
    numbers = {
        name if field == "value" else f"{name}_{field}": getattr(score, field, None) for field in fields
    }
    if block.metric(key).head in paper.metrics:
        theirs = reported(block, row, key, paper)
        known = score is not None and theirs is not None
        numbers[f"{name}_paper"] = theirs
        numbers[f"{name}_difference"] = (
            score.value - theirs if known and score and theirs is not None else None
        )
    return numbers | {f"{name}_n": getattr(score, "n", None)}


def _tested(block: Block, row: Row, key: Key, tests: BlockTests) -> dict[str, float | bool | str | None]:
    """Against the baseline: difference, adjusted p value and verdict; and whether the row is tied with the best."""
    if key not in tests.keys or not row.compared(key):
        return {}
    name, test = _name(block, key), tests.against_baseline.get((row.cell, key))
    return {
        f"{name}_baseline_difference": test.difference if test else None,
        f"{name}_baseline_p": test.p_adjusted if test else None,
        f"{name}_baseline_verdict": test.verdict if test else None,
        f"{name}_tied_with_best": row.cell in tests.tied_with_best(key),
    }


def _name(block: Block, key: Key) -> str:
    """Name of a score's column: ``<dataset>_<metric>``, behind the task where that is not the suite's first."""
    task, dataset, metric = key
    return f"{dataset}_{metric}" if task == block.first_task else f"{task}_{dataset}_{metric}"
