"""Compare two methods of one folder of results, or two folders, on the same test patients.

compare METHOD OTHER --output-dir results
compare METHOD METHOD+option=3
compare results_before results_after

Differences are the first minus the second. What is tested, and when a difference matters: docs/statistics.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli._parser import ArgumentParser, add_smallest_difference, smallest_difference
from benchmark.console import Console
from benchmark.errors import ConfigError, PluginError, StoreError, unknown
from benchmark.files import csv_cell, user_path, write_whole
from benchmark.registry import METHODS
from benchmark.store.cells import Store

if TYPE_CHECKING:
    from benchmark.report.model import Block, Row
    from benchmark.report.significance.comparisons import Comparison


COLUMNS = ("Dataset", "Metric", "Task", "A", "B", "A - B", "95 % interval", "p", "p (Holm)", "Verdict")


@dataclass(frozen=True)
class Pair:
    """Two rows that are set side by side; ``heads`` are what their columns are called."""

    block: Block
    heads: tuple[str, str]
    first: Row
    second: Row


BEGINS = "reading results ..."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("first", metavar="A", help="a method, a method+variant, or a folder of results")
    parser.add_argument("second", metavar="B", help="what A is compared with, of the same sort")
    parser.add_argument("--output-dir", default="results", help="folder of the results (default: results)")
    parser.add_argument("--suite", help="only this suite (default: all)")
    parser.add_list("--metric", "metrics to compare (default: acc, auroc, dice and map)")
    add_smallest_difference(parser)
    parser.add_argument("--csv", metavar="FILE", help="write the numbers, unrounded, to this file too")


def main(args: argparse.Namespace, console: Console) -> int:
    """Print the comparison.

    Raises:
        ConfigError: unknown method, metric or suite, a folder and a method, or an impossible number of points.
        StoreError: there are no results, or nothing to compare.
    """
    folders = [user_path(name) for name in (args.first, args.second)]
    are_folders = [any(sign in name for sign in "/\\") or _holds_runs(folder)
                   for name, folder in zip((args.first, args.second), folders, strict=True)]  # fmt: skip
    if are_folders[0] != are_folders[1]:
        folder, other = (args.first, args.second) if are_folders[0] else (args.second, args.first)
        raise ConfigError(
            f"'{folder}' is a folder and '{other}' is not: compare two folders, or two methods of one --output-dir"
        )
    smallest = smallest_difference(args)
    pairs = (
        _folder_pairs(folders, args.suite)
        if are_folders[0]
        else _method_pairs(args.first, args.second, user_path(args.output_dir), args.suite)
    )
    compared = [(pair, _compared(pair, args.metric or [], smallest)) for pair in pairs]
    if not any(tests for _, tests in compared):
        notes = dict.fromkeys(
            note.text for pair in pairs for row in (pair.first, pair.second) for note in row.notes
        )
        why = f" ({'; '.join(notes)})" if notes else ""
        raise StoreError(f"'{args.first}' and '{args.second}' have no score in common{why}")
    _print(compared, console, smallest, several=are_folders[0])
    if args.csv:
        _write(user_path(args.csv), compared)
        console.line(args.csv)
    return 0


# --- what is compared ---------------------------------------------------------------------------------------


def _holds_runs(folder: Path) -> bool:
    return (folder / "runs").is_dir()


def _blocks(folder: Path, suite: str | None) -> list[Block]:
    from benchmark.report.collect import collect_blocks
    from benchmark.report.paper import load_paper

    if next(Store(folder).cells(), None) is None:
        raise StoreError(f"no results in '{folder}'. Run the benchmark first, or name its folder")
    blocks = collect_blocks(folder, load_paper())
    if suite is not None and suite not in {block.suite for block in blocks}:
        raise ConfigError(f"--suite: {unknown('suite', suite, {block.suite for block in blocks})}")
    return [block for block in blocks if suite in (None, block.suite)]


def _rows(block: Block) -> dict[str, Row]:
    return {row.cell: row for row in (*block.rows, *block.variants)}


def _method_pairs(first: str, second: str, folder: Path, suite: str | None) -> list[Pair]:
    """Return the blocks of a folder that have both methods.

    Raises:
        ConfigError: one line per name that is in no block.
        StoreError: no block has both.
    """
    blocks = _blocks(folder, suite)
    known = {cell for block in blocks for cell in _rows(block)}
    names = [_cell(name, known) for name in (first, second)]
    problems = [
        f"{unknown('method', given, known)} in '{folder}'"
        for given, name in zip((first, second), names, strict=True)
        if name not in known
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    if names[0] == names[1]:
        raise ConfigError(f"'{first}' and '{second}' are the same method; name two")
    pairs = [
        Pair(block, (names[0], names[1]), rows[names[0]], rows[names[1]])
        for block in blocks
        if set(names) <= (rows := _rows(block)).keys()
    ]
    if not pairs:
        raise StoreError(f"'{names[0]}' and '{names[1]}' were never run on the same suite and backbone")
    return pairs


def _cell(name: str, known: set[str]) -> str:
    """Return a cell's name for any spelling: aliases of the method, variants in any order."""
    if name in known:
        return name
    method, plus, variant = name.partition("+")
    try:
        method = METHODS.resolve(method)
    except PluginError:
        return name
    return method + plus + ",".join(sorted(variant.split(",")))


