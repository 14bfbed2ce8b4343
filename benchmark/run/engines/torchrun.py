"""Runs cells one after another in the processes that torchrun started; all work on each cell together."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from benchmark import machine
from benchmark.console import Console, NullReporter, Reporter, Stopped
from benchmark.errors import ConfigError
from benchmark.machine import find_devices
from benchmark.plan import CellSpec
from benchmark.registry import load_plugins
from benchmark.run.engines.grid import Grid
from benchmark.run.execute import Outcome, execute_cell, standard
from benchmark.store.cells import CellFolder
from benchmark.world import ALONE, World


@contextmanager
def joined(console: Console) -> Iterator[World]:
    """Join the other processes for the length of the block; whatever ends it in one of them ends it in all.

    Args:
        console: says nothing in the block, but in the first process.
    """
    if not machine.launched():
        yield ALONE
        return
    from benchmark.run.training.distributed import ProcessGroup

    world = ProcessGroup()
    console.out.quiet = console.err.quiet = not world.is_first
    try:
        yield world
        world.wait()
    except Exception as error:
        world.tell(error)
        raise
    finally:
        world.leave()


def run(grid: Grid, jobs: int | None, world: World) -> None:
    """Run the cells that wait.

    Args:
        grid: the run, the same in all processes; the first one locks the cells and says how far they are.
        jobs: cells side by side, one or None.
        world: the processes.

    Raises:
        ConfigError: the request does not go with several processes.
        LostError: a process is gone.
    """
    _check(grid.waiting, world, jobs)
    device = _device(grid.waiting[0].device)
    machine.limit_threads(machine.threads_each(machine.on_this_machine()[1]))
    world.from_first(grid.prepare)
    while grid.waiting and not world.from_first(grid.stopping):
        spec = replace(grid.waiting.pop(0), device=device)
        grid.board.cell_started(0, spec.label)
        outcome = (_lead if world.is_first else _follow)(grid, spec, world)
        grid.finish(0, spec, outcome)


def _lead(grid: Grid, spec: CellSpec, world: World) -> Outcome:
    """Run a cell as the process that holds its lock and writes its status."""
    begun = False

    def run(spec: CellSpec, folder: CellFolder, reporter: Reporter) -> None:
        nonlocal begun
        begun = True
        world.from_first(lambda: True)
        _work(grid, spec, folder, reporter, world)

    reporter = grid.board.reporter(0, grid.stopping)
    outcome = execute_cell(spec, grid.store, reporter, run, overwrite=grid.overwrite)
    if not begun:  # it is finished, held by another run, or could not begin
        world.from_first(lambda: False)
    return world.from_first(lambda: outcome)


def _follow(grid: Grid, spec: CellSpec, world: World) -> Outcome:
    """Run a cell as one of the others, when the first process says so; what comes of it the first one tells."""
    if world.from_first(lambda: False):
        with suppress(Exception, Stopped):
            _work(grid, spec, grid.store.cell(spec.folder), NullReporter(), world)
    told: Outcome = world.from_first(lambda: Outcome("failed"))
    return told


def _work(grid: Grid, spec: CellSpec, folder: CellFolder, reporter: Reporter, world: World) -> None:
    try:
        load_plugins(spec.plugins)
        (grid.run_cell or standard())(spec, folder, reporter, world)
        world.wait()  # one may still fail when others have ended
    except (Exception, SystemExit, Stopped) as error:
        if grid.debug and not world.is_first:
            traceback.print_exc()
        world.tell(error)
        raise


def _check(specs: Sequence[CellSpec], world: World, jobs: int | None) -> None:
    problems = []
    if jobs not in (None, 1):
        problems.append(
            "--jobs: torchrun's processes work on one cell together. Leave out --jobs, or torchrun"
        )
    for size in sorted({spec.recipe.batch_size for spec in specs}):
        if size % world.size:
            problems.append(
                f"--batch-size {size} is the batch of all {world.size} processes together and must be a multiple "
                f"of {world.size}"
            )
    if problems:
        raise ConfigError(problems)


def _device(wanted: str) -> str:
    """Return the device of this process: a GPU of its own, or the CPU.

    Raises:
        ConfigError: one GPU is asked for by number, or there are fewer than processes.
    """
    devices = find_devices(wanted)
    number, count = machine.on_this_machine()
    if devices == ["cpu"]:
        return "cpu"
    if len(devices) < count:
        raise ConfigError(
            f"--device {wanted}: torchrun started {count} processes here, each needs a GPU of its own, and there "
            f"{'is' if len(devices) == 1 else 'are'} {len(devices)}. Lower --nproc_per_node, or use --device cpu"
        )
    return devices[number]
