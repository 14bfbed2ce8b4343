"""Write the tables, figures and HTML page of an output folder, from its stored results."""

from __future__ import annotations

import argparse

from benchmark.cli._parser import ArgumentParser, add_smallest_difference, smallest_difference
from benchmark.config.experiments import read_experiment
from benchmark.console import Console
from benchmark.errors import ConfigError, StoreError, unknown
from benchmark.files import user_path
from benchmark.registry import scan_plugins
from benchmark.store.cells import Store

FORMATS = ("md", "tex", "csv", "html")

BEGINS = "reading results ..."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--output-dir", default="results", help="folder of the results (default: results)")
    parser.add_argument("--suite", help="only this suite (default: all)")
    parser.add_list(
        "--tables", "all, or ids such as 1,5,A3 (default: 1 and every table whose runs are all there)"
    )
    parser.add_argument(
        "--baseline",
        help="method that the others are tested against (default: the row in which nothing is trained)",
    )
    add_smallest_difference(parser)
    parser.add_list(
        "--config", "files of experiments whose tables and curves are shown beside those of configs/"
    )
    parser.add_list("--plugins", "Python files or modules with more figures")
    parser.add_list("--formats", f"formats to write: {', '.join(FORMATS)} (default: all)")


def main(args: argparse.Namespace, console: Console) -> int:
    """Write the report.

    Returns:
        0, or 2 when a result file could not be read (the report holds the others).

    Raises:
        ConfigError: unknown format, table or baseline, an impossible number of points, an invalid experiment file, or a
            missing plugin.
        StoreError: there are no results.
    """
    formats = tuple(args.formats or FORMATS)
    problems = [unknown("format", name, FORMATS) for name in formats if name not in FORMATS]
    problems += scan_plugins(args.plugins or [])
    more = [read_experiment(user_path(file), problems) for file in args.config or []]
    if problems:
        raise ConfigError(problems)
    smallest = smallest_difference(args)
    output_dir = user_path(args.output_dir)
    store = Store(output_dir)
    if next(store.cells(), None) is None:
        raise StoreError(f"--output-dir: no results in '{output_dir}'. Run the benchmark first")
    store.check_writable()
    store.rebuild_results_csv()
    unreadable = store.damaged()
    for problem in unreadable:
        console.error(problem)
    with store.reporting(), console.phase("writing report") as reporter:
        from benchmark.report.report import read_report

        report = read_report(
            output_dir,
            suite=args.suite,
            tables=tuple(args.tables) if args.tables else None,
            baseline=args.baseline,
            smallest=smallest,
            more=[one for one in more if one],
        )
        written = report.write(formats, reporter)
    for path in written:
        console.line(str(path))
    console.table(report.console())
    return 2 if unreadable else 0