def _folder_pairs(folders: Sequence[Path], suite: str | None) -> list[Pair]:
    """Return every row that both folders have.

    Raises:
        StoreError: they share none.
    """
    ours, theirs = (
        {(block.suite, block.backbone): block for block in _blocks(path, suite)} for path in folders
    )
    heads = (str(folders[0]), str(folders[1]))
    pairs = [
        Pair(block, heads, row, _rows(theirs[place])[cell])
        for place, block in ours.items()
        if place in theirs
        for cell, row in _rows(block).items()
        if cell in _rows(theirs[place])
    ]
    if not pairs:
        raise StoreError(f"'{heads[0]}' and '{heads[1]}' have no method, suite and backbone in common")
    return pairs


def _compared(pair: Pair, metrics: Sequence[str], smallest: float) -> list[Comparison]:
    """Test two rows in every column that both have, or in those of some metrics.

    Raises:
        ConfigError: no column has one of the metrics.
    """
    from benchmark.report.significance.comparisons import compare_rows, main_keys

    shared = [key for key in pair.first.scores if key in pair.second.scores]
    present = {key[2] for key in shared}
    if problems := [
        f"--metric: {unknown('metric', name, present)}" for name in metrics if name not in present
    ]:
        raise ConfigError(problems)
    both = replace(pair.block, rows=(pair.first, pair.second), experiment=None, smallest=smallest)
    keys = [key for key in shared if key[2] in metrics] or [key for key in main_keys(both) if key in shared]
    return compare_rows(pair.first, pair.second, keys, both)


# --- what is shown ------------------------------------------------------------------------------------------


Compared = Sequence[tuple[Pair, list["Comparison"]]]


def _families(compared: Compared) -> Iterator[tuple[list[Pair], list[tuple[Pair, Comparison]]]]:
    """Yield the tests of each block with Holm-adjusted p values: what stands in one table is one family."""
    from benchmark.report.significance.comparisons import adjusted

    blocks = list({id(pair.block): pair.block for pair, _ in compared}.values())
    for block in blocks:
        mine = [(pair, tests) for pair, tests in compared if pair.block is block]
        pairs = [pair for pair, tests in mine for _ in tests]
        family = adjusted([test for _, tests in mine for test in tests])
        yield [pair for pair, _ in mine], list(zip(pairs, family, strict=True))


