"""The notes below a table, and its caption: conditions, each with the sentence that is shown when it holds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmark.config.run_config import Recipe
from benchmark.report.model import NOT_RUN, Block, Row, Run, span
from benchmark.report.paper import PaperTables
from benchmark.report.significance.wording import least_text
from benchmark.report.tables.columns import difference_reason, paper_table, shown_tasks
from benchmark.report.tables.table import APART_MARK, SHARED_MARK, TIED_MARK, Column

_DEFAULTS = {item.name: item.default for item in dataclasses.fields(Recipe)}
_COMPARED = tuple(
    item.name for item in dataclasses.fields(Recipe) if item.metadata["hashed"] and item.name != "lr"
)
_USUAL_RULE = "global"
_SOURCE = "the ACE-LoRA paper (arXiv 2603.17079)"
Told = Iterator[tuple[str, str]]
"""What is told of rows, with the title of each."""


def grouped(told: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return what is told -> titles of all rows that it is told of."""
    found: dict[str, list[str]] = {}
    for what, title in told:
        found.setdefault(what, []).append(title)
    return found


def is_shared(row: Row, task: str) -> bool:
    """Whether a row's result of a task is the one that methods share which leave the image tower as it is."""
    return any(run.task(task).get("shared") for run in row.runs)


def lacks(row: Row, task: str) -> bool:
    """Whether a method was run without this task."""
    return bool(row.finished) and not any(task in run.tasks for run in row.finished)


# --- notes --------------------------------------------------------------------------------------------------


def table_notes(block: Block) -> list[str]:
    """One line per thing to know that is no doubt (benchmark/report/tables/doubts.py)."""
    command = f" To run them: {block.command}" if block.command else ""
    notes = []
    for told, sentence in _NOTES:
        for what, titles in grouped(told(block)).items():
            form = _NOT_RUN if what == NOT_RUN else sentence
            line = form.format(what=what, titles=", ".join(titles), command=command, mark=SHARED_MARK)
            notes.append(line[:1].upper() + line[1:] if sentence is _ORIGIN else line)
    fittings = [f"{name} ({', '.join(titles)})" for name, titles in grouped(_fittings(block)).items()]
    if len(fittings) > 1:
        notes.append(f"Images are fitted as each model takes them: {'; '.join(fittings)}.")
    if recipes := "; ".join(_mixed_recipes(block)):
        notes.append(f"Mixed recipes: {recipes}.")
    return notes


def _missing(block: Block) -> Told:
    for row in block.rows:
        if row.missing and not row.difference:
            yield row.missing.rstrip("."), row.title
        if absent := [task for task in shown_tasks(block) if lacks(row, task)]:
            yield NOT_RUN, f"{row.title} ({', '.join(absent)})"


def _shared(block: Block) -> Told:
    yield from (
        (task, row.title) for task in shown_tasks(block) for row in block.rows if is_shared(row, task)
    )


def _origins(block: Block, key: str) -> Told:
    """What is known of the weights of rows on other models."""
    for row in block.rows:
        weights = [run.provenance.get("weights") or {} for run in row.finished]
        yield from ((text, row.title) for text in sorted({str(one.get(key) or "") for one in weights} - {""}))


def _infos(block: Block, key: str) -> Iterator[tuple[str, list[str]]]:
    """Title of each row, with the values of ``info`` in the results that the table shows."""
    for row in block.rows:
        tasks = [run.task(task) for run in row.runs for task in shown_tasks(block)]
        results = [result for task in tasks for result in (task.get("datasets") or {}).values()]
        yield (
            row.title,
            sorted({str(info[key]) for one in results if (info := one.get("info") or {}).get(key)}),
        )


def _rules(block: Block) -> Told:
    yield from (
        (rule, title) for title, rules in _infos(block, "rule") for rule in rules if rule != _USUAL_RULE
    )


def _fittings(block: Block) -> Told:
    """Rows that saw the same images fitted differently, as models with a rule of their own do."""
    yield from ((" and ".join(names), title) for title, names in _infos(block, "data_transform") if names)


def _unchanged(block: Block) -> Told:
    """Rows whose kept weights are, in some seeds, those before the first step."""
    for row in block.rows:
        kept = [run.adapted.get("best") or {} for run in row.finished if row.trains]
        if starts := sum(best.get("step") == 0 for best in kept):
            yield f"{starts} of {span([len(kept)])} seed(s)", row.title


