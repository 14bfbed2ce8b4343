"""Run a plan with the engine that fits: worker processes, Ray, or the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable

from benchmark.console import Console, Reporter, Stop
from benchmark.errors import ConfigError
from benchmark.plan import CellSpec, Plan
from benchmark.run.engines import local, torchrun
from benchmark.run.engines.grid import Cluster, Grid, Summary
from benchmark.run.execute import RunCell
from benchmark.store.cells import Store
from benchmark.world import ALONE, World


def run_plan(
    plan: Plan,
    store: Store,
    *,
    console: Console,
    jobs: int | None = None,
    debug: bool = False,
    prepare: Callable[[Reporter], None] | None = None,
    run_cell: RunCell | None = None,
    cluster: Cluster | None = None,
    world: World = ALONE,
    finished: Callable[[CellSpec], None] | None = None,
) -> Summary:
    """Run the open cells of a plan, longest first.

    Args:
        plan: what to run.
        store: where the cells are kept.
        console: where progress is shown.
        jobs: cells side by side; None: one per GPU, else one per core as far as memory goes; 1: in this
            process. On a cluster None: as many as it has room for.
        debug: show tracebacks of failed cells.
        prepare: makes what all cells share (data); called once, while the workers start.
        run_cell: runs one cell; None: :func:`benchmark.run.cell.run_cell`.
        cluster: where cells run; None: on this machine.
        world: processes that were started together, and work on each cell together.
        finished: told each cell that has been done, in this process.

    Returns:
        The counts. After Ctrl-C (running cells end after their step, after a second one at once)
        ``interrupted`` is set.

    Raises:
        ConfigError: the device does not exist, or the cluster cannot be used.
        BenchmarkError: ``prepare`` failed.
    """
    summary = Summary(reused=len(plan.cells) - len(plan.open))
    specs = [cell.spec for cell in sorted(plan.open, key=lambda cell: -cell.cost)]
    if not specs:
        return summary
    stop = Stop()
    with console.board(len(specs)) as board, stop.listening():
        board.weigh([(cell.spec.label, cell.cost) for cell in plan.open])
        grid = Grid(specs, store, board, summary, run_cell, plan.overwrite, debug, prepare, stop, finished)
        try:
            if world.size > 1:
                torchrun.run(grid, jobs, world)
            elif cluster is None:
                local.run(grid, jobs)
            else:
                ray_engine()(grid, cluster, jobs)
        except KeyboardInterrupt:
            summary.interrupted = True
    return summary


def ray_engine() -> Callable[..., None]:
    """Return the ``run`` of the Ray engine.

    Raises:
        ConfigError: Ray is not installed.
    """
    # Ray copies messages of its own processes into our output, logs of dead ones among them; and it reports its use.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"[\s\S]*")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from benchmark.run.engines.ray import run
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError(
            '--engine ray: Ray is not installed. pip install -e ".[cluster]" brings it'
        ) from None
    return run
