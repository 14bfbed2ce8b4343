"""Tables of few-shot runs: scores against shots; base, new and their harmonic mean; published rows beside them."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import numpy as np

from benchmark.files import paper_tables
from benchmark.metrics.paired_tests import holm
from benchmark.report.few_rows import (
    METRICS,
    FewRow,
    Half,
    Values,
    Where,
    accuracies,
    both,
    evaluated,
    few_rows,
    harmonic,
    harmonics,
    key_of,
    leaky,
    other_datasets,
    places,
    tests_of,
    with_most_shots,
)
from benchmark.report.model import Block, Doubt, span
from benchmark.report.significance.wording import p_text
from benchmark.report.tables.doubts import joined, of_data, row_doubts
from benchmark.report.tables.table import Cell, Column, Table

_HEADS = {"acc": "ACC", "balanced_acc": "bal. ACC"}
_PUBLISHED = {"fewshot": "few_shot", "base_to_new": "base_to_new"}
"""Protocol here -> its name in the file of published numbers."""
_LEAST = 2  # methods that can be ranked
_TITLES = {
    "fewshot": "Scores against labelled images of a class",
    "base_to_new": "Base classes, new classes and their harmonic mean",
    "cross_dataset": "Adapted on one dataset, evaluated on all",
}


def fewshot_tables(blocks: Sequence[Block]) -> list[Table]:
    """One table per block, protocol, sampling and selection."""
    tables = []
    for block in blocks:
        rows = few_rows(block)
        rules = dict.fromkeys(one.rule for one in rows if one.support["shots"])
        for rule in sorted(rules or dict.fromkeys(one.rule for one in rows)):
            mine = [
                one
                for one in rows
                if one.rule == rule or (one.rule[0] == rule[0] and not one.support["shots"])
            ]
            tables.append(_table(block, rule, mine))
    return tables


def _table(block: Block, rule: tuple[str, str, str], rows: Sequence[FewRow]) -> Table:
    halves = rule[0] == "base_to_new"
    columns, cells = (_halves if halves else _against_shots)(rows)
    ranks = _ranks((harmonics if halves else accuracies)(rows))
    titles = list(dict.fromkeys(one.title for one in rows))
    if ranks:
        columns = [*columns, Column("measured", "mean rank"), Column("switch", "p against the first")]
        cells = {title: [*own, *ranks.get(title, (Cell("-"), Cell("-")))] for title, own in cells.items()}
    body = [[Cell(title), *cells[title]] for title in titles if title in cells]
    published = list(_published(block, rule[0], columns))
    words = ", ".join(filter(None, rule[1:]))
    return Table(
        columns=[Column("method", "Method"), *columns],
        rows=body,
        references=[*_floor(rows, columns), *published],
        doubts=_doubts(block, rows),
        caption=_caption(rows, halves, bool(ranks), bool(published)),
        block=Block(block.suite, block.backbone, block.spec, ()),
        heading=f"{_TITLES[rule[0]]}{f' ({words})' if words else ''}. {block.heading}",
        records=list(_records(rows)),
        name=rule[0],
        screen=[at for at, column in enumerate([Column("method", ""), *columns]) if _is_main(column)],
    )


def _doubts(block: Block, rows: Sequence[FewRow]) -> list[Doubt]:
    """Leaks and whatever else makes the data doubtful, then what makes rows so."""
    whole = replace(block, rows=tuple(one.row for one in rows), variants=(), beside=())
    of_rows = joined((one.title, doubt) for one in rows for doubt in row_doubts(one.row))
    return [*dict.fromkeys(of_data(whole)), *of_rows]


def _is_main(column: Column) -> bool:
    """Whether the last screen of a run shows it: accuracies of the published test, and ranks."""
    return column.role == "measured" and column.metric in ("", METRICS[0]) and " clean " not in column.head


def _caption(rows: Sequence[FewRow], halves: bool, ranked: bool, published: bool) -> str:
    datasets = list(dict.fromkeys(str(one.support["dataset"]) for one in rows))
    seeds = sorted({len(one.row.finished) for one in rows if one.support["shots"]}) or [1]
    said = [
        f"Mean over {len(datasets)} dataset{'s' * (len(datasets) > 1)} ({', '.join(datasets)}) and seeds "
        f"({span(seeds)} a method that learns); beside it the standard deviation over seeds of that mean.",
        "Labels: most that a run has seen, those that chose its settings included.",
    ]
    counts = {
        score.n for one in rows for key, score in one.row.scores.items() if key[2] == METRICS[0] and score.n
    }
    if counts:
        widths = " to ".join(f"{98 / count**0.5:.1f}" for count in dict.fromkeys((max(counts), min(counts))))
        said.append(f"Test images: {span(counts)}; 95 % half-width of an accuracy of 50 %: {widths} points.")
    if any(map(other_datasets, rows)) and not halves:
        said.append(
            "Source: the dataset that a method was adapted on; others: mean over those that it was not."
        )
    if halves:
        said.append(
            "H: mean of the harmonic means of single datasets and seeds; H of means: harmonic mean of the columns base "
            "and new. Published tables print either."
        )
    if any(map(leaky, rows)):
        said.append(
            "Clean: without the test images that are like a labelled image of the split; a dataset without such images "
            "counts whole, one without others not at all."
        )
    if ranked:
        said.append(
            "Mean rank: over all datasets, numbers of shots and seeds that all ranked methods have, by "
            f"{'H' if halves else 'accuracy'}, 1 is best; p: Wilcoxon's signed-rank test on the same, against the "
            "first in rank, adjusted by Holm. Seeds share their test images: this says how sure the order is on these "
            "datasets."
        )
    if published:
        said.append(
            "Rows marked 'published' were not measured here; rows of different sources cannot be compared."
        )
    return " ".join(said)


# --- scores -------------------------------------------------------------------------------------------------


def _head(name: str, test: str) -> str:
    return f"{name}{' clean' * bool(test)} [%]"


def _mean(rows: Sequence[FewRow], where: Where, metric: str) -> Cell:
    """Mean over rows of different datasets: first each seed's, then over seeds."""
    values: dict[str, list[float]] = {}
    for one in rows:
        for dataset in where(one):
            key = key_of(one, dataset, metric)
            for run in one.row.finished if key else ():
                if key and (value := one.value(run, key)) is not None:
                    values.setdefault(run.seed, []).append(value)
    whole = max(map(len, values.values()), default=0)
    return _cell([fmean(found) for found in values.values() if len(found) == whole])


