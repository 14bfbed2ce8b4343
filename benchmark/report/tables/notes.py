"""The notes below a table, and its caption."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmark.config.run_config import Recipe
from benchmark.report.collect import Block, Row
from benchmark.report.paper import PaperTables
from benchmark.report.runs import Run
from benchmark.report.significance.wording import least_text
from benchmark.report.tables.columns import (
    APART_MARK,
    SHARED_MARK,
    TIED_MARK,
    Column,
    difference_reason,
    paper_table,
    shown_tasks,
)

NOT_RUN = "not run"
_DEFAULTS = {item.name: item.default for item in dataclasses.fields(Recipe)}
_COMPARED = tuple(
    item.name for item in dataclasses.fields(Recipe) if item.metadata["hashed"] and item.name != "lr"
)
_USUAL_RULE = "global"
_SOURCE = "the ACE-LoRA paper (arXiv 2603.17079)"


def table_notes(block: Block) -> list[str]:
    """One line per thing to know that is no doubt (benchmark/report/doubts.py)."""
    return [
        *_missing(block),
        *_shared(block),
        *_origins(block),
        *_rules(block),
        *_fittings(block),
        *_mixed_recipes(block),
    ]


def table_caption(block: Block, columns: Sequence[Column], paper: PaperTables, *, tied: bool) -> str:
    """Say what the numbers are, what the marks mean, and why columns are blank.

    Args:
        block: the block.
        columns: its columns.
        paper: the paper's numbers.
        tied: whether some column was tested for ties.
    """
    note = block.experiment.note if block.experiment else ""
    lines = [
        _measured(block),
        *_ranking(block, tied),
        *_papers(block, columns, paper),
        *([note] if note else []),
    ]
    if any(row.difference for row in block.rows):
        lines.append("Rows that are differences of two others: in points.")
    return " ".join([*lines, *_learning_rates(block)])


def is_shared(row: Row, task: str) -> bool:
    """Whether a row's result of a task is the one that methods share which leave the image tower as it is."""
    return any((run.tasks.get(task) or {}).get("shared") for run in row.runs)


def lacks(row: Row, task: str) -> bool:
    """Whether a method was run without this task."""
    finished = [run for run in row.runs if run.scores()]
    return bool(finished) and not any(task in run.tasks for run in finished)


def trains(row: Row) -> bool:
    """Whether the method trains anything."""
    return row.efficiency.get("trainable_parameters") != 0


# --- notes --------------------------------------------------------------------------------------------------


def _missing(block: Block) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    tasks = shown_tasks(block)
    for row in block.rows:
        if row.missing and not row.difference:
            reasons.setdefault(row.missing, []).append(row.title)
        if absent := [task for task in tasks if lacks(row, task)]:
            reasons.setdefault(NOT_RUN, []).append(f"{row.title} ({', '.join(absent)})")
    for reason, titles in reasons.items():
        if reason == NOT_RUN:
            command = f" To run them: {block.command}" if block.command else ""
            yield f"Not run: {', '.join(titles)}.{command}"
        else:
            yield f"{', '.join(titles)}: {reason.rstrip('.')}."


def _shared(block: Block) -> list[str]:
    """One note per task on the methods that share a result."""
    titles = {task: [row.title for row in block.rows if is_shared(row, task)] for task in shown_tasks(block)}
    return [
        f"{SHARED_MARK} {', '.join(names)}: these leave the image tower as it is and share one {task} result."
        for task, names in titles.items()
        if names
    ]


def _origins(block: Block) -> Iterator[str]:
    """What is known of the weights of rows on other models: what they were trained on, and who made them."""
    for key, words in (("pretrained_on", "Pretrained on {}"), ("note", "{}")):
        found: dict[str, list[str]] = {}
        for row in block.rows:
            told = {
                str((run.provenance.get("weights") or {}).get(key) or "") for run in row.runs if row.scores
            }
            for text in sorted(told - {""}):
                found.setdefault(text, []).append(row.title)
        for text, titles in found.items():
            line = words.format(text)
            yield f"{line[:1].upper()}{line[1:]}: {', '.join(titles)}."


def _rules(block: Block) -> list[str]:
    """One note per score rule other than the one that rows are compared by."""
    found: dict[str, list[str]] = {}
    for row in block.rows:
        for rule in sorted(
            {str(info["rule"]) for info in _infos(row, block) if info.get("rule")} - {_USUAL_RULE}
        ):
            found.setdefault(rule, []).append(row.title)
    return [
        f"Scored by the published rule {rule}, not by cosines of global features: {', '.join(titles)}."
        for rule, titles in found.items()
    ]


