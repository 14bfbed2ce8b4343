"""Adapt and evaluate methods; finished cells are reused, so the same command goes on after an interruption.

key=value words set anything else: recipe.lr=1e-3  loss=clip  recipe=authors  methods.NAME.KEY=3
tasks.zeroshot.bootstrap=500  corpus.limit=512
A table or figure of the paper: --config configs/experiments/table_5.yaml (several files: one run for all of them).
Several machines: --engine ray, or --dry-run --format sh, which prints one shell command per cell for a job array.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from benchmark.cli._parser import ArgumentParser, add_data_root, add_plugins, add_smallest_difference, given
from benchmark.cli._plan_tables import print_plan, recipe_table
from benchmark.cli._shell import cell_commands, with_seeds
from benchmark.config.experiments import Experiment
from benchmark.config.fewshot import PAIRS
from benchmark.config.request import Request, load_request
from benchmark.config.run_config import RunConfig
from benchmark.console import Console, Reporter, duration
from benchmark.errors import BenchmarkError, ConfigError, file_fault, unknown
from benchmark.machine import launched
from benchmark.plan import Plan, make_plan
from benchmark.run.engines.grid import Cluster, Summary
from benchmark.run.engines.start import run_plan
from benchmark.run.engines.torchrun import joined
from benchmark.store.cells import Store
from benchmark.world import ALONE, World

BEGINS = "planning ..."
NO_SETTINGS = ("config", "cell", "format")
"""Flags that are no settings of the run."""
PLAN_FORMATS = ("table", "sh")
SEEDS = "0,1,2"
"""What a run with one seed is advised to go on with."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags; their values are checked with the YAML layers, so all problems are reported at once."""
    parser.takes_settings = True
    parser.add_list("--methods", "all, names or globs (default: all)")
    parser.add_list("--tasks", "all, names, or none to adapt only (default: all of the suite)")
    parser.add_list("--seeds", "random seeds (default: 0)")
    add_plugins(parser, "methods, tasks, datasets or backbones")
    parser.add_argument(
        "--config", nargs="+", metavar="FILE", help="YAML file with any of these settings, or experiments"
    )
    parser.add_list(
        "--shots", "few-shot protocols: labelled images of a class (default: 1,2,4,8,16, else 16)"
    )
    parser.add_list(
        "--datasets", "few-shot protocols: datasets whose labels methods learn from (default: all)"
    )
    for flag, meaning in (
        ("--suite", "name in configs/suites or FILE.yaml (default: phantom)"),
        ("--backbone", "backbone name (default: the suite's)"),
        ("--pretrained", "weights of the backbone: tag or path"),
        ("--output-dir", "folder of the results (default: results)"),
        ("--protocol", "pairs, fewshot, base_to_new or cross_dataset (default: pairs): docs/fewshot.md"),
        ("--sampling", "few-shot protocols: standard or realistic (default: standard)"),
        ("--selection", "few-shot protocols: strict or coop (default: strict)"),
        ("--epochs", "passes over the corpus"),
        ("--max-steps", "stop adaptation after this many steps, and the training of heads"),
        ("--batch-size", "pairs per step"),
        ("--lr", "peak learning rate, of all methods"),
        ("--loss", "label_guided or clip"),
        ("--precision", "auto, fp32, bf16 or fp16"),
        ("--device", "auto, cpu, cuda or cuda:<i>"),
        ("--num-workers", "processes that load data, per cell"),
        ("--jobs", "cells side by side (default: one per GPU, else per core)"),
        ("--engine", "local, or ray: cells become tasks of a Ray cluster (default: local)"),
        (
            "--ray-address",
            "HOST:PORT of the cluster's head, or auto on one of its machines (default: a Ray of this machine)",
        ),
        ("--cpus-per-cell", "cores of a cell on Ray (default: 1)"),
        ("--gpus-per-cell", "GPUs of a cell on Ray, 0.25 for four on one (default: 1 where there are any)"),
        ("--limit", "use only this many samples of every data set; such results are marked"),
        ("--baseline", "method that the others are compared with"),
    ):
        parser.add_argument(flag, help=meaning)
    parser.add_list("--log", "also send finished cells to tensorboard, mlflow or wandb")
    add_data_root(parser)
    add_smallest_difference(parser)
    parser.add_argument(
        "--cell", action="append", metavar="METHOD/seed-N", help="run only this cell (can be repeated)"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="two steps and a few images of everything, to see that it works: results of a suite NAME-smoke",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--format", metavar="table|sh", help="of --dry-run; sh: a command per open cell (default: table)"
    )
    parser.add_argument("--overwrite", action="store_true", help="run finished cells again")
    parser.add_argument("--eval-only", action="store_true", help="evaluate existing adapters again")
    parser.add_argument("--hash-ids", action="store_true", help="store hashes of image and patient ids")
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="go on when test images are in the corpus or validation set",
    )