def _cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("-")
    spread = f"({100 * stdev(values):.1f})" if len(values) > 1 else ""
    return Cell(f"{100 * fmean(values):.1f}", spread, number=100 * fmean(values))


def _labels(rows: Sequence[FewRow]) -> str:
    counts = [one.labels for one in rows]
    known = sorted({count for count in counts if count is not None})
    return "-" if not known else "/".join(dict.fromkeys((str(known[0]), str(known[-1]))))


Parts = tuple[list[Column], dict[str, list[Cell]]]


def _against_shots(rows: Sequence[FewRow]) -> Parts:
    shots = sorted({int(one.support["shots"]) for one in rows} - {0})
    scores = [(where, name, test) for where in places(rows) for test in tests_of(rows) for name in METRICS]
    columns = []
    for count in shots or [0]:
        group = {"group": f"{count} shot{'s' * (count != 1)}", "title": f"{count} shot{'s' * (count != 1)}"}
        columns += [
            Column(
                "measured", where + _head(_HEADS[name], test), metric=name + test, dataset=str(count), **group
            )
            for where, name, test in scores
        ]
        columns.append(Column("switch", "labels", dataset=str(count), **group))
    cells: dict[str, list[Cell]] = {}
    for title in dict.fromkeys(one.title for one in rows):
        own = [one for one in rows if one.title == title]
        cells[title] = []
        for count in shots or [0]:
            at = [one for one in own if one.support["shots"] in (count, 0)]
            cells[title] += [_mean(at, places(rows)[where], name + test) for where, name, test in scores]
            cells[title].append(Cell(_labels(at) if at else "-"))
    return columns, cells


def _halves(rows: Sequence[FewRow]) -> Parts:
    tests = tests_of(rows)
    columns = [
        Column("measured", _head(name, test)) for test in tests for name in ("base", "new", "H", "H of means")
    ]
    columns.append(Column("switch", "labels"))
    cells: dict[str, list[Cell]] = {}
    for title, own in with_most_shots(rows).items():
        found = [
            cell for test in tests for cell in _half_cells([half for one in own for half in both(one, test)])
        ]
        if found[0].number is not None:
            cells[title] = [*found, Cell(_labels(own))]
    return columns, cells


def _half_cells(found: Sequence[Half]) -> list[Cell]:
    """Base, new, mean of H and H of means."""
    seeds = list(dict.fromkeys(one.seed for one in found))
    if not seeds:
        return [_cell([])] * 4
    each = [[one for one in found if one.seed == seed] for seed in seeds]
    base, new = ([fmean(getattr(one, side) for one in own) for own in each] for side in ("base", "new"))
    per_seed = [fmean(one.harmonic for one in own) for own in each]
    return [_cell(base), _cell(new), _cell(per_seed), _cell([harmonic(fmean(base), fmean(new))])]


