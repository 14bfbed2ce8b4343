"""Adapt and evaluate methods; finished cells are reused, so the same command goes on after an interruption.

key=value words set anything else: recipe.lr=1e-3  loss=clip  recipe=authors  methods.NAME.KEY=3
tasks.zeroshot.bootstrap=500  corpus.limit=512
A table or figure of the paper: --config configs/experiments/table_5.yaml (several files: one run for all of them).
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Sequence
from typing import Any

from benchmark.cli._parser import ArgumentParser, given
from benchmark.config import RunConfig
from benchmark.console import Console, Reporter, duration
from benchmark.errors import BenchmarkError
from benchmark.plan import make_plan, plan_table
from benchmark.request import Request, load_request
from benchmark.runner import RUN_CELL, Summary, resolve, run_plan
from benchmark.store import Store

PREPARE_SUITE = "benchmark.cell:prepare_suite"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags; their values are checked with the YAML layers, so all problems are reported at once."""
    parser.add_list("--methods", "all, names or globs (default: all)")
    parser.add_list("--tasks", "all, names, or none to adapt only (default: all of the suite)")
    parser.add_list("--seeds", "random seeds (default: 0)")
    parser.add_list("--plugins", "Python files or modules with more methods, tasks, datasets or backbones")
    parser.add_argument(
        "--config", nargs="+", metavar="FILE", help="YAML file with any of these settings, or experiments"
    )
    for flag, meaning in (
        ("--suite", "name in configs/suites or FILE.yaml (default: phantom)"),
        ("--backbone", "backbone name (default: the suite's)"),
        ("--pretrained", "weights of the backbone: tag or path"),
        ("--data-root", "folder of prepared data sets (default: ~/.cache/medpeft-bench)"),
        ("--output-dir", "folder of the results (default: results)"),
        ("--epochs", "passes over the corpus"),
        ("--max-steps", "stop adaptation after this many steps"),
        ("--batch-size", "pairs per step"),
        ("--lr", "peak learning rate, of all methods"),
        ("--loss", "label_guided or clip"),
        ("--precision", "auto, fp32, bf16 or fp16"),
        ("--device", "auto, cpu, cuda or cuda:<i>"),
        ("--num-workers", "processes that load data, per cell"),
        ("--jobs", "cells side by side (default: one per GPU, else per core)"),
        ("--limit", "use only this many samples of every data set; such results are marked"),
        ("--baseline", "method that the others are compared with"),
    ):
        parser.add_argument(flag, help=meaning)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--overwrite", action="store_true", help="run finished cells again")
    parser.add_argument("--eval-only", action="store_true", help="evaluate existing adapters again")


def main(args: argparse.Namespace, console: Console, *, run_cell: str = RUN_CELL) -> int:
    """Plan, run what is missing, and report.

    Args:
        args: the parsed flags.
        console: where to print.
        run_cell: ``module:function`` that runs one cell.

    Returns:
        The exit code: 0 done, 1 some cell failed, 2 a plugin could not be imported (the others ran),
        130 stopped.
    """
    began = time.monotonic()
    request = load_request(given(args, "config"), args.overrides, args.config or ())
    for line in request.skipped:
        console.warn(f"not run: {line}")
    configs = _with_weights(request, console)
    if not configs:
        names = ", ".join(item.label for item in request.experiments)
        console.line(f"{names}: describes the datasets and needs no run; `report` writes it")
        return 0
    config, broken = configs[0], list(dict.fromkeys(line for one in configs for line in one.broken))
    store = Store(config.output_dir)
    for line in broken:
        console.error(line)
    plan = make_plan(configs, store)
    if config.dry_run:
        console.table(plan_table(plan))
        return 2 if broken else 0
    store.check_writable()
    signal.signal(signal.SIGTERM, _stop)
    summary = run_plan(
        plan, store, console=console, jobs=config.jobs, debug=config.debug, run_cell=run_cell,
        prepare=lambda reporter: _prepare(configs, reporter),
    )  # fmt: skip
    _finish(configs, store, console)
    _print_summary(summary, len(plan.cells), console, time.monotonic() - began)
    if summary.interrupted:
        console.warn("stopped. The same command goes on with the missing cells")
        return 130
    return max(1 if summary.failed else 0, 2 if broken else 0)


def _with_weights(request: Request, console: Console) -> list[RunConfig]:
    """Return the configurations that can run: a backbone that only some rows name may lack its weights.

    Raises:
        BenchmarkError: nothing is left.
    """
    from benchmark.backbones import check_backbone

    lacking: dict[str, BenchmarkError] = {}
    for name in sorted(request.named):
        try:
            check_backbone(name)
        except BenchmarkError as error:
            lacking[name] = error
            console.warn(f"not run: rows of backbone {name}: {error}")
    left = [config for config in request.configs if config.backbone not in lacking]
    if request.configs and not left:
        raise next(iter(lacking.values()))
    return left


def _prepare(configs: Sequence[RunConfig], reporter: Reporter) -> None:
    """Check every backbone and make the data of every suite, once each."""
    from benchmark.backbones import check_backbone

    for name, pretrained in dict.fromkeys((config.backbone, config.pretrained) for config in configs):
        check_backbone(name, pretrained=pretrained)
    suites: dict[str, RunConfig] = {}
    tasks: dict[str, dict[str, Any]] = {}
    for config in configs:  # experiments ask for different tasks of one suite
        suites.setdefault(config.suite_name, config)
        tasks.setdefault(config.suite_name, {}).update(config.task_options)
    for name, config in suites.items():
        resolve(PREPARE_SUITE)({**config.suite, "tasks": tasks[name]}, config.data_root, reporter)


def _finish(configs: Sequence[RunConfig], store: Store, console: Console) -> None:
    """Rebuild the summary files and print the table; none of this can lose the run."""
    config, suites = configs[0], {config.suite_name for config in configs}
    suite = config.suite_name if len(suites) == 1 else None
    for problem in store.rebuild_results_csv():
        console.warn(f"left out of results.csv: {problem}")
    try:
        from benchmark.report import read_report

        report = read_report(config.output_dir, suite=suite, baseline=config.baseline)
        report.write()
        console.table(report.console())
    except Exception as error:  # the results are safe in the store
        reason = str(error) if isinstance(error, BenchmarkError) else f"{type(error).__name__}: {error}"
        console.warn(f"no report ({reason}). The results are in {store.output_dir / 'results.csv'}")
        if config.debug:
            console.out.print_exception()


def _print_summary(summary: Summary, total: int, console: Console, seconds: float) -> None:
    for folder, error in summary.failed:
        console.error(f"{folder}: {error}")
    parts = [f"{summary.done} done", f"{summary.reused} reused"]
    parts += [f"{summary.busy} left to another process"] if summary.busy else []
    parts += [f"{len(summary.failed)} failed (the reasons are in each status.json)"] if summary.failed else []
    left = total - summary.done - summary.reused - summary.busy - len(summary.failed)
    parts += [f"{left} not finished"] if left else []
    console.line(f"{total} cells: {', '.join(parts)}, in {duration(seconds)}")


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