def main(args: argparse.Namespace, console: Console) -> int:
    """Plan, run what is missing, and report.

    Args:
        args: the parsed flags.
        console: where to print.

    Returns:
        The exit code: 0 done, 1 some cell failed, 2 a plugin could not be imported (the others ran),
        130 stopped.
    """
    with joined(console) as world:
        return _main(args, console, world)


def _main(args: argparse.Namespace, console: Console, world: World) -> int:
    began = time.monotonic()
    request = load_request(given(args, *NO_SETTINGS), args.overrides, args.config or ())
    for line in request.skipped:
        console.warn(f"not run: {line}")
    configs = with_weights(request, console)
    if not configs:
        names = ", ".join(item.label for item in request.experiments)
        console.line(f"{names}: describes the datasets and needs no run; `report` writes it")
        return 0
    config, broken = configs[0], list(dict.fromkeys(line for one in configs for line in one.broken))
    cluster = _cluster(config)
    if args.format and not config.dry_run:
        raise ConfigError("--format: says how --dry-run prints the plan. Add --dry-run")
    store, only = Store(config.output_dir), tuple(args.cell or ())
    for line in broken:
        console.error(line)
    elsewhere = config.engine == "ray" or args.format == "sh"
    plan = planned(configs, store, console, world, only=only, elsewhere=elsewhere)
    if config.dry_run:
        _print_plan(plan, configs, args, console)
        return 2 if broken else 0
    if not plan.open:
        console.line(f"all {len(plan.cells)} cells are finished: their results are reused, nothing runs")
    summary = carried_out(plan, store, config, console, world, cluster)
    _print_summary(summary, len(plan.cells), console, time.monotonic() - began)
    written = not world.is_first or _finish(
        configs, store, summary, console, words=None if only else args.words, experiments=request.experiments
    )
    if summary.interrupted:
        console.warn(
            "stopped: finished cells are kept, and what the others had saved. The same command goes on from there"
        )
        return 130
    return max(1 if summary.failed or not written else 0, 2 if broken else 0)


def planned(
    configs: Sequence[RunConfig],
    store: Store,
    console: Console,
    world: World = ALONE,
    *,
    only: Sequence[str] = (),
    elsewhere: bool = False,
) -> Plan:
    """Make the plan of configurations, and say what in it is not as the user may expect.

    Args:
        configs: of one request.
        store: where finished cells are.
        console: where notes go.
        world: processes that were started together.
        only: names of cells.
        elsewhere: whether cells run on other machines.

    Raises:
        BenchmarkError: finished cells are in the way, or would be made of something else now.
    """
    for line in dict.fromkeys(line for one in configs for line in one.notes):
        console.warn(line)
    plan = world.from_first(lambda: make_plan(configs, store, only))
    for line in plan.notes:
        console.warn(line)
    make = not configs[0].dry_run
    world.from_first(lambda: _check_identity(plan, store, console, elsewhere, make=make))
    return plan


def carried_out(
    plan: Plan,
    store: Store,
    config: RunConfig,
    console: Console,
    world: World = ALONE,
    cluster: Cluster | None = None,
) -> Summary:
    """Run the open cells of a plan, and return how they ended.

    Raises:
        BenchmarkError: the output folder cannot be written, or data or weights cannot be had.
    """
    finished = None
    if config.log and world.is_first:
        from benchmark.run.loggers import log_cell, trackers

        to = trackers(config.log, store.output_dir)
        finished = lambda spec: log_cell(spec, store, to)  # noqa: E731
    store.check_writable()
    store.remove_leftovers()
    _show_beside(plan, store)
    return run_plan(
        plan, store, console=console, jobs=config.jobs, debug=config.debug, cluster=cluster,
        prepare=lambda reporter: _prepare(plan, reporter), world=world, finished=finished,
    )  # fmt: skip


def _check_identity(plan: Plan, store: Store, console: Console, elsewhere: bool, *, make: bool) -> None:
    """Refuse to reuse what would be made of something else now.

    Args:
        plan: of the run.
        store: where its cells are.
        console: where progress is shown.
        elsewhere: whether cells run on other machines.
        make: make the data that have to be made before they can be compared.

    Raises:
        BenchmarkError: in one line what differs, or why it cannot be told.
    """
    if not any(store.cell(cell.spec.folder).exists("config.yaml") for cell in plan.cells):
        return
    from benchmark.run.identity import check

    if check(plan, store, elsewhere=elsewhere):
        return
    if not make:
        console.warn(
            "not everything could be compared with what finished runs were made of: a run makes it first"
        )
        return
    with console.phase("reading data") as reporter:
        check(plan, store, reporter=reporter, elsewhere=elsewhere)


