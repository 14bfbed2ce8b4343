"""Runs cells on this machine: in this process, or in worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmark import machine
from benchmark.console import QueueReporter, Stop
from benchmark.machine import available_memory, find_devices, thread_variables, usable_cores
from benchmark.plan import CellSpec
from benchmark.run.engines.grid import Grid
from benchmark.run.execute import Outcome, execute_cell, fail_cell, standard
from benchmark.store.cells import Store

MEMORY_PER_WORKER = 0.8
"""GiB that a worker needs at least (libraries and a small backbone); bounds the default number of workers."""

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
"""Lets glibc keep what a step frees for the next step, in place of tens of thousands of page faults."""


def run(grid: Grid, jobs: int | None) -> None:
    """Run the cells that wait.

    Args:
        grid: the run.
        jobs: cells side by side; None: one per GPU, else one per core as far as memory goes; 1: in this process.

    Raises:
        ConfigError: the device does not exist.
    """
    devices = find_devices(grid.waiting[0].device)
    wanted = jobs or (len(devices) if devices[0] != "cpu" else usable_cores())
    # Threads follow from the request alone: a resumed run with fewer cells left computes the same numbers.
    threads = machine.threads_each(wanted)
    fitting = wanted if jobs else min(wanted, max(1, int(available_memory() / MEMORY_PER_WORKER)))
    if wanted == 1:
        _run_here(grid, devices[0], threads)
    else:
        count = min(fitting, len(grid.waiting))
        _Workers(grid, [devices[i % len(devices)] for i in range(count)], threads).run()


def _run_here(grid: Grid, device: str, threads: int) -> None:
    """Run all cells in this process, one after another."""
    machine.limit_threads(threads)
    grid.prepare()
    while grid.waiting and not grid.stopping():
        spec = replace(grid.waiting.pop(0), device=device)
        grid.board.cell_started(0, spec.label)
        reporter = grid.board.reporter(0, grid.stopping)
        outcome = execute_cell(spec, grid.store, reporter, grid.run_cell, overwrite=grid.overwrite)
        grid.finish(0, spec, outcome)


class _Workers:
    """One process per device entry; a process that dies is replaced."""

    def __init__(self, grid: Grid, devices: Sequence[str], threads: int) -> None:
        self.grid = grid
        settings = {"run_cell": grid.run_cell, "threads": threads, "overwrite": grid.overwrite}
        self.workers = [_Worker(grid.store, device, settings) for device in devices]

    def run(self) -> None:
        grid = self.grid
        try:
            grid.prepare()
            while grid.waiting or any(worker.spec for worker in self.workers):
                for slot, worker in enumerate(self.workers):
                    if grid.stopping():
                        worker.ask_to_stop()
                    elif worker.spec is None and grid.waiting:
                        spec = worker.give(grid.waiting.pop(0))
                        grid.board.cell_started(slot, spec.label)
                self._listen()
        finally:
            for worker in self.workers:
                worker.end()

    def _listen(self) -> None:
        wait([worker.connection for worker in self.workers if worker.spec], timeout=0.5)
        for slot, worker in enumerate(self.workers):
            for message in worker.messages():
                if isinstance(message, Outcome) and worker.spec is not None:
                    self.grid.finish(slot, worker.spec, message)
                    worker.spec = None
                elif not isinstance(message, Outcome):
                    self.grid.board.event(slot, message)
            if worker.dead():
                self._replace(slot, worker)

    def _replace(self, slot: int, worker: _Worker) -> None:
        """Fail the cell of a dead worker; `give` starts another in its place when cells are left."""
        spec, worker.spec = worker.spec, None
        if spec is not None:
            worker.process.join(timeout=5.0)
            error = f"the worker process died ({_exit_reason(worker.process.exitcode)})"
            self.grid.finish(
                slot, spec, fail_cell(spec, self.grid.store, error, overwrite=self.grid.overwrite)
            )


class _Worker:
    """A spawned process that runs one cell after another on one device."""

    def __init__(self, store: Store, device: str, settings: Mapping[str, Any]) -> None:
        self.store, self.device, self.settings = store, device, settings
        self.spec: CellSpec | None = None
        self.process: BaseProcess
        self.connection: Connection
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.store.output_dir, dict(self.settings))
        self.process = context.Process(target=worker_main, args=arguments, daemon=False)
        with _for_children(self.settings["threads"]):
            self.process.start()
        theirs.close()
        self.closed = self.asked = False

    def give(self, spec: CellSpec) -> CellSpec:
        if not self.process.is_alive():  # it died while idle, and no cell with it
            self.connection.close()
            self.start()
        self.spec = replace(spec, device=self.device)
        with contextlib.suppress(OSError):  # `dead` notices
            self.connection.send(self.spec)
        return self.spec

    def ask_to_stop(self) -> None:
        """Let the process end after the step of its cell; what arrives while a cell runs can only be this."""
        if not self.asked:
            self.asked = True
            with contextlib.suppress(OSError):
                self.connection.send(None)

    def messages(self) -> Iterator[Any]:
        try:
            while self.spec is not None and self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            self.closed = True

    def dead(self) -> bool:
        # Processes that the cell forked may hold the pipe open, so its silence alone does not tell.
        gone = self.closed or (not self.process.is_alive() and not self.connection.poll())
        return self.spec is not None and gone

    def end(self) -> None:
        """End the process: at once when it is running a cell, whose files are whole at any moment."""
        self.ask_to_stop()
        self.process.join(timeout=0.2 if self.spec else 3.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def worker_main(connection: Connection, output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Run the cells that arrive on a connection until None arrives; send progress and outcomes back."""
    machine.limit_threads(settings["threads"])
    store, stop = Store(output_dir), Stop()
    # A cluster's manager sends SIGTERM to parent and workers alike: it means the end of the step, not of the process.
    signal.signal(signal.SIGTERM, stop.ask)
    # Loaded while the parent prepares data; a failure is reported with the first cell.
    with contextlib.suppress(Exception):
        settings["run_cell"] or standard()

    def send(message: Any) -> None:
        try:
            connection.send(message)
        except OSError:
            os._exit(1)  # the parent is gone: stop at once, the same command goes on from the files

    def stopping() -> bool:
        return stop.asked or connection.poll()  # None has arrived, or the parent has gone

    while not stop.asked:
        try:
            spec = connection.recv()
        except (EOFError, OSError):
            return
        if spec is None:
            return
        reporter = QueueReporter(send, stopping)
        send(execute_cell(spec, store, reporter, settings["run_cell"], overwrite=settings["overwrite"]))


@contextlib.contextmanager
def _for_children(threads: int) -> Iterator[None]:
    """Start processes with few threads that leave Ctrl-C to their parent, already while they import."""
    before = dict(os.environ)
    os.environ.update(KEEP_MEMORY | before | thread_variables(threads))
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(before)


def _exit_reason(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"{name}, often too little memory" if name == "SIGKILL" else name