def _fittings(block: Block) -> list[str]:
    """A note where rows saw the same images fitted differently, as models with a rule of their own do."""
    found: dict[str, list[str]] = {}
    for row in block.rows:
        names = {str(info["data_transform"]) for info in _infos(row, block) if info.get("data_transform")}
        if names:
            found.setdefault(" and ".join(sorted(names)), []).append(row.title)
    listed = "; ".join(f"{name} ({', '.join(titles)})" for name, titles in found.items())
    return [f"Images are fitted as each model takes them: {listed}."] * (len(found) > 1)


def _infos(row: Row, block: Block) -> Iterator[Mapping[str, Any]]:
    """``info`` of each result of a row that the table shows."""
    for run in row.runs:
        for task in shown_tasks(block):
            for result in ((run.tasks.get(task) or {}).get("datasets") or {}).values():
                yield result.get("info") or {}


def _mixed_recipes(block: Block) -> list[str]:
    """Settings of training in which rows differ, except for the learning rate; one that is not told is the default."""
    trained = [(row.title, run) for row in block.rows if trains(row) for run in row.runs if run.scores()]
    lines = []
    for name in _COMPARED:
        values = {title: _setting(run, name) for title, run in trained if _recipe(run)}
        counts = Counter(values.values()).most_common()
        if len(counts) > 1:
            usual = counts[0][0]
            others = {value: [title for title in values if values[title] == value] for value, _ in counts[1:]}
            listed = ", ".join(f"{value} ({', '.join(titles)})" for value, titles in others.items())
            lines.append(f"{name} {usual}, but {listed}")
    return [f"Mixed recipes: {'; '.join(lines)}."] * bool(lines)


def _recipe(run: Run) -> dict[str, object]:
    return dict(run.config.get("recipe") or {})


def _setting(run: Run, name: str) -> str:
    value = _recipe(run).get(name, _DEFAULTS[name])
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)


# --- caption ------------------------------------------------------------------------------------------------


def _measured(block: Block) -> str:
    counts = sorted({len(row.runs) for row in block.rows if row.scores and not row.difference})
    if not counts:
        return f"Nothing has been measured here on suite {block.suite} with backbone {block.backbone}."
    seeds = " to ".join(str(count) for count in sorted({counts[0], counts[-1]}))
    return (
        f"Measured here on suite {block.suite} with backbone {block.backbone}, in percent: mean over {seeds} "
        "seed(s), +- standard deviation over seeds, [95 % bootstrap interval over test patients, bounds averaged "
        "over seeds]."
    )


def _ranking(block: Block, tied: bool) -> list[str]:
    if not any(row.ranked and row.scores for row in block.rows):
        return ["No row is ranked: no whole run."]
    lines = ["Best bold, second underlined, among whole runs."]
    rule = (
        f"'{TIED_MARK}' after a number: tied with the best, as a paired test on the same test patients (5 % level, "
        "Holm-adjusted over the rows of the column), or the spread over seeds, does not tell them apart, or the "
        f"difference is less than {least_text(block)}."
    )
    apart = any(score.apart for row in block.rows for score in row.scores.values())
    other = (
        f"'{APART_MARK}': not compared, for it was made with other data, weights or numbers (doubts below)."
    )
    return lines + [rule] * tied + [other] * apart


def _papers(block: Block, columns: Sequence[Column], paper: PaperTables) -> list[str]:
    tables = {paper_table(block, column.key, paper) for column in columns if column.role == "paper"}
    if not tables:
        return ["The paper has no numbers for these datasets."]
    reason = difference_reason(block).rstrip(".")
    if reason:
        return [f"The columns for the numbers of {_SOURCE} and for differences are blank: {reason}."]
    named = f"Table{'s' * (len(tables) > 1)} {' and '.join(sorted(tables))}"
    lines = [
        f"Columns 'paper': as printed in {named} of {_SOURCE}, in percent. "
        "Differences: measured minus paper, in points."
    ]
    noted = [
        block.dataset_title(dataset, task)
        for task, dataset in dict.fromkeys(
            (column.task, column.dataset) for column in columns if column.role == "paper"
        )
        if block.data_notes(dataset, task)
    ]
    if noted:
        lines.append(
            f"Blank for {', '.join(dict.fromkeys(noted))}: the data were prepared differently (doubts below)."
        )
    return lines


def _learning_rates(block: Block) -> list[str]:
    rates: dict[str, list[str]] = {}
    for row in block.rows:
        found = {_setting(run, "lr") for run in row.runs if run.scores() and "lr" in _recipe(run)}
        for rate in sorted(found) if trains(row) else ():
            rates.setdefault(rate, []).append(row.title)
    if not rates:
        return []
    if len(rates) == 1:
        return [f"Learning rate: {next(iter(rates))}."]
    listed = "; ".join(f"{rate} {', '.join(titles)}" for rate, titles in rates.items())
    return [f"Learning rates: {listed}."]