def _show_beside(plan: Plan, store: Store) -> None:
    """Let the table of all methods show finished variants that are asked for now, whatever they were made for."""
    for cell in plan.cells:
        folder = store.cell(cell.spec.folder)
        if cell.state == "done" and cell.spec.beside and not (config := folder.read_config()).get("beside"):
            folder.write_config(config | {"beside": True})


def _cluster(config: RunConfig) -> Cluster | None:
    """Return the cluster that is asked for; None for this machine."""
    cluster = Cluster(config.ray_address, config.cpus_per_cell, config.gpus_per_cell)
    if config.engine == "ray":
        if launched():
            raise ConfigError("--engine ray: Ray places its cells itself. Leave out --engine, or torchrun")
        return cluster
    if cluster != Cluster():
        raise ConfigError("--ray-address, --cpus-per-cell, --gpus-per-cell: only with --engine ray")
    return None


def _print_plan(plan: Plan, configs: Sequence[RunConfig], args: argparse.Namespace, console: Console) -> None:
    style = args.format or PLAN_FORMATS[0]
    if style not in PLAN_FORMATS:
        raise ConfigError(f"--format: {unknown('format', style, PLAN_FORMATS)}")
    if style == "table":
        print_plan(plan, console)
        console.table(recipe_table(plan, configs))
        return
    for command in cell_commands(plan, args.words):
        console.line(command)


def with_weights(request: Request, console: Console) -> list[RunConfig]:
    """Return the configurations that can run: a backbone that only some rows name may lack its weights.

    Raises:
        BenchmarkError: nothing is left.
    """
    from benchmark.backbones import check_backbone

    lacking: dict[str, BenchmarkError] = {}
    named = {one.backbone: one.pretrained for one in request.configs if one.backbone in request.named}
    for name, pretrained in sorted(named.items()):
        try:
            check_backbone(name, pretrained=pretrained)
        except BenchmarkError as error:
            lacking[name] = error
            console.warn(f"not run: rows of backbone {name}: {error}")
    left = [config for config in request.configs if config.backbone not in lacking]
    if request.configs and not left:
        raise next(iter(lacking.values()))
    return left


def _prepare(plan: Plan, reporter: Reporter) -> None:
    """Prepare the data of the open cells."""
    from benchmark.run.prepare_suite import prepare_cells  # loads pandas and the backbones

    trained = {cell.spec.folder for cell in plan.open if cell.state == "todo"}
    prepare_cells([cell.spec for cell in plan.open], reporter, trained)


def _finish(
    configs: Sequence[RunConfig],
    store: Store,
    summary: Summary,
    console: Console,
    *,
    words: Sequence[str] | None,
    experiments: Sequence[Experiment],
) -> bool:
    """Rebuild the summary file, and write the report of a whole run; return whether the file could be written.

    ``words`` are those of the command; None: it named single cells, so there is no report.
    """
    try:
        problems = store.rebuild_results_csv()
    except OSError as error:
        console.error(file_fault(error))
        return False
    for problem in problems:
        console.warn(f"left out of results.csv: {problem}")
    if words is None:
        folder = configs[0].output_dir
        console.line(f"no report with --cell: `report --output-dir {folder}` writes it from all cells")
    elif not summary.interrupted:
        _report(configs, store, console, words, experiments)
    return True


def _report(
    configs: Sequence[RunConfig],
    store: Store,
    console: Console,
    words: Sequence[str],
    experiments: Sequence[Experiment],
) -> None:
    """Write the report and print what it answers; none of this can lose the run."""
    config, suites = configs[0], {config.suite_name for config in configs}
    suite = config.suite_name if len(suites) == 1 else None
    try:
        from benchmark.report.report import FORMATS, read_report

        with store.reporting():
            report = read_report(
                config.output_dir,
                suite=suite,
                baseline=config.baseline,
                smallest=config.smallest_difference / 100,
                more=experiments,
            )
            formats = ("csv", "md") if config.smoke else FORMATS  # a smoke run is too short for pictures
            with console.phase("writing report") as reporter:
                report.write(formats, reporter)
        again = config.smoke or report.ran_once()
        seeds = SEEDS if config.protocol == PAIRS else ""
        console.table(report.console(with_seeds(words, seeds) if again else ""))
    except Exception as error:  # the results are safe in the store
        reason = str(error) if isinstance(error, BenchmarkError) else f"{type(error).__name__}: {error}"
        reason = file_fault(error) if isinstance(error, OSError) else reason
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