def _print(compared: Compared, console: Console, smallest: float, *, several: bool) -> None:
    from benchmark.report.significance.decision import stand

    for pairs, family in _families(compared):
        heads = pairs[0].heads
        title = f"{pairs[0].block.heading}: A = {heads[0]}, B = {heads[1]}"
        rows = [((pair.first.title,) * several + _texts(pair, test)) for pair, test in family]
        columns, right = ("Method",) * several + COLUMNS, "A, B, A - B, p, p (Holm)"
        console.rows(columns, rows, title, right=right, gives_way="p, 95 % interval, Task")
        for pair in pairs:
            tests = [test for other, test in family if other is pair]
            console.table(
                f"{_names(pair)[0]} against {_names(pair)[1]}: {stand(pair.first, tests, pair.block).text}"
            )
        for line in dict.fromkeys(line for pair in pairs for line in (*_seeds(pair), *_doubts(pair))):
            console.table(line)
    console.table(
        f"In percent and points; less than {100 * smallest:g} points is no difference that matters. Holm's adjustment "
        "is over one table; docs/statistics.md says what is tested."
    )


def _texts(pair: Pair, one: Comparison) -> tuple[str, ...]:
    task, dataset, _ = one.key
    metric = pair.block.metric(one.key)
    unit = metric.scale
    first, second = (row.scores[one.key].value for row in (pair.first, pair.second))
    numbers = (f"{unit * first:.2f}", f"{unit * second:.2f}", f"{unit * (first - second):+.2f}")
    title, head = pair.block.dataset_title(dataset, task), metric.title
    if metric.unit not in ("", "%"):
        head += f" [{metric.unit}]"
    if one.test is None or one.p_adjusted is None:
        return title, head, task, *numbers, "", "", "", verdict(one)
    interval = f"[{unit * one.test.ci_low:+.2f}, {unit * one.test.ci_high:+.2f}]"
    p_values = (f"{one.test.p_value:.2g}", f"{one.p_adjusted:.2g}")
    return title, head, task, *numbers, interval, *p_values, verdict(one)


def verdict(one: Comparison) -> str:
    """What is said of A against B, in a few words."""
    words = {
        "better": "A is better",
        "worse": "A is worse",
        "too small": "no difference that matters",
        "within seeds": "within two standard errors over seeds",
        "not tested": f"not tested: {one.reason}",
    }
    unknown_seeds = "; seeds unknown" if one.matters and one.seed_error is None else ""
    return words.get(one.verdict, one.verdict) + unknown_seeds


def _seeds(pair: Pair) -> Iterator[str]:
    for name, row in zip(_names(pair), (pair.first, pair.second), strict=True):
        yield f"{name}: seed{'s' * (len(row.runs) > 1)} {', '.join(run.seed for run in row.runs)}"


def _doubts(pair: Pair) -> Iterator[str]:
    from benchmark.report.tables.doubts import doubts

    rows = (pair.first, pair.second)
    named = tuple(replace(row, title=name) for name, row in zip(_names(pair), rows, strict=True))
    yield from map(str, doubts(replace(pair.block, rows=named, experiment=None)))


def _names(pair: Pair) -> list[str]:
    """What the two rows are called: as they were named, with the row's title where folders were."""
    rows = (pair.first, pair.second)
    return [
        head if head == row.cell else f"{head} {row.title}"
        for head, row in zip(pair.heads, rows, strict=True)
    ]


def _write(path: Path, compared: Compared) -> None:
    import pandas as pd

    frame = pd.DataFrame(_record(pair, one) for _, family in _families(compared) for pair, one in family)
    write_whole(path, lambda temporary: frame.map(csv_cell).to_csv(temporary, index=False))


def _record(pair: Pair, one: Comparison) -> dict[str, Any]:
    task, dataset, metric = one.key
    first, second = (row.scores[one.key].value for row in (pair.first, pair.second))
    test = one.test
    fields = ("ci_low", "ci_high", "p_value", "test", "n", "clusters")
    return {
        "suite": pair.block.suite, "backbone": pair.block.backbone,
        "a": pair.heads[0], "b": pair.heads[1], "a_method": pair.first.cell, "b_method": pair.second.cell,
        "task": task, "dataset": dataset, "metric": metric,
        "a_value": first, "b_value": second, "difference": first - second,
        **{name: None if test is None else getattr(test, name) for name in fields},
        "p_holm": one.p_adjusted, "seed_error": one.seed_error,
        "smallest_difference": one.smallest, "verdict": one.verdict, "note": one.reason,
    }  # fmt: skip
