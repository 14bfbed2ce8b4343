"""Tables of few-shot runs: scores against shots; base, new and their harmonic mean; published rows beside them."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from benchmark.files import paper_tables
from benchmark.metrics.classification import CLEAN
from benchmark.metrics.paired_tests import holm
from benchmark.report.model import Block, Key, Row, Run, span
from benchmark.report.significance.wording import p_text
from benchmark.report.tables.table import Cell, Column, Table

METRICS = ("acc", "balanced_acc")
_HEADS = {"acc": "ACC", "balanced_acc": "bal. ACC"}
_PUBLISHED = {"fewshot": "few_shot", "base_to_new": "base_to_new"}
"""Protocol here -> its name in the file of published numbers."""
_LEAST = 2  # methods that can be ranked
_TITLES = {
    "fewshot": "Scores against labelled images of a class",
    "base_to_new": "Base classes, new classes and their harmonic mean",
    "cross_dataset": "Adapted on one dataset, evaluated on all",
}


@dataclass(frozen=True)
class FewRow:
    """The seeds of one method with one support rule, on one dataset.

    Attributes:
        row: as the store has it. support: protocol, dataset, shots, and sampling and selection where anything is drawn.
        title: of the method, with changes that somebody made of it.
    """

    row: Row
    support: Mapping[str, Any]
    title: str

    @property
    def rule(self) -> tuple[str, str, str]:
        """Protocol, sampling and selection; a method that learns nothing has the first alone."""
        found = self.support
        return str(found["protocol"]), str(found.get("sampling", "")), str(found.get("selection", ""))

    def value(self, run: Run, key: Key) -> float | None:
        """The score of one seed, as a fraction."""
        found = run.scores().get(key, {}).get("value")
        return None if found is None else float(found)

    @property
    def labels(self) -> int | None:
        """Most labels that a seed has seen, those of validation included."""
        if not self.support["shots"]:
            return 0
        counts = [run.adapted.get("labels") for run in self.row.finished]
        return max((int(count) for count in counts if isinstance(count, int)), default=None)


def few_rows(block: Block) -> list[FewRow]:
    """The rows of a block that are few-shot runs."""
    found = []
    for row in (*block.rows, *block.variants):
        run = next(iter(row.finished), None)
        support = ((run.config.get("suite") or {}).get("support") or {}) if run else {}
        if {"protocol", "dataset", "shots"} <= set(support):
            said = {f"{key}={value}" for key, value in support.items()}
            changes = [one for one in row.variant.split(",") if one not in said]
            plain = row.title.partition(" (")[0] if row.variant else row.title
            title = f"{plain} ({','.join(changes)})" if changes else plain
            found.append(FewRow(row, support, title))
    return found


def only_few(block: Block) -> bool:
    """Return whether a block has few-shot runs, and no others."""
    few = {id(one.row) for one in few_rows(block)}
    return bool(few) and all(id(row) in few for row in (*block.rows, *block.variants) if row.finished)


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
    ranks = _ranks((_harmonics if halves else _accuracies)(rows))
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
        references=published,
        caption=_caption(rows, halves, bool(ranks), bool(published)),
        block=Block(block.suite, block.backbone, block.spec, ()),
        heading=f"{_TITLES[rule[0]]}{f' ({words})' if words else ''}. {block.heading}",
        records=list(_records(rows)),
        name=rule[0],
        screen=[at for at, column in enumerate([Column("method", ""), *columns]) if _is_main(column)],
    )


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
    if any(map(_others, rows)) and not halves:
        said.append(
            "Source: the dataset that a method was adapted on; others: mean over those that it was not."
        )
    if halves:
        said.append(
            "H: mean of the harmonic means of single datasets and seeds; H of means: harmonic mean of the columns base "
            "and new. Published tables print either."
        )
    if any(map(_leaky, rows)):
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


def _key(row: FewRow, dataset: str, metric: str) -> Key | None:
    """The key of a score; of the clean test that of the published one, where no image leaks."""
    name = metric if dataset in _leaky(row) else metric.removesuffix(CLEAN)
    return next((key for key in row.row.scores if key[1:] == (dataset, name)), None)


def _leaky(row: FewRow) -> set[str]:
    """The datasets of which some test image is like a labelled one."""
    tasks = (task.get("datasets") or {} for run in row.row.finished for task in run.tasks.values())
    return {name for found in tasks for name, one in found.items() if "clean" in (one.get("info") or {})}


def _tests(rows: Sequence[FewRow]) -> tuple[str, ...]:
    """What ends the name of a metric: that of the published test, and of the clean one where they differ."""
    return ("", CLEAN) if any(map(_leaky, rows)) else ("",)


def _head(name: str, test: str) -> str:
    return f"{name}{' clean' * bool(test)} [%]"


def _mean(rows: Sequence[FewRow], where: Where, metric: str) -> Cell:
    """Mean over rows of different datasets: first each seed's, then over seeds."""
    values: dict[str, list[float]] = {}
    for one in rows:
        for dataset in where(one):
            key = _key(one, dataset, metric)
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
    scores = [(where, name, test) for where in _places(rows) for test in _tests(rows) for name in METRICS]
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
            cells[title] += [_mean(at, _places(rows)[where], name + test) for where, name, test in scores]
            cells[title].append(Cell(_labels(at) if at else "-"))
    return columns, cells