def _records(rows: Sequence[FewRow]) -> Iterator[dict[str, Any]]:
    """Yield every seed's scores for CSV."""
    tests = tests_of(rows)
    for one in rows:
        for run in one.row.finished:
            for dataset in evaluated(one):
                scores = {
                    name + test: one.value(run, key)
                    for test in tests
                    for name in METRICS
                    if (key := key_of(one, dataset, name + test))
                }
                yield {
                    "suite": run.suite, "backbone": run.backbone, "method": one.row.method, "title": one.title,
                    **one.support, "evaluated_on": dataset, "seed": run.seed, **scores,
                    "labels": run.adapted.get("labels", 0),
                }  # fmt: skip


# --- what a score must beat ---------------------------------------------------------------------------------

_MAJORITY = "majority_acc"


def _floor(rows: Sequence[FewRow], columns: Sequence[Column]) -> Iterator[list[Cell]]:
    """Yield the row of an answer that never looks at an image, in the columns of accuracies of the published test."""
    found = {str(one.support["dataset"]): one for one in rows}  # the same whatever was learnt
    cells = [_floor_cell(list(found.values()), column) for column in columns]
    if any(cell.text for cell in cells):
        yield [Cell("Always the most frequent class"), *cells]


def _floor_cell(rows: Sequence[FewRow], column: Column) -> Cell:
    half = column.head.removesuffix(" [%]")
    if column.metric == METRICS[0]:
        where = places(rows)[column.head.removesuffix(_head(_HEADS[METRICS[0]], ""))]
    elif half in ("base", "new"):
        where = lambda row: [f"{row.support['dataset']}-{half}"]  # noqa: E731
    else:
        return Cell("")
    return replace(_mean(rows, where, _MAJORITY), spread="")


# --- ranks --------------------------------------------------------------------------------------------------


def _ranks(values: Values) -> dict[str, tuple[Cell, Cell]]:
    """Title -> mean rank and p value against the first, over what all methods that learn have; empty without any."""
    from scipy import stats  # takes a second to import

    if len(values) < _LEAST:
        return {}
    shared = sorted(set.intersection(*(set(own) for own in values.values())), key=str)
    if len(shared) < _LEAST:
        return {}
    table = np.array([[values[title][place] for place in shared] for title in values])
    ranks = np.mean([stats.rankdata(-column) for column in table.T], axis=0)
    first = int(np.argmin(ranks))
    raw = [
        float("nan") if at == first or np.allclose(line, table[first])
        else float(stats.wilcoxon(line, table[first]).pvalue)
        for at, line in enumerate(table)
    ]  # fmt: skip
    found = {}
    for title, rank, p_value in zip(values, ranks, holm(raw), strict=True):
        text = "-" if np.isnan(p_value) else p_text(float(p_value))
        found[title] = (Cell(f"{rank:.2f}", number=float(rank)), Cell(text))
    return found


# --- published ----------------------------------------------------------------------------------------------


@functools.cache
def published() -> list[dict[str, str]]:
    """The published numbers, as ``results/paper/fewshot.csv`` has them; averages over datasets are in percent."""
    with paper_tables().with_name("fewshot.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _published(block: Block, protocol: str, columns: Sequence[Column]) -> Iterator[list[Cell]]:
    """Yield the published rows of the groups of datasets that the suite names, each with its source."""
    groups = (block.spec.get("fewshot") or {}).get("published") or ()
    wanted = [one for one in published() if one["dataset_group"] in groups and one["dataset"] == "average"]
    wanted = [one for one in wanted if one["protocol"] == _PUBLISHED.get(protocol)]
    for source, group, method in dict.fromkeys(map(_origin, wanted)):
        own = [one for one in wanted if _origin(one) == (source, group, method)]
        cells = [Cell(next((one["value"] for one in own if _stands(one, column)), "")) for column in columns]
        if any(cell.text for cell in cells):
            yield [Cell(f"{method} (published: {source}, {group})"), *cells]


def _origin(one: Mapping[str, str]) -> tuple[str, str, str]:
    return one["source"], one["dataset_group"], one["method"]


def _stands(one: Mapping[str, str], column: Column) -> bool:
    """Return whether a published number belongs into a column; which H is printed is said in its note."""
    if column.metric:
        return (one["shots"], one["metric"]) == (column.dataset, column.metric)
    printed = one["note"].partition("printed H is: ")[2]
    metric = one["metric"]
    if metric == "H" and not printed.startswith("mean of H"):
        metric = "H of means" if printed.startswith("H of means") else ""  # another mean, or none that fits
    return column.head == f"{metric} [%]"