_NOT_RUN, _ORIGIN = "Not run: {titles}.{command}", "{what}: {titles}."
_NOTES: tuple[tuple[Callable[[Block], Told], str], ...] = (
    (_missing, "{titles}: {what}."),
    (_shared, "{mark} {titles}: these leave the image tower as it is and share one {what} result."),
    (
        _unchanged,
        "{titles}: the weights before the first step were kept, as validation saw no gain ({what}).",
    ),
    (lambda block: _origins(block, "pretrained_on"), "Pretrained on {what}: {titles}."),
    (lambda block: _origins(block, "note"), _ORIGIN),
    (_rules, "Scored by the published rule {what}, not by cosines of global features: {titles}."),
)
"""What is told of which rows -> the sentence that tells it."""


def _mixed_recipes(block: Block) -> Iterator[str]:
    """Settings of training in which rows differ, except for the learning rate; one that is not told is the default."""
    trained = [(row.title, run) for row in block.rows if row.trains for run in row.finished if _recipe(run)]
    for name in _COMPARED:
        values = {title: _setting(run, name) for title, run in trained}
        counts = Counter(values.values()).most_common()
        others = [(value, [title for title in values if values[title] == value]) for value, _ in counts[1:]]
        if others:
            listed = ", ".join(f"{value} ({', '.join(titles)})" for value, titles in others)
            yield f"{name} {counts[0][0]}, but {listed}"


def _recipe(run: Run) -> Mapping[str, Any]:
    return run.config.get("recipe") or {}


def _setting(run: Run, name: str) -> str:
    value = _recipe(run).get(name, _DEFAULTS[name])
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)


# --- caption ------------------------------------------------------------------------------------------------


def table_caption(block: Block, columns: Sequence[Column], paper: PaperTables, *, tied: bool) -> str:
    """Say what the numbers are, what the marks mean, and why columns are blank.

    Args:
        block: the block.
        columns: its columns.
        paper: the paper's numbers.
        tied: whether some column was tested for ties.
    """
    counts = [len(row.runs) for row in block.rows if row.scores and not row.difference]
    ranked = any(row.ranked and row.scores for row in block.rows)
    shown = [column for column in columns if column.role == "paper"]
    tables = sorted({paper_table(block, column.key, paper) for column in shown})
    reason, note = difference_reason(block).rstrip("."), block.experiment.note if block.experiment else ""
    datasets = dict.fromkeys((column.dataset, column.task) for column in shown)
    noted = dict.fromkeys(block.dataset_title(*one) for one in datasets if block.data_notes(*one))
    where = f"on suite {block.suite} with backbone {block.backbone}"
    said = (
        (not counts, f"Nothing has been measured here {where}."),
        (
            bool(counts),
            f"Measured here {where}, in percent: mean over {span(counts)} seed(s), +- standard deviation over seeds, "
            "[95 % bootstrap interval over test patients, bounds averaged over seeds].",
        ),
        (not ranked, "No row is ranked: no whole run."),
        (ranked, "Best bold, second underlined, among whole runs."),
        (
            ranked and tied,
            f"'{TIED_MARK}' after a number: tied with the best, as a paired test on the same test patients (5 % level, "
            "Holm-adjusted over the rows of the column), or the spread over seeds, does not tell them apart, or the "
            f"difference is less than {least_text(block)}.",
        ),
        (
            ranked and any(score.apart for row in block.rows for score in row.scores.values()),
            f"'{APART_MARK}': not compared, for it was made with other data, weights or numbers (doubts below).",
        ),
        (not tables, "The paper has no numbers for these datasets."),
        (
            bool(tables and reason),
            f"The columns for the numbers of {_SOURCE} and for differences are blank: {reason}.",
        ),
        (
            bool(tables and not reason),
            f"Columns 'paper': as printed in Table{'s' * (len(tables) > 1)} {' and '.join(tables)} of {_SOURCE}, in "
            "percent. Differences: measured minus paper, in points.",
        ),
        (
            bool(noted and not reason),
            f"Blank for {', '.join(noted)}: the data were prepared differently (doubts below).",
        ),
        (bool(note), note),
        (
            any(row.difference for row in block.rows),
            "Rows that are differences of two others: in points.",
        ),
    )
    return " ".join([*(sentence for holds, sentence in said if holds), *_learning_rates(block)])


def _learning_rates(block: Block) -> list[str]:
    rates = grouped(
        (rate, row.title)
        for row in block.rows
        if row.trains
        for rate in sorted({_setting(run, "lr") for run in row.finished if "lr" in _recipe(run)})
    )
    if len(rates) < 2:
        return [f"Learning rate: {rate}." for rate in rates]
    listed = (f"{rate} {', '.join(titles)}" for rate, titles in rates.items())
    return [f"Learning rates: {'; '.join(listed)}."]
