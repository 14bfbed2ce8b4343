"""The columns of a table, the paper's number for a cell, and when a difference to it is meaningful."""

from __future__ import annotations

import re

from benchmark.report.model import Block, Key, Row, span
from benchmark.report.paper import PaperTables
from benchmark.report.tables.table import Column

_SWITCHES = re.compile(r"(?:[^;=]+=[01])(?:;[^;=]+=[01])*")


def score_columns(block: Block, paper: PaperTables) -> list[Column]:
    """Columns of a block: title, on/off parts, then per number the paper's, the measured one, the difference.

    Numbers that the paper does not report for the dataset stand alone.
    """
    columns = [Column("method", "Method"), *(Column("switch", name) for name in switches(block))]
    present = block.present
    for key in shown_keys(block, paper):
        if key in present or block.experiment is not None:
            columns += _columns_of(block, key, paper)
    return columns


def shown_keys(block: Block, paper: PaperTables) -> list[Key]:
    """All scores that may have columns, in their order."""
    return [
        (task, dataset, metric)
        for task in shown_tasks(block) or [block.first_task]
        for dataset in shown_datasets(block, task, paper)
        for metric in shown_metrics(block, task)
    ]


def shown_tasks(block: Block) -> list[str]:
    """Tasks with columns: those of the experiment, else all with a score, the suite's first one first, then by name."""
    if block.experiment is not None:
        return [task for task, metrics in block.experiment.tasks.items() if metrics]
    found = {key[0] for key in block.present if block.metric(key).head}
    return sorted(found, key=lambda task: (task != block.first_task, task))


def shown_metrics(block: Block, task: str) -> list[str]:
    """Metrics of a task that may have columns."""
    if block.experiment is not None:
        return list(block.experiment.tasks.get(task) or ())
    return [name for name, metric in block.metrics.get(task, {}).items() if metric.head]


def shown_datasets(block: Block, task: str, paper: PaperTables) -> list[str]:
    """Datasets of a task: measured ones, else those of the suite, else those of the paper's table."""
    listed = block.datasets(task)
    if block.experiment is None or listed:
        return listed
    heads = {block.metric((task, "", metric)).head for metric in shown_metrics(block, task)}
    table = paper.table(block.table)
    named = dict.fromkeys(table.loc[table["metric"].isin(heads), "dataset"])
    ours = [name for name, theirs in paper_names(block).items() if theirs in named]
    return list(block.dataset_specs(task)) or ours or list(named)


def sample_count(block: Block, key: Key) -> str:
    """Samples of a score as text: "1000", "64 to 1000" where rows differ, "?" where nothing says it.

    Rows that may not be compared with others count only where there is nothing else.
    """
    for rows in (block.rows, block.beside):
        for ranked in (True, False):
            found = (row.scores[key].n for row in rows if row.ranked is ranked and key in row.scores)
            if counts := [count for count in found if count is not None]:
                return span(counts)
    return "?"


def switches(block: Block) -> dict[str, list[str]]:
    """On/off parts named in the rows of the paper's table: name -> "yes", "no" or "" per row of the block."""
    matches = [_SWITCHES.fullmatch(row.paper_row) for row in block.rows]
    parts = [dict(item.split("=") for item in match[0].split(";")) if match else {} for match in matches]
    words = {"1": "yes", "0": "no"}
    return {
        name: [words.get(row.get(name, ""), "") for row in parts]
        for name in dict.fromkeys(n for row in parts for n in row)
    }


def paper_names(block: Block) -> dict[str, str]:
    """Our dataset name -> the paper's, as the suite file declares."""
    return {ours: theirs for names in _declared(block).values() for theirs, ours in names.items()}


def paper_table(block: Block, key: Key, paper: PaperTables) -> str:
    """Id of the paper's table that reports this number, or empty."""
    task, dataset, metric = key
    head = block.metric(key).head
    if block.experiment is not None:
        theirs = paper_names(block).get(dataset, dataset)
        return block.table if paper.reports(block.table, theirs, head) else ""
    # of several tasks with this metric of the dataset, the suite's first one is what the paper's tables are about
    having = (
        name for name in block.tasks if dataset in block.dataset_specs(name) and metric in block.metrics[name]
    )
    if next(having, task) != task:
        return ""
    named = (
        (table, theirs)
        for table, names in _declared(block).items()
        for theirs, ours in names.items()
        if ours == dataset
    )
    return next((table for table, theirs in named if paper.reports(table, theirs, head)), "")


def reported(block: Block, row: Row, key: Key, paper: PaperTables) -> float | None:
    """The paper's number for a cell as a fraction; None where it has none, or none that means the same."""
    table = paper_table(block, key, paper)
    if not table or not is_comparable(block, key) or any(run.limit is not None for run in row.runs):
        return None
    metric, theirs = block.metric(key), paper_names(block).get(key[1], "")
    head = metric.head + ("_delta" if row.difference else "")
    value = paper.value(table, _paper_row(row, table, key[0], paper), theirs, head)
    return None if value is None else value / metric.scale


def is_comparable(block: Block, key: Key) -> bool:
    """Whether the paper's number means the same: its dataset, and nothing noted at its preparation."""
    return not difference_reason(block) and not block.data_notes(key[1], key[0])


def difference_reason(block: Block) -> str:
    """Why the paper's numbers are left blank; empty when the suite says that they have a meaning."""
    paper = block.spec.get("paper") or {}
    if not block.spec:
        return "nothing here stands for the paper's data"
    if not paper:
        return "the suite names no counterpart in the paper"
    if not paper.get("comparable"):
        return str(paper.get("why") or "the suite's data are not the paper's")
    return block.unlike


def _declared(block: Block) -> dict[str, dict[str, str]]:
    """Table id of the paper -> {the paper's dataset: ours}, in the order of the suite file."""
    entries = block.spec.get("paper") or {}
    return {
        str(name).removeprefix("table_"): dict(names)
        for name, names in entries.items()
        if str(name).startswith("table_")
    }


def _paper_row(row: Row, table: str, task: str, paper: PaperTables) -> str:
    """The row's name in a table; there a task such as TransCLIP may be a row of its own, of the same model."""
    rows = paper.methods(table)
    named = [name for name in rows if name.lower() == task]
    return named[0] if named and row.paper_row in rows else row.paper_row


def _columns_of(block: Block, key: Key, paper: PaperTables) -> list[Column]:
    task, dataset, metric = key
    name = block.dataset_title(dataset, task)
    title = name if task == block.first_task else f"{name} {task}"
    count = sample_count(block, key)
    shown = block.metric(key)
    head, unit, change = shown.title, _in(shown.unit), _in(shown.difference_unit)
    facts = (dataset, f"{title}, n = {count}", metric, task, title, count)
    measured = Column("measured", head + unit, *facts)
    if not paper_table(block, key, paper):
        return [measured]
    return [
        Column("paper", f"{head} paper{unit}", *facts),
        measured,
        Column("difference", f"{head} difference{change}", *facts),
    ]


def _in(unit: str) -> str:
    return f" [{unit}]" if unit else ""