Where = Callable[[FewRow], list[str]]


def _evaluated(row: FewRow) -> list[str]:
    """The datasets that a row was evaluated on."""
    return list(dict.fromkeys(key[1] for key in row.row.scores if key[2] == METRICS[0]))


def _source(row: FewRow) -> list[str]:
    """Of these the one that it was adapted on."""
    return [name for name in _evaluated(row) if name == row.support["dataset"]]


def _others(row: FewRow) -> list[str]:
    return [name for name in _evaluated(row) if name != row.support["dataset"]]


def _places(rows: Sequence[FewRow]) -> dict[str, Where]:
    """How the head of a column begins -> the datasets that its mean is over."""
    return {"source ": _source, "others ": _others} if any(map(_others, rows)) else {"": _evaluated}


def _halves(rows: Sequence[FewRow]) -> Parts:
    tests = _tests(rows)
    columns = [
        Column("measured", _head(name, test)) for test in tests for name in ("base", "new", "H", "H of means")
    ]
    columns.append(Column("switch", "labels"))
    cells: dict[str, list[Cell]] = {}
    for title, own in _with_most_shots(rows).items():
        found = [
            cell for test in tests for cell in _half_cells([half for one in own for half in _both(one, test)])
        ]
        if found[0].number is not None:
            cells[title] = [*found, Cell(_labels(own))]
    return columns, cells


def _with_most_shots(rows: Sequence[FewRow]) -> dict[str, list[FewRow]]:
    """Title -> its rows with the largest number of shots that it has."""
    found: dict[str, list[FewRow]] = {}
    for one in rows:
        found.setdefault(one.title, []).append(one)
    most = {title: max(one.support["shots"] for one in own) for title, own in found.items()}
    return {
        title: [one for one in own if one.support["shots"] == most[title]] for title, own in found.items()
    }


def _half_cells(found: Sequence[Half]) -> list[Cell]:
    """Base, new, mean of H and H of means."""
    seeds = list(dict.fromkeys(one.seed for one in found))
    if not seeds:
        return [_cell([])] * 4
    each = [[one for one in found if one.seed == seed] for seed in seeds]
    base, new = ([fmean(getattr(one, side) for one in own) for own in each] for side in ("base", "new"))
    per_seed = [fmean(one.harmonic for one in own) for own in each]
    return [_cell(base), _cell(new), _cell(per_seed), _cell([harmonic(fmean(base), fmean(new))])]


class Half(NamedTuple):
    """Accuracies on the base and on the new classes of one dataset with one seed."""

    base: float
    new: float
    seed: str

    @property
    def harmonic(self) -> float:
        """Their harmonic mean."""
        return harmonic(self.base, self.new)


def _both(row: FewRow, test: str = "") -> Iterator[Half]:
    """Yield what each seed has."""
    keys = [_key(row, f"{row.support['dataset']}-{half}", METRICS[0] + test) for half in ("base", "new")]
    for run in row.row.finished:
        base, new = (row.value(run, key) if key else None for key in keys)
        if base is not None and new is not None:
            yield Half(base, new, run.seed)


def harmonic(base: float, new: float) -> float:
    """Return the harmonic mean of two scores, 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def _records(rows: Sequence[FewRow]) -> Iterator[dict[str, Any]]:
    """Yield every seed's scores for CSV."""
    tests = _tests(rows)
    for one in rows:
        for run in one.row.finished:
            for dataset in _evaluated(one):
                scores = {
                    name + test: one.value(run, key)
                    for test in tests
                    for name in METRICS
                    if (key := _key(one, dataset, name + test))
                }
                yield {
                    "suite": run.suite, "backbone": run.backbone, "method": one.row.method, "title": one.title,
                    **one.support, "evaluated_on": dataset, "seed": run.seed, **scores,
                    "labels": run.adapted.get("labels", 0),
                }  # fmt: skip


# --- ranks --------------------------------------------------------------------------------------------------


Values = Mapping[str, Mapping[tuple[Any, ...], float]]
"""Title -> dataset, shots and seed -> score, of methods that learn."""


def _accuracies(rows: Sequence[FewRow]) -> Values:
    values: dict[str, dict[tuple[Any, ...], float]] = {}
    where = list(_places(rows).values())[-1]
    for one in (one for one in rows if one.support["shots"]):
        for dataset in where(one):
            key = _key(one, dataset, METRICS[0])
            for run in one.row.finished if key else ():
                if key and (value := one.value(run, key)) is not None:
                    place = (one.support["dataset"], dataset, one.support["shots"], run.seed)
                    values.setdefault(one.title, {})[place] = value
    return values


def _harmonics(rows: Sequence[FewRow]) -> Values:
    values: dict[str, dict[tuple[Any, ...], float]] = {}
    for title, own in _with_most_shots(rows).items():
        for one in (one for one in own if one.support["shots"]):
            for half in _both(one):
                place = (one.support["dataset"], one.support["shots"], half.seed)
                values.setdefault(title, {})[place] = half.harmonic
    return values


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
